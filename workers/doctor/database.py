"""The results database: whether it can be written, whose it is, whether it is whole, and how much room there is."""

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from config.settings import Settings
from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.redis_url import masked
from tasks.texts import duration
from workers.doctor.check import Check
from workers.observe.format import size
from workers.results.database.backend import backend_of
from workers.results.database.schema import schema_version
from workers.results.database.sqlite import PROBE, damage, path_of, try_writing, version_of
from workers.results.database.tables import SCHEMA_VERSION
from workers.results.database.wal import WAL_HELD_BYTES, checkpoint, mebibytes, readers, size_bytes

FREE_BYTES: Final = 200 * 1024 * 1024
LOCK_SECONDS: Final = 3.0
INTEGRITY_SECONDS: Final = 4.0
_ELSEWHERE: Final = "or set THEMES_STATE_DIR or DATABASE_URL elsewhere"


def checks(settings: Settings) -> Iterator[Check]:
    if make_url(settings.database_url).get_backend_name() == "sqlite":
        yield from _sqlite(path_of(make_url(settings.database_url)))
    else:
        yield asyncio.run(_server(settings))


def _sqlite(path: Path) -> Iterator[Check]:
    # The nearest folder, or what stands in its place, that exists.
    folder = next((one for one in path.parents if one.exists()), Path("/"))
    yield _room(folder)
    if path.exists():
        yield from _file(path)
    else:
        yield _folder(path, folder)


def _room(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    fix = None if free > FREE_BYTES else f"make room on the disk of {folder}, {_ELSEWHERE}"
    return Check("disk", ok=fix is None, found=f"{size(free)} free at {folder}", fix=fix)


def _folder(path: Path, folder: Path) -> Check:
    refusal = _refusal(folder)
    if refusal is None:
        return Check("database", ok=True, found=f"{path}: not made yet, its folder can be written")
    found = f"{folder} cannot be written ({refusal.strerror}): there is no database yet, and none can be made"
    return Check("database", ok=False, found=found, fix=_open_up(folder, refusal))


def _refusal(folder: Path) -> OSError | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as exc:
        return exc


def _open_up(folder: Path, refusal: OSError) -> str:
    if refusal.errno == errno.EROFS:
        return f"`mount -o remount,rw {folder}`, {_ELSEWHERE}"
    return f"`chmod u+w {folder}` (or chown it to this user), {_ELSEWHERE}"


def _file(path: Path) -> Iterator[Check]:
    refusal = _refusal(path.parent)
    if refusal is not None:
        # SQLite keeps its log beside the file, so without the folder even reading fails.
        found = f"{path.parent} cannot be written ({refusal.strerror})"
        yield Check("database", ok=False, found=found, fix=_open_up(path.parent, refusal))
        return
    try:
        database = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        with contextlib.closing(database):
            yield _written(path, database)
            version, is_empty = version_of(database)
            yield _judged(str(path), version, is_empty=is_empty)
            yield _log(path, database)
            yield _whole(path, damage(database, seconds=INTEGRITY_SECONDS))
    except sqlite3.DatabaseError as exc:
        yield Check("database", ok=False, found=f"{path}: {exc}", fix=_mend(path, exc))


def _mend(path: Path, exc: sqlite3.DatabaseError) -> str:
    if getattr(exc, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return f"move it away (`mv {path} {path}.broken`) and restore a backup, or start anew"
    return f"`chmod u+rw {path}` (or chown it to this user), {_ELSEWHERE}"


def _written(path: Path, connection: sqlite3.Connection) -> Check:
    try:
        mode = try_writing(connection)
    except sqlite3.OperationalError as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            found = f"{path}: another program has held its lock for {LOCK_SECONDS:g} s"
            fix = f"`fuser -v {path}` names it; a consumer holds it for milliseconds only"
            return Check("database", ok=False, found=found, fix=fix)
        return Check("database", ok=False, found=f"{path}: cannot be written ({exc})", fix=_mend(path, exc))
    advice = None if mode == "wal" else "`themes consumer` sets it to wal, with which readers never wait"
    return Check("database", ok=True, found=f"{path}: written and rolled back, journal mode {mode}", fix=advice)


def _log(path: Path, connection: sqlite3.Connection) -> Check:
    """The write-ahead log, and whether a reader keeps it from being copied into the file."""
    held_bytes = checkpoint(connection)
    held = size_bytes(path)
    name, said = "database log", f"write-ahead log of {mebibytes(held)}"
    if not held_bytes:
        return Check(name, ok=True, found=f"{said}, all of it copied into the file")
    said += f", {mebibytes(held_bytes)} of it held by an open read transaction"
    if held < WAL_HELD_BYTES:
        return Check(name, ok=True, found=said)
    who = ", ".join(readers(path))
    said += f" of {who}" if who else ""
    fix = f"end that transaction or close that program{'' if who else f' (`fuser -v {path}` names who has it open)'}"
    effect = "the log grows with every write, until the disk is full, and reads get slower"
    return Check(name, ok=False, found=f"{said}: {effect}", fix=f"{fix}; the consumer then copies the log by itself")


def _judged(place: str, version: int, *, is_empty: bool) -> Check:
    name, found = "database schema", f"version {version}, this program's is {SCHEMA_VERSION}"
    if version > SCHEMA_VERSION:
        fix = "take the newer version, which made this (docs/guide/upgrading.md), or set DATABASE_URL to another"
        return Check(name, ok=False, found=f"{place}: {found}", fix=fix)
    if is_empty:
        return Check(name, ok=True, found="empty: `themes consumer` makes its tables")
    if version == 0:
        found = f"{place} holds another application's tables"
        return Check(name, ok=False, found=found, fix="set DATABASE_URL to a database of its own")
    advice = "`themes consumer` brings it up to date when it starts" if version < SCHEMA_VERSION else None
    return Check(name, ok=True, found=found, fix=advice)


def _whole(path: Path, damaged: list[str] | None) -> Check:
    name, whole = "database integrity", size(os.stat(path).st_size)  # noqa: PTH116
    if damaged is None:
        fix = f"`sqlite3 {path} 'PRAGMA quick_check'` looks at all of it"
        found = f"no damage found in {INTEGRITY_SECONDS:g} s, the time for it is up ({whole})"
        return Check(name, ok=True, found=found, fix=fix)
    if not damaged:
        return Check(name, ok=True, found=f"whole ({whole})")
    fix = (
        f"restore a backup (docs/guide/backup.md); `sqlite3 {path} .recover | sqlite3 mended.db` saves what can be "
        "read, with the sqlite3 of sqlite.org"
    )
    return Check(name, ok=False, found=f"{path}: {'; '.join(damaged)[:200]}", fix=fix)


async def _server(settings: Settings) -> Check:
    place = masked(settings.database_url)
    backend = backend_of(settings.database_url, pool_size=2, timeout_seconds=LOCK_SECONDS)
    try:
        began = time.perf_counter()
        with backend.translated():
            async with backend.writer.connect() as connection, connection.begin() as transaction:
                await connection.exec_driver_sql(PROBE)
                await connection.exec_driver_sql("DROP TABLE themes_doctor")
                version = await schema_version(connection, place)
                await transaction.rollback()
        took = time.perf_counter() - began
    except DatabaseBusyError as exc:
        fix = "start it, or mend host, port, user, password and name in DATABASE_URL"
        return Check("database", ok=False, found=str(exc), fix=fix)
    except DatabaseError as exc:
        fix = "give DATABASE_URL a user that may create tables there, and a database of its own"
        return Check("database", ok=False, found=str(exc), fix=fix)
    finally:
        await backend.close()
    schema = _judged(place, version, is_empty=version == 0)
    if not schema.ok:
        return schema
    return Check("database", ok=True, found=f"{place}: written and rolled back in {duration(took)}, {schema.found}")
