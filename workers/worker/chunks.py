"""One chunk's life: its lease, its destinations to the lanes, their results out, the chunk off the ledger.

message -> take (lease) -> lanes -> one result at a time onto the stream -> gone
              |                            |
              held, gone: nothing to do    stopping: give back, and wake another worker
              paused: nothing to do now    paused, or budget used up: give back, wake no worker
                                           cancelled: drop it

What a destination has cost is booked whatever becomes of it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from redis import RedisError, ResponseError

from config.settings import Settings
from tasks import tracing
from tasks.errors import JobPausedError, JobStoppedError, ParkedError, UnreadableError
from tasks.messages import Chunk, Destination, JobOptions
from tasks.queue.ledger import Ledger, Taken, Taking
from workers.llm.cancellation import Cancellation
from workers.observe.call_journal import CallJournal
from workers.observe.profiler import PerformanceProfiler
from workers.observe.records import Records
from workers.process.retry import StoppableRetry
from workers.worker.cancellations import Cancellations
from workers.worker.destination import DestinationRunner, Process
from workers.worker.lanes import Lanes
from workers.worker.quarantine import Quarantine, Wake
from workers.worker.shortcut import FindKnown, Shortcut

log = logging.getLogger("themes.chunks")

#: Part of the grace time in which a stopping worker still asks; the rest is for answers under way.
FINISH_SHARE: Final = 0.5
#: Seconds that a stopping worker may take to give back what it has just cut short.
GIVE_BACK_SECONDS: Final = 1.0
#: Chunks on their way to the lanes, at most: nobody knows how many of their destinations the cache has whole.
MAX_ON_THEIR_WAY: Final = 3


class ChunkEnd(StrEnum):
    DONE = "done"
    GONE = "gone"
    HELD = "held"
    GIVEN_BACK = "given back"
    SPLIT = "split"
    PAUSED = "paused"
    PARKED = "parked"


#: Reads a job's options.
ReadOptions = Callable[[str, int], Awaitable[JobOptions]]


@dataclass(slots=True, eq=False)
class HeldChunk:
    """A chunk under our lease; `is_ours` is False once the lease is known to be lost."""

    taken: Taken
    options: JobOptions
    is_ours: bool = True
    #: New chunks that were made of its destinations.
    parts: int = 0
    #: Held while some of its destinations are handed off.
    handing_off: asyncio.Lock = field(default_factory=asyncio.Lock)


class ChunkRunner:
    def __init__(
        self,
        *,
        ledger: Ledger,
        lanes: Lanes[Destination],
        process: Process,
        wake: Wake,
        options: ReadOptions,
        settings: Settings,
        profiler: PerformanceProfiler,
        worker: str,
        journal: CallJournal | None = None,
        known: FindKnown | None = None,
        may_take: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._ledger = ledger
        self.lanes = lanes
        #: Whether one more chunk may be taken, by the number in hand.
        self._may_take = may_take
        self._open: set[tuple[str, str]] = set()
        #: Chunks whose destinations the lanes have.
        self._in_lanes = 0
        #: Whether nothing more is taken until the consumer has written results.
        self.is_full = False
        self._wake = wake
        self._options = options
        self._work = settings.work
        self.retry = StoppableRetry()
        self._profiler = profiler
        self._destinations = DestinationRunner(
            ledger=ledger,
            process=process,
            retry=self.retry,
            settings=settings,
            profiler=profiler,
            worker=worker,
            journal=journal or CallJournal(),
        )
        self._shortcut = Shortcut(known, self._destinations, profiler) if known else None
        self._running: set[asyncio.Task[ChunkEnd]] = set()
        #: Chunks that a thread of ours is busy with, from before their lease on: a second message finds them here.
        self._claimed: set[tuple[str, str]] = set()
        self.held: dict[tuple[str, str], HeldChunk] = {}
        self._quarantine = Quarantine(ledger, self.retry, wake)
        #: Jobs of which this process has parked something: they have begun.
        self._begun: set[str] = set()
        #: Jobs whose entry cannot be read, and was logged.
        self._unreadable: set[str] = set()
        self.cancellations = Cancellations(ledger, self.retry)

    def __repr__(self) -> str:
        return f"<ChunkRunner held={len(self.held)} {self.lanes!r}>"

    @property
    def claimed(self) -> int:
        """Messages in hand: chunks under our lease, and those that we are about to take."""
        return len(self._claimed)

    def wants_more(self, in_hand: int) -> bool:
        """Whether the lanes have use for another chunk, of which so many are in hand. Any thread may ask."""
        return in_hand - self._in_lanes < MAX_ON_THEIR_WAY and self.lanes.is_hungry

    @property
    def is_stopping(self) -> bool:
        return self.retry.is_stopped

    def stop(self) -> None:
        """Start nothing any more; what is unstarted goes back."""
        self.retry.stop()
        self.lanes.stop()

    async def settle(self, grace_seconds: float) -> None:
        """After `stop`: let what is in hand end within the grace time; what does not is given back.

        For the first part of that time destinations go on. Then nothing more is asked, and calls under way are awaited:
        they are paid for, and their answers are in the cache for the next worker.
        """
        running = set(self._running)
        if not running:
            return
        _, running = await asyncio.wait(running, timeout=grace_seconds * FINISH_SHARE)
        self.cancellations.stop_all("this worker is stopping")
        if running:
            _, running = await asyncio.wait(running, timeout=grace_seconds * (1 - FINISH_SHARE))
        if running:
            self.cancellations.stop_all("this worker is stopping", at_once=True)
            _, running = await asyncio.wait(running, timeout=GIVE_BACK_SECONDS)
        abandoned = [key for key, held in self.held.items() if held.is_ours]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for job_id, chunk_id in abandoned:
            await self._abandon(job_id, chunk_id)

    async def _abandon(self, job_id: str, chunk_id: str) -> None:
        """Give back a chunk that something here holds on to, and will not let go."""
        try:
            options = await self._options(job_id, 0)
            await self._ledger.give_back(job_id, chunk_id)
        except (RedisError, OSError) as exc:
            log.warning("action=give_back job_id=%s chunk_id=%s its lease must run out: %s", job_id, chunk_id, exc)
            return
        await self._wake(job_id, [(chunk_id, "given back")], options.priority)
        log.info("action=give_back job_id=%s chunk_id=%s in the middle of its work", job_id, chunk_id)

    async def renew(self) -> None:
        """Prolong the leases of everything held; chunks that are no longer ours are marked, and not started."""
        await self.cancellations.look()
        jobs: dict[str, list[str]] = {}
        for job_id, chunk_id in self.held:
            jobs.setdefault(job_id, []).append(chunk_id)
        for job_id, chunk_ids in jobs.items():
            try:
                losses = await self._ledger.renew(job_id, chunk_ids)
            except ResponseError as exc:
                log.warning("action=heartbeat_missed job_id=%s Redis refuses: %s", job_id, exc)
                continue
            for lost in losses:
                if held := self.held.get((job_id, lost)):
                    held.is_ours = False
                    log.info("action=lease_lost job_id=%s chunk_id=%s", job_id, lost)

    async def run(self, job_id: str, chunk_id: str) -> ChunkEnd:
        if (job_id, chunk_id) in self._claimed:
            return ChunkEnd.HELD
        task = asyncio.current_task()
        assert task  # noqa: S101  # a coroutine runs in a task
        self._claimed.add((job_id, chunk_id))
        self._running.add(task)
        try:
            return await self._run(job_id, chunk_id)
        finally:
            self._claimed.discard((job_id, chunk_id))
            self._open.discard((job_id, chunk_id))
            self._running.discard(task)

    async def _run(self, job_id: str, chunk_id: str) -> ChunkEnd:
        try:
            taken = await self._take(job_id, chunk_id)
        except UnreadableError as exc:
            self._say_unreadable(job_id, exc)
            return ChunkEnd.GONE
        if not isinstance(taken, Taken):
            return taken
        try:
            return await self._handle(taken)
        except UnreadableError as exc:
            self._say_unreadable(job_id, exc)
            await self.retry.call(lambda: self._ledger.give_back(job_id, chunk_id))
            return ChunkEnd.GIVEN_BACK
        except (RedisError, OSError):
            raise  # this worker is stopping, and Redis is away: the lease runs out
        except Exception as exc:  # a fault of ours: no worker has died, and a second try would meet it again
            log.exception("action=chunk_crashed job_id=%s chunk_id=%s", job_id, chunk_id)
            if await self.retry.call(lambda: self._ledger.renew(job_id, [chunk_id])):
                return ChunkEnd.GONE  # given back, split or taken over: others do what is left
            await self._destinations.fail_rest(taken, exc)
            return ChunkEnd.DONE

    def _say_unreadable(self, job_id: str, error: UnreadableError) -> None:
        if job_id not in self._unreadable:
            self._unreadable.add(job_id)
            log.error("action=job_unreadable job_id=%s nothing of it is done: %s", job_id, error)

    async def _handle(self, taken: Taken) -> ChunkEnd:
        """Split a chunk that has lost its worker, give up or postpone a suspect, work on any other."""
        job_id, chunk_id = taken.chunk.job_id, taken.chunk.chunk_id
        options = await self.retry.call(lambda: self._options(job_id, taken.chunk.attempt))
        if self.cancellations.is_pausing(job_id):
            return await self._give_back(taken.chunk, options, len(taken.chunk.destinations), is_paused=True)
        if taken.deliveries > 1 and len(taken.chunk.destinations) > 1:
            await self._quarantine.split(taken, options)
            return ChunkEnd.SPLIT
        if taken.deliveries > self._work.max_deliveries:
            await self._destinations.give_up(taken)
            return ChunkEnd.DONE
        if not await self._quarantine.admits(taken, options):
            return ChunkEnd.GIVEN_BACK
        self.held[job_id, chunk_id] = held = HeldChunk(taken, options)
        try:
            with self._profiler.job(job_id) as records:
                return await self._work_on(held, self.cancellations.of(job_id), records)
        finally:
            await self._quarantine.leave(taken)
            del self.held[job_id, chunk_id]
            if all(other != job_id for other, _ in self.held):
                self.cancellations.forget(job_id)

    async def _take(self, job_id: str, chunk_id: str) -> Taken | ChunkEnd:
        while not self.retry.is_stopped:
            if not self._may_take(len(self._open)):
                await self.retry.pause()
                continue
            self._open.add((job_id, chunk_id))
            taken = await self.retry.call(
                lambda: self._ledger.take(job_id, chunk_id, max_unwritten=self._work.max_unwritten_results)
            )
            self.is_full = taken is Taking.FULL
            if isinstance(taken, Taken):
                return taken
            if taken is not Taking.FULL:
                return ChunkEnd(taken.value)
            self._open.discard((job_id, chunk_id))
            await self.retry.pause()
        # Not taken: the chunk waits in the ledger, and the sweeper wakes a worker for it.
        return ChunkEnd.GIVEN_BACK

    async def _work_on(self, held: HeldChunk, cancellation: Cancellation, records: Records | None) -> ChunkEnd:
        chunk, options = held.taken.chunk, held.options
        placed = time.perf_counter()
        waited = {"queue.wait": queued_seconds(held.taken, time.time())}
        todo = [item for item in chunk.destinations if item.id not in held.taken.finished]
        if self._shortcut and options.use_cache:
            todo = await self._shortcut.run(held.taken, todo, options, cancellation, records, waited)
        left: list[Destination] = []
        parked: list[Destination] = []
        pauses: set[bool] = set()
        # A lane knows nothing of the message that brought the chunk, and one that was sent again of its job's trace.
        parent = tracing.traceparent() or options.trace

        async def work(destination: Destination) -> None:
            if not held.is_ours:
                return
            if not pauses and not cancellation.reason:
                try:
                    waited_here = waited | {"lane.wait": time.perf_counter() - placed}
                    with (
                        self._profiler.destination(records, destination.id, destination.label, waited=waited_here),
                        tracing.span("destination", parent=parent, job_id=chunk.job_id, destination_id=destination.id),
                    ):
                        await self._destinations.run(held.taken, destination, options, cancellation)
                except ParkedError:
                    parked.append(destination)
                    return
                except JobPausedError as exc:
                    pauses.add(await self._pause(destination, exc))
                except JobStoppedError:
                    pass  # nothing was published, what it cost is booked: it is left over
                else:
                    return
            left.append(destination)

        key = (chunk.job_id, chunk.chunk_id)
        self._in_lanes += 1
        try:
            left += await self.lanes.run(todo, work, priority=options.priority, key=key)
        finally:
            self._in_lanes -= 1
        async with held.handing_off:
            pass  # what is being handed off has gone
        return await self._end(held, len(left), len(parked), is_paused=True in pauses)

    async def _end(self, held: HeldChunk, left: int, parked: int, *, is_paused: bool) -> ChunkEnd:
        """End our part in a chunk of which so many destinations are left, or wait for answers."""
        chunk, options = held.taken.chunk, held.options
        if not held.is_ours:
            return ChunkEnd.GONE
        if left:
            return await self._give_back(chunk, options, left, is_paused=is_paused)
        return await self._park(held.taken, options, parked) if parked else ChunkEnd.DONE

    async def _park(self, taken: Taken, options: JobOptions, count: int) -> ChunkEnd:
        """Leave the chunk until the answers of its destinations have come; have it run at once where they have."""
        chunk, at = taken.chunk, options.deadline_at
        if chunk.job_id not in self._begun:
            self._begun.add(chunk.job_id)
            await self._destinations.begin(taken)
        if not await self.retry.call(lambda: self._ledger.park(chunk, deadline_at=at)):
            await self._wake(chunk.job_id, [(chunk.chunk_id, f"{count} answered")], options.priority)
        log.info("action=park job_id=%s chunk_id=%s destinations=%d", chunk.job_id, chunk.chunk_id, count)
        return ChunkEnd.PARKED

    async def _pause(self, destination: Destination, exc: JobPausedError) -> bool:
        """Pause the job; False when its budget has been raised meanwhile. The destination stays as it is."""
        is_paused = await self.cancellations.pause(exc)
        log.warning("action=job_paused job_id=%s name=%r %s", exc.job_id, destination.label, exc)
        return is_paused

    async def _give_back(self, chunk: Chunk, options: JobOptions, count: int, *, is_paused: bool) -> ChunkEnd:
        """End our lease, and wake another worker for what is left, unless the job is paused or gone."""
        is_there = await self.retry.call(lambda: self._ledger.give_back(chunk.job_id, chunk.chunk_id))
        if is_paused or (is_there and await self._is_stopped(chunk.job_id)):
            return ChunkEnd.PAUSED
        if not is_there:
            return ChunkEnd.GONE
        await self._wake(chunk.job_id, [(chunk.chunk_id, f"{count} given back")], options.priority)
        log.info("action=give_back job_id=%s chunk_id=%s destinations=%d", chunk.job_id, chunk.chunk_id, count)
        return ChunkEnd.GIVEN_BACK

    async def _is_stopped(self, job_id: str) -> bool:
        """Whether the job is paused: then a worker has nothing to do until the job is resumed."""
        return bool(await self.retry.call(lambda: self._ledger.stopped([job_id])))


def queued_seconds(taken: Taken, now: float) -> float | None:
    """How long a chunk waited in the queue, at least 0; None where another worker had it before."""
    queued_at = taken.chunk.queued_at
    return max(0.0, now - queued_at) if queued_at and taken.deliveries == 1 else None
