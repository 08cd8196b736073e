"""The completion cache on a real Redis."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from scripts.local_redis import LocalRedis
from tasks import keys
from tasks.connection import connect_async
from workers.llm import cache as cache_module
from workers.llm.cache import ENTRY_OVERHEAD_BYTES, CachedCompletion, MemoryTier, PersistentLLMCache

ANSWER = CachedCompletion(value={"themes": ["a" * 600]}, model="sandbox", prompt_tokens=5, completion_tokens=7)


def _cache(redis: AsyncRedis | None, *, compress: bool = True, memory_mb: int = 8) -> PersistentLLMCache:
    return PersistentLLMCache(redis, max_memory_mb=memory_mb, pressure_mb=65_536, ttl_days=2, compress=compress)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=5)
    yield client
    await client.aclose()


@pytest.fixture(params=["memory", "redis"])
async def tier(request: pytest.FixtureRequest, client: AsyncRedis) -> AsyncIterator[PersistentLLMCache]:
    """Both make-ups pass one suite: with Redis, and without."""
    cache = _cache(client if request.param == "redis" else None)
    yield cache
    await cache.close()


async def test_what_was_stored_is_found_and_nothing_else(tier: PersistentLLMCache) -> None:
    assert await tier.get("a") is None
    await tier.put("a", ANSWER)
    assert await tier.get("a") == ANSWER
    assert await tier.get("b") is None
    assert tier.statistics()["misses"] == 2
    assert tier.statistics()["memory_hits"] == 1


async def test_another_process_finds_it_in_redis_until_its_ttl(client: AsyncRedis, redis: Redis) -> None:
    await _cache(client).put("a", ANSWER)
    assert redis.ttl(keys.cache("a")) == pytest.approx(2 * 86_400, abs=5)
    other = _cache(client)
    assert await other.get("a") == ANSWER
    assert await other.get("a") == ANSWER
    assert other.hits == {"memory": 1, "redis": 1}


async def test_gets_of_one_round_are_one_read(client: AsyncRedis, redis: Redis) -> None:
    writer = _cache(client)
    for number in range(16):
        await writer.put(str(number), ANSWER)
    reader = _cache(client)
    before = _mgets(redis)
    found = await asyncio.gather(*(reader.get(str(number)) for number in range(16)))
    assert all(found)
    assert _mgets(redis) - before <= 2


def _mgets(redis: Redis) -> int:
    return int(redis.info("commandstats").get("cmdstat_mget", {}).get("calls", 0))


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"\x01broken", b"\x09future", b"\x00\xc1", b"plain text"])
async def test_a_value_that_cannot_be_read_is_a_miss_and_is_overwritten(
    garbage: bytes, client: AsyncRedis, redis: Redis
) -> None:
    redis.set(keys.cache("a"), garbage, ex=60)
    cache = _cache(client)
    assert await cache.get("a") is None
    assert cache.corrupt == 1
    await cache.put("a", ANSWER)
    assert await _cache(client).get("a") == ANSWER


async def test_compression_can_be_switched_off_and_either_is_readable(client: AsyncRedis, redis: Redis) -> None:
    await _cache(client, compress=True).put("small", ANSWER)
    await _cache(client, compress=False).put("plain", ANSWER)
    assert redis.strlen(keys.cache("small")) < redis.strlen(keys.cache("plain")) / 3
    assert await _cache(client).get("plain") == await _cache(client).get("small") == ANSWER


async def test_redis_lost_in_the_middle_leaves_the_memory_and_comes_back_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "REDIS_PAUSE_SECONDS", 0.2)
    caplog.set_level(logging.WARNING)
    with LocalRedis(tmp_path, "auto") as server:
        url = server.url
        client = connect_async(url, socket_timeout_seconds=1)
        cache = _cache(client)
        await cache.put("a", ANSWER)
        with Redis.from_url(url) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await _cache(client).get("a") == ANSWER, "a cut connection alone is mended"
    assert await cache.get("a") == ANSWER
    for number in range(5):
        assert await cache.get(f"new {number}") is None
        await cache.put(f"new {number}", ANSWER)
        assert await cache.get(f"new {number}") == ANSWER
    assert len([record for record in caplog.records if "cache_degraded" in record.message]) == 1
    await client.aclose()


def test_memory_is_bounded_in_bytes_and_the_oldest_leaves_first() -> None:
    tier = MemoryTier(10 * (100 + ENTRY_OVERHEAD_BYTES), pressure_bytes=2**50)
    for number in range(10):
        tier.put(str(number), b"x" * 100)
    tier.get("0")
    tier.put("10", b"x" * 100)
    assert tier.get("0") is not None
    assert tier.get("1") is None
    assert tier.evictions == 1
    for number in range(1000):
        tier.put(f"more {number}", b"y" * 400)
        assert tier.size_bytes <= 10 * (100 + ENTRY_OVERHEAD_BYTES)


def test_overwriting_counts_the_bytes_once() -> None:
    tier = MemoryTier(10_000, pressure_bytes=2**50)
    for _ in range(50):
        tier.put("same", b"x" * 100)
    assert tier.size_bytes == 100 + ENTRY_OVERHEAD_BYTES


def test_a_process_under_memory_pressure_gives_up_half_of_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    tier = MemoryTier(2**30, pressure_bytes=1)
    tier._checked_at = float("inf")  # no look yet
    for number in range(3000):
        tier.put(str(number), b"x" * 1000)
    full = tier.size_bytes
    tier._checked_at = 0.0
    tier.put("last", b"x")
    assert tier.size_bytes <= full / 2 + 2000
    assert re.search("memory_pressure_threshold_mb", caplog.text)


async def test_no_memory_at_all_still_serves_from_redis(client: AsyncRedis) -> None:
    cache = _cache(client, memory_mb=0)
    await cache.put("a", ANSWER)
    assert await cache.get("a") == ANSWER
    assert cache.hits == {"memory": 0, "redis": 1}
