"""How fast results become durable rows, beside the floor that they stand on."""

import asyncio
import contextlib
import os
import sqlite3
import statistics
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
    Profile,
    QualityAssessment,
    Result,
    Seasonality,
    StageRecord,
    Theme,
    Usage,
)
from tasks.storable import entry_fields
from workers.observe.collector import calm_collector
from workers.results.consumer import ResultsConsumer
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.values import profile_row

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
ROUNDS = 3
PROFILES = 12_000
BATCH = 500
#: How long reads go on beside the writer; 3600 to see an hour.
READ_SECONDS = float(os.environ.get("BENCH_READ_SECONDS", "30"))
#: Batches that stay in that database: the oldest goes, so that an hour's file is no larger than a minute's.
KEPT_BATCHES = 100
USAGE = Usage(llm_calls=16, cache_misses=16, prompt_tokens=9_000, completion_tokens=3_000, cost_usd=0.01)


def _profile(destination: Destination, *, children: bool) -> Profile:
    """A profile of 2.6 KB as JSON: with all the rows that it may have, or as one long text."""
    themes = [
        Theme(
            f"t{n}", "food", f"Street food {n}", "Stalls from dawn on.", [],
            seasonality=Seasonality(["April", "May", "October"], ["August"]), traveler_types=["solo", "family"],
            price_point="budget", confidence=0.8, sub_themes=["Noodles", "Skewers"], authenticity_score=0.7,
        )
        for n in range(1, 5)
    ]  # fmt: skip
    stages = [
        StageRecord(f"discover.{n}", "ok", "v1", "sandbox", "called", Usage(1, prompt_tokens=600, cost_usd=0.001), 51.0)
        for n in range(6)
    ]
    return Profile(
        destination_id=destination.id, name=destination.name, country=destination.country, status="ok",
        model="sandbox", pipeline_version="1", themes=themes if children else [], overlap_analysis=None,
        quality_assessment=QualityAssessment(0.5, 0.6, 0.7, overall=0.8), missing=[],
        stages=stages if children else [], usage=USAGE, elapsed_ms=812.5, created_at=1000.0,
        more={} if children else {"told": "Stalls from dawn on, and lanterns. " * 60},
    )  # fmt: skip


def _results(count: int, *, children: bool) -> tuple[list[Destination], list[Result]]:
    towns = [Destination.of(f"Town {n}", "Utopia") for n in range(count)]
    results = [
        Result("j", town.id, 1, USAGE, "w", 1000.0, 812.5, profile=_profile(town, children=children)) for town in towns
    ]
    return towns, results


def _told(name: str, values: Sequence[float], unit: str) -> None:
    print(f"{name}: {statistics.median(values):,.3g} {unit} (from {min(values):,.3g} to {max(values):,.3g})")


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


async def _write(store: AsyncDatabaseManager, rows: list[tuple[Any, ...]]) -> None:
    async with store.writing() as connection:
        await store._writer._all.profile.run(connection, rows, store.times)
    await store._backend.tidy()


async def test_batch_upserts_beside_raw_executemany(tmp_path: Path) -> None:
    towns, results = _results(PROFILES, children=False)
    rows = [
        profile_row(n, result, result.profile, msgspec.json.encode(result.profile).decode(), 1000.0)
        for n, result in enumerate(results, start=1)
        if result.profile
    ]
    print(f"\n{len(rows)} profiles of {len(rows[0][9])} bytes, {BATCH} a transaction")
    ours, floor, single = [], [], []
    for number in range(ROUNDS):
        path = tmp_path / f"{number}.db"
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}") as store:
            await store.apply([JobInputs("j", tuple(towns))])
            sql = store._writer._all.profile.sql
            began = time.perf_counter()
            for at in range(0, len(rows), BATCH):
                await _write(store, rows[at : at + BATCH])
            ours.append(len(rows) / (time.perf_counter() - began))
            began = time.perf_counter()
            for row in rows[:1000]:
                await _write(store, [row])
            single.append(1000 / (time.perf_counter() - began))
        other = tmp_path / f"{number}-raw.db"
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{other}") as store:
            await store.apply([JobInputs("j", tuple(towns))])
        with _raw(other) as connection:
            began = time.perf_counter()
            for at in range(0, len(rows), BATCH):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(sql, rows[at : at + BATCH])
                connection.execute("COMMIT")
            floor.append(len(rows) / (time.perf_counter() - began))
    _told("batches, rows/s", ours, "")
    _told("raw executemany, rows/s", floor, "")
    _told("ratio to raw executemany", [a / b for a, b in zip(ours, floor, strict=True)], "")
    _told("ratio to one commit a row through the same engine", [a / b for a, b in zip(ours, single, strict=True)], "")


@pytest.mark.parametrize("children", [False, True], ids=["payload only", "all child rows"])
async def test_from_the_stream_to_durable_rows(
    children: bool, redis: Redis, redis_url: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    towns, results = _results(PROFILES, children=children)
    size = len(msgspec.json.encode(results[0].profile))
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
            cpus.append(PROFILES / (time.process_time() - cpu))
            consumer.stop()
            await running
            times, rows = store.times.as_dict(), store.stats().rows
        await client.aclose()
    print(f"\n{PROFILES} profiles of {size} bytes, {rows / PROFILES:.0f} rows each")
    _told("profiles/s, stream to rows and events", walls, "")
    _told("profiles/s of CPU of the consumer's process", cpus, "")
    for name, figures in list(times.items())[:12]:
        print(f"  {name}: {figures}")


async def _write_batch(store: AsyncDatabaseManager, number: int) -> None:
    """One job of `BATCH` whole profiles; the job of `KEPT_BATCHES` ago goes, with all its rows."""
    job_id = f"j{number}"
    towns = [Destination.of(f"Town {number * BATCH + n}", "Utopia") for n in range(BATCH)]
    made = [
        Result(job_id, town.id, 1, USAGE, "w", 1000.0, 812.5, profile=_profile(town, children=True)) for town in towns
    ]
    await store.apply([JobInputs(job_id, tuple(towns)), *made])
    if number >= KEPT_BATCHES:
        async with store.writing() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs WHERE job_id = ?", (f"j{number - KEPT_BATCHES}",))
        await store._backend.tidy()


def write_for(path: str, seconds: float) -> None:
    """Write whole profiles as fast as can be; prints how many a second."""

    async def run() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}") as store:
            print("open", flush=True)
            began, batches = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                await _write_batch(store, batches)
                batches += 1
            checkpoints = store.times.as_dict().get("checkpoint")
            commits = store.times.as_dict()["commit"]
            count = batches * BATCH
            print(f"{count / seconds:,.0f} whole profiles/s; commits {commits}; checkpoints {checkpoints}", flush=True)

    asyncio.run(run())


async def test_reads_beside_the_heaviest_writing(tmp_path: Path) -> None:
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
        print(f"\nbeside {writer.stdout.read().strip()}")
    assert writer.returncode == 0, "the writer stopped"
    for name, seconds in took.items():
        ordered = sorted(seconds)
        p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
        print(f"{name}: {len(ordered)} reads, p50 {p50:.2f} ms, p99 {p99:.2f} ms, slowest {ordered[-1] * 1000:.1f} ms")
    sizes = f"write-ahead log {largest / 2**20:.0f} MB, file {path.stat().st_size / 2**20:.0f} MB"
    print(f"locked: {locked} in {READ_SECONDS:.0f} s; largest {sizes}")
    assert not locked, "a read waited longer than the busy timeout"
