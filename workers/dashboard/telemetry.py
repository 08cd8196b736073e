"""The profiler of the dashboard's process: its loop's lag, its memory and CPU, and how long its pages take."""

from typing import Any, Final

from redis.asyncio import Redis

from config.settings import Settings
from workers.observe.profiler import PerformanceProfiler
from workers.observe.telemetry import start_reports


class DashboardTelemetry:
    #: The span of a page, from the request's first line to the answer's last byte; a stream of events is none.
    PAGE: Final = "page"

    def __init__(self, settings: Settings, redis: Redis) -> None:
        performance = settings.performance_optimization
        self.profiler = PerformanceProfiler(
            enabled=performance.enable_performance_profiling, role="dashboard", slowest_kept=0
        )
        self._redis = redis
        self._seconds = performance.profile_interval_seconds
        self._tasks: list[Any] = []

    def start(self) -> None:
        self._tasks = start_reports(self.profiler, self._redis, seconds=self._seconds)

    def served(self, seconds: float) -> None:
        self.profiler.record(self.PAGE, seconds)
