"""What a completion from the cache costs, beside what it stands on; and how small it gets, beside other codecs."""

import asyncio
import statistics
import time
import zlib
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import zstandard

from tasks import keys
from tasks.connection import connect_async
from tasks.messages import Destination
from workers.llm.cache import codec
from workers.llm.cache.tiers import CachedCompletion, PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator, StageStats
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

pytestmark = pytest.mark.benchmark
ROUNDS = 5
COUNT = 4_000
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.seasonality")


def _told(name: str, values: list[float], unit: str) -> None:
    print(f"\n{name}: {statistics.median(values):.4g} {unit} (from {min(values):.4g} to {max(values):.4g})")


async def _cpu_rate(call: Callable[[], Awaitable[int]]) -> float:
    """Completions a second of this process's CPU: what one core would do."""
    began = time.process_time()
    count = await call()
    return count / (time.process_time() - began)


async def test_completions_from_redis(redis_url: str) -> None:
    """100 % hits in Redis, nothing in memory: 16 lookups at a time, beside MGET and validation alone."""
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    seasons = {f"t{n}": {"seasonality": {"peak": ["April", "May"], "avoid": ["August"]}} for n in range(1, 25)}
    schema = STAGE.schema(24)
    assert schema.is_valid(seasons)
    cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
    wanted = [f"{number:064x}" for number in range(COUNT)]
    for number in range(0, COUNT, 500):
        await asyncio.gather(
            *(cache.lookup(key).put(CachedCompletion(seasons, "m", 400, 300)) for key in wanted[number : number + 500])
        )
    rounds = [wanted[number : number + 16] for number in range(0, COUNT, 16)]
    calm_collector()

    async def floor() -> int:
        found = 0
        for some in rounds:
            for stored in await redis.mget([keys.cache(key) for key in some]):
                found += schema.is_valid(msgspec.msgpack.decode(codec.decode(stored))["value"])
        return found

    async def ours() -> int:
        reader = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
        found = 0
        for some in rounds:
            lookups = [reader.lookup(key, is_valid=schema.is_valid) for key in some]
            found += sum(one is not None for one in await asyncio.gather(*(lookup.get() for lookup in lookups)))
        return found

    rates: dict[str, list[float]] = {"floor": [], "ours": []}
    for _ in range(ROUNDS):
        rates["floor"].append(await _cpu_rate(floor))
        rates["ours"].append(await _cpu_rate(ours))
    _told("MGET and validation alone", rates["floor"], "completions a second of one core")
    _told("lookups", rates["ours"], "completions a second of one core")
    _told("ratio", [a / b for a, b in zip(rates["ours"], rates["floor"], strict=True)], "x")
    await redis.aclose()


async def test_compression_of_what_is_stored() -> None:
    """The sandbox's answers about unseen places; docs/_generate/dictionary.py tries hand-written ones too."""
    raw: list[bytes] = []

    class Recording(PersistentLLMCache):
        def encode(self, completion: CachedCompletion) -> tuple[bytes, int]:
            raw.append(msgspec.msgpack.encode(completion))
            return super().encode(completion)

    profiler = PerformanceProfiler(enabled=False)
    async with SandboxServer(latency="0") as server:
        from config.settings import load

        settings = load(env={"OPENAI_BASE_URL": server.base_url, "THEMES_MODEL": "sandbox"})
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
            cache = Recording(None, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            processor = FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
            for number in range(20):
                await processor.process(Destination.of(f"Unseen Place {number}", f"Nowhere {number % 3}"))
    plain = zstandard.ZstdCompressor(level=codec.ZSTD_LEVEL)
    for name, pack in (
        ("zstd with our dictionary", lambda one: codec.encode(one, "zstd")),
        ("zstd without", plain.compress),
        ("gzip -6", lambda one: codec.encode(one, "gzip")),
        ("zlib -6", zlib.compress),
    ):
        ratio = sum(map(len, raw)) / sum(len(pack(one)) for one in raw)
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for one in raw:
                pack(one)
            times.append((time.perf_counter() - began) / len(raw) * 1e6)
        print(f"\n{name}: {ratio:.2f} times smaller")
        _told("  time", times, "us a completion")


async def test_a_prompt_from_memory(redis_url: str) -> None:
    """The whole way of a prompt that memory answers: key, look-up, decoding, validation, books."""
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    profiler = PerformanceProfiler(enabled=True)
    async with SandboxServer(latency="0") as server:
        from config.settings import load

        settings = load(env={"OPENAI_BASE_URL": server.base_url, "THEMES_MODEL": "sandbox"})
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
            cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            stage = next(stage for stage in load_stages() if stage.name == "discover.food")
            prompts = [stage.prompt(Input.of(Destination.of(f"City {number}"))) for number in range(100)]
            for prompt in prompts:
                await generator.answer(prompt, stage_stats=StageStats(), request_priority=0)
            calm_collector()

            async def again() -> int:
                for _ in range(20):
                    for prompt in prompts:
                        assert (
                            await generator.answer(prompt, stage_stats=StageStats(), request_priority=0)
                        ).source == "cached"
                return 20 * len(prompts)

            _told("prompts from memory", [await _cpu_rate(again) for _ in range(ROUNDS)], "a second of one core")
    await redis.aclose()
