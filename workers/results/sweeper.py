"""Wakes workers for chunks without a worker.

A worker that dies leaves its chunk: its lease in the ledger runs out. A message may be lost, because kombu pops it and
writes its own record in a second step: then fewer messages than waiting chunks are left. When that lasts for two sweeps
the oldest waiting chunks are sent again; a message too many finds its chunk held or gone.

A job whose producer died before it was sealed is cancelled. What is done of it stays, and `themes retry` asks the rest.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from redis import RedisError, ResponseError
from redis.asyncio import Redis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect, text_of
from tasks.errors import JobNotFoundError, UnreadableError
from tasks.jobs import registry as jobs
from tasks.jobs.events import current_status
from tasks.queue.ledger import Ledger
from tasks.queue.producer import broker_of, publish
from workers.process.outage import Outage
from workers.results.leftovers import Leftovers
from workers.results.lost import LostFinder, Missing
from workers.results.webhook import PauseNotices

log = logging.getLogger("themes.sweeper")

#: Messages sent again in one sweep for one job, at most.
RESEND_AT_ONCE: Final = 1_000
#: Seconds for which a producer must not have been seen, beyond the life of its last sign.
UNSEEN_SECONDS: Final = 10.0


class Sweeper:
    """Looks through all jobs that are not finished, every `work.sweep_interval_seconds`.

    `missing` reads which destinations of a job have no outcome; without it none is looked for. `notices` is
    told of each job's pause.
    """

    def __init__(
        self,
        redis: Redis,
        broker: Redis,
        settings: Settings,
        *,
        url: str,
        missing: Missing | None = None,
        notices: PauseNotices | None = None,
    ) -> None:
        compress = settings.performance_optimization.enable_result_compression
        self._lost = None if missing is None else LostFinder(redis, missing, compress=compress)
        self._notices = notices
        self._registry = connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
        self._queue = broker_of(self._registry, settings)
        self._compress = compress
        self._redis = redis
        self._broker = broker
        self._leftovers = Leftovers(redis, broker)
        self._interval = settings.work.sweep_interval_seconds
        self._ledger = Ledger(redis, token="sweeper", lease_seconds=settings.work.lease_seconds)  # noqa: S106
        self._lacked_before = False
        #: Jobs that are passed over, of which that was said.
        self._said: set[str] = set()
        #: Since when the producers of unsealed jobs have not been seen.
        self._unseen: dict[str, float] = {}
        self.resent = 0

    async def run(self) -> None:
        """Sweep until cancelled; Redis away is waited for."""
        outage = Outage(
            log,
            lost="action=sweep_missed Redis does not answer: %s",
            back="action=sweep_back Redis answers, chunks without a worker are looked for again",
        )
        while True:
            try:
                await self.sweep()
                await self._leftovers.tidy()
            except (RedisError, OSError) as exc:
                outage.begin(exc)
            else:
                outage.end()
            await asyncio.sleep(self._interval)

    async def sweep(self) -> int:
        """One look through all jobs; returns how many messages were sent again."""
        waiting: dict[str, int] = {}
        sent = 0
        for member in await self._redis.smembers(keys.ACTIVE):
            job_id = text_of(member)
            try:
                known = None
                with contextlib.suppress(JobNotFoundError):
                    known = await current_status(self._redis, job_id)
                    if self._lost is not None:
                        await self._lost.look(known)
                sent += await self._sweep(job_id, waiting)
                # Last: a notice that cannot be kept holds up no work.
                if known is not None and self._notices is not None:
                    await self._notices.look(known)
            except (ResponseError, UnreadableError) as exc:
                waiting.pop(job_id, None)
                if job_id not in self._said:
                    self._said.add(job_id)
                    log.error("action=job_unreadable job_id=%s is passed over, the others go on: %s", job_id, exc)  # noqa: TRY400
        lacking = sum(waiting.values()) - sum((await self._ledger.queued(self._broker)).values())
        if lacking > 0 and self._lacked_before and not sent:
            sent += await self._make_up(waiting, lacking)
            lacking = 0
        self._lacked_before = lacking > 0
        self.resent += sent
        return sent

    async def _sweep(self, job_id: str, waiting: dict[str, int]) -> int:
        """One look at a job; how many messages were sent again. Enters how many of its chunks wait."""
        if await self._is_abandoned(job_id, time.monotonic()):
            log.warning("action=job_abandoned job_id=%s its producer died: it is cancelled", job_id)
            await asyncio.to_thread(jobs.cancel, self._registry, job_id, compress=self._compress)
            return 0
        waiting[job_id], dead = await self._ledger.sweep(job_id)
        if dead:
            log.warning("action=lease_dead job_id=%s chunks=%d are sent again", job_id, len(dead))
        return await self._send(job_id, dead)

    async def _is_abandoned(self, job_id: str, now: float) -> bool:
        """Whether the job's producer died before it was sealed; `now` in monotonic seconds.

        A producer may be unseen for a while: after an outage of Redis its sign of life has expired.
        """
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hget(keys.job(job_id), "sealed")
            pipeline.exists(keys.producer(job_id))
            sealed, is_alive = await pipeline.execute()
        if sealed != b"0" or is_alive:
            self._unseen.pop(job_id, None)
            return False
        return now - self._unseen.setdefault(job_id, now) >= UNSEEN_SECONDS

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
        priority = jobs.options_of(await self._redis.hget(keys.job(job_id), "options")).priority
        labels = await self._redis.hmget(keys.labels(job_id), chunk_ids)
        labelled = [
            (chunk_id, text_of(text) if text else chunk_id) for chunk_id, text in zip(chunk_ids, labels, strict=True)
        ]
        await asyncio.to_thread(publish, self._queue, job_id, labelled, priority, first=True)
        return len(labelled)
