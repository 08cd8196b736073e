"""What the profiler of a worker measures: its lanes, pool and cache; and the tasks that report it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from tasks.readings import amounts
from workers.observe.counters import field
from workers.observe.leaks import WATCH
from workers.observe.profiler import PerformanceProfiler
from workers.observe.telemetry import start_reports
from workers.process.periodic import LAST_SECONDS
from workers.process.shutdown import end_tasks
from workers.worker.parts import Parts

if TYPE_CHECKING:
    # Not there in a run without Redis, which is to import no Celery.
    from workers.results.publisher import EventPublisher
    from workers.worker.rebalance import Rebalancer

#: Seconds between two looks at the rates that were learnt.
RATES_SECONDS: Final = 2.0
MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Watched:
    parts: Parts
    #: None where there is no Redis, so no watchers and no worker to hand work to.
    publisher: "EventPublisher | None" = None
    rebalancer: "Rebalancer | None" = None

    def amounts(self) -> dict[str, float]:
        """Cumulative, of the whole process: integrals over time, exact at the moment of asking, and counts."""
        lanes = self.parts.lanes.statistics
        busy = sum(lane.busy_seconds for lane in lanes)
        return {
            "lane_seconds": busy + sum(lane.idle_seconds for lane in lanes),
            "lane_busy_seconds": busy,
            "stolen": sum(lane.stolen for lane in lanes),
            "shared": self.rebalancer.shared if self.rebalancer else 0,
            "yielded": self.rebalancer.preempted if self.rebalancer else 0,
            **self.parts.pool.amounts(),
        }

    def counters(self) -> dict[str, float]:
        stats = self.parts.cache.stats
        return {
            field("cache_gets_total", tier="memory", result="hit"): stats.memory_hits,
            field("cache_gets_total", tier="redis", result="hit"): stats.redis_hits,
            field("cache_gets_total", tier="none", result="miss"): stats.misses,
            field("cache_gets_total", tier="none", result="corrupt"): stats.corrupt,
            "cache_coalesced_total": stats.coalesced,
            "cache_stores_total": stats.stores,
            "cache_evictions_total": stats.evictions,
            field("cache_bytes_total", form="raw"): stats.bytes_raw,
            field("cache_bytes_total", form="stored"): stats.bytes_stored,
            field("events_total", result="sent"): self.publisher.sent if self.publisher else 0,
            field("events_total", result="dropped"): self.publisher.dropped if self.publisher else 0,
        }


@asynccontextmanager
async def profiled(redis: Redis, settings: Settings, watched: Watched) -> AsyncIterator[None]:
    """Within the body, measure and tell; at the end tell a last time."""
    profiler = watched.parts.profiler
    if not profiler.enabled:
        yield
        return
    look_at(settings, watched)
    seconds = settings.performance_optimization.profile_interval_seconds
    tasks = [
        *start_reports(profiler, redis, watched.counters, seconds=seconds, samples=False),
        asyncio.create_task(_watch_rates(redis, watched), name="learnt rates"),
    ]
    try:
        yield
    finally:
        await end_tasks(*tasks, again_seconds=2 * LAST_SECONDS)


def look_at(settings: Settings, watched: Watched) -> None:
    """Let a profiler book what the parts count, and name what bounds the throughput here."""
    profiler = watched.parts.profiler
    profiler.amounts_from(watched.amounts)
    profiler.holds_on_purpose(lambda: watched.parts.cache.memory.size_bytes)
    for file in ("workers/llm/cache/codec.py", "workers/llm/cache/memory.py", "workers/llm/endpoints/prompt.py"):
        WATCH.expect(file, "the memory cache fills up to max_memory_cache_mb")
    _state_facts(settings, watched)


def _state_facts(settings: Settings, watched: Watched) -> None:
    profiler = watched.parts.profiler
    performance, llm = settings.performance_optimization, settings.llm
    fixed: dict[str, str | float | bool | None] = {
        "enable_work_stealing": performance.enable_work_stealing,
        "enable_persistent_cache": performance.enable_persistent_cache,
        "enable_result_compression": performance.enable_result_compression,
        "enable_streaming_results": performance.enable_streaming_results,
        "database_batch_size": performance.database_batch_size,
        "theme_batch_size": performance.theme_batch_size,
        "adaptive_concurrency": llm.adaptive_concurrency,
        "cpu_count": os.cpu_count(),
    }
    for name, value in fixed.items():
        profiler.fact(name, lambda value=value: value)  # type: ignore[misc]  # bound now
    state_limits(settings, profiler)
    for route in watched.parts.pool.routes:
        place = f"{route.name}/{route.model}"
        profiler.fact(f"concurrency_limit:{place}", lambda route=route: route.concurrency.limit)  # type: ignore[misc]
        profiler.fact(
            f"latency_ms:{place}",
            lambda route=route: None if route.latency_seconds is None else round(route.latency_seconds * 1000, 1),  # type: ignore[misc]
        )


def state_limits(settings: Settings, profiler: PerformanceProfiler) -> None:
    """Which limits hold here from now on: they can be changed while the process works."""
    performance, llm = settings.performance_optimization, settings.llm
    limits: dict[str, float | None] = {
        "worker_pool_size": performance.worker_pool_size,
        "llm_connection_pool_size": performance.llm_connection_pool_size,
        "requests_per_minute": llm.requests_per_minute,
        "tokens_per_minute": llm.tokens_per_minute,
    }
    for name, value in limits.items():
        profiler.fact(name, lambda value=value: value)  # type: ignore[misc]  # bound now


async def _watch_rates(redis: Redis, watched: Watched) -> None:
    """Keep in the facts which rates refusals have taught: requests a minute; None while nothing is learnt."""
    profiler, known = watched.parts.profiler, dict[str, float | None]()
    learning = [(f"{route.name}/{route.model}", route.limiter.learnt_key) for route in watched.parts.pool.routes]
    while any(key for _, key in learning):
        for place, key in learning:
            if key is not None:
                with contextlib.suppress(RedisError, OSError):  # others log it
                    spacing_us = amounts(await redis.hgetall(key), ["us"]).get("us")
                    known[place] = round(MINUTE_US / spacing_us, 1) if spacing_us else None
                    profiler.fact(f"learnt_requests_per_minute:{place}", lambda place=place: known[place])  # type: ignore[misc]
        await asyncio.sleep(RATES_SECONDS)
