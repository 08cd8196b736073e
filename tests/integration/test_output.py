"""`-o FILE` of every verb that has it, and the question before something is dropped: the real commands."""

import asyncio
import os
import pty
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.output import destination_of
from tasks.errors import ConfigError
from tests.support.forks import Forks
from tests.support.stored import announced, done, places
from workers.local import state_file
from workers.results.database.manager import AsyncDatabaseManager


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state directory with a finished job."""

    async def fill() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as manager:
            towns = places(200)
            await manager.apply([*announced(*towns), *(done(town) for town in towns)])

    asyncio.run(fill())
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "THEMES_STATE_DIR": str(folder), "THEMES_REDIS__ENABLED": "false"}


def cold(folder: Path, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `themes` as a user does, with descriptors or bounds of its own."""
    command = [sys.executable, "-m", "scripts.main", *map(str, arguments)]
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(command, env=environment(folder), text=True, timeout=170, check=False, **given)


Themes = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def themes(forks: Forks) -> Themes:
    """Runs `themes` over a state directory."""
    return lambda folder, *arguments: forks.run(*map(str, arguments), env=environment(folder), stdin=None, timeout=170)


VERBS: dict[str, Callable[[Path], list[object]]] = {
    "results": lambda _: ["results", "j", "--format", "csv"],
    "report": lambda _: ["report", "j"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_existing_file_is_refused_in_one_line_and_replaced_with_force(
    verb: str, folder: Path, themes: Themes
) -> None:
    arguments, out = VERBS[verb](folder), folder / "out"
    out.write_text("of another day")
    said = themes(folder, *arguments, "-o", out)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1] == (
        f"themes: {out}: the file exists; name another with -o, or replace it with --force"
    )
    assert out.read_text() == "of another day"
    assert themes(folder, *arguments, "-o", out, "--force").returncode == 0
    assert out.read_text() != "of another day"
    assert sorted(one.name for one in folder.iterdir() if "out" in one.name) == ["out"]
    assert themes(folder, *arguments, "-o", folder / "new").returncode == 0
    assert (folder / "new").read_text().splitlines()[:1] == out.read_text().splitlines()[:1]


def test_what_cannot_be_written_to_its_end_leaves_the_old_file(folder: Path) -> None:
    out = folder / "out.jsonl"
    out.write_text("of another day")

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    said = cold(folder, "results", "j", "--format", "jsonl", "-o", out, "--force", preexec_fn=little_room)
    assert (said.returncode, "cannot be written (File too large)" in said.stderr) == (2, True)
    assert out.read_text() == "of another day"
    assert [one.name for one in folder.iterdir() if "out" in one.name] == ["out.jsonl"]


def test_a_file_that_another_has_written_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="the file exists"), destination_of(str(out), force=False) as file:  # noqa: PT012 - refused at its end
        file.write("ours")
        out.write_text("theirs")
    assert out.read_text() == "theirs"
    with destination_of(str(out), force=True) as file:
        file.write("ours")
        out.write_text("theirs, again")
    assert out.read_text() == "ours"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(ConfigError, match="the file exists"), destination_of(str(tmp_path / "link"), force=False):
        pass
    with destination_of(str(tmp_path / "link"), force=True, binary=True) as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_devices_pipes_and_standard_output_are_written_to_directly(folder: Path, themes: Themes) -> None:
    export = ["results", "j", "--format", "csv", "-o"]
    expected = themes(folder, *export[:-1]).stdout
    assert themes(folder, *export, "/dev/null").returncode == 0
    assert themes(folder, *export, "/dev/stdout").stdout == expected
    # Redirected to a file, /dev/stdout is that file.
    with (folder / "all.csv").open("a") as file:
        file.write("before\n")
        file.flush()
        assert cold(folder, *export, "/dev/stdout", stdout=file).returncode == 0
    assert (folder / "all.csv").read_text().splitlines() == ["before", *expected.splitlines()]
    os.mkfifo(folder / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((folder / "pipe").read_text()), daemon=True)
    reader.start()
    assert themes(folder, *export, folder / "pipe").returncode == 0
    reader.join(60)
    assert read[0].splitlines() == expected.splitlines()
    assert (folder / "pipe").is_fifo()


# --- cache clear --------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A state directory with two cached completions."""

    async def fill() -> None:
        with state_file.StateFile(tmp_path) as file:
            await file.write({"a": b"x" * 2**20, "b": b"x" * 2**19}, ttl_ms=600_000)

    asyncio.run(fill())
    return tmp_path


def _kept(folder: Path) -> int:
    with sqlite3.connect(folder / state_file.NAME) as file:
        (number,) = file.execute("SELECT count(*) FROM completions").fetchone()
    file.close()
    return int(number)


def _answering(folder: Path, answer: bytes) -> tuple[int, str]:
    """`cache clear` on a terminal where somebody types; its exit code, and what it shows."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "scripts.main", "cache", "clear"]
    with subprocess.Popen(command, env=environment(folder), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 170
        while b"[y/N]" not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(ours, 1024)
        os.write(ours, answer)
        code = process.wait(170)
        while chunk := _rest(ours):
            shown += chunk
    os.close(ours)
    return code, shown.decode()


def _rest(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1024)
    except OSError:  # its other end is closed
        return b""


def test_cache_clear_asks_on_a_terminal_and_says_what_goes(cached: Path) -> None:
    code, shown = _answering(cached, b"n\n")
    assert "This drops 2 completions, 1.5 MiB as stored, which were paid for. Go on? [y/N]" in shown
    assert (code, _kept(cached)) == (1, 2)
    code, shown = _answering(cached, b"y\n")
    assert (code, _kept(cached)) == (0, 0)
    assert "dropped 2 completions" in shown


def test_cache_clear_needs_yes_where_nobody_can_be_asked(cached: Path, themes: Themes) -> None:
    said = themes(cached, "cache", "clear")
    assert (said.returncode, _kept(cached)) == (2, 2)
    assert "2 completions, 1.5 MiB as stored" in said.stderr
    assert "add --yes" in said.stderr
    said = themes(cached, "cache", "clear", "--yes")
    assert (said.returncode, _kept(cached)) == (0, 0)
