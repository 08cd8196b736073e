"""A job's measurements in Redis: every process replaces its own, any process reads them all.

They are cumulative, so a report that did not arrive is made good by the next. The key expires `KEEP_SECONDS` after the
last report. `tasks.keys.MEASUREMENTS_DUE` names the jobs that the consumer has yet to copy to the database.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, Final

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tasks import keys
from tasks.frames import WireError
from tasks.messages import pack, unpack
from workers.observe.batch_use import batch_parts
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.observe.profiler import PerformanceProfiler
from workers.process.periodic import report_periodically

log = logging.getLogger("themes.profile")

#: Seconds between two reports, at least: jobs may end here many times a second.
SPACING_SECONDS: Final = 0.2


def _commands(pipeline: Any, job_id: str, part: ProcessMeasurements) -> None:
    """Queue the commands that replace a process's measurements; they expire even where Redis has forgotten the job."""
    pipeline.hset(keys.measurements(job_id), part.process, pack(part))
    pipeline.expire(keys.measurements(job_id), keys.KEEP_SECONDS)
    pipeline.zadd(keys.MEASUREMENTS_DUE, {job_id: time.time()})
    pipeline.expire(keys.MEASUREMENTS_DUE, keys.KEEP_SECONDS)


def write_measurements(redis: SyncRedis, job_id: str, part: ProcessMeasurements) -> None:
    with redis.pipeline(transaction=True) as pipeline:
        _commands(pipeline, job_id, part)
        pipeline.execute()


class MeasurementReporter:
    """Reports what has changed of one process's measurements: every `seconds`, and at once when a job leaves here."""

    def __init__(self, redis: Redis, profiler: PerformanceProfiler, *, seconds: float) -> None:
        self._redis = redis
        self._profiler = profiler
        self._seconds = seconds

    async def run(self) -> None:
        """Report until cancelled, and a last time then."""
        if self._profiler.enabled:
            missed = "action=profile_missed Redis does not answer: %s"
            await report_periodically(self.report, self._pause, log, missed)

    async def _pause(self) -> None:
        await asyncio.sleep(SPACING_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._profiler.released.wait()
        self._profiler.released.clear()

    async def report(self) -> None:
        """Report what has changed. Raises what Redis raises; the same is reported again next time."""
        parts = self._profiler.parts()
        if not parts:
            return
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                for records, part in parts:
                    _commands(pipeline, records.job_id, part)
                await pipeline.execute()
        except BaseException:
            for records, _ in parts:
                records.changed = True
            raise


def read_measurements(redis: SyncRedis, job_id: str) -> list[ProcessMeasurements]:
    """What each process has measured of a job, and its batches; foreign fields are left out."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hvals(keys.measurements(job_id))
        pipeline.hgetall(keys.batches(job_id))
        packed, batches = pipeline.execute(raise_on_error=False)
    if isinstance(packed, Exception):
        raise packed
    return [*decode_measurements(packed), *batch_parts(batches)]


def read_job_measurements(redis: SyncRedis, job_id: str) -> JobMeasurements:
    """The measurements of a job, merged; without parts where Redis has none."""
    return JobMeasurements.of(read_measurements(redis, job_id))


def decode_measurements(packed: list[bytes]) -> list[ProcessMeasurements]:
    """Measurements as they were stored; those of another form are left out, with a warning."""
    parts: list[ProcessMeasurements] = []
    for data in packed:
        try:
            parts.append(unpack(data, ProcessMeasurements))
        except WireError as exc:
            log.warning("action=profile_unreadable a part of a profile is left out: %s", exc)
    return parts
