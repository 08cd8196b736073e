"""What the profiler of a worker looks at: its lanes, its pool, its cache; and the tasks that tell what it found."""

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
from tasks.messages import Destination
from tasks.readings import amounts
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.observe.counters import field
from workers.observe.leaks import WATCH
from workers.observe.profiler import PerformanceProfiler
from workers.observe.telemetry import start_reports
from workers.process.periodic import LAST_SECONDS
from workers.process.shutdown import end_tasks
from workers.worker.lanes import Lanes

if TYPE_CHECKING:
    # Not there in a run without Redis, which is to import no Celery.
    from workers.results.publisher import EventPublisher
    from workers.worker.rebalance import WorkSharing

#: Seconds between two looks at the rates that were learnt.
RATES_SECONDS: Final = 2.0
MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts of a worker that keep counts."""

    lanes: Lanes[Destination]
    pool: LLMConnectionPool
    cache: PersistentLLMCache
    #: None where there is no Redis, so no watchers and nobody to share work with.
    publisher: "EventPublisher | None" = None
    sharing: "WorkSharing | None" = None

    def amounts(self) -> dict[str, float]:
        """Cumulative, of the whole process: integrals over time, exact at the moment of asking, and counts."""
        lanes = self.lanes.statistics
        busy = sum(lane.busy_seconds for lane in lanes)
        return {
            "lane_seconds": busy + sum(lane.idle_seconds for lane in lanes),
            "lane_busy_seconds": busy,
            "stolen": sum(lane.stolen for lane in lanes),
            "shared": self.sharing.shared if self.sharing else 0,
            "yielded": self.sharing.yielded if self.sharing else 0,
            **self.pool.amounts(),
        }

    def counters(self) -> dict[str, float]:
        """Cumulative counts for Prometheus."""
        tally = self.cache.tally
        return {
            field("cache_gets_total", tier="memory", result="hit"): tally.memory_hits,
            field("cache_gets_total", tier="redis", result="hit"): tally.redis_hits,
            field("cache_gets_total", tier="none", result="miss"): tally.misses,
            field("cache_gets_total", tier="none", result="corrupt"): tally.corrupt,
            "cache_coalesced_total": tally.coalesced,
            "cache_stores_total": tally.stores,
            "cache_evictions_total": tally.evictions,
            field("cache_bytes_total", form="raw"): tally.bytes_raw,
            field("cache_bytes_total", form="stored"): tally.bytes_stored,
            field("events_total", result="sent"): self.publisher.sent if self.publisher else 0,
            field("events_total", result="dropped"): self.publisher.dropped if self.publisher else 0,
        }


@asynccontextmanager
async def profiled(
    profiler: PerformanceProfiler, redis: Redis, settings: Settings, watched: Watched
) -> AsyncIterator[None]:
    """Within the body, measure and tell; at the end tell a last time."""
    if not profiler.enabled:
        yield
        return
    look_at(profiler, settings, watched)
    seconds = settings.performance_optimization.profile_interval_seconds
    tasks = [
        *start_reports(profiler, redis, watched.counters, seconds=seconds, samples=False),
        asyncio.create_task(_watch_rates(profiler, redis, watched), name="learnt rates"),
    ]
    try:
        yield
    finally:
        await end_tasks(*tasks, again_seconds=2 * LAST_SECONDS)


def look_at(profiler: PerformanceProfiler, settings: Settings, watched: Watched) -> None:
    """Let a profiler book what the parts count, and name what bounds the throughput here."""
    profiler.amounts_from(watched.amounts)
    profiler.holds_on_purpose(lambda: watched.cache.memory_bytes)
    for file in ("workers/llm/cache/codec.py", "workers/llm/cache/memory.py", "workers/llm/endpoints/prompt.py"):
        WATCH.expect(file, "the memory cache fills up to max_memory_cache_mb")
    _state_facts(profiler, settings, watched)


def _state_facts(profiler: PerformanceProfiler, settings: Settings, watched: Watched) -> None:
    """Name what bounds the throughput here."""
    performance, llm = settings.performance_optimization, settings.llm
    fixed: dict[str, str | float | bool | None] = {
        "worker_pool_size": watched.lanes.size,
        "llm_connection_pool_size": watched.pool.max_size,
        "requests_per_minute": llm.requests_per_minute,
        "tokens_per_minute": llm.tokens_per_minute,
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
    for route in watched.pool.routes:
        place = f"{route.name}/{route.model}"
        profiler.fact(f"concurrency_limit:{place}", lambda route=route: route.concurrency.limit)  # type: ignore[misc]
        profiler.fact(
            f"latency_ms:{place}",
            lambda route=route: None if route.latency_seconds is None else round(route.latency_seconds * 1000, 1),  # type: ignore[misc]
        )


async def _watch_rates(profiler: PerformanceProfiler, redis: Redis, watched: Watched) -> None:
    """Keep in the facts which rates refusals have taught: requests a minute; None while nothing is learnt."""
    known: dict[str, float | None] = {}
    learning = [(f"{route.name}/{route.model}", route.limiter.learnt_key) for route in watched.pool.routes]
    while any(key for _, key in learning):
        for place, key in learning:
            if key is not None:
                with contextlib.suppress(RedisError, OSError):  # said by who needs Redis
                    spacing_us = amounts(await redis.hgetall(key), ["us"]).get("us")
                    known[place] = round(MINUTE_US / spacing_us, 1) if spacing_us else None
                    profiler.fact(f"learnt_requests_per_minute:{place}", lambda place=place: known[place])  # type: ignore[misc]
        await asyncio.sleep(RATES_SECONDS)
