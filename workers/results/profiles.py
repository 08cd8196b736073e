"""Copies the profiles of jobs from Redis to the database, so that they outlive their week there.

A job whose profile has changed is due (`tasks.keys.PROFILES_DUE`). It is copied when it has ended or rests, else once a
minute; and again whenever a part of it comes later: a worker tells its last part a moment after the job's end. Copying
twice changes nothing. Nobody is to start this process for it: what is due waits in Redis.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, Final

import msgspec
from redis import RedisError, ResponseError
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.lua import lua
from workers.observe.measurement_store import LAST_SECONDS, parts_of
from workers.results.database.manager import AsyncDatabaseManager

log = logging.getLogger("themes.profile")

#: Seconds between two looks at what is due.
LOOK_SECONDS: Final = 1.0
#: Seconds after which the profile of a job that runs is copied again.
RUNNING_SECONDS: Final = 60.0
#: Jobs copied in one look, at most.
AT_ONCE: Final = 50

_DONE: Final = lua(__file__, "copied")


class ProfileKeeper:
    """Copies what is due until cancelled; any number may run at once."""

    def __init__(self, redis: Redis, store: AsyncDatabaseManager) -> None:
        self._redis = redis
        self._store = store
        self._done = redis.register_script(_DONE)
        #: When the profile of a running job was copied last, in monotonic seconds.
        self._copied: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ProfileKeeper running={len(self._copied)}>"

    async def run(self) -> None:
        """Copy until cancelled, and a last time then; Redis or the database away is waited for."""
        try:
            while True:
                await self._try()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._try()

    async def _try(self) -> None:
        try:
            await self.copy_due()
        except (RedisError, OSError, DatabaseBusyError) as exc:
            log.debug("action=profile_missed it stays due: %s", exc)

    async def copy_due(self) -> int:
        """Copy what is due now; how many jobs that were. Errors of Redis and the database pass through."""
        due: list[Any] = await self._redis.zrange(keys.PROFILES_DUE, 0, -1, withscores=True)
        copied = 0
        for member, changed_at in due:
            job_id = text_of(member)
            try:
                state = await self._redis.hmget(keys.job(job_id), "state", "paused")
            except ResponseError:
                state = [None, None]  # its entry cannot be read: that its profile can is known at once
            rests = state[0] != b"running" or state[1] is not None
            if not rests and time.monotonic() - self._copied.get(job_id, float("-inf")) < RUNNING_SECONDS:
                continue
            if not await self._copied_now(job_id):
                continue
            if rests:
                self._copied.pop(job_id, None)
                await self._done(keys=[keys.PROFILES_DUE], args=[job_id, repr(changed_at)])
            else:
                self._copied[job_id] = time.monotonic()
            copied += 1
            if copied >= AT_ONCE:
                break
        return copied

    async def _copied_now(self, job_id: str) -> bool:
        """Copy one; a profile that the database does not take keeps no other from being copied, and stays due."""
        try:
            await self._copy(job_id)
        except DatabaseBusyError:
            raise
        except (DatabaseError, ValueError, ResponseError) as exc:
            log.warning("action=profile_refused job_id=%s its profile is not copied to the database: %s", job_id, exc)
            return False
        return True

    async def _copy(self, job_id: str) -> None:
        packed: list[Any] = await self._redis.hvals(keys.job_profile(job_id))
        if parts := parts_of(packed):
            rows = {part.process: msgspec.json.encode(part).decode() for part in parts}
            await self._store.keep_profile(job_id, rows)
