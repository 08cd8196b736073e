"""How near to its ideal time the LLM layer comes in one process, beside bare aiohttp in the same process.

The server answers in real size, after 200 ms by its clock. The layer is all that a prompt passes: cache, single flight
of all processes, pool, HTTP, validation, store. There is no Celery, no chunk and no result in it.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from config.settings import Settings
from tasks.connection import connect_async
from tests.benchmarks.figures import ratios, repeats, tell
from tests.benchmarks.full_prompts import body_of, prompt_about, stages
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler

pytestmark = pytest.mark.benchmark
LATENCY_SECONDS = 0.2
#: Calls that each connection makes.
TURNS = 20
ROUNDS = repeats()


@pytest.fixture(scope="module")
def slow_server() -> Iterator[str]:
    """A server that takes 200 ms and hardly any CPU, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("light_server.py")), str(LATENCY_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.terminate()


def _prompt(number: int) -> Prompt:
    return prompt_about(number, stages()[number % len(stages())])


async def _seconds(call: Callable[[int], Awaitable[object]], first: int, in_flight: int) -> float:
    numbers = iter(range(first, first + in_flight * TURNS))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return time.perf_counter() - began


@pytest.mark.parametrize("in_flight", [64, 512])
async def test_efficiency_at_200_ms(
    in_flight: int, slow_server: str, settings_for: Callable[..., Settings], redis_url: str
) -> None:
    """Layer, answers of 0.1 to 4.6 KB. The ideal is calls * 200 ms / calls in flight."""
    size = {"THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(in_flight)}
    settings = settings_for(OPENAI_BASE_URL=slow_server, THEMES_MODEL="sandbox", **size)
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
    shared = SharedFlights(redis, lease_seconds=10, ttl_ms=cache.ttl_ms)
    shared.start()
    ideal = LATENCY_SECONDS * TURNS
    calm_collector()
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session,
        LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool,
    ):
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)

        async def bare(number: int) -> object:
            body = body_of(_prompt(number))
            async with session.post(f"{slow_server}/chat/completions", data=body) as answer:
                return msgspec.json.decode(await answer.read())

        async def whole(number: int) -> object:
            return await generator.answer(_prompt(number), stage_stats=StageStats(), request_priority=number)

        await pool.warm(in_flight)
        floors, ours = [], []
        for turn in range(ROUNDS):
            floors.append(await _seconds(bare, turn * 10_000_000, in_flight))
            ours.append(await _seconds(whole, turn * 10_000_000 + 5_000_000, in_flight))
    case = f"{in_flight} in flight"
    tell(case, "share of the ideal, bare aiohttp", [ideal / took for took in floors], "x")
    tell(case, "share of the ideal, our layer", [ideal / took for took in ours], "x")
    tell(case, "our layer beside bare aiohttp", ratios(floors, ours), "x")
    await shared.close()
    await cache.close()
    await redis.aclose()
