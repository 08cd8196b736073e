"""A job's profile in Redis: every process replaces its part, anybody reads them all.

A part is cumulative, so one that did not arrive is made good by the next. The key lives as long as the job's registry
entry would: `KEEP_SECONDS` from the last part. `tasks.keys.PROFILES_DUE` names the jobs whose parts have changed since
the consumer copied them to the database.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, Final

from redis import Redis as SyncRedis
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.messages import WireError, pack, unpack
from workers.observe.measurements import JobPart, JobPicture
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.profile")

#: Seconds between two reports, at least: jobs may end here many times a second.
SPACING_SECONDS: Final = 0.2
#: Seconds that the last report of a process that ends may take.
LAST_SECONDS: Final = 2.0


def _commands(pipeline: Any, job_id: str, part: JobPart) -> None:
    """Queue what replaces a part; also a job that Redis has forgotten leaves nothing for ever."""
    pipeline.hset(keys.job_profile(job_id), part.process, pack(part))
    pipeline.expire(keys.job_profile(job_id), keys.KEEP_SECONDS)
    pipeline.zadd(keys.PROFILES_DUE, {job_id: time.time()})
    pipeline.expire(keys.PROFILES_DUE, keys.KEEP_SECONDS)


def write_part(redis: SyncRedis, job_id: str, part: JobPart) -> None:
    """Replace one process's part of a job's profile."""
    with redis.pipeline(transaction=True) as pipeline:
        _commands(pipeline, job_id, part)
        pipeline.execute()


class PartReporter:
    """Tells the parts of one process: every `seconds` those that have changed, and at once when a job leaves here."""

    def __init__(self, redis: Redis, profiler: PerformanceProfiler, *, seconds: float) -> None:
        self._redis = redis
        self._profiler = profiler
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"<PartReporter {self._profiler!r} every {self._seconds:g} s>"

    async def run(self) -> None:
        """Tell until cancelled, and a last time then; while Redis is away nobody hears it."""
        try:
            while self._profiler.enabled:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        await self._profiler.released.wait()
                self._profiler.released.clear()
                await self._try()
                await asyncio.sleep(SPACING_SECONDS)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._try()

    async def report(self) -> None:
        """Tell what has changed. Errors of Redis pass through; the same is told again next time."""
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

    async def _try(self) -> None:
        try:
            await self.report()
        except (RedisError, OSError) as exc:
            log.debug("action=profile_missed Redis does not answer: %s", exc)


def read_job_parts(redis: SyncRedis, job_id: str) -> list[JobPart]:
    """What each process has measured of a job, as far as Redis knows; foreign fields are left out."""
    packed: list[Any] = redis.hvals(keys.job_profile(job_id))
    return parts_of(packed)


def read_job_picture(redis: SyncRedis, job_id: str) -> JobPicture:
    """All that was measured of a job, put together; without parts when Redis knows nothing (any more)."""
    return JobPicture.of(read_job_parts(redis, job_id))


def parts_of(packed: list[bytes]) -> list[JobPart]:
    """The parts out of their stored form; what is none, or of a newer version, is left out and said."""
    parts: list[JobPart] = []
    for data in packed:
        try:
            parts.append(unpack(data, JobPart))
        except WireError as exc:
            log.warning("action=profile_unreadable a part of a profile is left out: %s", exc)
    return parts
