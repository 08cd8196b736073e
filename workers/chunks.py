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
from enum import StrEnum
from typing import Final, TypeVar

import msgspec
from redis import RedisError

from config.settings import Settings
from tasks.errors import BudgetExceededError, JobStoppedError
from tasks.ledger import Ledger, Taken, Taking
from tasks.messages import Chunk, Destination, Failure, JobOptions, Profile, Result, Spent, Usage
from workers.lanes import Lanes
from workers.llm.halt import Halt
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.chunks")

T = TypeVar("T")

#: Seconds between two tries while Redis does not answer or the consumer is behind.
PAUSE_SECONDS: Final = 0.5
#: Characters of an unexpected error that are kept.
MAX_MESSAGE: Final = 500
#: Part of the grace time in which a stopping worker still asks; the rest is for answers under way.
FINISH_SHARE: Final = 0.5
#: Seconds that a stopping worker may take to give back what it has just cut short.
GIVE_BACK_SECONDS: Final = 1.0
#: Seconds before a destination whose error may pass is tried again.
RETRY_SECONDS: Final = 1.0


class ChunkEnd(StrEnum):
    """What became of a message."""

    DONE = "done"
    GONE = "gone"
    HELD = "held"
    GIVEN_BACK = "given back"
    SPLIT = "split"
    PAUSED = "paused"


#: A destination's profile or failure, what it cost, and whether another try may give more.
Processed = tuple[Profile | None, Failure | None, Usage, bool]
#: Processes one destination: `(destination, its job's stop sign, the job's options, number of the try)`.
Process = Callable[[Destination, Halt, JobOptions, int], Awaitable[Processed]]
#: Sends chunks' wake-up calls: `(job id, (chunk id, label) pairs, priority)`.
Wake = Callable[[str, list[tuple[str, str]], int], Awaitable[None]]
#: Reads a job's options.
ReadOptions = Callable[[str], Awaitable[JobOptions]]


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
    ) -> None:
        self._ledger = ledger
        self._lanes = lanes
        self._process = process
        self._wake = wake
        self._options = options
        self._work = settings.work
        self._profiler = profiler
        self._worker = worker
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[ChunkEnd]] = set()
        #: Chunks that a thread of ours is busy with, from before their lease on: a second message finds them here.
        self._claimed: set[tuple[str, str]] = set()
        #: Chunks under our lease; False once the lease is known to be lost.
        self._held: dict[tuple[str, str], bool] = {}
        #: The stop sign of every job that has chunks here.
        self._halts: dict[str, Halt] = {}

    def __repr__(self) -> str:
        return f"<ChunkRunner held={len(self._held)} {self._lanes!r}>"

    @property
    def held(self) -> int:
        """Chunks under our lease."""
        return len(self._held)

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is started."""
        return self._stopping.is_set()

    @property
    def jobs(self) -> list[str]:
        """Jobs that have chunks here."""
        return list(self._halts)

    def stop(self) -> None:
        """Start nothing any more; what is unstarted goes back."""
        self._stopping.set()
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
        self._halt_all("this worker is stopping")
        if running:
            _, running = await asyncio.wait(running, timeout=grace_seconds * (1 - FINISH_SHARE))
        if running:
            self._halt_all("this worker is stopping", at_once=True)
            _, running = await asyncio.wait(running, timeout=GIVE_BACK_SECONDS)
        abandoned = [key for key, ours in self._held.items() if ours]
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

    def _halt_all(self, reason: str, *, at_once: bool = False) -> None:
        for halt in self._halts.values():
            halt.stop(reason, at_once=at_once)

    async def look(self, job_ids: Iterable[str] | None = None) -> None:
        """Stop those of our jobs that were cancelled or paused; all of them are looked at unless some are named."""
        ours = [job_id for job_id in (self._halts if job_ids is None else job_ids) if job_id in self._halts]
        if not ours:
            return
        for job_id, reason in (await self._ledger.stopped(ours)).items():
            if (halt := self._halts.get(job_id)) and not halt.reason:
                log.info("action=halt job_id=%s %s", job_id, reason)
                halt.stop(reason)

    async def renew(self) -> None:
        """Prolong the leases of everything held; chunks that are no longer ours are marked, and not started."""
        await self.look()
        jobs: dict[str, list[str]] = {}
        for job_id, chunk_id in self._held:
            jobs.setdefault(job_id, []).append(chunk_id)
        for job_id, chunk_ids in jobs.items():
            for lost in await self._ledger.renew(job_id, chunk_ids):
                if (job_id, lost) in self._held:
                    self._held[job_id, lost] = False
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
            self._running.discard(task)

    async def _run(self, job_id: str, chunk_id: str) -> ChunkEnd:
        taken = await self._take(job_id, chunk_id)
        if not isinstance(taken, Taken):
            return taken
        options = await self._patiently(lambda: self._options(job_id))
        if taken.deliveries > self._work.max_deliveries:
            return await self._quarantine(taken, options)
        self._held[job_id, chunk_id] = True
        try:
            return await self._destinations(taken, options, self._halt(job_id))
        finally:
            del self._held[job_id, chunk_id]
            if all(held != job_id for held, _ in self._held):
                self._halts.pop(job_id, None)

    def _halt(self, job_id: str) -> Halt:
        """The job's stop sign. Whoever gets a chunk is told by the ledger that the job goes on: an old sign is done."""
        halt = self._halts.get(job_id)
        if halt is None or (halt.reason and not self._stopping.is_set()):
            halt = self._halts[job_id] = Halt(job_id)
        return halt

    async def _take(self, job_id: str, chunk_id: str) -> Taken | ChunkEnd:
        while not self._stopping.is_set():
            taken = await self._patiently(
                lambda: self._ledger.take(job_id, chunk_id, max_unwritten=self._work.max_unwritten_results)
            )
            if isinstance(taken, Taken):
                return taken
            if taken is not Taking.FULL:
                return ChunkEnd(taken.value)
            await self._pause()
        # Not taken: the chunk waits in the ledger, and the sweeper wakes somebody for it.
        return ChunkEnd.GIVEN_BACK

    async def _destinations(self, taken: Taken, options: JobOptions, halt: Halt) -> ChunkEnd:
        chunk = taken.chunk
        todo = [item for item in chunk.destinations if item.id not in taken.finished]
        left: list[Destination] = []
        pauses: set[bool] = set()

        async def work(destination: Destination) -> None:
            if not self._held.get((chunk.job_id, chunk.chunk_id)):
                return
            if not pauses and not halt.reason:
                try:
                    await self._destination(taken, destination, options, halt)
                except BudgetExceededError as exc:
                    pauses.add(await self._out_of_budget(destination, exc))
                except JobStoppedError:
                    pass  # nothing was published, what it cost is booked: it is left over
                else:
                    return
            left.append(destination)

        left += await self._lanes.run(todo, work)
        if not self._held[chunk.job_id, chunk.chunk_id]:
            return ChunkEnd.GONE
        if left:
            return await self._give_back(chunk, options, len(left), is_paused=True in pauses)
        return ChunkEnd.DONE

    async def _out_of_budget(self, destination: Destination, exc: BudgetExceededError) -> bool:
        """Pause the job; False when its budget has been raised meanwhile. The destination stays as it is."""
        is_paused = await self._patiently(lambda: self._ledger.pause(exc))
        log.warning("action=job_paused job_id=%s name=%r %s", exc.job_id, destination.label, exc)
        return is_paused

    async def _destination(self, taken: Taken, destination: Destination, options: JobOptions, halt: Halt) -> None:
        """Make one destination's result and publish it; errors that may pass are tried again first.

        Raises:
            JobStoppedError: its job goes no further here; only what it has cost was published.
        """
        chunk, delivery = taken.chunk, taken.deliveries
        began = time.perf_counter()
        tried = Usage()

        def spent() -> Spent:
            return Spent(
                job_id=chunk.job_id,
                destination_id=destination.id,
                attempt=chunk.attempt + delivery,
                usage=tried,
                worker=self._worker,
                at=time.time(),
                elapsed_ms=round((time.perf_counter() - began) * 1000, 1),
            )

        tries = self._work.destination_attempts
        for number in range(1, tries + 1):
            try:
                profile, failure, usage, retryable = await self._processed(
                    destination, halt, options, chunk.attempt + number
                )
            except JobStoppedError as exc:
                tried += exc.usage
                await self._book(spent())
                raise
            tried += usage
            if not retryable or number == tries or self._stopping.is_set():
                break
            await self._pause(RETRY_SECONDS * number)
        run = spent()
        result = Result(**msgspec.structs.asdict(run), profile=profile, failure=failure)
        with self._profiler.span("publish"):
            is_first = await self._patiently(lambda: self._ledger.finish(chunk, result))
        if not is_first:
            # Somebody else was faster, the job was cancelled, or our own first reply was lost: the money is spent.
            await self._book(run)
        self._log(destination, result)

    async def _book(self, spent: Spent) -> None:
        if spent.usage != Usage():
            await self._patiently(lambda: self._ledger.book(spent))

    async def _processed(self, destination: Destination, halt: Halt, options: JobOptions, number: int) -> Processed:
        """One try. A fault of our own fails its destination by name; the chunk's others go on."""
        try:
            return await self._process(destination, halt, options, number)
        except JobStoppedError:
            raise
        except Exception as exc:
            log.exception("action=destination_crashed job_id=%s name=%r", halt.job_id, destination.label)
            failure = Failure(
                stage="pipeline", error_class=type(exc).__name__, message=str(exc)[:MAX_MESSAGE], attempts=number
            )
            return None, failure, Usage(), False

    def _log(self, destination: Destination, result: Result) -> None:
        if result.failure:
            log.warning(
                "action=destination_failed job_id=%s destination_id=%s name=%r stage=%s error=%s duration_ms=%.0f %s",
                result.job_id, destination.id, destination.label, result.failure.stage,
                result.failure.error_class, result.elapsed_ms, result.failure.message,
            )  # fmt: skip
        elif result.profile:
            log.info(
                "action=destination_done job_id=%s destination_id=%s name=%r status=%s themes=%d calls=%d hits=%d "
                "duration_ms=%.0f",
                result.job_id, destination.id, destination.label, result.profile.status,
                len(result.profile.themes), result.usage.llm_calls, result.usage.cache_hits, result.elapsed_ms,
            )  # fmt: skip

    async def _give_back(self, chunk: Chunk, options: JobOptions, count: int, *, is_paused: bool) -> ChunkEnd:
        """End our lease, and wake another worker for what is left, unless the job is paused or gone."""
        is_there = await self._patiently(lambda: self._ledger.give_back(chunk.job_id, chunk.chunk_id))
        if is_paused or (is_there and await self._is_stopped(chunk.job_id)):
            return ChunkEnd.PAUSED
        if not is_there:
            return ChunkEnd.GONE
        await self._wake(chunk.job_id, [(chunk.chunk_id, f"{count} given back")], options.priority)
        log.info("action=give_back job_id=%s chunk_id=%s destinations=%d", chunk.job_id, chunk.chunk_id, count)
        return ChunkEnd.GIVEN_BACK

    async def _is_stopped(self, job_id: str) -> bool:
        """Whether the job is paused. A worker that came would have nothing to do, and who resumes it wakes one."""
        return bool(await self._patiently(lambda: self._ledger.stopped([job_id])))

    async def _quarantine(self, taken: Taken, options: JobOptions) -> ChunkEnd:
        """A chunk that lost its worker again and again: its destinations one by one, and each of those given up."""
        chunk = taken.chunk
        if len(chunk.destinations) > 1:
            singles = await self._patiently(lambda: self._ledger.split(taken))
            await self._wake(
                chunk.job_id, [(one.chunk_id, one.destinations[0].label) for one in singles], options.priority
            )
            log.warning(
                "action=quarantine job_id=%s chunk_id=%s lost its worker %d times: %d destinations go one by one",
                chunk.job_id, chunk.chunk_id, taken.deliveries - 1, len(singles),
            )  # fmt: skip
            return ChunkEnd.SPLIT
        lost = taken.deliveries - 1
        result = Result(
            job_id=chunk.job_id,
            destination_id=chunk.destinations[0].id,
            attempt=chunk.attempt + taken.deliveries,
            usage=Usage(),
            worker=self._worker,
            at=time.time(),
            elapsed_ms=0.0,
            failure=Failure(
                stage="worker",
                error_class="WorkerLostError",
                message=f"{lost} workers died while they held this destination",
                attempts=chunk.attempt + lost,
            ),
        )
        await self._patiently(lambda: self._ledger.finish(chunk, result))
        self._log(chunk.destinations[0], result)
        return ChunkEnd.DONE

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer, waiting for Redis as long as it takes; once we are stopping, its error.

        Every call made this way may be repeated: a reply that was lost changes nothing the second time.
        """
        while True:
            try:
                return await call()
            except (RedisError, OSError) as exc:
                if self._stopping.is_set():
                    raise
                log.warning("action=redis_wait Redis does not answer, waiting: %s", exc)
            await self._pause()

    async def _pause(self, seconds: float = PAUSE_SECONDS) -> None:
        """Wait, but not longer than until we are stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
