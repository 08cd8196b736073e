"""What processes measure, on its way through a real Redis into the database."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks import keys
from tasks.connection import CountedRetry, connect_async
from tasks.messages import Chunk, pack, unpack
from tests.support.stored import KYOTO, announced, done
from workers.diagnosis.system import SystemReader
from workers.observe import counters
from workers.observe.measurement_store import (
    MeasurementReporter,
    decode_measurements,
    read_job_measurements,
    write_measurements,
)
from workers.observe.profiler import PerformanceProfiler
from workers.observe.reporter import MetricsReporter, read_metrics, read_series
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.measurement_keeper import MeasurementKeeper
from workers.results.measurements import ConsumerMeasurements
from workers.results.stream import Decoded


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    made = connect_async(redis_url, socket_timeout_seconds=180)
    yield made
    await made.aclose()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url) as made:
        yield made


def _worked(profiler: PerformanceProfiler, job_id: str = "job", seconds: float = 0.5) -> None:
    with profiler.job(job_id) as known, profiler.destination(known, "id", "Kyoto", waited={}):
        profiler.record("llm.call", seconds)


def _has_entry(redis: Redis, job_id: str, state: str = "running") -> None:
    redis.hset(keys.job(job_id), mapping={"job_id": job_id, "state": state})


# --- parts --------------------------------------------------------------------------------------------------------


async def test_parts_of_two_processes_become_one_picture(client: AsyncRedis, redis: Redis) -> None:
    for seconds in (0.25, 0.5):
        profiler = PerformanceProfiler(enabled=True)
        reporter = MeasurementReporter(client, profiler, seconds=1)
        _worked(profiler, seconds=seconds)
        await reporter.report()
        _worked(profiler, seconds=seconds)
        await reporter.report()
    picture = read_job_measurements(redis, "job")
    assert len(picture.parts) == 2, "a process replaces its part"
    assert picture.spans["llm.call"].count == 4
    assert picture.spans["llm.call"].total == 1.5
    assert read_job_measurements(redis, "unknown").parts == []


async def test_no_part_is_kept_for_ever_whether_redis_knows_the_job_or_not(client: AsyncRedis, redis: Redis) -> None:
    profiler = PerformanceProfiler(enabled=True)
    _has_entry(redis, "known")
    for job_id in ("known", "forgotten"):
        _worked(profiler, job_id)
    await MeasurementReporter(client, profiler, seconds=1).report()
    write_measurements(redis, "by hand", read_job_measurements(redis, "known").parts[0])
    for job_id in ("known", "forgotten", "by hand"):
        assert 0 < redis.ttl(keys.measurements(job_id)) <= keys.KEEP_SECONDS
    assert redis.ttl(keys.MEASUREMENTS_DUE) > 0


async def test_a_part_that_did_not_arrive_is_made_good_by_the_next(
    client: AsyncRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler = PerformanceProfiler(enabled=True)
    reporter = MeasurementReporter(client, profiler, seconds=1)
    _worked(profiler)

    def away(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(client, "pipeline", away)
        with pytest.raises(RedisConnectionError):
            await reporter.report()
    assert read_job_measurements(redis, "job").parts == []
    await reporter.report()
    assert read_job_measurements(redis, "job").spans["llm.call"].count == 1


async def test_the_end_of_a_jobs_work_is_told_at_once(client: AsyncRedis, redis: Redis) -> None:
    profiler = PerformanceProfiler(enabled=True)
    running = asyncio.create_task(MeasurementReporter(client, profiler, seconds=3600).run())
    await asyncio.sleep(0)
    _worked(profiler)
    async with asyncio.timeout(180):
        while not read_job_measurements(redis, "job").parts:
            await asyncio.sleep(0.02)
    # So is the end of the process, whatever has come since.
    with profiler.job("job"):
        profiler.count("things", 7)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert read_job_measurements(redis, "job").sums["things"] == 7


def test_a_foreign_part_does_not_hide_the_others() -> None:
    profiler = PerformanceProfiler(enabled=True)
    _worked(profiler)
    ((_, part),) = profiler.parts()
    assert decode_measurements([b"\x00garbage", pack(part), pack({"process": 5})]) == [part]


def test_a_chunk_of_an_older_version_is_read_and_says_nothing_of_its_wait() -> None:
    old = pack({"job_id": "j", "chunk_id": "c", "destinations": [], "attempt": 1})
    assert unpack(old, Chunk) == Chunk("j", "c", (), attempt=1)
    assert unpack(old, Chunk).queued_at == 0.0


# --- into the database --------------------------------------------------------------------------------------------


async def test_a_profile_outlives_redis_in_the_database(
    client: AsyncRedis, redis: Redis, store: AsyncDatabaseManager
) -> None:
    profiler = PerformanceProfiler(enabled=True)
    _worked(profiler)
    _has_entry(redis, "job", "done")
    await MeasurementReporter(client, profiler, seconds=1).report()
    told = read_job_measurements(redis, "job").parts
    assert await MeasurementKeeper(client, store).copy_due() == 1
    redis.delete(keys.measurements("job"), keys.job("job"))
    assert await store.measurements("job") == told
    assert await store.measurements("other") == []
    assert await MeasurementKeeper(client, store).copy_due() == 0, "copied once"


async def test_a_job_that_cannot_be_read_keeps_no_other_profile_from_being_copied(
    client: AsyncRedis, redis: Redis, store: AsyncDatabaseManager
) -> None:
    for job_id in ("bad", "worse", "job"):
        profiler = PerformanceProfiler(enabled=True)
        _worked(profiler, job_id)
        _has_entry(redis, job_id, "done")
        await MeasurementReporter(client, profiler, seconds=1).report()
    for key in (keys.job("bad"), keys.job("worse"), keys.measurements("worse")):
        redis.delete(key)
        redis.set(key, "a string", ex=60)
    keeper = MeasurementKeeper(client, store)
    assert await keeper.copy_due() == 2
    assert [len(await store.measurements(job_id)) for job_id in ("bad", "worse", "job")] == [1, 0, 1]


async def test_a_part_that_comes_after_the_end_is_kept_too(
    client: AsyncRedis, redis: Redis, store: AsyncDatabaseManager
) -> None:
    _has_entry(redis, "job", "done")
    keepers = [MeasurementKeeper(client, store), MeasurementKeeper(client, store)]
    early, late = PerformanceProfiler(enabled=True), PerformanceProfiler(enabled=True)
    for profiler in (early, late, early):
        _worked(profiler)
        await MeasurementReporter(client, profiler, seconds=1).report()
        await asyncio.gather(*(keeper.copy_due() for keeper in keepers))
    parts = await store.measurements("job")
    assert sorted(part.sums["executed"] for part in parts) == [1, 2]
    assert redis.zcard(keys.MEASUREMENTS_DUE) == 0


async def test_a_part_that_comes_while_the_others_are_copied_stays_due(
    client: AsyncRedis, redis: Redis, store: AsyncDatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    _has_entry(redis, "job", "done")
    keeper, profiler = MeasurementKeeper(client, store), PerformanceProfiler(enabled=True)
    reporter = MeasurementReporter(client, profiler, seconds=1)
    _worked(profiler)
    await reporter.report()
    keep = store.keep_measurements

    async def meanwhile(job_id: str, parts: Any) -> None:
        await keep(job_id, parts)
        _worked(profiler)
        await reporter.report()

    with monkeypatch.context() as patch:
        patch.setattr(store, "keep_measurements", meanwhile)
        await keeper.copy_due()
    assert redis.zcard(keys.MEASUREMENTS_DUE) == 1
    await keeper.copy_due()
    (part,) = await store.measurements("job")
    assert part.sums["executed"] == 2


async def test_the_profile_of_a_job_that_runs_is_copied_now_and_then_and_stays_due(
    client: AsyncRedis, redis: Redis, store: AsyncDatabaseManager
) -> None:
    _has_entry(redis, "job", "running")
    keeper, profiler = MeasurementKeeper(client, store), PerformanceProfiler(enabled=True)
    _worked(profiler)
    await MeasurementReporter(client, profiler, seconds=1).report()
    assert [await keeper.copy_due(), await keeper.copy_due()] == [1, 0]
    assert len(await store.measurements("job")) == 1
    redis.hset(keys.job("job"), "state", "done")
    assert [await keeper.copy_due(), await keeper.copy_due()] == [1, 0]


async def test_a_consumer_books_its_batches_on_their_jobs(store: AsyncDatabaseManager) -> None:
    profiler = PerformanceProfiler(enabled=True, role="consumer")
    profile = ConsumerMeasurements(profiler, store, seconds=1)
    entries = [*announced(KYOTO), done(), *announced(KYOTO, job="k")]
    now_ms = int(time.time() * 1000)
    decoded = Decoded([f"{now_ms - 1000}-{n}".encode() for n in range(len(entries))], entries, [])
    with profile.batch(decoded) as jobs:
        applied = await store.apply(entries)
        profile.written(jobs, decoded, applied, seconds=0.25)
    parts = {known.job_id: part for known, part in profiler.parts()}
    assert {job: part.sums["entries"] for job, part in parts.items()} == {"j": 4, "k": 3}
    assert parts["j"].sums["results"] == 1
    assert "results" not in parts["k"].sums
    assert sum(part.sums["rows"] for part in parts.values()) == pytest.approx(store.stats().rows)
    assert parts["j"].spans["result.wait"]["count"] == 4
    assert parts["j"].spans["result.wait"]["total"] >= 4 * 0.9
    assert parts["k"].spans["db.commit"]["total"] == 0.25
    assert profile.counters()["consumer_entries_total"] == 7


# --- counters -----------------------------------------------------------------------------------------------------


async def test_counters_of_all_processes_add_up(client: AsyncRedis, redis: Redis) -> None:
    ok, refused = (
        counters.field("llm_requests_total", endpoint="e", model="m", outcome=outcome)
        for outcome in ("ok", "rate_limited")
    )
    hit = counters.field("cache_gets_total", tier="memory", result="hit")
    before = time.time()
    for number in (1, 2):
        profiler = PerformanceProfiler(enabled=True)
        hits = {hit: 10.0}
        reporter = MetricsReporter(client, profiler, lambda hits=hits: hits)  # type: ignore[misc]
        profiler.counters.add(ok, number)
        profiler.counters.add(refused)
        _worked(profiler, seconds=0.25)
        await reporter.report()
        hits[hit] = 13.0
        profiler.counters.add(counters.field("destinations_total", outcome="failed"))
        _worked(profiler, seconds=0.5)
        await reporter.report()
    metrics = read_metrics(redis)
    assert metrics.since is not None
    assert metrics.since >= before
    assert metrics.total("llm_requests_total") == 5
    assert metrics.total("llm_requests_total", outcome="ok") == 3
    assert metrics.counters[hit] == 26
    calls = metrics.spans["llm.call"]
    assert (calls.count, calls.total) == (4, 1.5)
    assert calls.quantile(0.25) == pytest.approx(0.25, rel=0.06)
    assert calls.quantile(1.0) == pytest.approx(0.5, rel=0.06)
    points = read_series(redis, 60)
    assert sum(point.calls for point in points) == 5
    assert sum(point.errors for point in points) == sum(point.rate_limited for point in points) == 2
    assert sum(point.hits for point in points) == 26
    assert [sum(getattr(point, name) for point in points) for name in ("destinations", "failures")] == [2, 2]
    assert sum(sum(point.call_buckets.values()) for point in points) == 4
    assert {later.at - at.at for at, later in pairwise(points)} == {10}
    assert len(points) in {6, 7}
    for key in [*redis.scan_iter("themes:series:*"), *redis.scan_iter(f"{keys.METRICS}:*")]:
        assert redis.ttl(key) > 0


async def test_a_report_of_metrics_whose_reply_was_lost_is_counted_once(client: AsyncRedis, redis: Redis) -> None:
    profiler = PerformanceProfiler(enabled=True)
    reporter = MetricsReporter(client, profiler)
    reports = reporter._reports
    script, lost = reports._script, 0

    async def lossy(**options: Any) -> Any:
        nonlocal lost
        answer = await script(**options)
        lost += 1
        if lost == 1:
            raise RedisConnectionError("the reply is lost")
        return answer

    reports._script = lossy  # type: ignore[assignment]
    profiler.counters.add("things_total", 5)
    _worked(profiler)
    with pytest.raises(RedisConnectionError):
        await reporter.report()
    profiler.counters.add("things_total", 2)
    await reporter.report()
    assert read_metrics(redis).total("things_total") == 5, "the same report, sent again"
    await reporter.report()
    metrics = read_metrics(redis)
    assert metrics.total("things_total") == 7
    assert metrics.spans["llm.call"].count == 1


async def test_metrics_are_told_a_last_time_at_the_end(client: AsyncRedis, redis: Redis) -> None:
    profiler = PerformanceProfiler(enabled=True)
    running = asyncio.create_task(MetricsReporter(client, profiler).run())
    async with asyncio.timeout(180):
        while not redis.exists(keys.METRICS):
            await asyncio.sleep(0.01)
    profiler.counters.add("things_total")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert read_metrics(redis).total("things_total") == 1


def test_nothing_is_read_where_nothing_was_counted(redis: Redis) -> None:
    metrics = read_metrics(redis)
    assert (metrics.since, metrics.counters, metrics.spans) == (None, {}, {})
    assert {point.calls for point in read_series(redis, 600)} == {0.0}


async def test_a_redis_that_is_away_is_counted() -> None:
    before = CountedRetry.failures
    nobody = connect_async("redis://127.0.0.1:1/0", socket_timeout_seconds=1)
    with pytest.raises(RedisConnectionError):
        await nobody.ping()
    await nobody.aclose()
    assert CountedRetry.failures > before


async def test_switched_off_no_key_is_written(client: AsyncRedis, redis: Redis) -> None:
    profiler = PerformanceProfiler(enabled=False)
    _worked(profiler)
    profiler.counters.add("things_total")
    await MeasurementReporter(client, profiler, seconds=1).run()
    await MetricsReporter(client, profiler, lambda: {"more_total": 1.0}).run()
    assert redis.keys("*") == []


def test_a_point_of_the_series_that_grows_no_more_is_read_once(redis: Redis) -> None:
    now = time.time()
    for ago in (600, 0):
        redis.hset(keys.series(now - ago), "calls", 3)
    reader = SystemReader(redis, broker=redis)
    assert sum(point.calls for point in reader.points()) == 6
    for ago in (600, 0):
        redis.hset(keys.series(now - ago), "calls", 7)
    reader._points = None
    before = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert sum(point.calls for point in reader.points()) == 10
    assert redis.info("commandstats")["cmdstat_hgetall"]["calls"] - before < 12
    for key in redis.scan_iter("themes:series:*"):
        redis.expire(key, 60)
