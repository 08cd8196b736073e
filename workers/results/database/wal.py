"""SQLite's write-ahead log: copied into the file beside the writer, and watched for readers that prevent it.

While a read transaction is open, nothing that was written since is copied: the log grows with every commit, the disk
fills, and every read searches a longer log.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

log = logging.getLogger("themes.database")

#: Bytes of write-ahead log from which it is copied into the file, beside the writer (`WriteAheadLog.tidy`).
WAL_TIDY_BYTES: Final = 16 * 1024 * 1024
#: Bytes of write-ahead log from which a reader that holds it is named: it has missed two copies.
WAL_HELD_BYTES: Final = 2 * WAL_TIDY_BYTES
#: Seconds between two looks whether the reader has gone.
HELD_LOOK_SECONDS: Final = 5.0
#: SQLite stores a header with each page in the log.
FRAME_HEADER_BYTES: Final = 24
#: Bytes of the `-shm` file that readers lock while their transaction is open ("WAL-Index File Format" of SQLite).
READ_LOCKS: Final = range(123, 128)
LOCKS: Final = Path("/proc/locks")


def checkpoint(connection: sqlite3.Connection) -> int:
    """Copy what can be copied of the log into the file, without waiting; returns the bytes that a reader holds back."""
    _, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    frame_bytes = page_bytes + FRAME_HEADER_BYTES
    # -1 where the file has no write-ahead log.
    return int(max(0, frames - copied) * frame_bytes)


def size_bytes(path: Path) -> int:
    """Size of the log's file; 0 where none was made yet, or the last connection has taken it along."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0  # as documented


def readers(path: Path) -> list[str]:
    """The processes with an open read transaction, as `PROGRAM (process PID)`; empty where the system does not tell."""
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        lines = LOCKS.read_text("ascii").splitlines()
    except (OSError, UnicodeError):
        return []  # as documented
    return [f"{_program(pid)} (process {pid})" for pid in dict.fromkeys(_readers(lines, inode))]


def _readers(lines: list[str], inode: int) -> list[int]:
    """Process ids out of `/proc/locks`: `4: POSIX  ADVISORY  READ 31647 fe:00:2146466 124 124`."""
    found = []
    for line in lines:
        fields = line.split()
        # A request that waits has an arrow behind its number.
        if len(fields) != 8 or fields[1] != "POSIX" or fields[5].rpartition(":")[2] != str(inode):  # noqa: PLR2004
            continue
        if int(fields[6]) in READ_LOCKS and int(fields[4]) > 0:  # 0: a process of another container
            found.append(int(fields[4]))
    return found


def _program(pid: int) -> str:
    """The program's name alone: its arguments may hold a password."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "a program"  # it has just ended, or is another user's


class WriteAheadLog:
    """The log of the file at `path`, for the process that writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copying: asyncio.Task[int | None] | None = None
        self._copy_from_bytes = WAL_TIDY_BYTES
        self._is_held = False
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"<WriteAheadLog bytes={size_bytes(self._path)} held={self._is_held}>"

    async def tidy(self) -> float:
        """Between two transactions: see to the log, hardly ever making the writer wait; returns seconds.

        The bulk is copied into the file by a connection of its own while the writer goes on. What was written in the
        meantime is little: that is copied here, so that nothing is left and the next commit begins the log anew.
        (A checkpoint beside a writer that never rests would never find it empty.)
        """
        if self._copying is None:
            is_due = self._is_held and time.monotonic() >= self._look_at
            if is_due or size_bytes(self._path) >= self._copy_from_bytes:
                self._copying = asyncio.create_task(asyncio.to_thread(_copy, self._path), name="WAL checkpoint")
            return 0.0
        if not self._copying.done():
            return 0.0
        began = time.perf_counter()
        await self._copying
        self._copying = None
        found = await asyncio.to_thread(_copy, self._path)
        # A log that a reader still needs stays as large as it is: try again when it has grown as much again.
        size = size_bytes(self._path)
        self._copy_from_bytes = WAL_TIDY_BYTES if size < WAL_HELD_BYTES else size + WAL_TIDY_BYTES
        if found is not None:
            await self._judge(found, size)
        return time.perf_counter() - began

    async def _judge(self, held_bytes: int, size: int) -> None:
        """Log once that a reader holds the log, and once that it no longer does."""
        self._look_at = time.monotonic() + HELD_LOOK_SECONDS
        if held_bytes and size >= WAL_HELD_BYTES and not self._is_held:
            self._is_held = True
            log.warning(
                "action=wal_held bytes=%d %s: its write-ahead log is %s and grows: %s",
                size, self._path, mebibytes(size), format_held(await asyncio.to_thread(readers, self._path)),
            )  # fmt: skip
        elif not held_bytes and self._is_held:
            self._is_held = False
            log.info("action=wal_released %s: its write-ahead log is copied into the file again", self._path)

    async def close(self) -> None:
        if self._copying is not None:
            await self._copying
            self._copying = None


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def format_held(found: list[str]) -> str:
    who = ", ".join(found) or "another program"
    effect = f"a read transaction that {who} has left open keeps it on the disk and slows reads down"
    return f"{effect}; end it, or close that program"


def _copy(path: Path) -> int | None:
    """A checkpoint by a connection of its own; None where it was missed."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as connection:
            return checkpoint(connection)
    except sqlite3.Error as bad:
        # The log stays; the writer meets a real fault by itself, and then it is told.
        log.debug("action=checkpoint_missed %s: %s", path, bad)
        return None
