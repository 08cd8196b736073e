"""What turns destinations into profiles, put together once for everybody: cache, connections, generator, processor.

A worker process (`workers.worker.runtime`) and a run without Redis (`workers.local.job`) are this and what surrounds
it: where destinations come from, and where results go. Lives on the loop that opened it; closed in the reverse order.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

from config.settings import Settings
from workers.llm.cache.completions import CompletionStore
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.registry import model_for
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.evidence import EvidenceReader
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts that others look at, or use."""

    cache: PersistentLLMCache
    pool: LLMConnectionPool
    generator: FocusedLLMGenerator
    processor: FocusedPromptProcessor


@contextlib.asynccontextmanager
async def open_engine(
    settings: Settings,
    graph: Graph,
    *,
    profiler: PerformanceProfiler,
    redis: Redis | None,
    completions: CompletionStore | None = None,
    pressure_mb: int | None = None,
) -> AsyncIterator[Engine]:
    """Build the engine that the settings ask for; closed at the end.

    Args:
        settings: what to build.
        graph: the stages of the pipeline.
        profiler: measures all of it.
        redis: shares limits, cool-downs, completions and single flight with other processes; None: this process is
            alone.
        pressure_mb: where the memory cache gives way by itself; 0: somebody else sees to it; None: as the settings say.
        completions: keeps completions beyond the process where there is no Redis.

    Raises:
        ConfigError: there is no endpoint for a model, or a key cannot be read.
    """
    limits = settings.performance_optimization
    async with contextlib.AsyncExitStack() as stack:
        kept: Redis | CompletionStore | None = redis if redis is not None else completions
        cache = PersistentLLMCache(
            kept if limits.enable_persistent_cache else None,
            max_memory_mb=limits.max_memory_cache_mb,
            pressure_mb=limits.memory_pressure_threshold_mb if pressure_mb is None else pressure_mb,
            ttl_days=limits.cache_ttl_days,
            compress=limits.enable_result_compression,
            codec=settings.cache.codec,
        )
        stack.push_async_callback(cache.close)
        models = {model_for(settings.llm, stage.name, stage.model) for stage in graph.stages.values()}
        pool = await stack.enter_async_context(LLMConnectionPool.of(settings, models, profiler, redis))
        shared = None
        if redis is not None and limits.enable_persistent_cache:
            shared = SharedFlights(
                redis,
                lease_seconds=settings.llm.flight_lease_seconds,
                ttl_ms=cache.ttl_ms,
                process=os.environ.get("THEMES_PROCESS_TOKEN", ""),
            )
            stack.push_async_callback(shared.close)
            shared.start()
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)
        evidence = await stack.enter_async_context(
            EvidenceReader.of(settings, redis if limits.enable_persistent_cache else None)
        )
        processor = FocusedPromptProcessor(graph, generator, settings=settings, profiler=profiler, evidence=evidence)
        yield Engine(cache, pool, generator, processor)
