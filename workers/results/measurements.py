"""What the consumer measures of each job: how long results waited for it, and how long the database took."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from redis.asyncio import Redis

from workers.observe.profiler import PerformanceProfiler
from workers.observe.records import Records
from workers.observe.telemetry import start_reports
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.results.measurement_keeper import MeasurementKeeper
from workers.results.stream import Decoded


class ConsumerMeasurements:
    """Books a consumer's batches on their jobs."""

    def __init__(self, profiler: PerformanceProfiler, store: AsyncDatabaseManager, *, seconds: float) -> None:
        self._profiler = profiler
        self._seconds = seconds
        self._store = store
        self._rows = store.stats().rows

    def tasks(self, redis: Redis) -> list[asyncio.Task[None]]:
        """What measures and reports beside the work, until cancelled."""
        reports = start_reports(self._profiler, redis, self.counters, seconds=self._seconds)
        keeper = MeasurementKeeper(redis, self._store)
        return reports and [*reports, asyncio.create_task(keeper.run(), name="profiles kept")]

    @contextmanager
    def batch(self, decoded: Decoded) -> Iterator[dict[str, Records]]:
        """Within the body a batch is settled: for all jobs that have entries in it."""
        jobs: dict[str, Records] = {}
        if not self._profiler.enabled:
            yield jobs
            return
        now = time.time()
        with ExitStack() as stack:
            for entry_id, entry in zip(decoded.ids, decoded.entries, strict=True):
                records = jobs.get(entry.job_id)
                if records is None:
                    records = stack.enter_context(self._profiler.job(entry.job_id))
                    assert records  # noqa: S101  # the profiler is on
                    jobs[entry.job_id] = records
                records.root.child("result.wait").add(max(0.0, now - _seconds_of(entry_id)))
            yield jobs

    def written(self, jobs: dict[str, Records], decoded: Decoded, applied: Applied, *, seconds: float) -> None:
        """A batch is durable: it took so long for every job in it; its rows are shared out by their entries."""
        rows, self._rows = self._store.stats().rows - self._rows, self._store.stats().rows
        if not jobs:
            return
        entries = Counter(entry.job_id for entry in decoded.entries)
        for job_id, records in jobs.items():
            records.root.child("db.commit").add(seconds)
            records.add("batches", 1)
            records.add("entries", entries[job_id])
            records.add("rows", rows * entries[job_id] / entries.total())
        for outcome in applied.outcomes:
            if records := jobs.get(outcome.result.job_id):  # type: ignore[assignment]
                records.add("results", 1)

    def counters(self) -> dict[str, float]:
        """Cumulative counts for Prometheus."""
        stats = self._store.stats()
        return {
            "consumer_batches_total": stats.batches,
            "consumer_entries_total": stats.entries,
            "consumer_rows_total": stats.rows,
            "consumer_rejected_total": stats.rejected,
        }


def _seconds_of(entry_id: bytes) -> float:
    """When an entry came onto the stream, in seconds since 1970."""
    return int(entry_id.partition(b"-")[0]) / 1000
