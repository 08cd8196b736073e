"""A profile from one entry of the cache says the same as one whose prompts were looked up one by one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import msgspec
import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.messages import Destination, Profile, StageRecord
from tasks.packed import unpack_profile
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.processor import Processed
from workers.sandbox.server import SandboxServer
from workers.worker.parts import Parts, open_parts

KYOTO = Destination.of("Kyoto", "Japan", extra={"note": "old capital"})
PRICES = '{"sandbox": {"input_usd": 0.3, "output_usd": 0.7}}'
#: What is of the moment, and not of the answer.
OF_THE_MOMENT = {"elapsed_ms": 0.0, "created_at": 0.0}

Open = Callable[..., Any]


@pytest.fixture
def opened(settings_for: Callable[..., Settings], redis_url: str, sandbox: SandboxServer) -> Open:
    """Open the parts of a worker process that has just started."""

    @asynccontextmanager
    async def make(**env: str) -> AsyncIterator[Parts]:
        usual = {"OPENAI_BASE_URL": sandbox.base_url, "THEMES_MODEL": "sandbox", "THEMES_LLM__PRICES": PRICES}
        settings = settings_for(**usual | env)
        async with (
            connect_async(redis_url, socket_timeout_seconds=10) as redis,
            open_parts(settings, PerformanceProfiler(enabled=True), redis=redis) as parts,
        ):
            yield parts

    return make


async def _once(opened: Open, destination: Destination = KYOTO, *, whole: bool = True, **more: Any) -> Processed:
    """Process a destination in a process of its own; without `whole` each prompt is looked up."""
    async with opened(**more.pop("env", {})) as parts:
        if not whole:
            parts.processor.plans.whole.known = None
        return await parts.processor.process(destination, **more)


def _entries(redis: Redis) -> list[bytes]:
    return sorted(redis.scan_iter(keys.cache(f"{keys.COMPOSITE}*")))


def _profile(processed: Processed) -> Profile:
    assert processed.profile is not None
    return unpack_profile(processed.profile, KYOTO.id)


def _lasting(processed: Processed) -> Profile:
    profile = _profile(processed)
    stages = [msgspec.structs.replace(stage, elapsed_ms=0.0) for stage in profile.stages]
    return msgspec.structs.replace(profile, stages=stages, **OF_THE_MOMENT)


@pytest.mark.parametrize("prices", [PRICES, "{}"], ids=["priced", "unpriced"])
async def test_both_ways_say_the_same(opened: Open, redis: Redis, sandbox: SandboxServer, prices: str) -> None:
    env = {"THEMES_LLM__PRICES": prices}
    await _once(opened, env=env)
    assert len(_entries(redis)) == 1
    async with opened(**env) as parts:
        short = await parts.processor.process(KYOTO)
        counted = asdict(parts.cache.stats)
        again = await parts.processor.process(KYOTO)
    async with opened(**env) as parts:
        parts.processor.plans.whole.known = None
        long = await parts.processor.process(KYOTO)
        assert asdict(parts.cache.stats) == counted
        long_again = await parts.processor.process(KYOTO)
    assert len(sandbox.log()) == 16
    assert _lasting(short) == _lasting(long)
    assert short.usage == long.usage
    assert short.usage.cache_hits == 16
    assert (short.usage.saved_usd is None) == (prices == "{}")
    assert again.usage == long_again.usage
    assert again.usage.memory_hits == 16


async def test_the_process_that_made_it_had_the_answers_in_memory(opened: Open, redis: Redis) -> None:
    async with opened() as parts:
        made = await parts.processor.process(KYOTO)
        await parts.processor.plans.whole.known._composites.close()
        assert len(_entries(redis)) == 1
        short = await parts.processor.process(KYOTO)
    assert (made.usage.llm_calls, short.usage.cache_hits, short.usage.memory_hits) == (16, 16, 16)


async def test_what_differs_from_row_to_row_is_the_rows_own(opened: Open, sandbox: SandboxServer) -> None:
    await _once(opened)
    other = Destination.of("KYOTO", "japan", extra={"note": "another row"})
    found = _profile(await _once(opened, other))
    assert (found.name, found.country, found.extra) == ("KYOTO", "japan", {"note": "another row"})
    assert len(sandbox.log()) == 16
    shown = _profile(await _once(opened, other, columns=("note",)))
    assert shown.pipeline_version != found.pipeline_version
    assert len(sandbox.log()) == 32


async def test_it_lives_as_long_as_the_first_of_its_answers(opened: Open, redis: Redis) -> None:
    await _once(opened)
    (entry,) = _entries(redis)
    parts = [key for key in redis.scan_iter(keys.cache("*")) if key != entry]
    assert len(parts) == 16
    least = min(map(redis.pttl, parts))
    assert redis.pttl(entry) <= least
    redis.delete(entry)
    redis.pexpire(parts[3], 60_000)
    await _once(opened)
    assert redis.pttl(entry) <= 60_000
    redis.delete(entry, parts[3])
    async with opened() as one:
        profile = (await one.processor.process(KYOTO, use_cache=True)).profile
        assert profile is not None
        redis.delete(*parts)
    assert not _entries(redis), "an entry is made of what is there"
    assert one.cache.outage.count == 0, "and that is no error"


async def test_fresh_answers_replace_it(opened: Open, redis: Redis, sandbox: SandboxServer) -> None:
    await _once(opened)
    (entry,) = _entries(redis)
    before = redis.get(entry)
    fresh = await _once(opened, use_cache=False)
    assert len(sandbox.log()) == 32
    assert fresh.usage.cache_hits == 0
    assert redis.get(entry) != before
    assert (await _once(opened)).usage.cache_hits == 16


async def test_another_model_or_batch_has_an_entry_of_its_own(opened: Open, redis: Redis) -> None:
    await _once(opened)
    more = await _once(opened, env={"THEMES_PERFORMANCE_OPTIMIZATION__THEME_BATCH_SIZE": "8"})
    assert more.usage.llm_calls > 0
    assert len(_entries(redis)) == 2
    warmer = await _once(opened, env={"THEMES_LLM__TEMPERATURE": "0.9"})
    assert warmer.usage.llm_calls == 16


@pytest.mark.parametrize("garbage", [b"", b"\x10", b"\x10\x01garbage", b"\x11\x01garbage", b"\xff" * 40])
async def test_garbage_is_no_profile(opened: Open, redis: Redis, sandbox: SandboxServer, garbage: bytes) -> None:
    whole = await _once(opened)
    (entry,) = _entries(redis)
    redis.set(entry, garbage, px=60_000)
    found = await _once(opened)
    assert len(sandbox.log()) == 16
    assert found.usage.cache_hits == 16
    assert _lasting(found).themes == _lasting(whole).themes
    assert redis.get(entry) != garbage


async def test_a_changed_bit_is_noticed_without_compression(opened: Open, redis: Redis, sandbox: SandboxServer) -> None:
    env = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_RESULT_COMPRESSION": "false"}
    whole = await _once(opened, env=env)
    (entry,) = _entries(redis)
    stored = redis.get(entry)
    body = stored.index(b"\xa4body") + 40
    broken = stored[:body] + bytes([stored[body] ^ 1]) + stored[body + 1 :]
    redis.set(entry, broken, px=60_000)
    found = await _once(opened, env=env)
    assert len(sandbox.log()) == 16
    assert _lasting(found).themes == _lasting(whole).themes
    assert redis.get(entry) not in {broken, None}


async def test_a_profile_that_lacks_something_is_not_kept(opened: Open, redis: Redis) -> None:
    await _once(opened)
    assert len(_entries(redis)) == 1
    async with SandboxServer(latency="0", faults=["refusal=1,match=price level"]) as refusing:
        lacking = await _once(opened, use_cache=False, env={"OPENAI_BASE_URL": refusing.base_url})
    assert lacking.profile is not None
    assert lacking.profile.status == "partial"
    assert not _entries(redis), "nor is the older one, whose answers were replaced"


async def test_a_fresh_run_that_fails_leaves_no_older_one(opened: Open, redis: Redis) -> None:
    await _once(opened)
    assert len(_entries(redis)) == 1
    async with SandboxServer(latency="0", faults=["refusal=1"]) as refusing:
        failed = await _once(opened, use_cache=False, env={"OPENAI_BASE_URL": refusing.base_url})
    assert failed.failure is not None
    assert not _entries(redis)


async def test_without_the_shared_cache_there_is_none(opened: Open, redis: Redis, sandbox: SandboxServer) -> None:
    env = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERSISTENT_CACHE": "false"}
    await _once(opened, env=env)
    await _once(opened, env=env)
    assert len(sandbox.log()) == 32
    assert not _entries(redis)


async def test_other_fields_have_an_entry_of_their_own_made_of_the_same_answers(
    opened: Open, redis: Redis, sandbox: SandboxServer
) -> None:
    some = ("themes", "price")
    made = _profile(await _once(opened, fields=some))
    assert (len(sandbox.log()), len(_entries(redis))) == (6, 1)
    found = await _once(opened, fields=some)
    assert (found.usage.llm_calls, found.usage.cache_hits, len(sandbox.log())) == (0, 6, 6)
    assert _lasting(found).themes == made.themes
    whole = await _once(opened)
    assert (whole.usage.llm_calls, whole.usage.cache_hits, len(_entries(redis))) == (10, 6, 2)
    assert (await _once(opened)).usage.cache_hits == 16
    assert len(sandbox.log()) == 16


async def test_watchers_are_told_once(opened: Open) -> None:
    told: list[tuple[StageRecord, int, list[str]]] = []
    await _once(opened)
    found = await _once(opened, on_stage=lambda _, record, count, names: told.append((record, count, names)))
    profile = _profile(found)
    ((record, count, names),) = told
    assert (record.stage, record.status, record.source) == ("all", "ok", "cached")
    assert count == len(profile.themes)
    assert names == [theme.name for theme in profile.themes[:5]]
