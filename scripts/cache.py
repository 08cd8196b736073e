"""`themes cache`: what the shared cache of completions holds, how often it was of use, and how to empty it."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import click
from redis import Redis

from scripts.main import settings_from
from tasks import keys
from tasks.connection import check_server, connect, locate
from tasks.jobs.registry import status
from tasks.readings import number as decimal
from tasks.readings import replies_of, texts, whole

#: Keys looked at in one round trip.
PAGE: Final = 1_000


@click.group()
def command() -> None:
    """Look into the shared cache of LLM completions, or empty it."""


@command.command()
@click.argument("job_id", required=False, metavar="[JOB]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(job_id: str | None, *, as_json: bool) -> None:
    """Tell what is cached and what that has saved: by all workers since the counting began, or for one JOB."""
    settings = settings_from()
    if not settings.redis.enabled and not job_id:
        # Late: with Redis nothing of it is needed.
        from workers.local import state_file

        kept = state_file.statistics(settings.state_dir)
        print(
            json.dumps(kept) if as_json else f"{kept['entries']} completions, {kept['bytes'] / 2**20:.1f} MiB as stored"
        )
        return
    redis = _redis()
    found = _of_job(redis, job_id) if job_id else _overall(redis)
    if as_json:
        print(json.dumps(found))
        return
    if not job_id:
        print(f"{found['entries']} completions, {found['bytes'] / 2**20:.1f} MiB as stored")
        since = found["since"]
        if since is None:
            print("no worker has counted anything yet")
            return
        print(f"counted since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(since))} UTC:")
    for line in _lines(found):
        print(line)


@command.command()
def clear() -> None:
    """Drop every cached completion and its counts; jobs and results stay. Workers keep what they hold in memory."""
    settings = settings_from()
    if not settings.redis.enabled:
        # Late: as above.
        from workers.local import state_file

        print(f"dropped {state_file.clear(settings.state_dir)} completions", file=sys.stderr)
        return
    redis = _redis()
    dropped = sum(int(redis.unlink(*page)) for page in _pages(redis))
    redis.delete(keys.CACHE_STATISTICS)
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


def _overall(redis: Redis) -> dict[str, Any]:
    """What the cache holds, and the counts of all processes."""
    from workers.llm.cache import stats as cache_statistics  # only where it is needed

    found: dict[str, Any] = {"entries": 0, "bytes": 0}
    for page in _pages(redis):
        with redis.pipeline(transaction=False) as pipeline:
            for key in page:
                pipeline.strlen(key)
            found["entries"] += len(page)
            found["bytes"] += sum(pipeline.execute())
    return found | cache_statistics.read(redis)


def _of_job(redis: Redis, job_id: str) -> dict[str, Any]:
    """The counts of one job: those of its destinations that are in the database."""
    known = status(redis, job_id)
    (reply,) = replies_of(redis, [keys.job(job_id)])
    raw = texts(reply)

    def number(name: str) -> int:
        return whole(raw, name)

    return {
        "job_id": job_id,
        "memory_hits": number("memory_hits"),
        "redis_hits": known.cache_hits - number("memory_hits"),
        "misses": number("cache_misses"),
        "stores": number("cache_stores"),
        "corrupt": number("cache_corrupt"),
        "coalesced": known.coalesced,
        "bytes_raw": number("bytes_raw"),
        "bytes_stored": number("bytes_stored"),
        "saved_prompt_tokens": number("saved_prompt_tokens"),
        "saved_completion_tokens": number("saved_completion_tokens"),
        "saved_usd": decimal(raw, "saved_usd") if "saved_usd" in raw else 0.0,
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """Counts in words."""
    hits = found["memory_hits"] + found["redis_hits"]
    asked = hits + found["misses"]
    rate = f"{hits / asked:.1%} of {asked}" if asked else "nothing asked"
    yield f"hits       {hits} ({rate}): {found['memory_hits']} in memory, {found['redis_hits']} in Redis"
    yield f"coalesced  {found['coalesced']} of the misses were answered together with an equal prompt in flight"
    ratio = f", {found['bytes_raw'] / found['bytes_stored']:.1f} times smaller" if found["bytes_stored"] else ""
    size = f"{found['bytes_stored'] / 2**20:.2f} MiB{ratio}"
    yield f"stored     {found['stores']} ({size}), {found['corrupt']} unreadable"
    if "evictions" in found:
        yield f"evicted    {found['evictions']} from memory"
    tokens = f"{found['saved_prompt_tokens']} prompt and {found['saved_completion_tokens']} completion tokens"
    usd = found["saved_usd"]
    unpriced = found.get("unpriced_hits")
    money = "cost unknown (llm.prices)" if usd is None else f"{usd:.4f} USD"
    more = f" and {unpriced} hits without a price" if unpriced else ""
    yield f"saved      {hits + found['coalesced']} calls; by hits {tokens}, {money}{more}"
