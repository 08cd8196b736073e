"""What a completion from the cache costs, beside what it stands on; and how small it gets, beside other codecs.

Completions a second are those of a core: of this process's CPU, not of the clock.
"""

import asyncio
import statistics
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import yaml
import zstandard

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.full_answers import THEMES, Prose, names, value
from tests.benchmarks.full_prompts import prompts_about, stages
from tests.benchmarks.whole import light_server
from workers.llm.cache import codec
from workers.llm.cache.tiers import CachedCompletion, PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler

pytestmark = pytest.mark.benchmark
ROUNDS = repeats(5)
COUNT = knob("DESTINATIONS", 250) * 16
STAGE = next(stage for stage in stages() if stage.name == "analyse.seasonality")
RATE = "a second of one core"


def _answers(name: str, count: int) -> list[Any]:
    """So many answers of one stage, in real size."""
    return [msgspec.json.decode(msgspec.json.encode(value(name, Prose(seed)))) for seed in range(count)]


def _by_hand() -> list[bytes]:
    """The hand-written answers that no dictionary was trained on."""
    places: dict[str, dict[str, Any]] = yaml.safe_load((codec.DICTIONARIES / "samples.yaml").read_text())["held_out"]
    some = [one for of_place in places.values() for one in of_place.values()]
    return [_packed(one) for one in some]


def _packed(one: Any) -> bytes:
    return msgspec.msgpack.encode(CachedCompletion(one, "a-model-name", 480, len(msgspec.json.encode(one)) // 4))


async def _cpu_rate(call: Callable[[], Awaitable[int]]) -> float:
    """Completions a second of this process's CPU: what one core would do."""
    began = time.process_time()
    count = await call()
    return count / (time.process_time() - began)


async def test_completions_from_redis(redis_url: str) -> None:
    """Layer: the cache, answers about 25 themes of 2.3 KB. All hits in Redis, none in memory, 16 lookups at a time.

    The floor is MGET, decoding and validation alone.
    """
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    seasons = _answers("analyse_seasonality", 64)
    schema = STAGE.schema(THEMES)
    assert all(schema.is_valid(one) for one in seasons)
    cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
    wanted = [f"{number:064x}" for number in range(COUNT)]
    for number in range(0, COUNT, 500):
        await asyncio.gather(
            *(
                cache.lookup(key).put(CachedCompletion(seasons[int(key, 16) % 64], "m", 400, 300))
                for key in wanted[number : number + 500]
            )
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
    case = "16 lookups at a time"
    tell(case, "an answer, as JSON", [statistics.mean(len(msgspec.json.encode(one)) for one in seasons) / 1e3], "KB")
    tell(case, "MGET, decoding and validation alone", rates["floor"], RATE)
    tell(case, "lookups", rates["ours"], RATE)
    tell(case, "lookups / floor", ratios(rates["ours"], rates["floor"]), "x")
    await redis.aclose()


def test_compression_of_what_is_stored() -> None:
    """Layer: the codec, on two kinds of answers that no dictionary was trained on.

    The light server's are prose of random words in real size; those written by hand are shorter than real ones.
    """
    full = [_packed(one) for name in names() for one in _answers(name, 4)]
    plain = zstandard.ZstdCompressor(level=codec.ZSTD_LEVEL)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "zstd, our dictionary": lambda one: codec.encode(one, "zstd"),
        "zstd": plain.compress,
        "gzip -6": lambda one: codec.encode(one, "gzip"),
        "zlib -6": zlib.compress,
    }
    for kind, raw in (("the light server's answers", full), ("answers written by hand", _by_hand())):
        tell(kind, "an answer", [sum(map(len, raw)) / len(raw) / 1e3], "KB")
        for name, pack in packers.items():
            tell(kind, f"{name}: times smaller", [sum(map(len, raw)) / sum(len(pack(one)) for one in raw)], "x")
            tell(kind, f"{name}: time", [_microseconds(pack, raw) for _ in range(ROUNDS)], "us")


def _microseconds(pack: Callable[[bytes], bytes], raw: list[bytes]) -> float:
    """CPU of packing one of them."""
    began = time.process_time()
    for one in raw:
        pack(one)
    return (time.process_time() - began) / len(raw) * 1e6


async def test_a_prompt_from_memory(redis_url: str, settings_for: Callable[..., Settings]) -> None:
    """Layer: the LLM layer, a prompt that memory answers: key, look-up, decoding, validation, books.

    All sixteen prompts in turn, answers of 0.1 to 4.6 KB.
    """
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    profiler = PerformanceProfiler(enabled=True)
    with light_server(0.0) as (_, url):
        settings = settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="sandbox")
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
            cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            prompts = [prompt for number in range(10) for prompt in prompts_about(number)]
            for prompt in prompts:
                await generator.answer(prompt, stage_stats=StageStats(), request_priority=0)
            calm_collector()

            async def again() -> int:
                for _ in range(10):
                    for prompt in prompts:
                        assert (
                            await generator.answer(prompt, stage_stats=StageStats(), request_priority=0)
                        ).source == "cached"
                return 10 * len(prompts)

            tell("16 prompts in turn", "prompts from memory", [await _cpu_rate(again) for _ in range(ROUNDS)], RATE)
            await cache.close()
    await redis.aclose()
