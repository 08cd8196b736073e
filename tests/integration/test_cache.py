"""The completion cache on a real Redis."""

import asyncio
import contextlib
import logging
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import ConfigError, DatabaseError
from tests.support.forks import Forks
from workers.llm.cache.completions import CompletionStore, RedisCompletions
from workers.llm.cache.memory import ENTRY_OVERHEAD_BYTES, MemoryTier
from workers.llm.cache.stats import CacheReporter, CacheStats
from workers.llm.cache.stats import read as read_statistics
from workers.llm.cache.tiers import CachedCompletion, PersistentLLMCache
from workers.local import state_file
from workers.local.state_file import StateFile
from workers.process import outage

ANSWER = CachedCompletion(value={"themes": ["a" * 600]}, model="sandbox", prompt_tokens=5, completion_tokens=7)


def _cache(
    redis: AsyncRedis | CompletionStore | None, *, compress: bool = True, memory_mb: int = 8
) -> PersistentLLMCache:
    return PersistentLLMCache(redis, max_memory_mb=memory_mb, pressure_mb=65_536, ttl_days=2, compress=compress)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


@pytest.fixture(params=["memory", "redis", "file"])
async def tier(request: pytest.FixtureRequest, client: AsyncRedis, tmp_path: Path) -> AsyncIterator[PersistentLLMCache]:
    """All make-ups pass one suite: with Redis, with a file in its place, and with neither."""
    with StateFile(tmp_path / "var") as file:
        stores: dict[str, AsyncRedis | CompletionStore | None] = {"memory": None, "redis": client, "file": file}
        cache = _cache(stores[request.param])
        yield cache
        await cache.close()


@pytest.fixture(params=["redis", "file"])
def store(request: pytest.FixtureRequest, client: AsyncRedis, tmp_path: Path) -> Iterator[AsyncRedis | CompletionStore]:
    """Where completions outlive a process."""
    with StateFile(tmp_path / "var") as file:
        yield client if request.param == "redis" else file


async def _get_many(
    cache: PersistentLLMCache, wanted: Sequence[str], stats: CacheStats | None = None
) -> list[CachedCompletion | None]:
    return await asyncio.gather(*(cache.lookup(key, stats=stats).get() for key in wanted))


async def test_what_was_stored_is_found_and_nothing_else(tier: PersistentLLMCache) -> None:
    assert await tier.lookup("a").get() is None
    await tier.lookup("a").put(ANSWER)
    assert await tier.lookup("a").get() == ANSWER
    assert await tier.lookup("b").get() is None
    assert (tier.stats.misses, tier.stats.memory_hits) == (2, 1)


async def test_another_process_finds_it_in_redis_until_its_ttl(client: AsyncRedis, redis: Redis) -> None:
    await _cache(client).lookup("a").put(ANSWER)
    assert redis.ttl(keys.cache("a")) == pytest.approx(2 * 86_400, abs=5)
    other = _cache(client)
    assert await other.lookup("a").get() == ANSWER
    assert await other.lookup("a").get() == ANSWER
    assert (other.stats.memory_hits, other.stats.redis_hits) == (1, 1)


async def test_another_process_finds_what_was_kept_in_the_codec_of_either(store: AsyncRedis | CompletionStore) -> None:
    await _cache(store, compress=True).lookup("small").put(ANSWER)
    await _cache(store, compress=False).lookup("plain").put(ANSWER)
    other = _cache(store)
    assert await _get_many(other, ["plain", "none", "small"]) == [ANSWER, None, ANSWER]
    assert (other.stats.redis_hits, other.stats.misses) == (2, 1)
    assert await other.lookup("small").get() == ANSWER
    assert other.stats.memory_hits == 1


async def test_a_value_that_cannot_be_read_is_a_miss_wherever_it_is_kept(store: AsyncRedis | CompletionStore) -> None:
    kept = RedisCompletions(store) if isinstance(store, AsyncRedis) else store
    await kept.write({"a": b"\x11\x01broken", "b": b"plain text"}, ttl_ms=60_000)
    cache = _cache(store)
    assert await _get_many(cache, ["a", "b"]) == [None, None]
    assert cache.stats.corrupt == 2
    await cache.lookup("a").put(ANSWER)
    assert await _cache(store).lookup("a").get() == ANSWER


async def test_a_thousand_gets_and_puts_at_once_are_answered_each_with_its_own(
    store: AsyncRedis | CompletionStore,
) -> None:
    answers = {str(number): replace(ANSWER, prompt_tokens=number) for number in range(1000)}
    writer = _cache(store)
    await asyncio.gather(*(writer.lookup(key).put(answer) for key, answer in answers.items()))
    reader = _cache(store)
    found = await asyncio.gather(*(reader.lookup(key).get() for key in answers))
    assert found == list(answers.values())


async def test_what_is_kept_in_the_file_outlives_it_until_its_time_is_over(tmp_path: Path) -> None:
    with StateFile(tmp_path) as file:
        await file.write({"short": b"x"}, ttl_ms=1)
        await file.write({"long": b"y"}, ttl_ms=60_000)
        await asyncio.sleep(0.01)
        assert await file.read(["short", "long"]) == [None, b"y"]
        assert state_file.statistics(tmp_path) == {"entries": 1, "bytes": 1}
    with StateFile(tmp_path) as file:
        assert await file.read(["short", "long"]) == [None, b"y"]
    assert state_file.clear(tmp_path) >= 1
    assert state_file.statistics(tmp_path) == {"entries": 0, "bytes": 0}
    assert state_file.statistics(tmp_path / "nowhere") == {"entries": 0, "bytes": 0}


async def test_a_file_that_cannot_be_written_leaves_the_memory_and_is_said_once_and_once_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(state_file, "BUSY_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    with StateFile(tmp_path) as file, contextlib.closing(sqlite3.connect(tmp_path / state_file.NAME)) as other:
        cache = _cache(file)
        other.execute("BEGIN EXCLUSIVE")
        for number in range(5):
            await cache.lookup(str(number)).put(ANSWER)
            assert await cache.lookup(str(number)).get() == ANSWER
            await asyncio.sleep(0.03)
        assert (cache.state, cache.outage.count) == ("away", 1)
        other.rollback()
        await cache.lookup("back").put(ANSWER)
        assert (cache.state, cache.outage.count) == ("on", 1)
        assert cache.outage.seconds > 0
    said = [record.message.partition(" ")[0] for record in caplog.records]
    assert said == ["action=cache_degraded", "action=cache_restored"]


def test_a_state_file_that_is_none_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / state_file.NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseError, match="move this file away"), StateFile(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"), StateFile(tmp_path / "file" / "var"):
        pass


async def test_gets_of_one_round_are_one_read(client: AsyncRedis, redis: Redis) -> None:
    writer = _cache(client)
    for number in range(16):
        await writer.lookup(str(number)).put(ANSWER)
    reader = _cache(client)
    before = _mgets(redis)
    found = await asyncio.gather(*(reader.lookup(str(number)).get() for number in range(16)))
    assert all(found)
    assert _mgets(redis) - before <= 2


def _mgets(redis: Redis) -> int:
    return int(redis.info("commandstats").get("cmdstat_mget", {}).get("calls", 0))


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x10", b"\x11\x01broken", b"\x11\x63new", b"\x19\x01", b"\x10\x01\xc1", b"\x00\x80", b"plain text"],
)
async def test_a_value_that_cannot_be_read_is_a_miss_and_is_overwritten(
    garbage: bytes, client: AsyncRedis, redis: Redis
) -> None:
    redis.set(keys.cache("a"), garbage, ex=60)
    cache = _cache(client)
    assert await cache.lookup("a").get() is None
    assert cache.stats.corrupt == 1
    await cache.lookup("a").put(ANSWER)
    assert await _cache(client).lookup("a").get() == ANSWER


async def test_compression_can_be_switched_off_and_either_is_readable(client: AsyncRedis, redis: Redis) -> None:
    await _cache(client, compress=True).lookup("small").put(ANSWER)
    await _cache(client, compress=False).lookup("plain").put(ANSWER)
    assert redis.strlen(keys.cache("small")) < redis.strlen(keys.cache("plain")) / 3
    assert await _cache(client).lookup("plain").get() == await _cache(client).lookup("small").get() == ANSWER


async def test_redis_lost_in_the_middle_leaves_the_memory_and_comes_back_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.2)
    caplog.set_level(logging.WARNING)
    with LocalRedis(tmp_path, "auto") as server:
        url = server.url
        client = connect_async(url, socket_timeout_seconds=1)
        cache = _cache(client)
        await cache.lookup("a").put(ANSWER)
        with Redis.from_url(url) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await _cache(client).lookup("a").get() == ANSWER, "a cut connection alone is mended"
    assert await cache.lookup("a").get() == ANSWER
    for number in range(5):
        assert await cache.lookup(f"new {number}").get() is None
        await cache.lookup(f"new {number}").put(ANSWER)
        assert await cache.lookup(f"new {number}").get() == ANSWER
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
    await cache.lookup("a").put(ANSWER)
    assert await cache.lookup("a").get() == ANSWER
    assert (cache.stats.memory_hits, cache.stats.redis_hits) == (0, 1)


@pytest.mark.parametrize("memory_mb", [8, 0])
async def test_lookups_that_come_together_are_one_read(memory_mb: int, client: AsyncRedis, redis: Redis) -> None:
    writer = _cache(client)
    for number in range(0, 200, 2):
        await writer.lookup(str(number)).put(replace(ANSWER, prompt_tokens=number))
    reader, stats = _cache(client, memory_mb=memory_mb), CacheStats()
    before = _mgets(redis)
    found = await _get_many(reader, [str(number) for number in range(200)], stats)
    assert _mgets(redis) - before == 1
    assert [None if one is None else one.prompt_tokens for one in found] == [
        None if number % 2 else number for number in range(200)
    ]
    assert (stats.redis_hits, stats.misses) == (100, 100)


async def test_puts_of_one_round_travel_together(client: AsyncRedis, redis: Redis) -> None:
    cache = _cache(client)
    before = redis.info("stats")["total_commands_processed"]
    await asyncio.gather(*(cache.lookup(str(number)).put(ANSWER) for number in range(100)))
    assert redis.dbsize() == 100
    connections = redis.info("stats")["total_commands_processed"] - before
    assert connections < 200, "no round trip each"
    assert len(client.connection_pool._available_connections) == 1  # type: ignore[attr-defined]


async def test_gzip_can_be_selected_and_every_codec_is_read(client: AsyncRedis, redis: Redis) -> None:
    heads = {}
    for codec, compress in (("zstd", True), ("gzip", True), ("zstd", False)):
        cache = PersistentLLMCache(
            client, max_memory_mb=8, pressure_mb=65_536, ttl_days=1, compress=compress, codec=codec
        )
        await cache.lookup(f"{codec}{compress}").put(ANSWER)
        heads[codec, compress] = (redis.get(keys.cache(f"{codec}{compress}")) or b"")[0]
    assert heads == {("zstd", True): 0x11, ("gzip", True): 0x12, ("zstd", False): 0x10}
    found = await _get_many(_cache(client), ["zstdTrue", "gzipTrue", "zstdFalse"])
    assert found == [ANSWER] * 3


async def test_a_value_that_no_longer_fits_its_prompt_is_a_miss_and_not_a_hit(client: AsyncRedis) -> None:
    cache = _cache(client)
    await cache.lookup("a").put(ANSWER)
    assert await cache.lookup("a", is_valid=lambda value: "themes" not in value).get() is None
    assert (cache.stats.hits, cache.stats.misses, cache.stats.corrupt) == (0, 1, 2), "once in each tier"


async def test_what_hits_have_saved_is_counted_with_and_without_a_price() -> None:
    cache, mine = _cache(None), CacheStats()
    cache.lookup("a", stats=mine).saved(ANSWER, 0.25)
    cache.lookup("a", stats=mine).saved(ANSWER, None)
    for stats in (mine, cache.stats):
        assert (stats.saved_prompt_tokens, stats.saved_completion_tokens) == (10, 14)
        assert (stats.saved_usd, stats.unpriced_hits) == (0.25, 1)


async def _count(client: AsyncRedis, name: str) -> None:
    cache = _cache(client)
    reporter = CacheReporter(cache, client)
    for number in range(20):
        await cache.lookup(f"{name} {number}").get()
        await cache.lookup(f"{name} {number}").put(ANSWER)
        await reporter.report()
        await cache.lookup(f"{name} {number}").get()
        cache.lookup(f"{name} {number}").saved(ANSWER, 0.001)
    await reporter.report()
    await reporter.report()
    await cache.close()


def test_counts_of_two_processes_add_up(redis_url: str, redis: Redis, forks: Forks) -> None:
    running = [forks.script(__file__, name, env={"REDIS_URL": redis_url}) for name in "ab"]
    assert [process.communicate(180) for process in running] == [(b"", None)] * 2
    assert [process.returncode for process in running] == [0, 0]
    found = read_statistics(redis)
    assert found["since"] is not None
    assert (found["misses"], found["stores"], found["memory_hits"], found["redis_hits"]) == (40, 40, 40, 0)
    assert found["saved_usd"] == pytest.approx(0.04)
    assert found["saved_prompt_tokens"] == 200
    assert found["bytes_raw"] > 2 * found["bytes_stored"] > 0
    assert all(redis.ttl(key) > 0 for key in redis.scan_iter("themes:stats:cache:*"))


async def test_a_report_whose_reply_was_lost_is_counted_once(client: AsyncRedis, redis: Redis) -> None:
    cache = _cache(client)
    reporter = CacheReporter(cache, client)
    await cache.lookup("a").get()
    reports = reporter._reports
    script, lost = reports._script, 0

    async def lossy(**options: object) -> object:
        nonlocal lost
        answer = await script(**options)  # type: ignore[arg-type]
        if not lost:
            lost += 1
            raise RedisConnectionError("the reply is lost")
        return answer

    reports._script = lossy  # type: ignore[assignment]
    with pytest.raises(RedisConnectionError):
        await reporter.report()
    await cache.lookup("b").get()
    await reporter.report()
    assert read_statistics(redis)["misses"] == 1
    await reporter.report()
    assert read_statistics(redis)["misses"] == 2


if __name__ == "__main__":
    _client = connect_async(os.environ["REDIS_URL"], socket_timeout_seconds=180)
    asyncio.run(_count(_client, sys.argv[1]))
