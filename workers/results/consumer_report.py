"""What a consumer reports once a second: how far it is behind, how fast it is, how its statements run."""

import asyncio
import logging
import os
import time
from collections import deque
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.worker_reports import CONSUMER, ConsumerReport, remove_report, write_report
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied

log = logging.getLogger("themes.consumer")

#: Seconds between two reports.
INTERVAL_SECONDS: Final = 1.0
#: Statements reported: those that took most of the time.
STATEMENTS: Final = 12
#: Seconds that a rate looks back.
WINDOW_SECONDS: Final = 10.0


class EventRate:
    """Events a second over the last seconds; times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, count: int, now: float) -> None:
        self._counts.append((now, count))
        self._forget(now)

    def per_second(self, now: float) -> float:
        """The mean over the window, or over what has passed of it since the first event."""
        self._forget(now)
        if not self._counts:
            return 0.0
        return sum(count for _, count in self._counts) / max(1.0, min(WINDOW_SECONDS, now - self._counts[0][0]))

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - WINDOW_SECONDS:
            self._counts.popleft()


class ConsumerReporter:
    """Counts what one consumer does, and writes it to `themes:consumer:NAME`."""

    def __init__(self, redis: Redis, store: AsyncDatabaseManager, name: str) -> None:
        self._redis = redis
        self._store = store
        self._name = name
        self._began = time.time()
        self._rate = EventRate()
        self.entries = 0
        self.results = 0
        self.rejected = 0
        self.last_batch = 0

    def settled(self, *, batch: int, rejected: int, applied: Applied) -> None:
        self.entries += batch
        self.results += len(applied.outcomes)
        self.rejected += rejected
        self.last_batch = batch
        self._rate.add(batch, time.monotonic())

    async def run(self) -> None:
        """Report until cancelled, and remove the report at the end."""
        try:
            while True:
                try:
                    # What is read and acknowledged is trimmed: the rest waits, or is in a consumer's hands.
                    fields = self._report(await self._redis.xlen(keys.RESULTS)).encode()
                    await write_report(self._redis, CONSUMER, self._name, fields)
                except (RedisError, OSError) as bad:
                    log.debug("action=report_missed %s", bad)
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            try:
                await remove_report(self._redis, CONSUMER, self._name)
            except (RedisError, OSError) as bad:
                log.debug("action=report_left it expires by itself: %s", bad)

    def _report(self, lag: int) -> ConsumerReport:
        stats = self._store.stats()
        return ConsumerReport(
            pid=os.getpid(),
            at=time.time(),
            started_at=self._began,
            lag=lag,
            entries=self.entries,
            results=self.results,
            rejected=self.rejected,
            entries_per_second=round(self._rate.per_second(time.monotonic()), 1),
            rows=stats.rows,
            batches=stats.batches,
            last_batch=self.last_batch,
            ms_per_batch=round(stats.seconds_per_batch * 1000, 2),
            database=self._store.place,
            statements=dict(list(self._store.times.as_dict().items())[:STATEMENTS]),
        )
