"""Our LLM layer from cache miss to store: cache, single flight of all processes, limits, pool, HTTP, validation.

It is opened as a worker process opens it, with a request limit and a token limit that are kept and never reached; where
a limit is measured it is `llm.requests_per_minute`, which all processes share through Redis. Validates: msgspec.
"""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from driver import PLACE, Call, Terms
from msgspec.structs import replace

from config.settings import load
from tasks.connection import connect_async
from tests.benchmarks.full_prompts import prompts_about
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    env = {
        "THEMES_STATE_DIR": terms.folder or tempfile.gettempdir(),
        "OPENAI_BASE_URL": terms.server,
        "THEMES_MODEL": "sandbox",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(terms.in_flight),
        "THEMES_LLM__REQUESTS_PER_MINUTE": str(terms.per_minute or 10_000_000),
        "THEMES_LLM__TOKENS_PER_MINUTE": "10_000_000_000",
    }
    settings = load(env=env)
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(terms.redis, socket_timeout_seconds=10)
    prompts = prompts_about(PLACE)
    place = str(PLACE)
    calm_collector()
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
        cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
        shared = SharedFlights(redis, lease_seconds=10, ttl_ms=cache.ttl_ms)
        shared.start()
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)

        async def ask(call: Call) -> object:
            prompt, number = prompts[call.stage], str(call.number)
            data, identity = prompt.data.replace(place, number), prompt.identity.replace(place, number)
            asked = replace(prompt, data=data, identity=identity)
            answer = await generator.answer(asked, stage_stats=StageStats(), request_priority=call.number)
            return answer.value

        await pool.warm(terms.in_flight)
        yield ask
        await shared.close()
        await cache.close()
    await redis.aclose()
