"""The worker processes that live, by their heartbeats.

Each keeps a hash that expires, and its name in a set that does not: so they are found without a walk over every key of
a cache of millions.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tasks import keys, readings
from tasks.connection import text_of
from tasks.errors import UnreadableError

#: The field that says which of a report's fields cannot be read.
UNREADABLE: Final = "unreadable"
#: Fields of a report that are whole numbers, and those that are numbers.
WHOLE: Final = frozenset({
    "lanes", "lanes_busy", "lanes_waiting", "lanes_wanted", "chunks_held", "chunks_claimed", "restarts", "wedged",
    "connections", "connections_in_use", "connections_waiting", "cache_outages", "executed", "stolen", "shared",
    "yielded", "memory_mb", "memory_threshold_mb", "memory_cache_mb", "pid", "lag", "last_batch", "rejected",
})  # fmt: skip
NUMBERS: Final = WHOLE | {
    "at", "started_at", "busy_share", "cache_away_seconds", "idle_seconds", "entries_per_second", "ms_per_batch",
}  # fmt: skip


class _Route(msgspec.Struct):
    """What a pool says of one way to an LLM, as far as it is read."""

    model: str | None = None
    circuit: str | None = None
    in_use: float = 0
    queued: float = 0
    limit: float = 0
    failures: float = 0
    cool_downs: float = 0
    cooling_seconds: float = 0
    latency_ms: float | None = None
    limit_digest: str | None = None


class _Pool(msgspec.Struct):
    idle: float = 0
    wait_p95_ms: float | None = None
    routes: dict[str, _Route] = {}


class _Calls(msgspec.Struct):
    count: int
    total_seconds: float


class _Process(msgspec.Struct):
    cpu_percent: float | None = None
    rss_bytes: float | None = None


class _Profile(msgspec.Struct):
    process: _Process | None = None
    spans: dict[str, _Calls] = {}


class _Setting(msgspec.Struct):
    origin: str
    value: Any


#: The fields of a report that are JSON, and the shape of what is read of them.
JSON: Final[dict[str, Any]] = {
    "pool": _Pool, "profile": _Profile, "settings": dict[str, _Setting],
    "statements": dict[str, dict[str, float]],
}  # fmt: skip

#: What is read of a report to find idle lanes.
LANES: Final = ("lanes", "lanes_busy", "lanes_waiting")
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
    """What every live worker has said last, by its name; see `checked`."""
    return _reports(redis, keys.WORKERS, keys.worker)


def _reports(redis: Redis, listed: str, key_of: Callable[[str], str]) -> dict[str, dict[str, str]]:
    names = [text_of(name) for name in redis.zrange(listed, 0, -1)]
    replies = readings.replies_of(redis, map(key_of, names))
    found = {name: checked(reply) for name, reply in zip(names, replies, strict=True)}
    return {name: report for name, report in found.items() if report}


def checked(reply: Any) -> dict[str, str]:
    """A report as Redis replies: every number in it is one. What is none is left out, and `unreadable` names it."""
    try:
        report = readings.texts(reply)
    except UnreadableError as exc:
        return {UNREADABLE: str(exc)}
    flaws = []
    for name in [*NUMBERS & report.keys()]:
        try:
            value = readings.number(report, name)
            if value is not None and name in WHOLE:
                report[name] = str(int(value))
        except UnreadableError as exc:
            flaws.append(str(exc))
            del report[name]
    for name, shape in JSON.items():
        try:
            msgspec.json.decode(report.get(name) or "{}", type=shape)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            flaws.append(f"{name}: {exc}")
            del report[name]
    if flaws:
        report[UNREADABLE] = "; ".join(sorted(flaws))
    return report


def endpoint_digests(redis: Redis) -> set[str]:
    """The endpoints that the live workers ask, each with its model, as digests."""
    pools = [msgspec.json.decode(report.get("pool") or "{}", type=_Pool) for report in workers(redis).values()]
    return {route.limit_digest for pool in pools for route in pool.routes.values() if route.limit_digest}


async def idle_lanes(redis: AsyncRedis, *, besides: str) -> int:
    """Lanes of other workers that have nothing to do and nothing to come."""
    names = [text_of(name) for name in await redis.zrange(keys.WORKERS, 0, -1)]
    async with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
        replies = await pipeline.execute(raise_on_error=False)
    found = {name: readings.amounts(reply, LANES) for name, reply in zip(names, replies, strict=True)}
    return sum(
        max(0, int(report["lanes"] - report.get("lanes_busy", 0)))
        for name, report in found.items()
        if name != besides and "lanes" in report and not report.get("lanes_waiting")
    )


def live_lanes(redis: Redis) -> int:
    """Lanes of all workers that have a heartbeat."""
    return sum(int(report.get("lanes") or 0) for report in workers(redis).values())
