"""One destination's life inside a chunk: its tries, its result on the stream, what it has cost in the books."""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from redis import RedisError

from config.settings import Settings
from tasks import tracing
from tasks.errors import JobStoppedError, ThemesError, WorkerLostError
from tasks.logs import about
from tasks.messages import Chunk, Destination, Failure, JobOptions, Result, Spent, Usage
from tasks.queue.ledger import Taken
from tasks.storable import storable_usage
from tasks.texts import clean_line, count
from workers.llm.cancellation import Cancellation
from workers.llm.spend import Terms
from workers.observe.call_journal import CallJournal, Recording, current, recording
from workers.observe.counters import field
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.processor import Processed
from workers.process.retry import StoppableRetry

log = logging.getLogger("themes.chunks")

#: Characters of an unexpected error that are kept.
MAX_MESSAGE: Final = 500
#: Seconds before a destination whose error may pass is tried again, at most; doubled each time.
RETRY_SECONDS: Final = 1.0

_SAID: Final = (
    "job_id=%s destination_id=%s name=%r attempt=%d calls=%d hits=%d coalesced=%d prompt_tokens=%d "
    "completion_tokens=%d cost_usd=%s duration_ms=%.0f"
)
_FAILED: Final = "action=destination_failed " + _SAID + " stage=%s error=%s %s"
_DONE: Final = "action=destination_done " + _SAID + " status=%s themes=%d quality=%s"

#: What of a destination's usage is counted in its job's profile.
COUNTED: Final = (
    "bytes_raw", "bytes_stored", "cache_hits", "memory_hits", "cache_misses", "coalesced", "prompt_tokens",
    "completion_tokens",
)  # fmt: skip
#: The counter of each outcome.
OUTCOMES: Final = {status: field("destinations_total", outcome=status) for status in ("ok", "partial", "failed")}
#: What a `Result` and the `Spent` of the same run have in common.
_SHARED: Final = tuple(name for name in Spent.__struct_fields__ if name in Result.__struct_fields__)

#: Processes one destination: `(destination, its job's cancellation, the job's options, number of the try)`.
Process = Callable[[Destination, Cancellation, JobOptions, int], Awaitable[Processed]]


#: A destination, its result, and what that has cost by itself.
Outcome = tuple[Destination, Result, Spent]


class Books(Protocol):
    """Where results go: the ledger in Redis, or the database itself (`workers.local.job`)."""

    async def finish(self, chunk: Chunk, results: Sequence[Result]) -> list[bool]:
        """Hand in results; of each False when its destination has one already, or its job is over."""

    async def book(self, spent: Spent) -> None:
        """Book what a destination has cost that came to no end."""


class DestinationRunner:
    def __init__(
        self,
        *,
        ledger: Books,
        process: Process,
        retry: StoppableRetry,
        settings: Settings,
        profiler: PerformanceProfiler,
        worker: str,
        journal: CallJournal,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._process = process
        self._retry = retry
        self._tries = settings.work.destination_attempts
        self._profiler = profiler
        self._worker = worker

    def __repr__(self) -> str:
        return f"<DestinationRunner {self._worker} tries={self._tries}>"

    async def run(
        self, taken: Taken, destination: Destination, options: JobOptions, cancellation: Cancellation
    ) -> None:
        """Make one destination's result and publish it; errors that may pass are tried again first.

        Raises `JobStoppedError`: its job is to stop; only what it has cost was published.
        """
        run = self._journal.begin(taken.chunk.job_id, destination.id, _attempt(taken), taken.chunk.chunk_id)
        with about(job_id=taken.chunk.job_id, destination_id=destination.id), recording(run):
            try:
                await self._run(taken, destination, options, cancellation, run)
            except (ThemesError, RedisError, OSError):
                raise
            except Exception as exc:  # a fault of ours is of its destination, and no worker has died of it
                log.exception(
                    "action=destination_crashed job_id=%s name=%r", taken.chunk.job_id, clean_line(destination.label)
                )
                await self._fail(taken, destination, exc, run)
        # Not reached where something was cut off before it was booked: then the journal's file still holds it.
        run.forget()

    async def _run(
        self, taken: Taken, destination: Destination, options: JobOptions, cancellation: Cancellation, run: Recording
    ) -> None:
        chunk, began, tried = taken.chunk, time.perf_counter(), Usage()
        number = 0
        while True:
            number += 1
            try:
                profile, failure, usage, retryable = await self._processed(
                    destination, cancellation, options, chunk.attempt + number
                )
            except JobStoppedError as exc:
                await self._book(self._spent(taken, destination, tried + exc.usage, began, run))
                run.forget()
                raise
            tried += usage
            if not retryable or number >= self._tries or self._retry.is_stopped:
                break
            with self._profiler.span("llm.backoff"):
                await self._retry.pause(retry_seconds(number, random.random()))  # noqa: S311  # jitter
        spent = self._spent(taken, destination, tried, began, run)
        result = Result(
            **_shared(spent), profile=profile, failure=failure, trace=tracing.traceparent(),
            adds=destination.addition is not None,
        )  # fmt: skip
        with tracing.span("publish", "producer"):
            await self.hand_in(chunk, [(destination, result, spent)])

    def outcome(self, taken: Taken, destination: Destination, known: Processed) -> Outcome:
        """The outcome of a destination that the cache has whole: nothing of it was written down, or can be lost."""
        seconds = known.profile.elapsed_ms / 1000 if known.profile else 0.0
        spent = self._spent(taken, destination, known.usage, time.perf_counter() - seconds)
        return destination, Result(**_shared(spent), profile=known.profile, trace=tracing.traceparent()), spent

    async def hand_in(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> list[bool]:
        """Hand in results together; returns of each whether it was the first of its destination.

        Where it was not, another worker was faster, the job was cancelled, or our own first reply was lost: then only
        its cost is booked.
        """
        with self._profiler.span("publish"):
            results = [result for _, result, _ in outcomes]
            are_first = await self._retry.call(lambda: self._ledger.finish(chunk, results))
            for (destination, result, spent), is_first in zip(outcomes, are_first, strict=True):
                if is_first:
                    self._profiler.counters.add(OUTCOMES[result.profile.status if result.profile else "failed"])
                else:
                    await self._book(spent)
                if is_first or result.profile:
                    _say(destination, result)
        return are_first

    async def begin(self, taken: Taken) -> None:
        """Say that a job has begun, although nothing has been paid or has ended: its first answers may take hours."""
        spent = self._spent(taken, taken.chunk.destinations[0], Usage(), time.perf_counter())
        await self._retry.call(lambda: self._ledger.book(spent))

    async def give_up(self, taken: Taken) -> None:
        """Record that a chunk's only destination takes its workers down with it."""
        lost = taken.deliveries - 1
        (destination,) = taken.chunk.destinations
        error = WorkerLostError(f"{count(lost, 'worker')} died while holding this destination")
        await self._fail(taken, destination, error, attempts=taken.chunk.attempt + lost)

    async def fail_rest(self, taken: Taken, error: Exception) -> None:
        """Record for the destinations of a chunk without a result that our own code failed."""
        for destination in taken.chunk.destinations:
            if destination.id not in taken.finished:
                await self._fail(taken, destination, error)

    async def _fail(
        self,
        taken: Taken,
        destination: Destination,
        error: Exception,
        run: Recording | None = None,
        *,
        attempts: int | None = None,
    ) -> None:
        """End a destination as a failure that names an error; what its run has cost is booked."""
        spent = self._spent(taken, destination, Usage(), time.perf_counter(), run)
        attempts = spent.attempt if attempts is None else attempts
        failure = Failure("worker", type(error).__name__, str(error)[:MAX_MESSAGE], attempts)
        await self.hand_in(taken.chunk, [(destination, Result(**_shared(spent), failure=failure), spent)])

    def _spent(
        self, taken: Taken, destination: Destination, usage: Usage, began: float, run: Recording | None = None
    ) -> Spent:
        """What a run has cost. What was written down is nearer to the truth: it also has what was cut off."""
        at = time.time()
        if run is not None:
            if run.is_used:
                usage = run.usage()
            run.books_at(at)
        usage = storable_usage(usage)
        for name in COUNTED:
            self._profiler.count(name, getattr(usage, name))
        return Spent(
            job_id=taken.chunk.job_id,
            destination_id=destination.id,
            attempt=_attempt(taken),
            usage=usage,
            worker=self._worker,
            at=at,
            elapsed_ms=round((time.perf_counter() - began) * 1000, 1),
        )

    async def _book(self, spent: Spent) -> None:
        if spent.usage != Usage():
            await self._retry.call(lambda: self._ledger.book(spent))

    async def _processed(
        self, destination: Destination, cancellation: Cancellation, options: JobOptions, number: int
    ) -> Processed:
        """One try. A fault of our own fails its destination by name; the chunk's others go on."""
        try:
            return await self._process(destination, cancellation, options, number)
        except JobStoppedError:
            raise
        except Exception as exc:
            log.exception("action=destination_crashed job_id=%s name=%r", cancellation.job_id, destination.label)
            failure = Failure(
                stage="pipeline", error_class=type(exc).__name__, message=str(exc)[:MAX_MESSAGE], attempts=number
            )
            return Processed(None, failure, Usage(), is_retryable=False)


def terms_of(options: JobOptions, job_id: str, destination: Destination) -> Terms:
    """How a destination's calls are bought, and what waits where they are bought in batches."""
    run = current()
    chunk_id, attempt = (run.chunk_id, run.attempt) if run else (destination.id, 1)
    return Terms(options.tier, options.deadline_at, job_id, chunk_id, f"{destination.id} {attempt}")


def _shared(spent: Spent) -> dict[str, Any]:
    return {name: getattr(spent, name) for name in _SHARED}


def _attempt(taken: Taken) -> int:
    return taken.chunk.attempt + taken.deliveries


def retry_seconds(number: int, draw: float) -> float:
    """Seconds before try `number` + 1: exponential, half of it jitter; `draw` is random in 0-1."""
    return RETRY_SECONDS * float(2 ** (number - 1)) * (0.5 + draw / 2)


def _say(destination: Destination, result: Result) -> None:
    usage = result.usage
    values = (
        result.job_id, destination.id, destination.label, result.attempt, usage.llm_calls, usage.cache_hits,
        usage.coalesced, usage.prompt_tokens, usage.completion_tokens, usage.cost_usd, result.elapsed_ms,
    )  # fmt: skip
    if result.failure:
        failure = result.failure
        log.warning(_FAILED, *values, failure.stage, failure.error_class, clean_line(failure.message))
    elif result.profile:
        profile = result.profile
        log.info(_DONE, *values, profile.status, profile.theme_count, profile.quality)
