"""`themes cache`: what the shared cache of completions holds, how often it was of use, and how to empty it."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import click
from redis import Redis

from scripts.main import settings_from
from tasks import keys
from tasks.connection import check_server, connect, locate

#: Keys looked at in one round trip.
PAGE: Final = 1_000


@click.group()
def command() -> None:
    """Look into the shared cache of LLM completions, or empty it."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(*, as_json: bool) -> None:
    """Count what is cached, and what the workers that run now have found."""
    redis = _redis()
    found: dict[str, Any] = {"entries": 0, "bytes": 0}
    for page in _pages(redis):
        with redis.pipeline(transaction=False) as pipeline:
            for key in page:
                pipeline.strlen(key)
            found["entries"] += len(page)
            found["bytes"] += sum(pipeline.execute())
    found["running_workers"] = _of_workers(redis)
    if as_json:
        print(json.dumps(found))
        return
    workers = found["running_workers"]
    print(f"{found['entries']} completions, {found['bytes'] / 2**20:.1f} MiB as stored")
    print(
        f"running workers: {workers['redis_hits']} hits in Redis, {workers['memory_hits']} in memory, "
        f"{workers['misses']} misses, {workers['stores']} stored, {workers['corrupt']} unreadable"
    )


@command.command()
def clear() -> None:
    """Drop every cached completion; queue, jobs and results stay. Workers keep what they hold in memory."""
    redis = _redis()
    dropped = sum(int(redis.unlink(*page)) for page in _pages(redis))
    print(f"dropped {dropped} completions", file=sys.stderr)


def _redis() -> Redis:
    settings = settings_from()
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    return redis


def _pages(redis: Redis) -> Iterator[list[bytes]]:
    """The cache's keys, some at a time; nothing else on that Redis is touched."""
    found = redis.scan_iter(keys.cache("*"), count=PAGE)
    while page := list(islice(found, PAGE)):
        yield page


def _of_workers(redis: Redis) -> Counter[str]:
    """The cache counters of all workers with a heartbeat, added up."""
    total = Counter(dict.fromkeys(("redis_hits", "memory_hits", "misses", "stores", "corrupt"), 0))
    for key in redis.scan_iter(keys.worker("*")):
        total.update(json.loads(redis.hget(key, "cache") or b"{}"))
    return total
