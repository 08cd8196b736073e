"""The worker processes that live, by their heartbeats.

Each keeps a hash that expires, and its name in a set that does not: so they are found without a walk over every key of
a cache of millions.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tasks import keys
from tasks.connection import text_of

#: Seconds after which the name of a worker without a heartbeat is forgotten: long enough for a short outage of Redis.
FORGET_SECONDS: Final = 3_600.0


async def tell(redis: AsyncRedis, name: str, report: dict[Any, Any]) -> None:
    """Give a sign of life, with what there is to say."""
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(keys.worker(name), mapping=report)
        pipeline.expire(keys.worker(name), keys.WORKER_SECONDS)
        pipeline.zadd(keys.WORKERS, {name: time.time()})
        pipeline.zremrangebyscore(keys.WORKERS, "-inf", time.time() - FORGET_SECONDS)
        await pipeline.execute()


async def leave(redis: AsyncRedis, name: str) -> None:
    """Take a worker off the list, because it ends."""
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(keys.worker(name))
        pipeline.zrem(keys.WORKERS, name)
        await pipeline.execute()


def consumers(redis: Redis) -> dict[str, dict[str, str]]:
    """The reports of the consumers that live, by name."""
    return _reports(redis, keys.CONSUMERS, keys.consumer)


def workers(redis: Redis) -> dict[str, dict[str, str]]:
    """What every live worker has said last, by its name."""
    return _reports(redis, keys.WORKERS, keys.worker)


def _reports(redis: Redis, listed: str, key_of: Callable[[str], str]) -> dict[str, dict[str, str]]:
    names = [text_of(name) for name in redis.zrange(listed, 0, -1)]
    with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(key_of(name))
        reports = pipeline.execute()
    return {
        name: {text_of(key): value.decode("utf-8", "replace") for key, value in report.items()}
        for name, report in zip(names, reports, strict=True)
        if report
    }


async def idle_lanes(redis: AsyncRedis, *, besides: str) -> int:
    """Lanes of other workers that have nothing to do and nothing to come."""
    names = [text_of(name) for name in await redis.zrange(keys.WORKERS, 0, -1)]
    async with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hmget(keys.worker(name), "lanes", "lanes_busy", "lanes_waiting")
        found = await pipeline.execute()
    idle = 0
    for name, (lanes, busy, waiting) in zip(names, found, strict=True):
        if name != besides and lanes is not None and not int(waiting or 0):
            idle += max(0, int(lanes) - int(busy or 0))
    return idle


def live_lanes(redis: Redis) -> int:
    """Lanes of all workers that have a heartbeat."""
    return sum(int(report.get("lanes") or 0) for report in workers(redis).values())
