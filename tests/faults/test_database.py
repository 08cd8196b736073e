"""A database that is locked by another program, and a disk that is full."""

import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.books import trial
from tests.faults.stack import Stack, until
from tests.support.forks import Forks


@contextlib.contextmanager
def _nothing_is_written(stack: Stack) -> Iterator[None]:
    """The fault is one: no row is added within the body."""
    before = stack.rows()
    yield
    assert stack.rows() == before


@pytest.mark.faults
def test_a_database_locked_by_somebody_else(stack: Stack, seed: int) -> None:
    with trial(stack, "database locked", seed) as job:
        job.reach()
        with stack.database() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with _nothing_is_written(stack):
                time.sleep(job.random.uniform(1, 3))
            connection.rollback()
    job.judge()


@pytest.mark.soak
def test_files_that_may_not_grow(stack: Stack, seed: int) -> None:
    """RLIMIT_FSIZE on the living consumer: every write beyond it fails, as on a broken or overfull disk."""
    with trial(stack, "files may not grow", seed) as job:
        job.reach()
        consumer = stack.processes["consumer"].pid
        before = resource.prlimit(consumer, resource.RLIMIT_FSIZE)
        resource.prlimit(consumer, resource.RLIMIT_FSIZE, (4096, before[1]))
        time.sleep(0.5)
        with _nothing_is_written(stack):
            time.sleep(job.random.uniform(1, 4))
        resource.prlimit(consumer, resource.RLIMIT_FSIZE, before)
    job.judge()


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system; test_files_that_may_not_grow does without")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def cramped(small_disk: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Stack]:
    """A stack whose database is on the small disk."""
    folder = tmp_path_factory.mktemp("cramped") / "state"
    folder.mkdir()
    (folder / "themes.db").symlink_to(small_disk / "themes.db")
    url = f"sqlite+aiosqlite:///{small_disk / 'themes.db'}"
    with Stack(folder, forks, settings={"DATABASE_URL": url}) as made:
        yield made


@pytest.mark.soak
def test_a_full_disk_and_room_again(cramped: Stack, small_disk: Path, seed: int) -> None:
    filler = small_disk / "filler"
    try:
        with trial(cramped, "disk full", seed, count=600) as job:
            job.reach(0.1, 0.3)
            refused = _refusals(cramped)
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
                while True:
                    out.write(b"\0" * 4096)
            # What room the files have inside is used first.
            until("the consumer to find no room", lambda: _refusals(cramped) > refused)
            with _nothing_is_written(cramped):
                time.sleep(job.random.uniform(1, 4))
            filler.unlink()
        job.judge()
    finally:
        filler.unlink(missing_ok=True)
        _empty(cramped)


def _refusals(stack: Stack) -> int:
    """Times that the consumer has found the database unable to take a batch."""
    return (stack.folder / "logs" / "consumer.log").read_text("utf-8", "replace").count("Nothing is lost; trying again")


def _empty(stack: Stack) -> None:
    """Leave files that must grow for the next job."""
    with stack.database() as connection:
        connection.execute("DELETE FROM jobs")
        connection.commit()
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
