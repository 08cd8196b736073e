"""How fast results become durable rows, beside the floor that they stand on.

Results of full size: 25 themes, English prose, about 31 KB as JSON. BENCH_DESTINATIONS sets how many,
BENCH_READ_SECONDS how long reads go on beside the writer (3600 for an hour; its file stays below 1 GB).
"""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import DatabaseBusyError
from tasks.messages import (
    Destination,
    JobInputs,
    JobOpened,
    JobOptions,
    JobSealed,
    Result,
    StreamEntry,
)
from tasks.storable import entry_fields
from tests.benchmarks.figures import knob, ratios, repeats, tell, tell_quantiles
from tests.support.full import full_results
from tests.support.stored import profile_in
from workers.observe.collector import calm_collector
from workers.results.consumer import ResultsConsumer
from workers.results.database.manager import AsyncDatabaseManager

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
ROUNDS = repeats()
BATCH = 100
PROFILES = max(BATCH, knob("DESTINATIONS", 2_000) // BATCH * BATCH)
READ_SECONDS = knob("READ_SECONDS", 30)
#: Batches that stay in that database: the oldest goes, so that an hour's file is no larger than a minute's.
KEPT_BATCHES = 100


@contextlib.contextmanager
def _raw(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}")
        yield connection


#: What one result of a listed destination writes, in the order of its statements; and the rows' order in each table.
WRITTEN = {"attempts": "at", "profiles": "profile_no", "profile_themes": "theme_no"}


def _listed(towns: Sequence[Destination], job_id: str) -> list[StreamEntry]:
    return [JobOpened(job_id, "a job", 900.0, JobOptions()), JobInputs(job_id, tuple(towns))]


def _rows_of(connection: sqlite3.Connection) -> list[list[tuple[str, list[Any]]]]:
    """The rows that each batch has written, by statement."""
    batches: list[list[tuple[str, list[Any]]]] = [[] for _ in range(PROFILES // BATCH)]
    for table, order in WRITTEN.items():
        rows = connection.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()  # noqa: S608 - our own names
        sql = f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})"  # noqa: S608 - our own names
        size = len(rows) // len(batches)
        for number, batch in enumerate(batches):
            batch.append((sql, rows[number * size : (number + 1) * size]))
    return batches


async def test_full_profiles_beside_raw_executemany_of_the_same_rows(tmp_path: Path) -> None:
    """Layer: the store, profiles of 31 KB as JSON, 100 a transaction. The floor writes the same finished rows."""
    towns, results = full_results(PROFILES)
    job_id = results[0].job_id
    size = sum(len(msgspec.json.encode(profile_in(result))) for result in results) / PROFILES
    calm_collector()
    ours, floor, cpus, floor_cpus, file_bytes = [], [], [], [], 0.0
    for number in range(ROUNDS):
        path, other = tmp_path / f"{number}.db", tmp_path / f"{number}-raw.db"
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}") as store:
            await store.apply(_listed(towns, job_id))
            began, cpu = time.perf_counter(), time.process_time()
            for at in range(0, PROFILES, BATCH):
                await store.apply(results[at : at + BATCH])
            ours.append(PROFILES / (time.perf_counter() - began))
            cpus.append((time.process_time() - cpu) / PROFILES * 1000)
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{other}") as store:
            await store.apply(_listed(towns, job_id))
        with _raw(path) as connection:
            batches = _rows_of(connection)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            file_bytes = path.stat().st_size / PROFILES
        with _raw(other) as connection:
            began, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                connection.execute("BEGIN IMMEDIATE")
                for sql, rows in batch:
                    connection.executemany(sql, rows)
                connection.execute("COMMIT")
            floor.append(PROFILES / (time.perf_counter() - began))
            floor_cpus.append((time.process_time() - cpu) / PROFILES * 1000)
    case = f"{PROFILES:,} profiles"
    tell(case, "a profile, as JSON", [size / 1e3], "KB")
    tell(case, "the file, a profile", [file_bytes / 1e3], "KB")
    tell(case, "results to rows", ours, "a second")
    tell(case, "raw executemany", floor, "a second")
    tell(case, "speed, ours / raw", ratios(ours, floor), "x")
    tell(case, "CPU a profile, results to rows", cpus, "ms")
    tell(case, "CPU a profile, raw executemany", floor_cpus, "ms")
    tell(case, "CPU, raw / ours", ratios(floor_cpus, cpus), "x")


async def test_full_profiles_from_the_stream_to_durable_rows(
    redis: Redis, redis_url: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    """Layer: the consumer, results of 31 KB as JSON that wait in Redis; until the last is durable and announced."""
    towns, results = full_results(PROFILES, job_id="j")
    size = len(msgspec.json.encode(profile_in(results[0])))
    packed = [entry_fields(result) for result in results]
    walls, cpus = [], []
    calm_collector()
    for number in range(ROUNDS):
        redis.flushdb()
        database = f"sqlite+aiosqlite:///{tmp_path}/{number}.db"
        settings = settings_for(REDIS_URL=redis_url, DATABASE_URL=database)
        redis.hset(keys.job("j"), mapping={"job_id": "j", "name": "a job", "state": "queued"})
        redis.sadd(keys.ACTIVE, "j")
        with redis.pipeline(transaction=False) as pipe:
            pipe.xadd(keys.RESULTS, entry_fields(JobOpened("j", "a job", 900.0, JobOptions())))
            for at in range(0, len(towns), 500):
                pipe.xadd(keys.RESULTS, entry_fields(JobInputs("j", tuple(towns[at : at + 500]))))
            pipe.xadd(keys.RESULTS, entry_fields(JobSealed("j", len(towns))))
            pipe.execute()
        client = connect_async(redis_url, socket_timeout_seconds=10)
        async with AsyncDatabaseManager.from_settings(settings) as store:
            consumer = ResultsConsumer(client, store, settings, "c")
            running = asyncio.create_task(consumer.run())
            while redis.xlen(keys.RESULTS):
                await asyncio.sleep(0.02)
            consumer.stop()
            await running
            with redis.pipeline(transaction=False) as pipe:
                for fields in packed:
                    pipe.xadd(keys.RESULTS, fields)
                pipe.execute()
            consumer = ResultsConsumer(client, store, settings, "c")
            cpu, wall = time.process_time(), time.perf_counter()
            running = asyncio.create_task(consumer.run())
            while redis.hget(keys.job("j"), "state") != b"done":
                await asyncio.sleep(0.02)
            walls.append(PROFILES / (time.perf_counter() - wall))
            cpus.append((time.process_time() - cpu) / PROFILES * 1000)
            consumer.stop()
            await running
            times, rows = store.times.as_dict(), store.stats().rows
        await client.aclose()
    case = f"{PROFILES:,} profiles"
    tell(case, "a profile, as JSON", [size / 1e3], "KB")
    tell(case, "rows a profile", [rows / PROFILES])
    tell(case, "stream to rows and events", walls, "a second")
    tell(case, "CPU of the consumer's process, a profile", cpus, "ms")
    for name, spent in list(times.items())[:12]:
        print(f"  {name}: {spent}")


async def _write_batch(store: AsyncDatabaseManager, number: int, made: Sequence[Result]) -> None:
    """One job of whole profiles; the job of `KEPT_BATCHES` ago goes, with all its rows."""
    job_id = f"j{number}"
    towns = [Destination.of(f"Town {number * BATCH + n}", "Utopia") for n in range(len(made))]
    results = [
        msgspec.structs.replace(result, job_id=job_id, destination_id=town.id)
        for town, result in zip(towns, made, strict=True)
    ]
    await store.apply([JobInputs(job_id, tuple(towns)), *results])
    if number >= KEPT_BATCHES:
        async with store.writing() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs WHERE job_id = ?", (f"j{number - KEPT_BATCHES}",))
        await store._backend.tidy()


def write_for(path: str, seconds: float) -> None:
    """Write whole profiles as fast as can be; prints how many a second, and how long commits took."""

    async def run() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}") as store:
            _, made = full_results(BATCH)
            print("open", flush=True)
            began, batches = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                await _write_batch(store, batches, made)
                batches += 1
            commits = store.times.as_dict()["commit"]
            count = batches * BATCH
            print(json.dumps([count / seconds, commits]), flush=True)

    asyncio.run(run())


async def test_reads_beside_the_heaviest_writing(tmp_path: Path) -> None:
    """Layer: the store, profiles of 31 KB as JSON, written as fast as can be by another process; reads in turns."""
    path = tmp_path / "themes.db"
    code = f"from tests.benchmarks.test_store import write_for; write_for({str(path)!r}, {READ_SECONDS})"
    queries = {
        "a job": "SELECT * FROM jobs ORDER BY created_at DESC LIMIT 1",
        "one profile": "SELECT payload FROM profiles WHERE profile_no = "
        "(SELECT max(profile_no) FROM profiles) - abs(random() % 1000)",
        "where to go in May": "SELECT count(*) FROM theme_months WHERE month = 4 AND season = 'peak'",
        "a page of 500": "SELECT payload FROM profiles LIMIT 500",
    }
    largest = 0
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "open\n"
        took: dict[str, list[float]] = {name: [] for name in queries}
        locked = 0
        async with contextlib.AsyncExitStack() as stack:
            store = AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}")
            stack.push_async_callback(store.close)
            while writer.poll() is None:
                for name, query in queries.items():
                    began = time.perf_counter()
                    try:
                        async with store.reading() as connection:
                            (await connection.exec_driver_sql(query)).all()
                    except DatabaseBusyError:
                        locked += 1
                    took[name].append(time.perf_counter() - began)
                    await asyncio.sleep(0.002)
                largest = max(largest, path.with_name("themes.db-wal").stat().st_size)
        written, commits = json.loads(writer.stdout.read())
    assert writer.returncode == 0, "the writer stopped"
    case = f"{READ_SECONDS} s of both"
    tell(case, "profiles written", [written], "a second")
    for name in ("p50", "p99", "slowest"):
        tell(case, f"a commit of {BATCH} profiles, {name}", [commits[f"{name}_ms"]], "ms")
    for name, seconds in took.items():
        tell_quantiles(case, name, seconds)
    tell(case, "`database is locked`", [locked], "times")
    tell(case, "write-ahead log, at most", [largest / 2**20], "MB")
    tell(case, "file", [path.stat().st_size / 2**20], "MB")
    assert not locked, "a read waited longer than the busy timeout"
