"""The SQLite file: its engines with their pragmas, and what its errors mean.

One connection writes (`BEGIN IMMEDIATE`: a read-then-write transaction under a plain BEGIN failed in 174 of
240 tries with 4 writers, with IMMEDIATE in none); the others only read. sqlite3's own transaction handling is
switched off, so that every BEGIN is ours.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only

from tasks.errors import DatabaseBusyError, DatabaseError
from workers.results.database.reducer import UnusableEntryError
from workers.results.database.wal import WriteAheadLog

#: Bytes of write-ahead log that stay on disk when it begins anew; by itself it stays as large as it ever was, and its
#: size would say nothing about what is in it.
WAL_KEEP_BYTES: Final = 1024 * 1024
#: Pages of the log after which the writer itself copies them, during a commit: only where `tidy` cannot keep up, as
#: while a reader holds an old view. By itself SQLite does it every 1,000 pages, and the writer waits for two fsyncs.
WAL_STALL_PAGES: Final = 65_536
#: Bytes of the file that readers see in place instead of copying them, page by page: its beginning, where the schema
#: and the upper nodes of the trees are. Not more, because it counts as memory of the process; and not for the writer,
#: where a disk's error must be an error code, not a signal.
READER_MMAP_BYTES: Final = 32 * 1024 * 1024
#: KiB of pages that the writer keeps: the inner nodes of the indexes of a large job (by itself SQLite keeps 2 MiB).
WRITER_CACHE_KIB: Final = 65_536

#: Seconds of one wait for the write lock. SQLite waits in a thread that cannot be interrupted: in slices, a
#: consumer that is told to stop while another program holds the file can.
LOCK_SLICE_SECONDS: Final = 0.25

#: Instructions of SQLite's machine between two looks at the clock.
CHECK_STEPS: Final = 10_000
#: What a user that may write can make and take back.
PROBE: Final = "CREATE TABLE themes_doctor (found INTEGER)"

#: Primary result codes that pass by themselves or with a person's help, without any loss.
_PASSING: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_SCHEMA,
}
_MENDS: Final = {
    sqlite3.SQLITE_BUSY: "another program holds it; close what has it open for writing",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "check its disk",
    sqlite3.SQLITE_NOTADB: "move this file away or set database.url to another; a new one is then created",
    sqlite3.SQLITE_CORRUPT: "move this file away (`sqlite3 FILE .recover` may save rows); a new one is then created",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this user, or set database.url elsewhere",
    sqlite3.SQLITE_CANTOPEN: "make its folder writable for this user, or set database.url elsewhere",
    sqlite3.SQLITE_ERROR: "move this file away; it was not made by this version",
}

#: Raised for one row's content, never for the state of the database.
#: `UnicodeError`: a lone surrogate; `OverflowError`: an integer beyond 2^63-1; neither is a database error to sqlite3.
BAD_ROW: Final = (
    UnicodeError, OverflowError, exc.DataError, exc.IntegrityError, sqlite3.DataError, sqlite3.IntegrityError,
)  # fmt: skip


def path_of(parsed: URL) -> Path:
    """The file of an SQLite URL. Raises DatabaseError: a database in memory, which two connections cannot share."""
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise DatabaseError("database.url: a file is needed; write sqlite+aiosqlite:////absolute/path.db")
    return Path(parsed.database).absolute()


def _engine(
    path: Path,
    pragmas: Mapping[str, str | int],
    *,
    begin: str,
    size: int,
    timeout_seconds: float,
    busy_seconds: float,
) -> AsyncEngine:
    first: dict[str, str | int] = {
        # First, because the next ones may need another process's lock.
        "busy_timeout": int(busy_seconds * 1000),
        # Sorting a large job's rows must not need room in /tmp.
        "temp_store": "MEMORY",
    }
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=size,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        # Every use is a transaction that ends itself: no ROLLBACK is needed after it.
        pool_reset_on_return=None,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for name, value in {**first, **pragmas}.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        # One visit to the driver's thread instead of a cursor's three.
        driver: Any = connection.connection.driver_connection
        await_only(driver.execute(begin))

    return engine


def _code(error: Exception) -> int:
    """SQLite's primary result code of an error."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    return int(getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


class SQLiteFile:
    """A results database in one file on this machine: one process writes, any number read.

    Args:
        url: SQLAlchemy's URL of the file.
        pool_size: connections in all; one of them writes, at least one reads.
        timeout_seconds: how long to wait for a lock or a free connection.
        is_acknowledged: after a commit another process forgets what was written. False where the writer can make it
            again: a commit then survives a kill, but maybe no power cut, and waits for no disk.
    """

    def __init__(self, url: URL, *, pool_size: int, timeout_seconds: float, is_acknowledged: bool = True) -> None:
        self.path = path_of(url)
        self.writer = _engine(
            self.path,
            {
                # Readers never wait for the writer, nor it for them. Kept in the file.
                "journal_mode": "WAL",
                # One fsync a commit, so that it survives a power cut; NORMAL may roll it back.
                "synchronous": "FULL" if is_acknowledged else "NORMAL",
                # Every row of a destination needs its destination.
                "foreign_keys": "ON",
                "journal_size_limit": WAL_KEEP_BYTES,
                "wal_autocheckpoint": WAL_STALL_PAGES,
                "cache_size": -WRITER_CACHE_KIB,
            },
            begin="BEGIN IMMEDIATE",
            size=1,
            timeout_seconds=timeout_seconds,
            busy_seconds=min(timeout_seconds, LOCK_SLICE_SECONDS),
        )
        self.readers = _engine(
            self.path,
            # A reader that tries to write is a mistake, found at once.
            {"query_only": "ON", "mmap_size": READER_MMAP_BYTES},
            begin="BEGIN",
            size=max(1, pool_size - 1),
            timeout_seconds=timeout_seconds,
            busy_seconds=timeout_seconds,
        )
        self._identity: tuple[int, int] | None = None
        self.log = WriteAheadLog(self.path)

    def __repr__(self) -> str:
        return f"<SQLiteFile {self.path.name} {self.log!r}>"

    @property
    def place(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_file()

    def prepare(self) -> None:
        """Make the file's folder. Raises DatabaseError: the file cannot be written, with the place and the mend."""
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as bad:
            raise DatabaseError(
                f"{path.parent}: cannot be made ({bad.strerror}); set THEMES_STATE_DIR or database.url elsewhere"
            ) from bad
        if path.is_dir():
            raise DatabaseError(
                f"{path}: is a folder; remove it, or set database.url to a file: "
                f"sqlite+aiosqlite:///{path / 'themes.db'}"
            )
        # Said before SQLite does, in better words.
        place = path if path.exists() and not os.access(path, os.W_OK) else path.parent
        if not os.access(place, os.W_OK):
            raise DatabaseError(f"{place}: cannot be written; {_MENDS[sqlite3.SQLITE_READONLY]}")

    def remember(self) -> None:
        self._identity = self._found()

    def refuse_another(self) -> None:
        """What is written into a deleted file is written into nothing, without an error.

        Raises:
            DatabaseError: the file was deleted or replaced since `remember`.
        """
        if self._identity is None:
            raise DatabaseError(f"{self.path}: was not opened for writing")
        if self._found() != self._identity:
            raise DatabaseError(
                f"{self.path}: was deleted or replaced while it was open; start the consumer again, "
                "it makes a new one and writes what was not acknowledged"
            )

    def _found(self) -> tuple[int, int] | None:
        """Device and inode of the file; None when there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy and sqlite3 into what a caller can do about them; see `Backend`."""
        try:
            yield
        except BAD_ROW as bad:
            raise UnusableEntryError(f"{type(bad).__name__}: {bad}") from bad
        except exc.TimeoutError as bad:
            raise DatabaseBusyError(f"{self.path}: every connection is in use") from bad
        except (SQLAlchemyError, sqlite3.Error) as bad:
            code, original = _code(bad), bad.orig if isinstance(bad, DBAPIError) else bad
            mend = _MENDS.get(sqlite3.SQLITE_BUSY if code == sqlite3.SQLITE_LOCKED else code, "try again")
            kind = DatabaseBusyError if code in _PASSING else DatabaseError
            raise kind(f"{self.path}: {original}; {mend}") from bad

    def is_locked(self, error: Exception) -> bool:
        """Whether another process holds the file."""
        return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

    async def tidy(self) -> float:
        return await self.log.tidy()

    async def close(self) -> None:
        await self.log.close()
        await self.readers.dispose()
        await self.writer.dispose()


def try_writing(connection: sqlite3.Connection) -> str:
    """Really write, and take it back; returns the journal mode."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(PROBE)
        connection.execute("INSERT INTO themes_doctor VALUES (1)")
    finally:
        connection.execute("ROLLBACK")
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def version_of(connection: sqlite3.Connection) -> tuple[int, bool]:
    """The version of the tables, 0 where they are another application's, and whether there are none at all."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    known = "alembic_version" in names
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    return int(row[0]) if row and str(row[0]).isdigit() else 0, not names


def damage(connection: sqlite3.Connection, *, seconds: float) -> list[str] | None:
    """What is damaged, as far as `seconds` go; None where the time was up before all was looked at."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), CHECK_STEPS)
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    finally:
        connection.set_progress_handler(None, 0)
    return [] if found == ["ok"] else found
