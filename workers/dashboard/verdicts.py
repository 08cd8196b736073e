"""What limits a job, for its page: kept for a second while it runs, for good when it has ended."""

import asyncio
import time
from collections import OrderedDict
from typing import Final

from redis import Redis

from tasks.jobs.registry import JobStatus
from workers.diagnosis.findings import verdict_of_ended
from workers.diagnosis.verdict import NONE, Pulse, Verdict, of_job, read_pulse
from workers.observe.measurement_store import read_measurements
from workers.results.database.manager import AsyncDatabaseManager

#: Seconds for which what the workers report is good enough for every reader.
FRESH_SECONDS: Final = 1.0
#: Ended jobs whose verdict is kept, and seconds after the end until which their last measurements may be on their way.
KEPT: Final = 200
SETTLED_SECONDS: Final = 10.0


class Verdicts:
    def __init__(self, redis: Redis, broker: Redis) -> None:
        self._redis = redis
        self._broker = broker
        self._lock = asyncio.Lock()
        self._known: tuple[float, Pulse] | None = None
        self._ended: OrderedDict[tuple[str, float | None], Verdict] = OrderedDict()

    async def live(self, status: JobStatus) -> Verdict:
        """Errors of Redis pass through."""
        async with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > FRESH_SECONDS:
                pulse = await asyncio.to_thread(read_pulse, self._redis, self._broker)
                self._known = (time.monotonic(), pulse)
        return of_job(status, self._known[1])

    async def ended(self, store: AsyncDatabaseManager, status: JobStatus) -> Verdict:
        """Errors of Redis and DatabaseError pass through."""
        key = status.job_id, status.finished_at
        if (found := self._ended.get(key)) is not None:
            return found
        row = await store.job(status.job_id)
        if row is None:
            return NONE
        parts = await asyncio.to_thread(read_measurements, self._redis, status.job_id)
        found = await verdict_of_ended(store, row, status, parts)
        if time.time() - (status.finished_at or 0.0) > SETTLED_SECONDS:
            self._ended[key] = found
            while len(self._ended) > KEPT:
                self._ended.popitem(last=False)
        return found
