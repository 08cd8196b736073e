"""What a process measures of itself, and reports, beside its work."""

import asyncio
import contextlib
import time

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from workers.observe.measurement_store import MeasurementReporter
from workers.observe.profiler import PerformanceProfiler
from workers.observe.reporter import MetricsReporter, Source


def start_reports(
    profiler: PerformanceProfiler, redis: Redis, *sources: Source, seconds: float, samples: bool = True
) -> list[asyncio.Task[None]]:
    """Tasks that measure and report until cancelled; none where the profiler is off.

    `sources` are cumulative counts for Prometheus. Without `samples` the caller samples the process itself.
    """
    if not profiler.enabled:
        return []
    seconds = min(seconds, keys.WORKER_SECONDS / 3)
    work = {
        "loop lag": profiler.watch_loop(),
        "profiles": MeasurementReporter(redis, profiler, seconds=seconds).run(),
        "metrics": MetricsReporter(redis, profiler, *sources).run(),
    }
    if samples:
        work["samples"] = _sample(profiler, redis, seconds)
    return [asyncio.create_task(each, name=name) for name, each in work.items()]


async def _sample(profiler: PerformanceProfiler, redis: Redis, seconds: float) -> None:
    while True:
        profiler.sample()
        began = time.perf_counter()
        with contextlib.suppress(RedisError, OSError):  # an outage is logged by what needs Redis
            await redis.ping()
            profiler.whole("redis", time.perf_counter() - began)
        await asyncio.sleep(seconds)
