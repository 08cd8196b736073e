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


def _refused(stack: Stack) -> int:
    """Batches that the consumer could not write because the disk was full."""
    return (stack.folder / "logs" / "consumer.log").read_bytes().count(b"disk is full")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of a few MiB."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system; test_files_that_may_not_grow does without")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def cramped(small_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose database is on the small disk."""
    folder = tmp_path_factory.mktemp("cramped") / "state"
    folder.mkdir()
    (folder / "themes.db").symlink_to(small_disk / "themes.db")
    url = f"sqlite+aiosqlite:///{small_disk / 'themes.db'}"
    with Stack(folder, settings={"DATABASE_URL": url}) as made:
        yield made


@pytest.mark.soak
def test_a_full_disk_and_room_again(cramped: Stack, small_disk: Path, seed: int) -> None:
    with trial(cramped, "disk full", seed) as job:
        job.reach()
        filler, refused = small_disk / "filler", _refused(cramped)
        with cramped.database() as connection:
            # What the write-ahead log has of the disk it could use again.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
            while True:
                out.write(b"\0" * 4096)
        until("a write to be refused", lambda: _refused(cramped) > refused, 20)
        time.sleep(job.random.uniform(0, 3))
        filler.unlink()
    job.judge()
    with cramped.database() as connection:
        connection.execute("DELETE FROM jobs")
        connection.commit()
