"""What it takes to enqueue a job: reading its destinations, and writing and publishing them."""

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from redis import Redis

from config.settings import Settings
from workers.observe.measurement_store import write_measurements
from workers.observe.profiler import PerformanceProfiler

T = TypeVar("T")

#: Rows of which the reading is one record.
ROWS_TOGETHER: Final = 100


class Production:
    """Measures one `enqueue`: spans `enqueue` (all of it), `enqueue.read` (100 rows) and `enqueue.write` (the rest).

    production = Production(settings)
    job = enqueue(production.reading(rows), …)
    production.report(redis, job.job_id)
    """

    def __init__(self, settings: Settings) -> None:
        self._profiler = PerformanceProfiler(
            enabled=settings.performance_optimization.enable_performance_profiling, role="producer", slowest_kept=0
        )
        self._began = time.perf_counter()
        self._since = time.time()
        self._reads: list[float] = []
        self._rows = 0

    def reading(self, rows: Iterable[T]) -> Iterator[T]:
        if not self._profiler.enabled:
            yield from rows
            return
        clock, spent = time.perf_counter, 0.0
        began = clock()
        for row in rows:
            spent += clock() - began
            self._rows += 1
            if self._rows % ROWS_TOGETHER == 0:
                self._reads.append(spent)
                spent = 0.0
            yield row
            began = clock()
        self._reads.append(spent + clock() - began)

    def report(self, redis: Redis, job_id: str) -> None:
        if not self._profiler.enabled:
            return
        seconds = time.perf_counter() - self._began
        with self._profiler.job(job_id) as records:
            assert records  # noqa: S101  # the profiler is on
            self._profiler.sample()
            self._profiler.record("enqueue", seconds)
            for read in self._reads:
                self._profiler.record("enqueue.read", read)
            self._profiler.record("enqueue.write", max(0.0, seconds - sum(self._reads)))
            self._profiler.count("rows_read", self._rows)
            records.since = self._since
        records.sums["held_seconds"] = seconds
        records.sums["cpu_seconds"] = time.process_time()
        for known, part in self._profiler.parts():
            write_measurements(redis, known.job_id, part)
