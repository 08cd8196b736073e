"""Wakes workers for chunks that nobody works on.

Two things leave a chunk alone: its worker died (the lease runs out), or its message was lost (kombu pops a message and
writes its own books in a second step). The first is seen in the ledger at once. The second shows as fewer messages than
waiting chunks; when that lasts for two looks, the oldest waiting chunks are sent again. A message too many costs
nothing: it finds its chunk held or gone.
"""

import asyncio
import logging
from typing import Final

import msgspec
from celery import Celery
from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from tasks import keys
from tasks.connection import text_of
from tasks.ledger import Ledger
from tasks.messages import JobOptions
from tasks.producer import publish

log = logging.getLogger("themes.sweeper")

#: Messages sent again in one sweep for one job, at most.
RESEND_AT_ONCE: Final = 1_000


class Sweeper:
    """Looks through all jobs that are not finished, every `work.sweep_interval_seconds`."""

    def __init__(self, app: Celery, redis: Redis, broker: Redis, settings: Settings) -> None:
        self._app = app
        self._redis = redis
        self._broker = broker
        self._interval = settings.work.sweep_interval_seconds
        self._ledger = Ledger(redis, token="sweeper", lease_seconds=settings.work.lease_seconds)  # noqa: S106
        self._lacked_before = False
        self.resent = 0

    def __repr__(self) -> str:
        return f"<Sweeper resent={self.resent}>"

    async def run(self) -> None:
        """Sweep until cancelled; Redis away is waited for."""
        while True:
            try:
                await self.sweep()
            except (RedisError, OSError) as exc:
                log.warning("action=sweep_missed Redis does not answer: %s", exc)
            await asyncio.sleep(self._interval)

    async def sweep(self) -> int:
        """One look through all jobs; returns how many messages were sent again."""
        waiting: dict[str, int] = {}
        sent = 0
        for member in await self._redis.smembers(keys.ACTIVE):
            job_id = text_of(member)
            waiting[job_id], dead = await self._ledger.sweep(job_id)
            if dead:
                log.warning("action=lease_dead job_id=%s chunks=%d are sent again", job_id, len(dead))
                sent += await self._send(job_id, dead)
        lacking = sum(waiting.values()) - await self._ledger.queued_messages(self._broker)
        if lacking > 0 and self._lacked_before and not sent:
            sent += await self._make_up(waiting, lacking)
            lacking = 0
        self._lacked_before = lacking > 0
        self.resent += sent
        return sent

    async def _make_up(self, waiting: dict[str, int], lacking: int) -> int:
        """Send the oldest waiting chunks again, job by job."""
        sent = 0
        for job_id, count in sorted(waiting.items()):
            wanted = min(count, lacking - sent, RESEND_AT_ONCE)
            if wanted > 0:
                oldest = await self._ledger.oldest_waiting(job_id, wanted)
                log.info("action=resend job_id=%s chunks=%d wait without a message", job_id, len(oldest))
                sent += await self._send(job_id, oldest)
        return sent

    async def _send(self, job_id: str, chunk_ids: list[str]) -> int:
        if not chunk_ids:
            return 0
        raw = await self._redis.hget(keys.job(job_id), "options")
        priority = msgspec.json.decode(raw, type=JobOptions).priority if raw else JobOptions().priority
        labels = await self._redis.hmget(keys.labels(job_id), chunk_ids)
        labelled = [
            (chunk_id, text_of(text) if text else chunk_id) for chunk_id, text in zip(chunk_ids, labels, strict=True)
        ]
        await asyncio.to_thread(publish, self._app, job_id, labelled, priority)
        return len(labelled)
