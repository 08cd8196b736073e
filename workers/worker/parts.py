"""What turns destinations into profiles: cache, connections, generator, processor, lanes.

A worker process (`workers.worker.runtime`) and a run without Redis (`workers.local.job`) are these parts and what
surrounds them: where destinations come from, and where results go. The parts live on the loop that opened them and are
closed in the reverse order.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

from config.settings import Settings
from tasks.messages import Destination
from workers.llm.batches.questions import BatchStore
from workers.llm.cache.completions import CompletionStore
from workers.llm.cache.composites import Composites
from workers.llm.cache.stats import CacheReporter
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.health import look_after
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.registry import model_for
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.measurements import PROMPT_ROUNDS
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.evidence import EvidenceReader
from workers.pipeline.graph import Graph
from workers.pipeline.known import KnownProfiles
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import stages_of
from workers.pipeline.refused_answers import RefusedAnswers
from workers.process.shutdown import end_tasks
from workers.worker.lanes import Lanes


@dataclass(frozen=True, slots=True)
class Parts:
    profiler: PerformanceProfiler
    cache: PersistentLLMCache
    #: None where there is no Redis.
    cache_reporter: CacheReporter | None
    pool: LLMConnectionPool
    processor: FocusedPromptProcessor
    lanes: Lanes[Destination]


@contextlib.asynccontextmanager
async def open_parts(
    settings: Settings,
    profiler: PerformanceProfiler,
    *,
    redis: Redis | None,
    completions: CompletionStore | None = None,
    batches: BatchStore | None = None,
    pressure_mb: int | None = None,
) -> AsyncIterator[Parts]:
    """Open the parts that the settings ask for, and keep connections warm.

    Args:
        settings: of the process.
        profiler: measures all parts.
        redis: shares limits, cool-downs, completions and single flight with other processes; None: this process is
            alone.
        completions: keeps completions beyond the process where there is no Redis.
        batches: where prompts wait whose answers are bought in batches.
        pressure_mb: where the memory cache shrinks by itself; 0: the memory guard shrinks it; None: as configured.

    Raises:
        ConfigError: there is no endpoint for a model, or a key or a prompt file cannot be read.
    """
    limits = settings.performance_optimization
    graph = Graph(stages_of(settings))
    rounds = " ".join(str(len(names)) for names in graph.rounds())
    profiler.fact(PROMPT_ROUNDS, lambda: rounds)
    shared_redis = redis if limits.enable_persistent_cache else None
    async with contextlib.AsyncExitStack() as stack:
        cache = _cache(settings, redis if redis is not None else completions, pressure_mb)
        stack.push_async_callback(cache.close)
        reporter = None if redis is None else CacheReporter(cache, redis)
        if reporter is not None:
            stack.push_async_callback(reporter.close)
        models = {model_for(settings.llm, stage.name, stage.model) for stage in graph.stages.values()}
        pool = await stack.enter_async_context(LLMConnectionPool.of(settings, models, profiler, redis))
        flights = None if shared_redis is None else _flights(settings, shared_redis, cache.ttl_ms)
        if flights is not None:
            stack.push_async_callback(flights.close)
            flights.start()
        evidence = await stack.enter_async_context(EvidenceReader.of(settings, shared_redis))
        generator = FocusedLLMGenerator(
            pool=pool, cache=cache, profiler=profiler, settings=settings, shared=flights, batches=batches
        )
        known = None
        if shared_redis is not None:
            composites = Composites(shared_redis, cache)
            stack.push_async_callback(composites.close)
            known = KnownProfiles(composites, cache, graph.stages, settings=settings, profiler=profiler)
        refused = RefusedAnswers(redis) if redis is not None and settings.dashboard.show_answers else None
        if refused is not None:
            stack.push_async_callback(refused.close)
        processor = FocusedPromptProcessor(
            graph, generator, settings=settings, profiler=profiler, evidence=evidence, known=known, refused=refused
        )
        lanes: Lanes[Destination] = await stack.enter_async_context(
            Lanes(
                limits.worker_pool_size, steal=limits.enable_work_stealing, steal_threshold=limits.work_steal_threshold
            )
        )
        warming = look_after(
            pool, minimum=limits.llm_connection_pool_min_size, seconds=limits.health_check_interval_seconds
        )
        stack.push_async_callback(end_tasks, asyncio.create_task(warming, name="warm"))
        yield Parts(profiler, cache, reporter, pool, processor, lanes)


def _cache(settings: Settings, store: Redis | CompletionStore | None, pressure_mb: int | None) -> PersistentLLMCache:
    limits = settings.performance_optimization
    return PersistentLLMCache(
        store if limits.enable_persistent_cache else None,
        max_memory_mb=limits.max_memory_cache_mb,
        pressure_mb=limits.memory_pressure_threshold_mb if pressure_mb is None else pressure_mb,
        ttl_days=limits.cache_ttl_days,
        compress=limits.enable_result_compression,
        codec=settings.cache.codec,
    )


def _flights(settings: Settings, redis: Redis, ttl_ms: int) -> SharedFlights:
    process = os.environ.get("THEMES_PROCESS_TOKEN", "")
    return SharedFlights(redis, lease_seconds=settings.llm.flight_lease_seconds, ttl_ms=ttl_ms, process=process)
