"""Copies the measurements of jobs, with their batches, from Redis to the database, so that they outlive their week.

A job whose measurements have changed is due (`tasks.keys.MEASUREMENTS_DUE`). It is copied when it has ended or is
paused, else once a minute; and again when more comes later: a worker reports a moment after the job's end. A second
copy changes nothing.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any, Final

import msgspec
from redis import ResponseError
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.lua import lua
from workers.observe.batch_use import batch_parts
from workers.observe.measurement_store import decode_measurements
from workers.process.periodic import report_periodically
from workers.results.database.manager import AsyncDatabaseManager

log = logging.getLogger("themes.profile")

#: Seconds between two looks at what is due.
LOOK_SECONDS: Final = 1.0
#: Seconds after which a job that runs is copied again.
RUNNING_SECONDS: Final = 60.0
#: Jobs copied in one look, at most.
AT_ONCE: Final = 50

_DONE: Final = lua(__file__, "copied")


class MeasurementKeeper:
    """Copies what is due until cancelled; any number may run at once."""

    def __init__(self, redis: Redis, store: AsyncDatabaseManager) -> None:
        self._redis = redis
        self._store = store
        self._done = redis.register_script(_DONE)
        #: When a running job was copied last, in monotonic seconds.
        self._copied: dict[str, float] = {}

    async def run(self) -> None:
        """Copy until cancelled, and a last time then."""
        pause, missed = partial(asyncio.sleep, LOOK_SECONDS), "action=profile_missed it stays due: %s"
        await report_periodically(self.copy_due, pause, log, missed, DatabaseBusyError)

    async def copy_due(self) -> int:
        """Copy what is due now; returns how many jobs. Raises what Redis and the database raise."""
        due: list[Any] = await self._redis.zrange(keys.MEASUREMENTS_DUE, 0, -1, withscores=True)
        copied = 0
        for member, changed_at in due:
            job_id = text_of(member)
            try:
                state = await self._redis.hmget(keys.job(job_id), "state", "paused")
            except ResponseError:
                state = [None, None]  # its entry cannot be read; its measurements may be
            rests = state[0] != b"running" or state[1] is not None
            if not rests and time.monotonic() - self._copied.get(job_id, float("-inf")) < RUNNING_SECONDS:
                continue
            if not await self._copied_now(job_id):
                continue
            if rests:
                self._copied.pop(job_id, None)
                await self._done(keys=[keys.MEASUREMENTS_DUE], args=[job_id, repr(changed_at)])
            else:
                self._copied[job_id] = time.monotonic()
            copied += 1
            if copied >= AT_ONCE:
                break
        return copied

    async def _copied_now(self, job_id: str) -> bool:
        """Copy one job; False where the database does not take it: it stays due, and the others are copied."""
        try:
            await self._copy(job_id)
        except DatabaseBusyError:
            raise
        except (DatabaseError, ValueError, ResponseError) as exc:
            log.warning("action=profile_refused job_id=%s its profile is not copied to the database: %s", job_id, exc)
            return False
        return True

    async def _copy(self, job_id: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hvals(keys.measurements(job_id))
            pipeline.hgetall(keys.batches(job_id))
            packed, batches = await pipeline.execute(raise_on_error=False)
        if isinstance(packed, Exception):
            raise packed
        if parts := [*decode_measurements(packed), *batch_parts(batches)]:
            rows = {part.process: msgspec.json.encode(part).decode() for part in parts}
            await self._store.keep_measurements(job_id, rows)
