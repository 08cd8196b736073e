"""What dead workers and ended jobs have left in Redis goes; what is in use stays."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.jobs import registry as jobs
from tasks.queue.app import configure
from tasks.queue.ledger import Ledger
from tasks.queue.producer import enqueue
from workers.results import leftovers
from workers.results.leftovers import UNACKED_SECONDS, Leftovers
from workers.results.stream import ResultsStream


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    made = connect_async(redis_url, socket_timeout_seconds=180)
    yield made
    await made.aclose()


@pytest.fixture
def settings(settings_for: Callable[..., Settings], redis_url: str) -> Settings:
    return settings_for(REDIS_URL=redis_url)


def _job(redis: Redis, settings: Settings, count: int = 3) -> jobs.Job:
    return enqueue([f"City {number}" for number in range(count)], settings=settings, redis=redis)


def _deliver(settings: Settings, redis_url: str, count: int) -> Connection:
    """Take messages as a worker does that dies before it acknowledges them."""
    app = configure(settings, redis_url)
    connection = app.connection_for_read()
    taken: list[Any] = []
    queue: Queue = app.amqp.queues[keys.QUEUE]
    channel = connection.channel()
    channel.qos.restore_at_shutdown = False
    with Consumer(channel, [queue], on_message=taken.append, accept=["json"]):
        while len(taken) < count:
            connection.drain_events(timeout=180)
    return connection


async def test_messages_of_dead_workers_go_once_their_chunk_is_gone(
    redis: Redis, redis_url: str, client: AsyncRedis, settings: Settings
) -> None:
    job = _job(redis, settings)
    connection = _deliver(settings, redis_url, 3)
    tidier = Leftovers(client, client)
    assert redis.hlen(keys.UNACKED) == redis.zcard(keys.UNACKED_INDEX) == 3
    done, under_way, fresh = sorted(chunk.decode() for chunk in redis.hkeys(keys.chunks(job.job_id)))
    redis.hdel(keys.chunks(job.job_id), done, fresh)
    by_chunk = {leftovers._chunk_of(raw): tag for tag, raw in redis.hgetall(keys.UNACKED).items()}
    await tidier.tidy()
    assert redis.hlen(keys.UNACKED) == 3, "a living worker acknowledges them in a moment"
    for chunk in (done, under_way):
        redis.zadd(keys.UNACKED_INDEX, {by_chunk[job.job_id, chunk]: time.time() - UNACKED_SECONDS - 1})
    redis.hset(keys.UNACKED, "foreign", "not ours")
    redis.zadd(keys.UNACKED_INDEX, {"foreign": 1.0})
    await tidier.tidy()
    left = {by_chunk[job.job_id, chunk] for chunk in (under_way, fresh)} | {b"foreign"}
    assert set(redis.hkeys(keys.UNACKED)) == set(redis.zrange(keys.UNACKED_INDEX, 0, -1)) == left
    connection.release()


async def test_every_key_of_an_ended_job_gets_a_lifetime_and_none_of_a_running_one(
    redis: Redis, client: AsyncRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, running, forgotten = (_job(redis, settings) for _ in range(3))
    for job in (ended, running, forgotten):
        # A worker has begun a chunk of two, and ticked one off.
        chunk_id = redis.hkeys(keys.chunks(job.job_id))[0].decode()
        ledger = Ledger(client, token="w", lease_seconds=60)
        assert await ledger.take(job.job_id, chunk_id, max_unwritten=1_000)
        redis.sadd(keys.finished(job.job_id, chunk_id), "one")
    redis.hset(keys.job(ended.job_id), "ended", "1")
    redis.delete(keys.job(forgotten.job_id))
    redis.srem(keys.ACTIVE, ended.job_id, forgotten.job_id)
    redis.expire(keys.events(ended.job_id), 100)
    redis.set("themes:cache:digest", "an answer", ex=100)
    # Many keys are looked at in many looks.
    monkeypatch.setattr(leftovers, "LOOK_AT_ONCE", 5)
    tidier = Leftovers(client, client)
    for _ in range(20):
        await tidier.tidy()
    for job in (ended, forgotten):
        owned = list(redis.scan_iter(f"{keys.job(job.job_id)}*"))
        assert len(owned) >= 5
        assert all(redis.ttl(key) > 0 for key in owned), owned
    assert all(
        redis.ttl(key) == -1
        for key in redis.scan_iter(f"{keys.job(running.job_id)}*")
        if key.decode() != keys.producer(running.job_id)
    )
    assert redis.ttl(keys.job(running.job_id)) == -1
    assert redis.ttl("themes:cache:digest") <= 100


async def test_a_key_that_holds_something_else_keeps_nothing_from_being_tidied(
    redis: Redis, client: AsyncRedis, settings: Settings
) -> None:
    _job(redis, settings)
    redis.set(keys.job("odd"), "no hash")
    redis.set(keys.chunks("left"), "no hash")
    for _ in range(3):
        await Leftovers(client, client).tidy()
    assert redis.ttl(keys.job("odd")) == -1
    assert redis.ttl(keys.chunks("left")) > 0


async def test_the_results_stream_keeps_what_is_unread_or_pending(redis: Redis, client: AsyncRedis) -> None:
    tidier = Leftovers(client, client)
    await tidier.tidy()
    stream = ResultsStream(client, consumer="c")
    await stream.ensure_group()
    ids = [redis.xadd(keys.RESULTS, {"b": "x"}) for _ in range(10)]
    await tidier.tidy()
    assert redis.xlen(keys.RESULTS) == 10
    await stream.gather(count=6, flush_seconds=0)
    await stream.ack(ids[:4])
    await tidier.tidy()
    assert [entry for entry, _ in redis.xrange(keys.RESULTS)] == ids[4:]
    await stream.ack(ids[4:6])
    await tidier.tidy()
    assert redis.xlen(keys.RESULTS) == 4
