"""Ends destinations that Redis has lost: listed, without an outcome, and without a chunk or a result.

Their job would run for ever. Each becomes a failure, which `themes retry` asks again; a result that comes all the same
takes its place.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.jobs.registry import JobStatus
from tasks.messages import Failure, Result, Usage
from tasks.storable import entry_fields
from workers.results.database.rows import DestinationRow

log = logging.getLogger("themes.sweeper")

#: Seconds for which nothing of a job must be left in Redis: a retry lists its destinations before it makes chunks.
LOST_SECONDS: Final = 15.0
LOST_ERROR: Final = "LostError"

#: Yields a job's destinations that have no outcome.
Missing = Callable[[str], AsyncIterator[DestinationRow]]


class LostFinder:
    """Looks at jobs one at a time. `missing` reads the database."""

    def __init__(self, redis: Redis, missing: Missing, *, compress: bool) -> None:
        self._redis = redis
        self._missing = missing
        self._compress = compress
        #: Since when nothing of a job is left, in monotonic seconds.
        self._since: dict[str, float] = {}

    async def look(self, known: JobStatus, *, now: float | None = None) -> int:
        """End what is lost of a job; returns how many destinations that were. `now` is in monotonic seconds."""
        now = time.monotonic() if now is None else now
        if known.is_final or known.paused or await self._is_something_left(known.job_id):
            self._since.pop(known.job_id, None)
            return 0
        if now - self._since.setdefault(known.job_id, now) < LOST_SECONDS:
            return 0
        del self._since[known.job_id]
        count = 0
        async for row in self._missing(known.job_id):
            await self._redis.xadd(keys.RESULTS, entry_fields(_lost(row), compress=self._compress))
            count += 1
        if count:
            log.error(
                "action=destinations_lost job_id=%s %d destinations end as failures: neither a chunk nor a result of "
                "them is left in Redis", known.job_id, count,
            )  # fmt: skip
        return count

    async def _is_something_left(self, job_id: str) -> bool:
        """Whether the job is still enqueued, a chunk is left, or a result waits to be written."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hget(keys.job(job_id), "sealed")
            pipeline.exists(keys.chunks(job_id), keys.producer(job_id))
            sealed, held = await pipeline.execute()
        if sealed != b"1" or held:
            return True
        if not await self._redis.exists(keys.RESULTS):
            return False
        stream: Any = await self._redis.xinfo_stream(keys.RESULTS)
        groups: Any = await self._redis.xinfo_groups(keys.RESULTS)
        ours = [group for group in groups if text_of(group["name"]) == keys.GROUP]
        return not ours or ours[0]["pending"] or ours[0]["last-delivered-id"] != stream["last-generated-id"]


def _lost(row: DestinationRow) -> Result:
    attempt = max(0, row.attempt)
    failure = Failure(
        stage="worker",
        error_class=LOST_ERROR,
        message="neither a chunk nor a result of it is left in Redis; `themes retry` asks it again",
        attempts=attempt,
    )
    return Result(row.job_id, row.destination.id, attempt, Usage(), "sweeper", time.time(), 0.0, failure=failure)
