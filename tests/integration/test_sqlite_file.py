"""The results database as a file: what can go wrong with it, and what it says then."""

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from config.settings import Settings
from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.messages import Destination
from tests.support.forks import Forks
from tests.support.stored import KYOTO, announced, done
from workers.results.database import schema, sqlite, tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.schema import MIGRATIONS, revision
from workers.results.database.sqlite import (
    LOCK_SLICE_SECONDS,
    READER_MMAP_BYTES,
    WAL_KEEP_BYTES,
    WAL_STALL_PAGES,
    WRITER_CACHE_KIB,
    SQLiteFile,
)
from workers.results.database.tables import SCHEMA_VERSION


def manager_of(folder: Path, *, timeout_seconds: float = 5.0) -> AsyncDatabaseManager:
    url = f"sqlite+aiosqlite:///{folder / 'themes.db'}"
    return AsyncDatabaseManager(url, pool_size=3, timeout_seconds=timeout_seconds)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AsyncDatabaseManager]:
    async with manager_of(tmp_path) as manager:
        yield manager


async def test_two_that_create_the_database_at_once_both_succeed(tmp_path: Path) -> None:
    managers = [manager_of(tmp_path / "new" / "folder") for _ in range(4)]
    await asyncio.gather(*(manager.create() for manager in managers))
    await asyncio.gather(*(m.apply(announced(KYOTO, job=f"j{n}")) for n, m in enumerate(managers)))
    assert len(await managers[0].jobs()) == 4
    for manager in managers:
        await manager.close()


async def test_the_writer_syncs_every_commit_and_readers_cannot_write(store: AsyncDatabaseManager) -> None:
    async with store.writing() as connection:
        pragmas = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "temp_store")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "temp_store": 2,
    }
    with pytest.raises(DatabaseError, match="readonly"):
        async with store.reading() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")


async def test_readers_see_the_beginning_of_the_file_in_place_and_wait_for_a_lock(store: AsyncDatabaseManager) -> None:
    async with store.reading() as connection:
        read = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("mmap_size", "busy_timeout", "temp_store", "query_only")
        ]
    assert read == [READER_MMAP_BYTES, 5_000, 2, 1]
    async with store.writing() as connection:
        waits = (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one()
    assert waits == LOCK_SLICE_SECONDS * 1_000, "in slices, so that a consumer that is told to stop can"


async def test_of_the_connections_one_writes_and_the_others_read_and_no_more_are_opened(tmp_path: Path) -> None:
    async with manager_of(tmp_path, timeout_seconds=0.3) as store, contextlib.AsyncExitStack() as held:
        await held.enter_async_context(store.writing())
        for _ in range(2):
            await held.enter_async_context(store.reading())
        with pytest.raises(DatabaseBusyError, match="every connection is in use"):
            await held.enter_async_context(store.reading())


async def test_the_pool_is_as_large_as_the_setting_says(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(
        THEMES_PERFORMANCE_OPTIMIZATION__DATABASE_CONNECTION_POOL_SIZE="4",
        THEMES_PERFORMANCE_OPTIMIZATION__DATABASE_TIMEOUT_SECONDS="0.3",
    )
    async with AsyncDatabaseManager.from_settings(settings) as store, contextlib.AsyncExitStack() as held:
        for _ in range(3):
            await held.enter_async_context(store.reading())
        with pytest.raises(DatabaseBusyError, match="every connection is in use"):
            await held.enter_async_context(store.reading())


def test_every_pragma_is_documented_with_its_value() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "results.md").read_text("utf-8")
    source = Path(sqlite.__file__).read_text("utf-8")
    pragmas = set(re.findall(r'^ +"([a-z_]+)": ', source, re.MULTILINE)) | {"query_only", "mmap_size"}
    assert {"journal_mode", "synchronous", "foreign_keys", "busy_timeout", "temp_store"} <= pragmas
    missing = [name for name in pragmas if f"| `{name}` |" not in page]
    assert not missing
    shown = {
        "mmap_size": f"{READER_MMAP_BYTES // 2**20} MiB",
        "cache_size": f"{WRITER_CACHE_KIB // 1024} MiB",
        "journal_size_limit": f"{WAL_KEEP_BYTES // 2**20} MiB",
        "wal_autocheckpoint": f"{WAL_STALL_PAGES:,} pages",
        "busy_timeout": f"{LOCK_SLICE_SECONDS:g} s",
    }
    wrong = {name: value for name, value in shown.items() if not re.search(rf"\| `{name}` \|[^\n]*{value}", page)}
    assert not wrong


async def test_a_corrupt_file_is_named_with_its_mend_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "themes.db"
    file.write_bytes(b"this is no database " * 500)
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match=r"themes\.db: file is not a database; move this file away") as error:
        await store.create()
    assert "\n" not in str(error.value)
    assert file.read_bytes().startswith(b"this is no database")
    await store.close()


async def test_a_newer_versions_file_is_refused_for_writing_and_reading(tmp_path: Path) -> None:
    async with manager_of(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "themes.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (f"{SCHEMA_VERSION + 1:04}",))
    connection.close()
    for use in ("create", "open"):
        store = manager_of(tmp_path)
        with pytest.raises(DatabaseError, match="newer version of themes"):
            await getattr(store, use)()
        await store.close()


async def test_another_applications_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "themes.db") as connection:
        connection.execute("CREATE TABLE contacts(name)")
    connection.close()
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="another application"):
        await store.create()
    await store.close()


async def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "themes.db").mkdir()
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="is a folder"):
        await store.create()


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = manager_of(tmp_path / "file" / "below")
    with pytest.raises(DatabaseError, match="cannot be made"):
        await store.create()


async def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere: only the answer of the system can be had
        monkeypatch.setattr(os, "access", lambda *_: False)
    store = manager_of(folder)
    with pytest.raises(DatabaseError, match="cannot be written; make the file and its folder writable"):
        await store.create()


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite+aiosqlite://", "no url", "sqlite:///:memory:"])
def test_a_url_that_is_no_file_and_no_server_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(DatabaseError, match="sqlite\\+aiosqlite:////absolute/path.db"):
        AsyncDatabaseManager(url)


async def test_a_file_deleted_or_replaced_while_open_takes_no_batch(
    store: AsyncDatabaseManager, tmp_path: Path
) -> None:
    await store.apply(announced(KYOTO))
    file = tmp_path / "themes.db"
    file.unlink()
    with pytest.raises(DatabaseError, match="deleted or replaced"):
        await store.apply([done()])
    file.touch()
    with pytest.raises(DatabaseError, match="deleted or replaced"):
        await store.apply([done()])
    assert store.stats().batches == 1
    assert file.read_bytes() == b""


async def test_a_held_database_is_busy_and_the_same_batch_is_written_later(tmp_path: Path) -> None:
    async with manager_of(tmp_path, timeout_seconds=0.1) as store:
        holder = sqlite3.connect(tmp_path / "themes.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusyError, match="locked"):
            await store.apply(announced(KYOTO))
        assert await store.jobs() == []
        holder.execute("ROLLBACK")
        holder.close()
        await store.apply(announced(KYOTO))
        assert len(await store.jobs()) == 1


async def test_looking_at_a_database_that_is_not_there_says_what_makes_it(tmp_path: Path) -> None:
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="themes consumer"):
        await store.open()
    assert not store.exists()
    async with manager_of(tmp_path) as writer:
        await writer.apply([*announced(KYOTO), done()])
        await store.open()
        assert [row.name async for row in store.profiles("j")] == ["Kyoto"]
    await store.close()


async def test_what_was_written_is_measured_and_shown(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done()])
    stats = store.stats()
    assert (stats.batches, stats.entries) == (1, 4)
    assert stats.seconds_per_batch > 0
    assert f"batches=1 rows={stats.rows}" in repr(store)


# --- from version to version -----------------------------------------------------------------------------------


NEXT = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE failures ADD COLUMN mended TEXT")
    op.execute({second!r})
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this program one version newer than the file: its second migration executes a statement of the test's."""

    def make(second: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(MIGRATIONS, folder)
        (folder / "versions" / "0002_next.py").write_text(NEXT.format(second=second), encoding="utf-8")
        monkeypatch.setattr(schema, "MIGRATIONS", folder)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        monkeypatch.setattr(tables, "SCHEMA_VERSION", SCHEMA_VERSION + 1)

    return make


def schema_of(file: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_the_newest_migration_is_the_version_of_the_tables() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == revision(SCHEMA_VERSION)


async def test_an_older_file_is_brought_up_to_date_once(tmp_path: Path, next_version: Callable[[str], None]) -> None:
    async with manager_of(tmp_path) as store:
        await store.apply([*announced(KYOTO), done()])
    next_version("UPDATE failures SET mended = 'no'")
    reader = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="older version of themes; `themes consumer`"):
        await reader.open()
    await reader.close()
    # Two consumers that start at once: the second finds the work done.
    managers = [manager_of(tmp_path), manager_of(tmp_path)]
    await asyncio.gather(*(manager.create() for manager in managers))
    assert [row.name async for row in managers[0].profiles("j")] == ["Kyoto"]
    for manager in managers:
        await manager.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "themes.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]
    assert "mended" in dict(schema_of(tmp_path / "themes.db"))["failures"]


async def test_a_migration_that_fails_leaves_the_old_file_as_it_was(
    tmp_path: Path, next_version: Callable[[str], None]
) -> None:
    async with manager_of(tmp_path):
        pass
    before = schema_of(tmp_path / "themes.db")
    next_version("CREATE TABLE failures (somebody_elses)")
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="table failures already exists"):
        await store.create()
    await store.close()
    assert schema_of(tmp_path / "themes.db") == before


# --- the write-ahead log ----------------------------------------------------------------------------------------


async def test_the_log_is_copied_beside_the_writer_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.results.database.wal.WAL_TIDY_BYTES", 300_000)
    monkeypatch.setattr("workers.results.database.wal.WAL_HELD_BYTES", 600_000)
    log = tmp_path / "themes.db-wal"
    sizes = []
    async with manager_of(tmp_path) as store:
        for batch in range(120):
            towns = [Destination.of(f"Town {batch} {n}") for n in range(10)]
            await store.apply([*announced(*towns), *(done(town) for town in towns)])
            sizes.append(log.stat().st_size)
            await _copied(store)
        assert max(sizes) < 1_500_000, "it began anew, many times"
        assert store.times.by_name["checkpoint"].seconds.count > 2
        assert (tmp_path / "themes.db").stat().st_size > 1_000_000, "what was in it is in the file"


async def _copied(store: AsyncDatabaseManager) -> None:
    """Wait for the copy that is under way, however slow this machine is."""
    assert isinstance(store._backend, SQLiteFile)
    if store._backend.log._copying:
        await store._backend.log._copying


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
print(connection.execute("SELECT count(*) FROM jobs").fetchone(), flush=True)
sys.stdin.read()
"""


def reading(file: Path) -> "subprocess.Popen[bytes]":
    """Another program with an open read transaction."""
    process = subprocess.Popen([sys.executable, "-c", READER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


async def test_a_reader_that_holds_the_log_is_named_once_with_its_effect_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.results.database.wal.WAL_TIDY_BYTES", 300_000)
    monkeypatch.setattr("workers.results.database.wal.WAL_HELD_BYTES", 600_000)
    monkeypatch.setattr("workers.results.database.wal.HELD_LOOK_SECONDS", 0.0)
    caplog.set_level("INFO", "themes.database")
    async with manager_of(tmp_path) as store:
        reader = reading(tmp_path / "themes.db")
        for batch in range(120):
            towns = [Destination.of(f"Town {batch} {n}") for n in range(10)]
            await store.apply([*announced(*towns), *(done(town) for town in towns)])
            await _copied(store)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "action=wal_held" in said
        assert "MiB" in said
        assert "slows reads down" in said
        if sys.platform == "linux":
            assert f"python (process {reader.pid})" in said.replace("python3.11", "python").replace("python3", "python")
        reader.communicate()
        # Nothing more is written: a consumer without work looks too.
        for _ in range(4):
            await store.tidy()
            await _copied(store)
        assert "action=wal_released" in caplog.records[-1].getMessage()
        assert len(caplog.records) == 2
        await store.apply(announced(KYOTO, job="later"))
        assert (tmp_path / "themes.db-wal").stat().st_size < 1_500_000


# --- killed, overwritten ------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from tests.support.forks import Forks
from tests.support.stored import announced, done, places
from workers.results.database.manager import AsyncDatabaseManager

async def write():
    async with AsyncDatabaseManager(sys.argv[1]) as store:
        towns = places(4000)
        await store.apply(announced(*towns))
        print("ready", flush=True)
        for at in range(0, 4000, 20):
            await store.apply([done(town) for town in towns[at : at + 20]])
            print(at + 20, flush=True)

asyncio.run(write())
"""


@pytest.mark.parametrize("moment", [1, 7, 30])
async def test_a_writer_killed_at_any_moment_leaves_a_whole_file_with_all_that_was_committed(
    moment: int, tmp_path: Path, forks: Forks
) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    writer = forks.script(str(tmp_path / "writer.py"), f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}", env={})
    assert writer.stdout.readline() == b"ready\n"
    for _ in range(moment):
        committed = int(writer.stdout.readline())
    await asyncio.sleep(0.001 * moment)
    writer.close()
    async with manager_of(tmp_path) as store:
        async with store.writing() as connection:
            assert (await connection.exec_driver_sql("PRAGMA integrity_check")).scalar_one() == "ok"
            assert (await connection.exec_driver_sql("PRAGMA foreign_key_check")).all() == []
        job = await store.job("j")
        assert job
        found = [row async for row in store.profiles("j")]
        assert job.done == len(found) >= committed
        assert job.done % 20 == 0, "batches are whole"


async def test_a_file_that_is_overwritten_while_open_takes_no_batch_and_says_so(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as store:
        await store.apply(announced(*(Destination.of(f"Town {n}") for n in range(3000))))
    async with manager_of(tmp_path) as store:
        with (tmp_path / "themes.db").open("r+b") as file:
            file.write(b"\xa5" * 400_000)
        with pytest.raises(DatabaseError, match=r"themes\.db: .*move this file away"):
            await store.apply([done()])
        assert store.stats().batches == 0
