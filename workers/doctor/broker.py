"""Redis: which one, how quick, how full, and whether it keeps what it is given."""

import time
from collections.abc import Iterator
from typing import Any, Final

from redis import Redis

from config.settings import Settings
from tasks.connection import check_rights, check_server, connect, locate, place_of, server_info
from tasks.errors import ThemesError
from tasks.redis_url import masked
from tasks.texts import duration
from workers.doctor.check import Check, reached
from workers.observe.format import size

PINGS: Final = 100
#: Seconds of a PING beyond which work is slowed down visibly: each destination takes some tens of commands.
SLOW_SECONDS: Final = 0.01
#: Parts of maxmemory from which on it is said, and from which on it is called full.
FILLING: Final = 0.7
FULL: Final = 0.8


def checks(settings: Settings) -> Iterator[Check]:
    url = locate(settings)
    try:
        with connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) as client:
            facts = check_server(client)
            yield Check("redis", ok=True, found=f"{masked(url)}, version {facts.version}, {facts.policy}")
    except ThemesError as exc:
        if settings.is_set("performance_optimization.redis_url"):
            raise
        yield Check("redis", ok=False, found=str(exc), fix="`themes up` starts a private one")
        return
    if settings.celery.broker_url:
        yield _broker(settings)
    with reached(settings) as client:
        check_rights(client)
        info = server_info(client)
        if "used_memory" in info:
            yield _persistence(client, info)
            yield _memory(info)
        else:
            found = "INFO is forbidden or has another name: append-only file, memory and eviction policy are unknown"
            fix = "see to it that it keeps an append-only file and evicts nothing but volatile keys"
            yield Check("redis memory", ok=True, found=found, fix=fix)
        yield _latency(client)


def _broker(settings: Settings) -> Check:
    url = settings.celery.broker_url or ""
    with connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) as client:
        facts = check_server(client)
    return Check("redis of the queue", ok=True, found=f"{masked(url)}, version {facts.version}, {facts.policy}")


def _persistence(client: Redis, info: dict[str, Any]) -> Check:
    place = place_of(client)
    failing = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if str(info.get(name, "ok")) != "ok"
    ]
    if failing:
        found = f"{place} cannot write its files ({', '.join(failing)} is not ok)"
        fix = "make room on its disk (`df -h`), or mend the rights of its folder (`redis-cli CONFIG GET dir`)"
        return Check("redis persistence", ok=False, found=found, fix=fix)
    if info.get("aof_enabled"):
        return Check("redis persistence", ok=True, found="append-only file on")
    found = "no append-only file: a crash of Redis loses queued work"
    fix = "`redis-cli CONFIG SET appendonly yes` (and set it in redis.conf)"
    return Check("redis persistence", ok=True, found=found, fix=fix)


def _memory(info: dict[str, Any]) -> Check:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if not most:
        return Check("redis memory", ok=True, found=f"{size(used)} used, no maxmemory")
    share = used / most
    found = f"{size(used)} of {size(most)} used ({share:.0%}), {policy}"
    if policy == "noeviction":
        # The cache fills it, and then nothing can be enqueued.
        fix = "`redis-cli CONFIG SET maxmemory-policy volatile-lru` (and set it in redis.conf)"
        return Check("redis memory", ok=share < FULL, found=found, fix=fix)
    fix = f"`redis-cli CONFIG SET maxmemory {most * 2}`, or `themes cache clear`; is a consumer running?"
    return Check("redis memory", ok=share < FULL, found=found, fix=fix if share >= FILLING else None)


def _latency(client: Redis) -> Check:
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - began)
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    found = f"PING {duration(p50)} median, {duration(p99)} p99"
    fix = "run the workers nearer to Redis; `redis-cli --latency` and `redis-cli SLOWLOG GET` show more"
    return Check("redis latency", ok=True, found=found, fix=fix if p50 > SLOW_SECONDS else None)
