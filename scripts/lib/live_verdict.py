"""What limits a job that is being looked at, read at most once a second."""

import contextlib
import time
from typing import Final

from redis import Redis, RedisError

from config.settings import Settings
from tasks.connection import connect
from tasks.jobs.registry import JobStatus
from workers.diagnosis.verdict import NONE, Verdict, of_job, read_pulse

EVERY_SECONDS: Final = 1.0


class LiveVerdict:
    def __init__(self, settings: Settings, redis: Redis) -> None:
        url, timeout = settings.celery.broker_url, settings.redis.socket_timeout_seconds
        self._redis = redis
        self._broker = connect(url, socket_timeout_seconds=timeout) if url else redis
        self._at = float("-inf")
        self._last = NONE

    def of(self, status: JobStatus) -> Verdict:
        """Nothing where the status itself says what holds the job up, or Redis does not answer."""
        if status.is_final or status.paused or status.waiting_for:
            return NONE
        if time.monotonic() - self._at >= EVERY_SECONDS:
            self._at = time.monotonic()
            with contextlib.suppress(RedisError, OSError):  # whoever reads the status says so
                self._last = of_job(status, read_pulse(self._redis, self._broker))
        return self._last
