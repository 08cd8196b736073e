"""`themes cache`: what the shared cache of completions holds, how often it was of use, and how to empty it."""

import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import click
from redis import Redis

from scripts.lib.connections import connected
from scripts.lib.output import confirm
from scripts.lib.terminal import say
from scripts.main import Summaries, settings_from
from tasks import keys
from tasks.jobs.budget import dollars
from tasks.jobs.registry import status, whole_id
from tasks.readings import number as decimal
from tasks.readings import replies_of, texts, whole
from tasks.texts import count

PAGE: Final = 1_000


@click.group(cls=Summaries, epilog="Example: themes cache stats")
def command() -> None:
    """Look into the shared cache of LLM completions, or empty it."""


@command.command(epilog="Example: themes cache stats df5a3a")
@click.argument("job_id", required=False, metavar="[JOB]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(job_id: str | None, *, as_json: bool) -> None:
    """Tell what is cached and what that has saved: by all workers since the counting began, or for one JOB."""
    settings = settings_from()
    if not settings.redis.enabled and not job_id:
        # Late: with Redis nothing of it is needed.
        from workers.local import state_file

        kept = state_file.statistics(settings.state_dir)
        print(json.dumps(kept) if as_json else _said(kept))
        return
    redis = connected(settings)
    if job_id:
        found = _of_job(redis, whole_id(redis, job_id))
    else:
        from workers.llm.cache.stats import read  # only where it is needed

        found = _held(redis) | read(redis)
    if as_json:
        print(json.dumps(found))
        return
    if not job_id:
        print(_said(found))
        since = found["since"]
        if since is None:
            print("no worker has counted anything yet")
            return
        print(f"counted since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(since))} UTC:")
    for line in _lines(found):
        print(line)


@command.command(epilog="Example: themes cache clear --yes")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where standard input is no terminal.")
def clear(*, yes: bool) -> int:
    """Drop every cached completion and its counts, also in the memory of running workers; jobs and results stay.

    Asks first, on a terminal; exit 1 where the answer is no.
    """
    settings = settings_from()
    redis = connected(settings) if settings.redis.enabled else None
    # Late: with Redis nothing of it is needed.
    from workers.local import state_file

    if not yes:
        held = _held(redis) if redis is not None else state_file.statistics(settings.state_dir)
        if not confirm(f"This drops {_said(held)}, which were paid for. Go on?"):
            return 1
    if redis is None:
        dropped = state_file.clear(settings.state_dir)
    else:
        dropped = 0
        for page in _pages(redis):
            redis.unlink(*page)
            dropped += len(_completions(page))
        redis.delete(keys.CACHE_STATISTICS)
        redis.publish(keys.CONTROL, keys.CACHE_CLEARED)
    say(f"dropped {count(dropped, 'completion')}")
    return 0


def _said(held: dict[str, Any]) -> str:
    return f"{count(held['entries'], 'completion')}, {held['bytes'] / 2**20:.1f} MiB as stored"


def _pages(redis: Redis) -> Iterator[list[bytes]]:
    found = redis.scan_iter(keys.cache("*"), count=PAGE)
    while page := list(islice(found, PAGE)):
        yield page


def _completions(page: list[bytes]) -> list[bytes]:
    """Those of the keys that are a completion's, and not of a profile that is made of them."""
    return [key for key in page if not key.startswith(keys.cache(keys.COMPOSITE).encode())]


def _held(redis: Redis) -> dict[str, Any]:
    found: dict[str, Any] = {"entries": 0, "bytes": 0}
    for page in _pages(redis):
        with redis.pipeline(transaction=False) as pipeline:
            completions = _completions(page)
            for key in completions:
                pipeline.strlen(key)
            found["entries"] += len(completions)
            found["bytes"] += sum(pipeline.execute())
    return found


def _of_job(redis: Redis, job_id: str) -> dict[str, Any]:
    known = status(redis, job_id)
    (reply,) = replies_of(redis, [keys.job(job_id)])
    raw = texts(reply)

    same = ("memory_hits", "bytes_raw", "bytes_stored", "saved_prompt_tokens", "saved_completion_tokens")
    found = {name: whole(raw, name) for name in same}
    found |= {name: whole(raw, f"cache_{name}") for name in ("misses", "stores", "corrupt")}
    return {
        "job_id": job_id, **found, "redis_hits": known.cache_hits - found["memory_hits"], "coalesced": known.coalesced,
        "saved_usd": decimal(raw, "saved_usd") if "saved_usd" in raw else 0.0,
    }  # fmt: skip


def _lines(found: dict[str, Any]) -> Iterator[str]:
    hits = found["memory_hits"] + found["redis_hits"]
    asked = hits + found["misses"]
    rate = f"{hits / asked:.1%} of {asked:,}" if asked else "nothing asked"
    yield f"hits       {hits:,} ({rate}): {found['memory_hits']:,} in memory, {found['redis_hits']:,} in Redis"
    yield f"coalesced  {found['coalesced']:,} of the misses were answered together with an equal prompt in flight"
    ratio = f", {found['bytes_raw'] / found['bytes_stored']:.1f} times smaller" if found["bytes_stored"] else ""
    size = f"{found['bytes_stored'] / 2**20:.2f} MiB{ratio}"
    yield f"stored     {found['stores']:,} ({size}), {found['corrupt']:,} unreadable"
    if "evictions" in found:
        yield f"evicted    {found['evictions']:,} from memory"
    tokens = (
        f"{found['saved_prompt_tokens']:,} prompt and {count(found['saved_completion_tokens'], 'completion token')}"
    )
    usd = found["saved_usd"]
    unpriced = found.get("unpriced_hits")
    money = "cost unknown (llm.prices)" if usd is None else dollars(usd)
    more = f" and {count(unpriced, 'hit')} without a price" if unpriced else ""
    yield f"saved      {count(hits + found['coalesced'], 'call')}; by hits {tokens}, {money}{more}"
