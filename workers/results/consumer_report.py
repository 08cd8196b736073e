"""What a consumer tells of itself once a second: how far it is behind, how fast it is, how its statements run."""

import asyncio
import logging
import os
import time
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.worker_reports import FORGET_SECONDS, ConsumerReport
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.results.rates import EventRate

log = logging.getLogger("themes.consumer")

#: Seconds between two reports.
INTERVAL_SECONDS: Final = 1.0
#: Statements reported: those that took most of the time.
STATEMENTS: Final = 12


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

    def __repr__(self) -> str:
        return f"<ConsumerReporter {self._name} entries={self.entries} rejected={self.rejected}>"

    def settled(self, *, batch: int, rejected: int, applied: Applied) -> None:
        self.entries += batch
        self.results += len(applied.outcomes)
        self.rejected += rejected
        self.last_batch = batch
        self._rate.add(batch, time.monotonic())

    async def run(self) -> None:
        """Tell until cancelled, and take the report away at the end."""
        try:
            while True:
                await self._tell()
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            await self._forget()

    async def _tell(self) -> None:
        try:
            # What is read and acknowledged is trimmed: the rest waits, or is in somebody's hands.
            lag = await self._redis.xlen(keys.RESULTS)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.consumer(self._name), mapping=self._report(lag).encode())
                pipe.expire(keys.consumer(self._name), keys.WORKER_SECONDS)
                pipe.zadd(keys.CONSUMERS, {self._name: time.time()})
                # Of those that were killed nobody else forgets the name.
                pipe.zremrangebyscore(keys.CONSUMERS, "-inf", time.time() - FORGET_SECONDS)
                pipe.expire(keys.CONSUMERS, keys.KEEP_SECONDS)
                await pipe.execute()
        except (RedisError, OSError) as bad:
            log.debug("action=report_missed %s", bad)

    async def _forget(self) -> None:
        try:
            await self._redis.delete(keys.consumer(self._name))
            await self._redis.zrem(keys.CONSUMERS, self._name)
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
