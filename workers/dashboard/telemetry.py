"""The profiler of the dashboard's process: its loop's lag, its memory and CPU, and how long its pages take."""

import asyncio
import time
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from tasks import keys
from workers.observe.profiler import PerformanceProfiler
from workers.observe.reporter import MetricsReporter


class DashboardTelemetry:
    #: The span of a page, from the request's first line to the answer's last byte; a stream of events is none.
    PAGE: Final = "page"

    def __init__(self, settings: Settings, redis: Redis) -> None:
        performance = settings.performance_optimization
        self.profiler = PerformanceProfiler(
            enabled=performance.enable_performance_profiling, role="dashboard", slowest_kept=0
        )
        self._redis = redis
        self._seconds = min(performance.profile_interval_seconds, keys.WORKER_SECONDS / 3)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if self.profiler.enabled:
            self._tasks = [
                asyncio.create_task(self.profiler.watch_loop(), name="loop lag"),
                asyncio.create_task(self._sample(), name="samples"),
                asyncio.create_task(MetricsReporter(self._redis, self.profiler).run(), name="metrics"),
            ]

    def served(self, seconds: float) -> None:
        self.profiler.record(self.PAGE, seconds)

    async def _sample(self) -> None:
        while True:
            self.profiler.sample()
            began = time.perf_counter()
            try:
                await self._redis.ping()
            except (RedisError, OSError):
                pass  # the pages say it
            else:
                self.profiler.whole("redis", time.perf_counter() - began)
            await asyncio.sleep(self._seconds)
