import asyncio
import contextlib
import secrets
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from config.sections import DatabaseSettings, PerformanceSettings, WorkSettings
from config.settings import Settings
from scripts.lib.local_redis import find_binary
from tasks import keys
from tasks.errors import DatabaseError
from tasks.jobs.totals import NAMES
from tasks.messages import (
    Destination,
    Failure,
    JobClosed,
    JobInputs,
    JobOpened,
    JobOptions,
    JobReopened,
    JobSealed,
    PackedProfile,
    Profile,
    QualityAssessment,
    Result,
    Spent,
    StreamEntry,
    Theme,
    Usage,
    pack,
)
from tasks.packed import pack_profile
from tasks.readings import whole_amounts
from tasks.storable import entry_fields
from tests.support.servers import SERVERS
from workers.results.consumer import ResultsConsumer, wait_seconds
from workers.results.database import totals
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.results.stream import DeadEntry, ResultsStream

SPENT = Usage(llm_calls=2, cache_hits=1, coalesced=1, prompt_tokens=100, completion_tokens=50, cost_usd=0.25)
DEADLINE_SECONDS = 15


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, Any]]:
    """The address of a server of our own, the oldest there is: loopback, a password, nothing on disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = secrets.token_hex(8)
    binary = SERVERS["redis 6.2"]() or find_binary("bundled")
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", password]
    options += ["--save", "", "--appendonly", "no"]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    address = {"host": "127.0.0.1", "port": port, "password": password}
    try:
        _wait_until_it_answers(address)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=180)


def _wait_until_it_answers(address: dict[str, Any]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    with contextlib.closing(BlockingRedis(**address)) as client:
        while True:
            try:
                client.ping()
            except RedisConnectionError:
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.02)
            else:
                return


@pytest.fixture
async def redis(server: dict[str, Any]) -> AsyncIterator[Redis]:
    client = Redis(**server, decode_responses=False, socket_timeout=5)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AsyncDatabaseManager]:
    manager = manager_of(tmp_path)
    async with manager:
        yield manager


def manager_of(folder: Path, *, timeout_seconds: float = 5.0) -> AsyncDatabaseManager:
    url = f"sqlite+aiosqlite:///{folder / 'themes.db'}"
    return AsyncDatabaseManager(url, pool_size=3, timeout_seconds=timeout_seconds)


def delete_database(folder: Path) -> None:
    for file in folder.glob("themes.db*"):
        file.unlink()


def settings_with(*, lease_seconds: float = 15.0, batch: int = 10, **performance: Any) -> Settings:
    return Settings(
        performance_optimization=PerformanceSettings(database_batch_size=batch, **performance),
        database=DatabaseSettings(flush_interval_seconds=0.05),
        work=WorkSettings(lease_seconds=lease_seconds),
    )


SETTINGS = settings_with()


@contextlib.asynccontextmanager
async def consuming(
    redis: Redis, store: AsyncDatabaseManager, settings: Settings = SETTINGS, name: str = "c1"
) -> AsyncIterator[ResultsConsumer]:
    consumer = ResultsConsumer(redis, store, settings, name)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await running


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """The first true answer of `what`; fails at a deadline."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not (answer := await what()):
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.01)
    return answer


def places(count: int) -> list[Destination]:
    return [Destination.of(f"Town {n}", "Utopia") for n in range(count)]


def a_profile(destination: Destination) -> PackedProfile:
    return pack_profile(Profile(
        destination_id=destination.id,
        name=destination.name,
        country=destination.country,
        status="ok",
        model="sandbox",
        pipeline_version="1",
        themes=[
            Theme("t1", "food", "Noodles at dawn", "Stalls.", []),
            Theme("t2", "culture", "Ink", "Old.", []),
        ],
        overlap_analysis=None,
        quality_assessment=QualityAssessment(0.5, 0.6, 0.7, overall=0.8),
        missing=[],
        stages=[],
        usage=SPENT,
        elapsed_ms=12.5,
        created_at=1000.0,
    ))  # fmt: skip


def done(destination: Destination, *, job: str = "j", attempt: int = 0, usage: Usage = SPENT) -> Result:
    return Result(job, destination.id, attempt, usage, "w", 1000.0, 12.5, profile=a_profile(destination))


def failed(destination: Destination, *, job: str = "j", attempt: int = 0) -> Result:
    failure = Failure("discover.food", "RateLimitedError", "the endpoint said 429", 2)
    return Result(job, destination.id, attempt, SPENT, "w", 1000.0, 12.5, failure=failure)


def announced(destinations: Sequence[Destination], *, job: str = "j") -> list[StreamEntry]:
    return [
        JobOpened(job, "a name", 900.0, JobOptions()),
        JobInputs(job, tuple(destinations)),
        JobSealed(job, len(destinations)),
    ]


async def registered(redis: Redis, job: str = "j") -> None:
    """What a producer writes before it publishes."""
    await redis.hset(keys.job(job), mapping={"job_id": job, "name": "a name", "state": "queued"})
    await redis.sadd(keys.ACTIVE, job)


async def published(redis: Redis, entries: Sequence[StreamEntry]) -> list[bytes]:
    async with redis.pipeline(transaction=False) as pipe:
        for entry in entries:
            pipe.xadd(keys.RESULTS, entry_fields(entry))
        return list(await pipe.execute())


async def pending(redis: Redis) -> int:
    return int((await redis.xpending(keys.RESULTS, keys.GROUP))["pending"])


async def events_of(redis: Redis, job: str = "j") -> list[dict[str, Any]]:
    return [msgspec.json.decode(fields[b"e"]) for _, fields in await redis.xrange(keys.events(job))]


async def field(redis: Redis, name: str, job: str = "j") -> str:
    value = await redis.hget(keys.job(job), name)
    return value.decode() if value is not None else ""


def job_is(redis: Redis, state: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await field(redis, "state") == state

    return check


def written(store: AsyncDatabaseManager, count: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        job = await store.job("j")
        return job is not None and job.finished >= count

    return check


def acknowledged(redis: Redis) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await pending(redis) == 0 and await redis.xlen(keys.RESULTS) == 0

    return check


# --- exactly once ---------------------------------------------------------------------------------------------


async def test_everything_published_is_written_exactly_once_by_several_consumers(
    redis: Redis, store: AsyncDatabaseManager, tmp_path: Path
) -> None:
    towns = places(300)
    results: list[StreamEntry] = [failed(t) if n % 10 == 0 else done(t) for n, t in enumerate(towns)]
    await registered(redis)
    async with manager_of(tmp_path) as second:
        await published(redis, [*announced(towns), *results, *results[:50]])
        async with consuming(redis, store), consuming(redis, second, name="c2"):
            await eventually(job_is(redis, "done"))
            await eventually(acknowledged(redis))
    job = await store.job("j")
    assert job is not None
    assert (job.done, job.failed, job.total, job.usage.llm_calls) == (270, 30, 300, 600)
    assert len([row async for row in store.profiles("j")]) == 270
    assert [await field(redis, f) for f in ("done", "failed", "llm_calls")] == ["270", "30", "600"]


async def test_what_a_killed_consumer_had_read_is_claimed_by_the_next(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(5)
    await registered(redis)
    dead = ResultsStream(redis, consumer="dead")
    await dead.ensure_group()
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    assert len(await dead.gather(count=100, flush_seconds=0.01)) == 8
    async with consuming(redis, store, settings_with(lease_seconds=1)):
        await eventually(job_is(redis, "done"))
        await eventually(acknowledged(redis))
    assert len([row async for row in store.profiles("j")]) == 5


class DiesAfterCommit(AsyncDatabaseManager):
    """Commits a batch, and then the process is gone before it can tell anybody."""

    async def apply(self, entries: Sequence[StreamEntry], dead: Sequence[DeadEntry] = ()) -> Applied:
        await super().apply(entries, dead)
        raise KilledError


class KilledError(BaseException):
    pass


async def test_a_consumer_killed_between_commit_and_ack_costs_nothing_and_hides_no_event(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(4)
    await registered(redis)
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    doomed = DiesAfterCommit(f"sqlite+aiosqlite:///{store.place}", pool_size=2)
    async with doomed:
        stream = ResultsStream(redis, consumer="doomed")
        await stream.ensure_group()
        consumer = ResultsConsumer(redis, doomed, SETTINGS, "doomed")
        with pytest.raises(KilledError):
            await consumer._settle(await stream.gather(count=100, flush_seconds=0.01))
    before = await store.job("j")
    assert before is not None
    assert before.state == "done"
    assert await events_of(redis) == []
    async with consuming(redis, store, settings_with(lease_seconds=1)):
        await eventually(job_is(redis, "done"))
        await eventually(acknowledged(redis))
    after = await store.job("j")
    assert after is not None
    assert replace(after, revision=0) == replace(before, revision=0)
    kinds = [e["type"] for e in await events_of(redis)]
    assert kinds == ["job.started", *["destination.done"] * 4, "job.progress", "job.done"]


async def test_a_consumer_reads_its_own_unfinished_entries_again_when_it_comes_back(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(3)
    await registered(redis)
    earlier = ResultsStream(redis, consumer="c1")
    await earlier.ensure_group()
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    await earlier.gather(count=100, flush_seconds=0.01)
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))


async def test_an_entry_deleted_while_it_was_pending_does_not_stay_pending(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    dead = ResultsStream(redis, consumer="dead")
    await dead.ensure_group()
    ids = await published(redis, announced(places(1)))
    await dead.gather(count=100, flush_seconds=0.01)
    await redis.xdel(keys.RESULTS, ids[0])
    async with consuming(redis, store, settings_with(lease_seconds=1)):
        await eventually(acknowledged(redis))


# --- bad entries, trimming, a lost group ------------------------------------------------------------------------


async def test_poison_entries_are_set_aside_with_their_reason_and_the_others_go_on(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    town = places(1)[0]
    await registered(redis)
    await published(redis, announced([town]))
    for fields in (
        {"b": b"\x07garbage"},
        {"b": b"\x00\xc1"},
        {"b": b"\x01zstd?"},
        {"other": b"x"},
        {"b": b""},
    ):
        await redis.xadd(keys.RESULTS, fields)
    await redis.xadd(keys.RESULTS, {"b": b"\x00\xa3\xed\xa0\x80"})
    huge = done(town, job="k", usage=Usage(llm_calls=2**63))
    neither = Result("j", town.id, 0, SPENT, "w", 1.0, 1.0)
    await published(redis, [huge, neither, done(town)])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
        await eventually(acknowledged(redis))
    async with store.reading() as connection:
        letters = await connection.exec_driver_sql("SELECT job_id, reason, entry, entry_id FROM dead_letters")
        # In the order of the stream: as texts, number 10 of a millisecond would come before its number 9.
        dead = sorted((tuple(row) for row in letters), key=lambda row: tuple(map(int, row[3].split("-"))))
    assert len(dead) == 8
    assert [row[0] for row in dead if row[0]] == ["k", "j"]
    assert dead[6][1] == "usage.llm_calls is a whole number beyond 64 bits"
    assert dead[7][1] == "a result is either a profile or a failure"
    assert msgspec.msgpack.decode(dead[0][2]) == [b"b", b"\x07garbage"]
    assert [(f.stage, f.message) async for f in store.failures("k")] == [
        ("store", f"its result cannot be stored: {dead[6][1]}")
    ]


async def test_a_result_that_cannot_be_decoded_ends_its_destination_as_a_failure(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(7)
    await registered(redis)
    await published(redis, announced(towns))
    plain = msgspec.to_builtins(done(towns[0]))
    odd: list[dict[str, Any]] = [
        {"usage": plain["usage"] | {"llm_calls": True}},
        {"usage": plain["usage"] | {"prompt_tokens": "12"}},
        {"usage": [1, 2]},
        {"attempt": None, "worker": 7, "at": "noon", "elapsed_ms": None},
        {"profile": plain["profile"] | {"themes": "none"}},
        {"profile": plain["profile"] | {"status": "wonderful"}},
    ]
    for town, fields in zip(towns[1:], odd, strict=True):
        await redis.xadd(keys.RESULTS, {"b": pack(plain | {"destination_id": town.id} | fields)})
    spent = msgspec.to_builtins(Spent("j", towns[0].id, 1, Usage(llm_calls=5), "w2", 1.0, 1.0))
    await redis.xadd(keys.RESULTS, {"b": pack(spent | {"usage": {"llm_calls": 5, "cost_usd": "0.1"}})})
    await published(redis, [done(towns[0])])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
        await eventually(acknowledged(redis))
    job = await store.job("j")
    assert job
    assert (job.done, job.failed) == (1, 6)
    # Of the calls whose number is readable, all are booked: two each, but for True and a list; five were spent.
    assert job.usage.llm_calls == 2 * 5 + 5
    messages = [f.message async for f in store.failures("j")]
    assert all(message.startswith("its result cannot be stored: not a ") for message in messages), messages
    async with store.reading() as connection:
        found = await connection.exec_driver_sql("SELECT destination_id FROM dead_letters ORDER BY entry_id")
        assert {row[0] for row in found} == {town.id for town in towns}, "what came is kept for a look"


async def test_trimming_never_drops_what_is_unread_or_pending(redis: Redis) -> None:
    stream = ResultsStream(redis, consumer="c1")
    await stream.ensure_group()
    ids = await published(redis, [JobSealed("j", n) for n in range(10)])
    assert await stream.trim() == 0
    read = await stream.gather(count=6, flush_seconds=0.01)
    await stream.ack([read[0].id, read[1].id, read[4].id])
    assert await stream.trim() == 2
    assert [entry[0] for entry in await redis.xrange(keys.RESULTS)] == ids[2:]
    await stream.ack([entry.id for entry in read])
    assert await stream.trim() == 4
    assert [entry[0] for entry in await redis.xrange(keys.RESULTS)] == ids[6:]
    rest = await stream.gather(count=100, flush_seconds=0.01)
    assert [entry.id for entry in rest] == ids[6:]
    await stream.ack([entry.id for entry in rest])
    await stream.trim()
    assert await redis.xlen(keys.RESULTS) == 0


async def test_a_deleted_stream_is_made_again_and_read_from_its_beginning(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(2)
    await registered(redis)
    async with consuming(redis, store):
        await published(redis, [*announced(towns), done(towns[0])])
        await eventually(written(store, 1))
        await redis.delete(keys.RESULTS)
        await published(redis, [done(towns[1])])
        await eventually(job_is(redis, "done"))


async def test_a_consumer_that_leaves_takes_its_name_along(redis: Redis, store: AsyncDatabaseManager) -> None:
    async with consuming(redis, store):
        await eventually(lambda: redis.exists(keys.RESULTS))
    assert await redis.xinfo_consumers(keys.RESULTS, keys.GROUP) == []


# --- what watchers and status see -------------------------------------------------------------------------------


async def test_events_tell_the_story_in_order_and_carry_what_a_watcher_shows(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(2)
    await registered(redis)
    await published(redis, [*announced(towns), done(towns[0]), failed(towns[1])])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
    events = await events_of(redis)
    kinds = ["job.started", "destination.done", "destination.failed", "job.progress", "job.done"]
    assert [e["type"] for e in events] == kinds
    assert all(e["job_id"] == "j" and "id" not in e for e in events)
    good, bad, progress, end = (e["data"] for e in events[1:])
    assert events[1]["destination_id"] == towns[0].id
    assert (good["name"], good["country"], good["status"]) == ("Town 0", "Utopia", "ok")
    assert (good["themes"], good["top_themes"], good["quality"]) == (2, ["Noodles at dawn", "Ink"], 0.8)
    assert (good["llm_calls"], good["cache_hits"], good["elapsed_ms"]) == (2, 1, 12.5)
    assert (bad["name"], bad["stage"], bad["error_class"]) == ("Town 1", "discover.food", "RateLimitedError")
    assert bad["message"] == "the endpoint said 429"
    counts = {"total": 2, "done": 1, "failed": 1, "partial": 0, "eta_seconds": 0.0, "llm_calls": 4}
    counts |= {
        "cache_hits": 2,
        "coalesced": 2,
        "prompt_tokens": 200,
        "completion_tokens": 100,
        "cost_usd": 0.5,
    }
    assert progress.items() >= counts.items()
    assert end == {**progress, "state": "done"}


async def test_progress_is_told_at_most_once_an_interval_and_always_at_the_end(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(60)
    await registered(redis)
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    async with consuming(redis, store, settings_with(batch=5, progressive_feedback_interval=3600)):
        await eventually(job_is(redis, "done"))
    told = [e["data"]["done"] for e in await events_of(redis) if e["type"] == "job.progress"]
    assert len(told) == 2
    assert told[-1] == 60


async def test_without_streaming_there_are_no_events_but_the_same_counters(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(3)
    await registered(redis)
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    async with consuming(redis, store, settings_with(enable_streaming_results=False)):
        await eventually(job_is(redis, "done"))
    assert not await redis.exists(keys.events("j"))
    assert await field(redis, "done") == "3"


async def test_a_finished_job_leaves_nothing_in_redis_that_would_stay_for_ever(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(2)
    await registered(redis)
    await redis.hset(keys.deliveries("j"), "c", "1")
    await redis.hset(keys.labels("j"), "c", "Town 0")
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
    assert await redis.smembers(keys.ACTIVE) == set()
    assert await redis.exists(keys.deliveries("j"), keys.labels("j")) == 0
    assert 0 < await redis.ttl(keys.job("j")) <= keys.KEEP_SECONDS
    assert 0 < await redis.ttl(keys.events("j")) <= keys.EVENTS_KEEP_SECONDS
    assert float(await field(redis, "rate_at")) > 0
    assert await field(redis, "finished_at") != ""


async def test_a_chunk_still_being_taken_off_keeps_its_lease_and_expires_with_the_job(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    town = places(1)[0]
    await registered(redis)
    await redis.hset(keys.chunks("j"), "c", b"packed")
    await redis.hset(keys.owners("j"), "c", b"token")
    await published(redis, [*announced([town]), done(town)])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
    assert await redis.hget(keys.owners("j"), "c") == b"token"
    assert await redis.ttl(keys.chunks("j")) > 0
    assert await redis.ttl(keys.owners("j")) > 0


async def test_a_job_deleted_from_redis_is_still_written_but_not_brought_back(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(2)
    await published(redis, [*announced(towns), *(done(t) for t in towns)])
    async with consuming(redis, store):
        await eventually(written(store, 2))
        await eventually(acknowledged(redis))
    assert await redis.exists(keys.job("j"), keys.events("j")) == 0


async def test_a_cancelled_job_stays_cancelled_while_its_last_results_arrive(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(3)
    await registered(redis)
    async with consuming(redis, store):
        await published(redis, [*announced(towns), done(towns[0])])
        await eventually(job_is(redis, "running"))
        await redis.hset(keys.job("j"), mapping={"state": "cancelled", "finished_at": "2000.0"})
        await published(redis, [done(towns[1])])
        await eventually(written(store, 2))
        await eventually(acknowledged(redis))
        assert [await field(redis, f) for f in ("state", "done", "finished_at")] == ["cancelled", "2", "2000.0"]
        await published(redis, [JobClosed("j", "cancelled", 2000.0)])
        await eventually(lambda: redis.hget(keys.job("j"), "ended"))
    job = await store.job("j")
    assert job is not None
    assert (job.state, job.done, job.finished_at) == ("cancelled", 2, 2000.0)
    last = (await events_of(redis))[-1]
    assert (last["type"], last["data"]["state"]) == ("job.done", "cancelled")


async def test_a_retried_job_runs_again_and_ends_a_second_time(redis: Redis, store: AsyncDatabaseManager) -> None:
    towns = places(2)
    await registered(redis)
    async with consuming(redis, store):
        await published(redis, [*announced(towns), done(towns[0]), failed(towns[1])])
        await eventually(job_is(redis, "done"))
        await published(redis, [JobReopened("j", (towns[0].id, towns[1].id), 1)])
        await eventually(job_is(redis, "running"))
        assert await redis.ttl(keys.job("j")) == -1
        await published(redis, [done(towns[1], attempt=1)])
        await eventually(job_is(redis, "done"))
    job = await store.job("j")
    assert job is not None
    assert (job.done, job.failed, job.usage.llm_calls) == (2, 0, 6)
    assert [e["type"] for e in await events_of(redis)].count("job.done") == 2
    assert await redis.ttl(keys.job("j")) > 0


async def test_an_older_report_of_a_job_never_replaces_a_newer_one(redis: Redis, store: AsyncDatabaseManager) -> None:
    towns = places(2)
    await registered(redis)
    consumer = ResultsConsumer(redis, store, SETTINGS, "c1")
    early = await store.apply([*announced(towns), done(towns[0])])
    late = await store.apply([done(towns[1])])
    await consumer._announcer.announce(late)
    await consumer._announcer.announce(early)
    assert [await field(redis, f) for f in ("state", "done")] == ["done", "2"]
    assert [e["type"] for e in await events_of(redis)].count("job.done") == 1


# --- outages ----------------------------------------------------------------------------------------------------


async def test_while_another_program_holds_the_database_nothing_is_acknowledged_and_then_nothing_is_lost(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    towns = places(10)
    await registered(redis)
    async with manager_of(tmp_path, timeout_seconds=0.1) as store:
        holder = sqlite3.connect(store.place, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        await published(redis, [*announced(towns), *(done(t) for t in towns)])
        async with consuming(redis, store):
            await eventually(lambda: _has_logged(caplog, "database_busy"))
            assert await pending(redis) == 10
            assert await redis.xlen(keys.RESULTS) == 13
            holder.execute("ROLLBACK")
            await eventually(job_is(redis, "done"))
            await eventually(acknowledged(redis))
        holder.close()
    assert [r.action for r in caplog.records].count("database_busy") == 1  # type: ignore[attr-defined]


async def _has_logged(caplog: pytest.LogCaptureFixture, action: str) -> bool:
    return any(getattr(record, "action", None) == action for record in caplog.records)


async def test_a_consumer_stops_in_time_while_the_database_is_held_and_acknowledges_nothing(
    redis: Redis, tmp_path: Path
) -> None:
    towns = places(2)
    async with manager_of(tmp_path, timeout_seconds=3_600) as store:
        holder = sqlite3.connect(store.place, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        await published(redis, announced(towns))
        consumer = ResultsConsumer(redis, store, SETTINGS, "c1")
        running = asyncio.create_task(consumer.run())
        await eventually(lambda: redis.exists(keys.RESULTS))
        await eventually(lambda: _is_pending(redis))
        consumer.stop()
        # Long before the database's own patience ends.
        await asyncio.wait_for(running, 180)
        assert await pending(redis) == 3
        holder.close()


async def _is_pending(redis: Redis) -> bool:
    groups = await redis.xinfo_groups(keys.RESULTS)
    return bool(groups) and groups[0]["pending"] == 3


async def test_a_database_deleted_under_the_consumer_ends_it_with_one_clear_line_and_loses_nothing(
    redis: Redis, tmp_path: Path
) -> None:
    towns = places(2)
    await registered(redis)
    async with manager_of(tmp_path) as store:
        await published(redis, [*announced(towns), done(towns[0])])
        consumer = ResultsConsumer(redis, store, SETTINGS, "c1")
        running = asyncio.create_task(consumer.run())
        await eventually(written(store, 1))
        delete_database(tmp_path)
        await published(redis, [done(towns[1])])
        with pytest.raises(DatabaseError, match="deleted or replaced"):
            await running
        assert await pending(redis) == 1
    async with manager_of(tmp_path) as again, consuming(redis, again):
        await eventually(written(again, 1))


async def test_a_consumer_survives_its_connections_being_cut(
    redis: Redis, server: dict[str, Any], store: AsyncDatabaseManager
) -> None:
    towns = places(200)
    await registered(redis)
    other = Redis(**server, decode_responses=False, socket_timeout=5)
    async with consuming(redis, store):
        await published(other, announced(towns))
        for start in range(0, 200, 20):
            await published(other, [done(t) for t in towns[start : start + 20]])
            await other.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.02)
        await eventually(written(store, 200))
        await eventually(acknowledged(other))
    await other.aclose()
    job = await store.job("j")
    assert job is not None
    assert (job.done, job.usage.llm_calls) == (200, 400)


async def test_entries_whose_reply_was_lost_do_not_wait_for_a_lease(redis: Redis, store: AsyncDatabaseManager) -> None:
    """The Redis client asks again in silence when a connection breaks: what the first reply held is read by nobody."""
    towns = places(3)
    await registered(redis)
    async with consuming(redis, store, settings_with(lease_seconds=3600)):
        await published(redis, [*announced(towns), done(towns[1])])
        await eventually(written(store, 1))
        async with redis.pipeline(transaction=True) as lost:
            lost.xadd(keys.RESULTS, entry_fields(done(towns[0])))
            # In our own name, before the one that waits for it: as if its reply had gone with the connection.
            lost.xreadgroup(keys.GROUP, "c1", {keys.RESULTS: ">"}, count=10)
            await lost.execute()
        await eventually(written(store, 2))
        await eventually(acknowledged(redis))


def test_waits_grow_stay_bounded_and_are_spread() -> None:
    assert [wait_seconds(n, 0.0) for n in range(3)] == [0.1, 0.2, 0.4]
    assert wait_seconds(10_000, 0.0) == 5.0
    assert wait_seconds(10_000, 1.0) == 2.5


async def test_a_redis_without_room_is_emptied_first_and_told_later(redis: Redis, store: AsyncDatabaseManager) -> None:
    """Acknowledging is what makes room: a consumer that wanted to tell first would wait for ever."""
    towns = places(20)
    await registered(redis)
    await ResultsStream(redis, consumer="earlier").ensure_group()
    await published(redis, [*announced(towns), *(done(town) for town in towns)])
    await redis.set("ballast", b"x" * 4_000_000)
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", 2_000_000)
    try:
        async with consuming(redis, store):

            async def written() -> bool:
                job = await store.job("j")
                return job is not None and job.state == "done" and await redis.xlen(keys.RESULTS) == 0

            await eventually(written)
            assert await redis.hget(keys.job("j"), "state") != b"done"
            await redis.config_set("maxmemory", 0)
            await eventually(job_is(redis, "done"))
    finally:
        await redis.config_set("maxmemory", 0)


async def test_what_a_consumer_could_not_tell_before_it_died_is_told_by_the_next(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(2)
    await registered(redis)
    await redis.sadd(keys.ACTIVE, "j")
    # Durable and acknowledged, and nobody has heard of it.
    await store.apply([*announced(towns), *(done(town) for town in towns)])
    async with consuming(redis, store):
        await eventually(job_is(redis, "done"))
    assert not await redis.sismember(keys.ACTIVE, "j")


# --- totals -------------------------------------------------------------------------------------------------------


async def _totals(redis: Redis) -> dict[str, int]:
    return dict.fromkeys(NAMES, 0) | whole_amounts(await redis.hgetall(keys.TOTALS))


async def test_redis_is_told_the_totals_of_the_database_and_told_again_when_it_comes_back_empty(
    redis: Redis, store: AsyncDatabaseManager
) -> None:
    towns = places(3)

    async def told() -> bool:
        counted = await store.totals()
        del counted["since"]
        return counted["runs"] == 3 and await _totals(redis) == counted

    await registered(redis)
    async with consuming(redis, store):
        await published(redis, [*announced(towns), *(done(town) for town in towns[:2]), failed(towns[2])])
        await eventually(told)
        assert (await _totals(redis))["destinations_failed"] == 1
        # What comes twice counts once.
        await published(redis, [done(towns[0]), failed(towns[2])])
        await eventually(lambda: redis.xlen(keys.RESULTS))
    await redis.flushdb()
    async with consuming(redis, store, name="c2"):
        await eventually(told)


async def test_totals_never_go_backwards_but_with_another_database(redis: Redis) -> None:
    async def tell(since: int, calls: int) -> dict[str, int]:
        async with redis.pipeline() as pipe:
            totals.write(pipe, {"since": since, "llm_calls": calls, "runs": 2**60})
            await pipe.execute()
        return await _totals(redis)

    assert (await tell(100, 7))["llm_calls"] == 7
    # Of two consumers the one that committed first told last.
    assert (await tell(100, 5))["llm_calls"] == 7
    assert (await tell(100, 9))["llm_calls"] == 9
    found = await tell(200, 1)
    assert (found["llm_calls"], found["runs"], found["cache_hits"]) == (1, 2**60, 0)
