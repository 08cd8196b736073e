"""The SQLite file: its engines with their pragmas, its birth, and what its errors mean.

One connection writes (`BEGIN IMMEDIATE`: a read-then-write transaction under a plain BEGIN failed in 174 of
240 tries with 4 writers, with IMMEDIATE in none); the others only read. sqlite3's own transaction handling is
switched off, so that every BEGIN is ours.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, event, exc, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tasks.errors import DatabaseBusyError, DatabaseError, ThemesError
from workers.results.tables import DOLLAR_COLUMNS, SCHEMA_VERSION, SINCE_VERSION_2, USAGE_TABLES, metadata

#: Bytes of write-ahead log kept on disk after a checkpoint; without a limit it stays as large as it ever was.
WAL_KEEP_BYTES: Final = 64 * 1024 * 1024
#: KiB of pages that the writer keeps: the inner nodes of the indexes of a large job (by itself SQLite keeps 2 MiB).
WRITER_CACHE_KIB: Final = 65_536

#: Seconds of one wait for the write lock. SQLite waits in a thread that nobody can interrupt: in slices, a
#: consumer that is told to stop while another program holds the file can.
LOCK_SLICE_SECONDS: Final = 0.25

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
    UnicodeError,
    OverflowError,
    exc.DataError,
    exc.IntegrityError,
)


def path_of(url: str) -> Path:
    """The file of a database URL.

    Raises:
        DatabaseError: not SQLite, or a database in memory, which two connections cannot share.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as bad:
        raise DatabaseError("database.url: not a URL; write sqlite+aiosqlite:////absolute/path.db") from bad
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(
            f"database.url: {parsed.get_backend_name()} is not supported; write sqlite+aiosqlite:////absolute/path.db"
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise DatabaseError("database.url: a file is needed; write sqlite+aiosqlite:////absolute/path.db")
    return Path(parsed.database).absolute()


def writer_engine(path: Path, *, timeout_seconds: float) -> AsyncEngine:
    """The engine of the one writing connection."""
    pragmas: dict[str, str | int] = {
        # Readers never wait for the writer, nor it for them. Kept in the file.
        "journal_mode": "WAL",
        # One fsync a commit: whoever acks after the commit must find it after a power cut (NORMAL may roll it back).
        "synchronous": "FULL",
        # Rows hang on their destination, whoever writes them.
        "foreign_keys": "ON",
        "journal_size_limit": WAL_KEEP_BYTES,
        "cache_size": -WRITER_CACHE_KIB,
    }
    return _engine(
        path,
        pragmas,
        begin="BEGIN IMMEDIATE",
        size=1,
        timeout_seconds=timeout_seconds,
        busy_seconds=min(timeout_seconds, LOCK_SLICE_SECONDS),
    )


def reader_engine(path: Path, *, size: int, timeout_seconds: float) -> AsyncEngine:
    """The engine of the reading connections."""
    # A reader that tries to write is a mistake, found at once.
    pragmas = {"query_only": "ON"}
    return _engine(
        path,
        pragmas,
        begin="BEGIN",
        size=size,
        timeout_seconds=timeout_seconds,
        busy_seconds=timeout_seconds,
    )


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
        # How long to wait for another process's lock; first, because the next ones may need the lock.
        "busy_timeout": int(busy_seconds * 1000),
        # Sorting a large job's rows must not need room in /tmp.
        "temp_store": "MEMORY",
    }
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", pool_size=size, max_overflow=0, pool_timeout=timeout_seconds
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
        connection.exec_driver_sql(begin)

    return engine


async def create_schema(connection: AsyncConnection, path: Path) -> None:
    """Create the tables in the writer's transaction, or bring older ones up to date: safe when two do it at once.

    Raises:
        DatabaseError: a newer version's file, or another application's.
    """
    version = await schema_version(connection, path)
    if version == 0:
        await connection.run_sync(metadata.create_all)
    if version == 1:
        await _to_version_2(connection)
    if version in {1, 2}:
        await _to_version_3(connection)
    if version < SCHEMA_VERSION:
        await connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")


async def _to_version_2(connection: AsyncConnection) -> None:
    """What the cache did for a job, a destination, an attempt and a profile; of old ones nothing is known but 0."""
    for table in USAGE_TABLES:
        for name in SINCE_VERSION_2:
            kind = "FLOAT DEFAULT 0" if name in DOLLAR_COLUMNS else "INTEGER NOT NULL DEFAULT 0"
            await connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


async def _to_version_3(connection: AsyncConnection) -> None:
    """An index, for `--only-missing`."""
    await connection.exec_driver_sql("CREATE INDEX profiles_by_destination ON profiles (destination_id)")


async def schema_version(connection: AsyncConnection, path: Path) -> int:
    """The version of the file's tables; 0 for an empty file.

    Raises:
        DatabaseError: a newer version's file, or another application's.
    """
    version = int((await connection.exec_driver_sql("PRAGMA user_version")).scalar_one())
    tables = (await connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")).scalar_one()
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"{path}: made by a newer version of themes (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version, or set database.url to another file"
        )
    if version == 0 and tables:
        raise DatabaseError(f"{path}: holds another application's tables; set database.url to a file of its own")
    return version


def prepare_folder(path: Path) -> None:
    """Make the database's folder.

    Raises:
        DatabaseError: the folder cannot be made, or a folder stands where the file should be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as bad:
        raise DatabaseError(
            f"{path.parent}: cannot be made ({bad.strerror}); set THEMES_STATE_DIR or database.url elsewhere"
        ) from bad
    if path.is_dir():
        raise DatabaseError(
            f"{path}: is a folder; remove it, or set database.url to a file: sqlite+aiosqlite:///{path / 'themes.db'}"
        )


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_unwritable(path: Path) -> None:
    """Say before SQLite does (and in better words) that the file or its folder cannot be written.

    Raises:
        DatabaseError: with the place and the mend.
    """
    place = path if path.exists() and not os.access(path, os.W_OK) else path.parent
    if not os.access(place, os.W_OK):
        raise DatabaseError(f"{place}: cannot be written; {_MENDS[sqlite3.SQLITE_READONLY]}")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLAlchemy and sqlite3 into what a caller can do about them; errors of one row pass.

    Raises:
        DatabaseBusyError: the same batch may be written later.
        DatabaseError: it never will, until a person mends the file.
    """
    try:
        yield
    except BAD_ROW:
        raise
    except exc.TimeoutError as bad:
        raise DatabaseBusyError(f"{path}: every connection is in use") from bad
    except (SQLAlchemyError, sqlite3.Error) as bad:
        raise explain(path, bad) from bad


def is_locked(error: DBAPIError) -> bool:
    """Whether somebody else holds the file."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: Exception) -> int:
    """SQLite's primary result code of an error."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    return int(getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def explain(path: Path, error: Exception) -> ThemesError:
    """The error of ours that says what this one means."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    code = _code(error)
    mend = _MENDS.get(sqlite3.SQLITE_BUSY if code == sqlite3.SQLITE_LOCKED else code, "try again")
    message = f"{path}: {original}; {mend}"
    return DatabaseBusyError(message) if code in _PASSING else DatabaseError(message)
