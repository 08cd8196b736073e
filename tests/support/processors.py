"""The pipeline against a server, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from config.settings import Settings
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages


@asynccontextmanager
async def processor_of(settings: Settings, prompts: Path | None = None) -> AsyncIterator[FocusedPromptProcessor]:
    """A processor whose cache is in memory."""
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=64, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        yield FocusedPromptProcessor(Graph(load_stages(prompts)), generator, settings=settings, profiler=profiler)
