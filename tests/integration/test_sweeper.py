"""Chunks that nobody works on are sent again, and nothing else is."""

import asyncio
import json
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.sections import StreamingSettings
from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import JobStoppedError
from tasks.jobs import registry as jobs
from tasks.jobs.events import follow
from tasks.messages import Event, JobOptions
from tasks.queue.control import resume
from tasks.queue.ledger import Ledger, Taken
from tasks.queue.producer import enqueue
from tasks.queue.retry import is_drained
from workers.results.consumer import ResultsConsumer
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.lost import LOST_SECONDS, LostFinder
from workers.results.publisher import EventPublisher
from workers.results.sweeper import Sweeper

STREAMING = StreamingSettings(max_events_per_job=100)


@dataclass
class Rig:
    """A job of four destinations that nobody works on, and its sweeper."""

    redis: Redis
    client: AsyncRedis
    sweeper: Sweeper
    job: jobs.Job

    def queued(self) -> list[tuple[str, str]]:
        """Chunk ids and labels of the messages in the queue, in the order in which they are served."""
        found = []
        for key in keys.queue_keys():
            for raw in reversed(self.redis.lrange(key, 0, -1)):
                message = json.loads(raw)
                (job_id, chunk_id), _, _ = json.loads(b64decode(message["body"]))
                assert job_id == self.job.job_id
                found.append((chunk_id, message["headers"]["argsrepr"]))
        return found

    def lose(self, count: int) -> None:
        """Take messages away as a killed worker does between popping and booking them."""
        for key in keys.queue_keys():
            while count and self.redis.rpop(key):
                count -= 1


@pytest.fixture
async def rig(redis: Redis, redis_url: str, settings_for: Callable[..., Settings]) -> AsyncIterator[Rig]:
    settings = settings_for(REDIS_URL=redis_url)
    client = connect_async(redis_url, socket_timeout_seconds=180)
    job = enqueue([f"City {number}" for number in range(4)], priority=7, settings=settings, redis=redis)
    yield Rig(redis, client, Sweeper(client, client, settings, url=redis_url), job)
    await client.aclose()


async def test_the_messages_of_a_job_are_readable_and_a_job_at_rest_is_left_alone(rig: Rig) -> None:
    assert [text for _, text in rig.queued()] == [f"City {number}" for number in range(4)]
    assert rig.redis.llen(keys.queue_keys()[9 - 7]) == 4, "priority 7 of 9 is served third"
    for _ in range(3):
        assert await rig.sweeper.sweep() == 0
    assert len(rig.queued()) == 4


async def test_lost_messages_are_sent_again_at_the_second_look(rig: Rig) -> None:
    rig.lose(3)
    assert await rig.sweeper.sweep() == 0, "a worker may have one in its hands"
    assert await rig.sweeper.sweep() == 3
    labels = [text for _, text in rig.queued()]
    assert {"City 0", "City 1", "City 2"} <= set(labels)
    for _ in range(3):
        assert await rig.sweeper.sweep() == 0


async def test_a_dead_lease_is_sent_again_at_once(rig: Rig) -> None:
    (first, _), *_ = rig.queued()
    rig.lose(1)
    dying = Ledger(rig.client, token="dying", lease_seconds=0.1)
    assert isinstance(await dying.take(rig.job.job_id, first, max_unwritten=100), Taken)
    assert await rig.sweeper.sweep() == 0
    async with asyncio.timeout(180):
        while not await rig.sweeper.sweep():
            await asyncio.sleep(0.02)
    assert rig.queued()[0][0] == first, "what was begun goes on before more is begun"
    assert len(rig.queued()) == 4


async def test_what_somebody_works_on_is_left_alone(rig: Rig) -> None:
    alive = Ledger(rig.client, token="alive", lease_seconds=60)
    for chunk_id, _ in rig.queued():
        await alive.take(rig.job.job_id, chunk_id, max_unwritten=100)
    rig.lose(4)
    for _ in range(3):
        assert await rig.sweeper.sweep() == 0
    assert rig.queued() == []


async def test_a_cancelled_job_is_not_woken(rig: Rig) -> None:
    rig.lose(4)
    jobs.cancel(rig.redis, rig.job.job_id)
    for _ in range(3):
        assert await rig.sweeper.sweep() == 0
    assert rig.redis.hlen(keys.chunks(rig.job.job_id)) == 0


async def test_a_paused_job_is_not_woken_until_it_is_resumed(
    rig: Rig, settings_for: Callable[..., Settings], redis_url: str
) -> None:
    dying = Ledger(rig.client, token="dying", lease_seconds=0.01)
    (first, _), *_ = rig.queued()
    assert isinstance(await dying.take(rig.job.job_id, first, max_unwritten=100), Taken)
    rig.redis.hset(keys.job(rig.job.job_id), mapping={"paused": "price", "paused_at": 1})
    rig.lose(4)
    async with asyncio.timeout(180):
        while rig.redis.exists(keys.leases(rig.job.job_id)):
            assert await rig.sweeper.sweep() == 0
    for _ in range(3):
        assert await rig.sweeper.sweep() == 0
    events = list(follow(rig.job, redis=rig.redis, timeout_seconds=180))
    assert [(event.type, event.data["paused"]) for event in events] == [("job.paused", "price")]
    resumed = resume(rig.job.job_id, settings=settings_for(REDIS_URL=redis_url), redis=rig.redis)
    assert (resumed.paused, resumed.state) == (None, "queued")
    assert [text for _, text in rig.queued()] == [f"City {number}" for number in range(4)]


async def test_events_travel_in_the_background_and_are_bounded(rig: Rig) -> None:
    async with EventPublisher(rig.client, STREAMING, enabled=True) as publisher:
        for number in range(300):
            publisher.publish(Event("stage.done", rig.job.job_id, data={"number": number}))
    assert publisher.sent == 300
    assert 100 <= rig.redis.xlen(keys.events(rig.job.job_id)) <= 200, "trimmed about"
    assert rig.redis.ttl(keys.events(rig.job.job_id)) > 0
    jobs.cancel(rig.redis, rig.job.job_id)
    last = list(follow(rig.job, redis=rig.redis, timeout_seconds=180))
    assert last[-2].data == {"number": 299}
    assert (last[-1].type, last[-1].data["state"]) == ("job.done", "cancelled")


async def test_events_travel_in_chunks_as_soon_as_the_settings_say(rig: Rig) -> None:
    def sent() -> int:
        return int(rig.redis.xlen(keys.events(rig.job.job_id)))

    lazy = StreamingSettings(flush_interval_seconds=10, chunk_size=1)
    async with EventPublisher(rig.client, lazy, enabled=True) as publisher:
        for number in range(20):
            publisher.publish(Event("stage.done", rig.job.job_id, data={"number": number}))
        await asyncio.sleep(0.2)
        assert sent() == 0
    assert sent() == 21, "at the end everything is sent"
    before = rig.redis.info("commandstats")["cmdstat_expire"]["calls"]
    quick = StreamingSettings(flush_interval_seconds=0.001, chunk_size=5)
    async with EventPublisher(rig.client, quick, enabled=True) as publisher:
        for number in range(20):
            publisher.publish(Event("stage.done", rig.job.job_id, data={"number": number}))
        async with asyncio.timeout(180):
            while sent() < 41:
                await asyncio.sleep(0.01)
    assert rig.redis.info("commandstats")["cmdstat_expire"]["calls"] - before == 4, "20 events, five at a time"


async def test_a_publisher_without_events_is_woken_by_no_timer(rig: Rig) -> None:
    loop: Any = asyncio.get_running_loop()
    async with EventPublisher(rig.client, STREAMING, enabled=True) as publisher:
        publisher.publish(Event("stage.done", rig.job.job_id))
        async with asyncio.timeout(180):
            while publisher.sent < 1:
                await asyncio.sleep(0.01)
        for _ in range(3):
            await asyncio.sleep(0)
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


async def test_events_switched_off_leave_no_stream(rig: Rig) -> None:
    async with EventPublisher(rig.client, STREAMING, enabled=False) as publisher:
        publisher.publish(Event("stage.done", rig.job.job_id))
    assert not rig.redis.exists(keys.events(rig.job.job_id))


async def test_a_job_is_announced_once_and_before_its_first_news(rig: Rig) -> None:
    for _ in range(2):
        async with EventPublisher(rig.client, STREAMING, enabled=True) as publisher:
            publisher.publish(Event("stage.done", rig.job.job_id))
            publisher.publish(Event("stage.done", "a job that is gone"))
    kinds = [json.loads(fields[b"e"])["type"] for _, fields in rig.redis.xrange(keys.events(rig.job.job_id))]
    assert kinds == ["job.started", "stage.done", "stage.done"]
    first = json.loads(rig.redis.xrange(keys.events(rig.job.job_id))[0][1][b"e"])
    assert first["data"] == {"name": "City 0", "total": 4}
    assert not rig.redis.exists(keys.events("a job that is gone"))


async def test_a_job_runs_from_its_first_news_on_and_waits_no_more(
    rig: Rig, settings_for: Callable[..., Settings]
) -> None:
    assert jobs.status(rig.redis, rig.job.job_id).state == "queued"
    async with EventPublisher(rig.client, STREAMING, enabled=True) as publisher:
        publisher.publish(Event("stage.done", rig.job.job_id))
    begun = jobs.status(rig.redis, rig.job.job_id)
    assert begun.state == "running"
    assert begun.started_at is not None
    # The consumer, which has seen no result, does not say otherwise.
    settings = settings_for()
    async with AsyncDatabaseManager.from_settings(settings) as store:
        consumer = ResultsConsumer(rig.client, store, settings, "consumer")
        running = asyncio.create_task(consumer.run())
        async with asyncio.timeout(180):
            while not rig.redis.hget(keys.job(rig.job.job_id), "revision"):
                await asyncio.sleep(0.01)
        consumer.stop()
        await running
    after = jobs.status(rig.redis, rig.job.job_id)
    assert (after.state, after.started_at, after.total) == ("running", begun.started_at, 4)


async def test_a_job_is_stalled_when_nobody_works_on_it_and_not_when_somebody_is_slow(rig: Rig) -> None:
    long_ago = 1_000_000
    rig.redis.hset(keys.job(rig.job.job_id), mapping={"state": "running", "started_at": long_ago})
    assert jobs.status(rig.redis, rig.job.job_id).state == "stalled"
    rig.redis.hset(keys.worker("slow"), "chunks_held", 1)
    rig.redis.expire(keys.worker("slow"), keys.WORKER_SECONDS)
    rig.redis.zadd(keys.WORKERS, {"slow": 0})
    assert jobs.status(rig.redis, rig.job.job_id).state == "running"


async def test_a_job_whose_producer_died_is_cancelled_and_one_that_is_slow_is_not(
    rig: Rig, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.results.sweeper.UNSEEN_SECONDS", 0.05)
    half = jobs.create(rig.redis, name="half", options=JobOptions(), compress=True)
    await rig.sweeper.sweep()
    await asyncio.sleep(0.06)
    await rig.sweeper.sweep()
    assert jobs.status(rig.redis, half).state == "queued", "its producer gives signs of life"
    rig.redis.delete(keys.producer(half))
    await rig.sweeper.sweep()
    assert jobs.status(rig.redis, half).state == "queued", "Redis may have been away"
    await asyncio.sleep(0.06)
    await rig.sweeper.sweep()
    assert jobs.status(rig.redis, half).state == "cancelled"
    assert jobs.status(rig.redis, rig.job.job_id).state == "queued", "a sealed job needs no producer"


def test_a_job_that_is_cancelled_while_it_is_enqueued_leaves_nothing_behind(
    redis: Redis, redis_url: str, settings_for: Callable[..., Settings]
) -> None:
    def rows() -> Iterator[str]:
        for number in range(200):
            if number == 120:
                (job_id,) = redis.smembers(keys.ACTIVE)
                jobs.cancel(redis, job_id.decode())
            yield f"City {number}"

    with pytest.raises(JobStoppedError, match="was cancelled while it was being enqueued"):
        enqueue(rows(), settings=settings_for(REDIS_URL=redis_url), redis=redis)
    (job_id,) = redis.zrange(keys.JOBS, 0, -1)
    left = {key.decode() for key in redis.scan_iter(f"{keys.job(job_id.decode())}*")}
    assert left == {keys.job(job_id.decode())}


def test_a_producer_shows_that_it_lives_until_it_has_sealed_its_job(
    redis: Redis, redis_url: str, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.queue.producer.RENEWALS", 3000)
    renewed = False

    def rows() -> Iterator[str]:
        nonlocal renewed
        yield "City 0"
        for number in range(1, 60):
            yield f"City {number}"
        (job_id,) = redis.smembers(keys.ACTIVE)
        redis.delete(keys.producer(job_id.decode()))
        deadline = time.monotonic() + 20
        while not renewed and time.monotonic() < deadline:
            renewed = bool(redis.exists(keys.producer(job_id.decode())))

    job = enqueue(rows(), settings=settings_for(REDIS_URL=redis_url), redis=redis)
    assert renewed
    assert not redis.exists(keys.producer(job.job_id))


async def test_what_redis_has_lost_ends_as_a_failure_and_the_job_ends(rig: Rig, tmp_path: Path) -> None:
    """A chunk that was damaged or deleted left its destinations without a row and without a worker, for ever."""
    job_id = rig.job.job_id
    now = 100.0
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}", pool_size=2) as store:
        consumer = ResultsConsumer(rig.client, store, Settings(), "c1")
        running = asyncio.create_task(consumer.run())
        finder = LostFinder(rig.client, store.missing, compress=True)

        async def lost_after(seconds: float) -> int:
            nonlocal now
            now += seconds
            return await finder.look(jobs.status(rig.redis, job_id), now=now)

        try:
            async with asyncio.timeout(180):
                while not ((row := await store.job(job_id)) and row.sealed and is_drained(rig.redis)):
                    await asyncio.sleep(0.02)
            assert [await lost_after(LOST_SECONDS) for _ in range(3)] == [0, 0, 0], "its chunks are there"
            rig.redis.delete(keys.chunks(job_id))
            assert [await lost_after(0), await lost_after(LOST_SECONDS / 2)] == [0, 0], (
                "a retry may be about to make some"
            )
            rig.redis.hset(keys.job(job_id), "paused", "user")
            assert await lost_after(LOST_SECONDS) == 0, "a paused job rests"
            rig.redis.hdel(keys.job(job_id), "paused")
            assert [await lost_after(0), await lost_after(LOST_SECONDS)] == [0, 4]
            async with asyncio.timeout(180):
                while jobs.status(rig.redis, job_id).state != "done":
                    await asyncio.sleep(0.02)
            assert jobs.status(rig.redis, job_id).failed == 4
            assert {f.error_class async for f in store.failures(job_id)} == {"LostError"}
        finally:
            consumer.stop()
            await running
