"""What happens to a result: read, written, announced, acknowledged, in this order.

A result counts when it is durable, so it is acknowledged last. After a crash the same entries are read again, and a
second write changes nothing. Any number of consumers may run: the group splits the entries among them.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ExecAbortError, OutOfMemoryError, RedisError, ResponseError

from config.settings import Settings
from tasks import keys, tracing
from tasks.connection import text_of
from tasks.errors import DatabaseBusyError
from tasks.messages import Result
from workers.observe.profiler import SILENT, PerformanceProfiler
from workers.observe.records import Records
from workers.process.periodic import LAST_SECONDS
from workers.process.shutdown import end_tasks
from workers.results.announcer import Announcer
from workers.results.batch_size import BatchSize
from workers.results.consumer_report import ConsumerReporter
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.results.measurements import ConsumerMeasurements
from workers.results.stream import DeadEntry, Decoded, RawEntry, ResultsStream, decode, is_group_lost

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that the batch under way gets when the consumer is told to stop; then it is left unacknowledged.
STOP_SECONDS: Final = 1.5
#: Waits between tries while Redis or the database is away double from the first to the last, less up to half.
FIRST_WAIT_SECONDS: Final = 0.1
LAST_WAIT_SECONDS: Final = 5.0
#: Seconds between two trims of the stream: it costs two round trips, a batch costs three.
TRIM_SECONDS: Final = 1.0
#: Batches whose news wait for room in Redis, at most: the newest say it all, but for events of single destinations.
MAX_UNANNOUNCED: Final = 100
#: Looks for a dead consumer's entries per lease: what it had read waits at most a third longer than one lease.
CLAIMS_PER_LEASE: Final = 3


def wait_seconds(tries: int, chance: float) -> float:
    """How long to wait before try `tries` (0 is the first one again); `chance` is 0-1."""
    full = min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * float(2 ** min(tries, 16)))
    return full * (1 - chance / 2)


class ResultsConsumer:
    """Writes the results stream into the database.

    Args:
        redis: `decode_responses=False`; its socket timeout is longer than half a second. Not closed here.
        store: opened for writing; not closed here.
        settings: batch size, flush interval, lease, events.
        name: unique among all consumers that ever run at the same time.
        profiler: measures what each job has cost here.
    """

    def __init__(
        self,
        redis: Redis,
        store: AsyncDatabaseManager,
        settings: Settings,
        name: str,
        *,
        profiler: PerformanceProfiler = SILENT,
    ) -> None:
        self._store = store
        self._name = name
        self._stream = ResultsStream(redis, consumer=name)
        self._announcer = Announcer(redis, settings)
        self._batch_size = BatchSize(settings.performance_optimization.database_batch_size)
        self._flush_seconds = settings.database.flush_interval_seconds
        self._lease_seconds = settings.work.lease_seconds
        self._stopping = asyncio.Event()
        self.report = ConsumerReporter(redis, store, name)
        self._measurements = ConsumerMeasurements(
            profiler, store, seconds=settings.performance_optimization.profile_interval_seconds
        )
        self._claim_at = 0.0
        self._trim_at = 0.0
        self._redis_tries = 0
        self._redis = redis
        #: What is durable and acknowledged, but could not be told: Redis had no room for the news.
        self._unannounced: list[Applied] = []

    def __repr__(self) -> str:
        return f"<ResultsConsumer {self._name} stopping={self._stopping.is_set()} {self._store!r}>"

    def stop(self) -> None:
        """Finish the batch under way, if that takes no longer than `STOP_SECONDS`, and let `run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Consume until `stop`; through every outage of Redis, and every passing one of the database.

        Raises:
            DatabaseError: the database cannot be used until a person mends it; nothing unwritten is acknowledged.
        """
        work = asyncio.create_task(self._consume(), name=f"{self._name}: consume")
        stopping = asyncio.create_task(self._stopping.wait(), name=f"{self._name}: stopping")
        reporting = [
            asyncio.create_task(self.report.run(), name=f"{self._name}: report"),
            *self._measurements.tasks(self._redis),
        ]
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({work}, timeout=STOP_SECONDS)
        finally:
            await end_tasks(work, stopping)
            await end_tasks(*reporting, again_seconds=2 * LAST_SECONDS)
        if not work.cancelled():
            work.result()

    async def _consume(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._serve()
            except ResponseError as bad:
                if not is_group_lost(bad):
                    await self._wait_for_redis(bad)
            except (RedisError, OSError) as bad:
                await self._wait_for_redis(bad)

    async def _serve(self) -> None:
        """Serve one connection's life, beginning with what an earlier one has left behind."""
        await self._stream.ensure_group()
        await self._settle_unfinished()
        is_announced = False
        while not self._stopping.is_set():
            await self._claim()
            batch = await self._stream.gather(
                count=self._batch_size.now, flush_seconds=self._flush_seconds, stopping=self._stopping
            )
            self._batch_size.seen(len(batch), sum(raw.size_bytes for raw in batch))
            self._redis_is_back()
            if batch:
                await self._settle(batch)
            else:
                # A reply may be lost with its connection and asked for again by the Redis client, in silence: what it
                # held is ours and unread. Found here it waits for the stream's next pause, not for a lease.
                await self._settle_unfinished()
                await self._store.tidy()
                if not is_announced and await self._stream.is_settled():
                    await self._announce_again()
                    is_announced = True
            await self._trim(now=not batch)
            if self._unannounced:
                await self._announce(Applied({}, [], []))
        await self._trim(now=True)
        await self._stream.leave()

    async def _settle(self, batch: list[RawEntry]) -> bool:
        """Write, announce, acknowledge. False when stopped before the batch could be written."""
        decoded = decode(batch)
        with self._measurements.batch(decoded) as jobs:
            return await self._settle_for(jobs, batch, decoded)

    async def _settle_for(self, jobs: dict[str, Records], batch: list[RawEntry], decoded: Decoded) -> bool:
        began, began_ns = time.perf_counter(), time.time_ns()
        applied = await self._insist(lambda: self._store.apply(decoded.entries, decoded.dead))
        if applied is None:
            return False
        self._measurements.written(jobs, decoded, applied, seconds=time.perf_counter() - began)
        traces = [entry.trace for entry in decoded.entries if isinstance(entry, Result) and entry.trace]
        tracing.done("commit", traces, began_ns, time.time_ns(), batch=len(batch))
        await self._announce(applied)
        for dead in decoded.dead:
            _say_dead(dead)
        by_id = {raw.id: raw for raw in batch}
        refused = [
            DeadEntry(by_id[decoded.ids[r.index]], r.reason, r.entry.job_id, getattr(r.entry, "destination_id", None))
            for r in applied.rejected
        ]
        if refused and not await self._bury(refused):
            return False
        await self._stream.ack([raw.id for raw in batch])
        self.report.settled(batch=len(batch), rejected=len(refused) + len(decoded.dead), applied=applied)
        return True

    async def _announce(self, applied: Applied) -> None:
        """Announce what is durable; to a Redis without room later: acknowledging is what makes room."""
        try:
            for earlier in [*self._unannounced, applied]:
                await self._announcer.announce(earlier)
                if self._unannounced:
                    del self._unannounced[0]
        except (OutOfMemoryError, ExecAbortError) as bad:
            if not self._unannounced:
                message = "Redis has no room: progress is announced when there is some again. Raise its maxmemory. %s"
                log.warning(message, bad, extra={"action": "redis_full"})
            if applied.jobs:
                self._unannounced = [*self._unannounced, applied][-MAX_UNANNOUNCED:]

    async def _announce_again(self) -> None:
        """Announce the jobs that Redis takes for unfinished, and the totals: another consumer may have died before."""
        self._unannounced.clear()
        jobs = {}
        for member in await self._redis.smembers(keys.ACTIVE):
            if row := await self._store.job(text_of(member)):
                jobs[row.job_id] = row
        await self._announce(Applied(jobs, [], [], await self._store.totals()))

    async def _bury(self, dead: list[DeadEntry]) -> bool:
        """Keep entries that were refused as dead letters; False when told to stop before that was done."""
        for entry in dead:
            _say_dead(entry)

        async def bury() -> bool:
            await self._store.bury(dead)
            return True

        return await self._insist(bury) is not None

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T | None:
        """Try until the database takes it; None when told to stop meanwhile."""
        tries = 0
        while True:
            try:
                written = await write()
            except DatabaseBusyError as bad:
                if tries == 0:
                    log.warning("%s. Nothing is lost; trying again.", bad, extra={"action": "database_busy"})
                if self._stopping.is_set() or await self._pause(tries):
                    return None
                tries += 1
            else:
                if tries:
                    log.info("The database is back.", extra={"action": "database_back", "tries": tries})
                return written

    async def _claim(self) -> None:
        """Take over, now and then, what a dead consumer had read."""
        if time.monotonic() < self._claim_at:
            return
        while claimed := await self._stream.claim(count=self._batch_size.now, idle_seconds=self._lease_seconds):
            log.warning("Took over %d entries of a consumer that had left them.", claimed, extra={"action": "claimed"})
            if not await self._settle_unfinished():
                return
        self._claim_at = time.monotonic() + self._lease_seconds / CLAIMS_PER_LEASE

    async def _settle_unfinished(self) -> bool:
        while batch := await self._stream.unfinished(count=self._batch_size.now):
            if not await self._settle(batch):
                return False
        return True

    async def _trim(self, *, now: bool) -> None:
        if now or time.monotonic() >= self._trim_at:
            await self._stream.trim()
            self._trim_at = time.monotonic() + TRIM_SECONDS

    async def _wait_for_redis(self, bad: Exception) -> None:
        if self._redis_tries == 0:
            message = "Redis cannot be used now (%s). Nothing is lost; trying again."
            log.warning(message, bad, extra={"action": "redis_away"})
        await self._pause(self._redis_tries)
        self._redis_tries += 1

    def _redis_is_back(self) -> None:
        if self._redis_tries:
            log.info("Redis is back.", extra={"action": "redis_back", "tries": self._redis_tries})
            self._redis_tries = 0

    async def _pause(self, tries: int) -> bool:
        """Wait before the next try; True when told to stop meanwhile."""
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_seconds(tries, random.random()))  # noqa: S311 - jitter
        except TimeoutError:
            return False
        return True


def _say_dead(entry: DeadEntry) -> None:
    log.error(
        "An entry of the results stream cannot be used and is set aside (table dead_letters): %s",
        entry.reason,
        extra={"action": "entry_dead", "entry_id": entry.raw.id.decode()},
    )
