"""One chunk's life: its lease, its destinations to the lanes, their results out, the chunk off the ledger.

message -> take (lease) -> lanes -> one result at a time onto the stream -> gone
              |                            |
              held, gone: nothing to do    stopping: give back, and wake another worker
              paused: nothing to do now    paused, or budget used up: give back, wake nobody
                                           cancelled: drop it

What a destination has cost is booked whatever becomes of it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from redis import RedisError, ResponseError

from config.settings import Settings
from tasks import tracing
from tasks.errors import JobPausedError, JobStoppedError, UnreadableError
from tasks.messages import Chunk, Destination, JobOptions
from tasks.queue.ledger import Ledger, Taken, Taking
from tasks.queue.producer import label
from workers.llm.cancellation import Halt
from workers.observe.call_journal import CallJournal
from workers.observe.profiler import PerformanceProfiler
from workers.observe.records import Records
from workers.process.retry import Patience
from workers.worker.destination import DestinationRunner, Process
from workers.worker.halts import Halts
from workers.worker.lanes import Lanes
from workers.worker.quarantine import Quarantine, Wake

log = logging.getLogger("themes.chunks")

#: Part of the grace time in which a stopping worker still asks; the rest is for answers under way.
FINISH_SHARE: Final = 0.5
#: Seconds that a stopping worker may take to give back what it has just cut short.
GIVE_BACK_SECONDS: Final = 1.0


class ChunkEnd(StrEnum):
    """What became of a message."""

    DONE = "done"
    GONE = "gone"
    HELD = "held"
    GIVEN_BACK = "given back"
    SPLIT = "split"
    PAUSED = "paused"


#: Reads a job's options.
ReadOptions = Callable[[str], Awaitable[JobOptions]]


@dataclass(frozen=True, slots=True)
class Unstarted:
    """A chunk of which so many destinations wait for a lane."""

    job_id: str
    chunk_id: str
    priority: int
    count: int


@dataclass(slots=True, eq=False)
class _Held:
    """A chunk under our lease; `is_ours` is False once the lease is known to be lost."""

    taken: Taken
    options: JobOptions
    is_ours: bool = True
    #: Parts of it that were given away so far.
    given: int = 0
    #: Held while a part is on its way.
    giving: asyncio.Lock = field(default_factory=asyncio.Lock)


class ChunkRunner:
    """Runs chunks for the threads of one worker process."""

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
        may_take: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._ledger = ledger
        self._lanes = lanes
        #: Whether one more chunk may be taken while so many are in hand.
        self._may_take = may_take
        self._open: set[tuple[str, str]] = set()
        #: Whether nothing more is taken until the consumer has written results.
        self.is_full = False
        self._wake = wake
        self._options = options
        self._work = settings.work
        self._patience = Patience()
        self._profiler = profiler
        self._destinations = DestinationRunner(
            ledger=ledger,
            process=process,
            patience=self._patience,
            settings=settings,
            profiler=profiler,
            worker=worker,
            journal=journal or CallJournal(),
        )
        self._running: set[asyncio.Task[ChunkEnd]] = set()
        #: Chunks that a thread of ours is busy with, from before their lease on: a second message finds them here.
        self._claimed: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], _Held] = {}
        self._quarantine = Quarantine(ledger, self._patience, wake)
        #: Jobs whose entry cannot be read, of which that was said.
        self._unreadable: set[str] = set()
        self._halts = Halts(ledger, self._patience)

    def __repr__(self) -> str:
        return f"<ChunkRunner held={len(self._held)} {self._lanes!r}>"

    @property
    def held(self) -> int:
        """Chunks under our lease."""
        return len(self._held)

    @property
    def claimed(self) -> int:
        """Messages in hand: chunks under our lease, and those that we are about to take."""
        return len(self._claimed)

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is started."""
        return self._patience.is_over

    @property
    def jobs(self) -> list[str]:
        """Jobs that have chunks here."""
        return self._halts.jobs

    def stop(self) -> None:
        """Start nothing any more; what is unstarted goes back."""
        self._patience.stop()
        self._lanes.stop()

    async def settle(self, grace_seconds: float) -> None:
        """After `stop`: let what is in hand end within the grace time; what does not is given back.

        For the first part of that time destinations go on. Then nothing more is asked, and what has been asked is
        waited for, because it is paid for: the answers are in the cache when somebody else goes on.
        """
        running = set(self._running)
        if not running:
            return
        _, running = await asyncio.wait(running, timeout=grace_seconds * FINISH_SHARE)
        self._halts.stop_all("this worker is stopping")
        if running:
            _, running = await asyncio.wait(running, timeout=grace_seconds * (1 - FINISH_SHARE))
        if running:
            self._halts.stop_all("this worker is stopping", at_once=True)
            _, running = await asyncio.wait(running, timeout=GIVE_BACK_SECONDS)
        abandoned = [key for key, held in self._held.items() if held.is_ours]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for job_id, chunk_id in abandoned:
            await self._abandon(job_id, chunk_id)

    async def _abandon(self, job_id: str, chunk_id: str) -> None:
        """Give back a chunk that something here holds on to, and will not let go."""
        try:
            options = await self._options(job_id)
            await self._ledger.give_back(job_id, chunk_id)
        except (RedisError, OSError) as exc:
            log.warning("action=give_back job_id=%s chunk_id=%s its lease must run out: %s", job_id, chunk_id, exc)
            return
        await self._wake(job_id, [(chunk_id, "given back")], options.priority)
        log.info("action=give_back job_id=%s chunk_id=%s in the middle of its work", job_id, chunk_id)

    async def look(self, job_ids: Iterable[str] | None = None) -> None:
        """Stop those of our jobs that were cancelled or paused; all of them are looked at unless some are named."""
        await self._halts.look(job_ids)

    async def renew(self) -> None:
        """Prolong the leases of everything held; chunks that are no longer ours are marked, and not started."""
        await self.look()
        jobs: dict[str, list[str]] = {}
        for job_id, chunk_id in self._held:
            jobs.setdefault(job_id, []).append(chunk_id)
        for job_id, chunk_ids in jobs.items():
            try:
                losses = await self._ledger.renew(job_id, chunk_ids)
            except ResponseError as exc:
                log.warning("action=heartbeat_missed job_id=%s Redis refuses: %s", job_id, exc)
                continue
            for lost in losses:
                if held := self._held.get((job_id, lost)):
                    held.is_ours = False
                    log.info("action=lease_lost job_id=%s chunk_id=%s", job_id, lost)

    async def run(self, job_id: str, chunk_id: str) -> ChunkEnd:
        """Live through one chunk; returns what became of it."""
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
            await self._patience.wait_for(lambda: self._ledger.give_back(job_id, chunk_id))
            return ChunkEnd.GIVEN_BACK
        except (RedisError, OSError):
            raise  # this worker is stopping, and Redis is away: the lease runs out
        except Exception as exc:  # a fault of ours: no worker has died, and a second try would meet it again
            log.exception("action=chunk_crashed job_id=%s chunk_id=%s", job_id, chunk_id)
            if await self._patience.wait_for(lambda: self._ledger.renew(job_id, [chunk_id])):
                return ChunkEnd.GONE  # given back, split or taken over: others do what is left
            await self._destinations.fail_rest(taken, exc)
            return ChunkEnd.DONE

    def _say_unreadable(self, job_id: str, error: UnreadableError) -> None:
        """Say once that nothing of a job can be done here; the other jobs go on."""
        if job_id not in self._unreadable:
            self._unreadable.add(job_id)
            log.error("action=job_unreadable job_id=%s nothing of it is done: %s", job_id, error)

    async def _handle(self, taken: Taken) -> ChunkEnd:
        """Split a chunk that has lost its worker, give up or postpone a suspect, work on any other."""
        job_id, chunk_id = taken.chunk.job_id, taken.chunk.chunk_id
        options = await self._patience.wait_for(lambda: self._options(job_id))
        if self._halts.is_pausing(job_id):
            return await self._give_back(taken.chunk, options, len(taken.chunk.destinations), is_paused=True)
        if taken.deliveries > 1 and len(taken.chunk.destinations) > 1:
            await self._quarantine.split(taken, options)
            return ChunkEnd.SPLIT
        if taken.deliveries > self._work.max_deliveries:
            await self._destinations.give_up(taken)
            return ChunkEnd.DONE
        if not await self._quarantine.admits(taken, options):
            return ChunkEnd.GIVEN_BACK
        self._held[job_id, chunk_id] = held = _Held(taken, options)
        try:
            with self._profiler.job(job_id) as records:
                return await self._work_on(held, self._halts.of(job_id), records)
        finally:
            await self._quarantine.leave(taken)
            del self._held[job_id, chunk_id]
            if all(held != job_id for held, _ in self._held):
                self._halts.forget(job_id)

    async def _take(self, job_id: str, chunk_id: str) -> Taken | ChunkEnd:
        while not self._patience.is_over:
            if not self._may_take(len(self._open)):
                await self._patience.pause()
                continue
            self._open.add((job_id, chunk_id))
            taken = await self._patience.wait_for(
                lambda: self._ledger.take(job_id, chunk_id, max_unwritten=self._work.max_unwritten_results)
            )
            self.is_full = taken is Taking.FULL
            if isinstance(taken, Taken):
                return taken
            if taken is not Taking.FULL:
                return ChunkEnd(taken.value)
            self._open.discard((job_id, chunk_id))
            await self._patience.pause()
        # Not taken: the chunk waits in the ledger, and the sweeper wakes somebody for it.
        return ChunkEnd.GIVEN_BACK

    async def _work_on(self, held: _Held, halt: Halt, records: Records | None) -> ChunkEnd:
        chunk, options = held.taken.chunk, held.options
        placed = time.perf_counter()
        waited = {"queue.wait": queued_seconds(held.taken, time.time())}
        todo = [item for item in chunk.destinations if item.id not in held.taken.finished]
        left: list[Destination] = []
        pauses: set[bool] = set()
        # A lane knows nothing of the message that brought the chunk, and one that was sent again of its job's trace.
        parent = tracing.traceparent() or options.trace

        async def work(destination: Destination) -> None:
            if not held.is_ours:
                return
            if not pauses and not halt.reason:
                try:
                    waited_here = waited | {"lane.wait": time.perf_counter() - placed}
                    with (
                        self._profiler.destination(records, destination.id, destination.label, waited=waited_here),
                        tracing.span("destination", parent=parent, job_id=chunk.job_id, destination_id=destination.id),
                    ):
                        await self._destinations.run(held.taken, destination, options, halt)
                except JobPausedError as exc:
                    pauses.add(await self._pause(destination, exc))
                except JobStoppedError:
                    pass  # nothing was published, what it cost is booked: it is left over
                else:
                    return
            left.append(destination)

        key = (chunk.job_id, chunk.chunk_id)
        left += await self._lanes.run(todo, work, priority=options.priority, key=key)
        async with held.giving:
            pass  # what is being given away has gone
        if not held.is_ours:
            return ChunkEnd.GONE
        if left:
            return await self._give_back(chunk, options, len(left), is_paused=True in pauses)
        return ChunkEnd.DONE

    def unstarted(self) -> list[Unstarted]:
        """The chunks here of which something waits for a lane."""
        waiting = self._lanes.unstarted()
        return [
            Unstarted(*key, held.options.priority, waiting[key])
            for key, held in self._held.items()
            if waiting[key] and held.is_ours
        ]

    async def give_away(self, of: Unstarted, count: int, parts: int) -> int:
        """Let others do so many unstarted destinations of a chunk, in so many new chunks; how many it were.

        Fewer have been given when lanes were faster, none when the chunk is no longer ours. Should we die in between
        they are still in the old chunk; should a message be lost, the sweeper finds the new one.
        """
        key = (of.job_id, of.chunk_id)
        held = self._held.get(key)
        if held is None:
            return 0
        items = self._lanes.withdraw(key, count)
        given, labelled = 0, []
        async with held.giving:
            for part in range(min(parts, len(items))):
                share = items[part :: min(parts, len(items))]
                new = self._part(held, share)
                if await self._patience.wait_for(
                    lambda new=new: self._ledger.hand_off(held.taken.chunk, new, label(new.destinations))  # type: ignore[misc]
                ):
                    given += len(share)
                    labelled.append((new.chunk_id, label(share)))
        if labelled:
            await self._wake(of.job_id, labelled, of.priority)
            log.info("action=give_away job_id=%s chunk_id=%s destinations=%d", of.job_id, of.chunk_id, given)
        return given

    @staticmethod
    def _part(held: _Held, share: list[Destination]) -> Chunk:
        """A new chunk out of some destinations of one: its first delivery is the one that they had here."""
        held.given += 1
        chunk, deliveries = held.taken.chunk, held.taken.deliveries
        name = f"{chunk.chunk_id}-{deliveries}.{held.given}"
        attempt = chunk.attempt + deliveries - 1
        return Chunk(chunk.job_id, name, tuple(share), attempt=attempt, queued_at=time.time())

    async def _pause(self, destination: Destination, exc: JobPausedError) -> bool:
        """Pause the job; False when its budget has been raised meanwhile. The destination stays as it is."""
        is_paused = await self._halts.pause(exc)
        log.warning("action=job_paused job_id=%s name=%r %s", exc.job_id, destination.label, exc)
        return is_paused

    async def _give_back(self, chunk: Chunk, options: JobOptions, count: int, *, is_paused: bool) -> ChunkEnd:
        """End our lease, and wake another worker for what is left, unless the job is paused or gone."""
        is_there = await self._patience.wait_for(lambda: self._ledger.give_back(chunk.job_id, chunk.chunk_id))
        if is_paused or (is_there and await self._is_stopped(chunk.job_id)):
            return ChunkEnd.PAUSED
        if not is_there:
            return ChunkEnd.GONE
        await self._wake(chunk.job_id, [(chunk.chunk_id, f"{count} given back")], options.priority)
        log.info("action=give_back job_id=%s chunk_id=%s destinations=%d", chunk.job_id, chunk.chunk_id, count)
        return ChunkEnd.GIVEN_BACK

    async def _is_stopped(self, job_id: str) -> bool:
        """Whether the job is paused. A worker that came would have nothing to do, and who resumes it wakes one."""
        return bool(await self._patience.wait_for(lambda: self._ledger.stopped([job_id])))


def queued_seconds(taken: Taken, now: float) -> float | None:
    """How long a chunk waited in the queue; None where that is not known: somebody had it before.

    Two machines' clocks may differ: never less than nothing.
    """
    queued_at = taken.chunk.queued_at
    return max(0.0, now - queued_at) if queued_at and taken.deliveries == 1 else None
