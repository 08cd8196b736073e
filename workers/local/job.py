"""A job in one process, without Redis: from its input to its rows.

    input pages -> database (destinations) -> pages of what is missing -> lanes -> processor -> database

The input is written to the database first, and what is worked on is read from there, a page at a time, so that memory
does not grow with the job and a killed run goes on from where it was. What was paid for is in the state file before
anything depends on it. A destination that waits for a batch leaves its lane, and is worked on again when it may go on.

`stop` lets calls under way end, keeps their answers, and books what they cost; `stop(at_once=True)` does not wait.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import msgspec

from config.settings import Settings
from tasks.errors import DatabaseError, JobPausedError, JobStoppedError, ParkedError
from tasks.jobs.batches import Batches
from tasks.jobs.budget import nano_usd
from tasks.messages import (
    Chunk,
    Destination,
    JobClosed,
    JobInputs,
    JobOpened,
    JobOptions,
    JobReopened,
    JobSealed,
)
from tasks.queue.ledger import Taken
from tasks.waits import Wait
from workers.llm.batches.course import Courses, batches_folder
from workers.llm.batches.keeper import BatchKeeper
from workers.llm.budget import JobBudget
from workers.llm.cancellation import Cancellation
from workers.local.batch_store import FileBatchStore
from workers.local.state_file import FileBook, StateFile
from workers.local.writer import DirectBooks, DirectWriter, unwritten_entries
from workers.observe.batch_use import batch_parts
from workers.observe.call_file import FOLDER
from workers.observe.call_journal import CallJournal
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.processor import Processed
from workers.process.retry import StoppableRetry, wait_at_most
from workers.process.shutdown import end_tasks
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.worker.destination import DestinationRunner, terms_of
from workers.worker.parts import Parts, open_parts
from workers.worker.telemetry import Watched, look_at

log = logging.getLogger("themes.run")

#: Pages of destinations handed to the lanes at once: one that is worked on, and the next.
PAGES_IN_HAND: Final = 2
#: Destinations a lane that a page has, so that the lanes find work while the next page is read.
PAGE_PER_LANE: Final = 4
#: Seconds that new input may take to be noticed, should a word of it be lost.
NEWS_SECONDS: Final = 5.0
#: Ids in one entry.
IDS_AT_ONCE: Final = 500
_Page = asyncio.Task[list[Destination]]


class LocalJob:
    """One job, and everything that it needs of this process.

    Args:
        settings: as a worker's.
        store: open for writing.
        file: keeps completions and the budget.
        job_id: the job's.
        options: the job's.
        attempt: of its destinations, from 1: higher than any that they have had.
        written: called with every committed batch.
        limit_usd: what the job may cost from now on; None: as before, which is at first what its options say.
    """

    def __init__(
        self,
        settings: Settings,
        store: AsyncDatabaseManager,
        file: StateFile,
        *,
        job_id: str,
        options: JobOptions,
        attempt: int = 1,
        written: Callable[[Applied], None],
        limit_usd: float | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._file = file
        self.job_id = job_id
        self._options = options
        self._attempt = attempt
        self._written = written
        self._limit_usd = limit_usd
        limits = settings.performance_optimization
        self._name = f"run-{os.getpid()}@{socket.gethostname()}"
        self.profiler = PerformanceProfiler(
            enabled=limits.enable_performance_profiling,
            name=self._name,
            slowest_kept=settings.profiling.slowest_kept,
        )
        self._halt = Cancellation(job_id)
        self._retry = StoppableRetry()
        self._parts: Parts | None = None
        #: The job's budget, and why it let no more calls through.
        self.book: FileBook | None = None
        self.paused: JobPausedError | None = None
        #: Set when more of the input is in the database, or all of it.
        self._news = asyncio.Event()
        self._batches: FileBatchStore | None = None
        self._is_listed = True
        self._listing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<LocalJob {self.job_id} {self._halt.reason or 'going on'}>"

    @property
    def is_stopped(self) -> bool:
        return bool(self._halt.reason)

    @property
    def wait(self) -> Wait | None:
        wait = self._parts.pool.wait() if self._parts else None
        return wait or (self.batches.wait if self.batches else None)

    @property
    def batches(self) -> Batches | None:
        """The job's batches; None where it has none."""
        return self._batches.batches if self._batches else None

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Start nothing more, and read no more; calls under way are awaited, unless it is to be `at_once`."""
        if self._listing is not None:
            self._listing.cancel()
        self._start_no_more(reason, at_once=at_once)

    def _start_no_more(self, reason: str, *, at_once: bool = False) -> None:
        self._retry.stop()
        if self._parts is not None:
            self._parts.lanes.stop()
        self._halt.stop(reason, at_once=at_once)
        self._news.set()

    async def run(
        self,
        name: str,
        created_at: float,
        pages: AsyncIterator[list[Destination]] | None,
        failed: Sequence[str] | None = None,
        opened: Callable[[], None] | None = None,
    ) -> None:
        """Enter the job and work until nothing is left, or `stop`.

        Args:
            name: of a new job.
            created_at: of a new job.
            pages: its input, or what may be missing of it; None where all of it is in the database.
            failed: destinations of an earlier run that are asked again; None where there was no earlier run.
            opened: called when the job is in the database.

        Raises `ThemesError`: the input, the settings or the database cannot be used; what is done is kept.
        """
        async with contextlib.AsyncExitStack() as stack:
            slots = self._settings.performance_optimization.worker_pool_size + unwritten_entries(self._settings)
            journal = CallJournal.in_folder(self._settings.state_dir / FOLDER, worker=self._name, lanes=slots)
            # Closed after the writer: what it has written is out of the journal.
            stack.callback(journal.close)
            # After the writer too: its last batch counts.
            stack.push_async_callback(self._keep_profile)
            writer = await stack.enter_async_context(
                DirectWriter(self._store, self._settings, self._written, self.profiler)
            )
            budget = await self._budget()
            if budget is not None:
                stack.push_async_callback(budget.close)
            self._batches = batches = await self._open_batches(writer)
            self._parts = parts = await stack.enter_async_context(
                open_parts(self._settings, self.profiler, redis=None, completions=self._file, batches=batches)
            )
            await writer.write(JobOpened(self.job_id, name, created_at, self._options))
            if opened is not None:
                opened()
            if failed is not None:
                await self._reopen(failed, writer)
            if pages is not None:
                self._is_listed = False
                self._listing = asyncio.create_task(self._list(pages, writer), name="listing")
                stack.push_async_callback(end_tasks, self._listing)
            look_at(self._settings, Watched(parts))
            watching = asyncio.create_task(self._watch(journal), name="profiler")
            stack.push_async_callback(end_tasks, watching)
            courses = Courses(batches, parts.pool.routes, self._settings, self.profiler, batches_folder(self._settings))
            keeper = BatchKeeper(batches, courses, self._settings, pause=self._pause)
            keeping = asyncio.create_task(keeper.run(), name="batches")
            stack.push_async_callback(end_tasks, keeping)
            await self._work(parts, batches, keeping, self._runner(parts, writer, budget, journal))
            if self._listing is not None:
                await asyncio.wait({self._listing})
                if not self._listing.cancelled():
                    self._listing.result()

    async def _watch(self, journal: CallJournal) -> None:
        async def look() -> None:
            while True:
                await journal.keep()
                if self.profiler.enabled:
                    self.profiler.sample()
                await asyncio.sleep(self._settings.performance_optimization.profile_interval_seconds)

        async with asyncio.TaskGroup() as group:
            group.create_task(look(), name="sample")
            if self.profiler.enabled:
                group.create_task(self.profiler.watch_loop(), name="loop")

    async def _keep_profile(self) -> None:
        parts = [(records.job_id, part) for records, part in self.profiler.parts()]
        parts += [(self.job_id, part) for part in batch_parts(self._batches.fields if self._batches else None)]
        for job_id, part in parts:
            payload = msgspec.json.encode(part).decode()
            try:
                await self._store.keep_measurements(job_id, {part.process: payload})
            except DatabaseError as exc:
                log.warning("action=profile_refused job_id=%s its profile is not kept: %s", job_id, exc)

    async def close_cancelled(self) -> None:
        """Say that the job is over although not all of it is done: half of an input is no job."""
        async with DirectWriter(self._store, self._settings, self._written) as writer:
            await writer.write(JobClosed(self.job_id, "cancelled", time.time()))

    async def _reopen(self, failed: Sequence[str], writer: DirectWriter) -> None:
        for start in range(0, max(1, len(failed)), IDS_AT_ONCE):
            some = tuple(failed[start : start + IDS_AT_ONCE])
            await writer.write(JobReopened(self.job_id, some, self._attempt))

    async def _budget(self) -> JobBudget | None:
        row = await self._store.job(self.job_id)
        spent = row.usage.cost_usd if row else 0.0
        now, first = (None if usd is None else nano_usd(usd) for usd in (self._limit_usd, self._options.budget_usd))
        self.book = await self._file.budget(self.job_id, now=now, first=first, spent_nano=nano_usd(spent or 0.0))
        if self.book is None:
            return None
        return JobBudget(self.book, self.job_id, touch_seconds=self._settings.work.heartbeat_seconds)

    async def _open_batches(self, writer: DirectWriter) -> FileBatchStore:
        batches = FileBatchStore(
            file=self._file, job_id=self.job_id, deadline_at=self._options.deadline_at, book_of_job=self.book,
            news=self._news, find_job=self._store.job, write=writer.write,
            compress=self._settings.performance_optimization.enable_result_compression,
        )  # fmt: skip
        await batches.open()
        return batches

    async def _pause(self, exc: JobPausedError) -> bool:
        """End the run until it is resumed, unless it is another job that does not go on."""
        if self._batches is not None and await self._batches.pause(exc.job_id):
            return True
        if self.paused is None:
            self.paused = exc
        # The input is still read to its end, so that the job is whole when it goes on.
        self._start_no_more(str(exc))
        return True

    async def _list(self, pages: AsyncIterator[list[Destination]], writer: DirectWriter) -> None:
        """Write the input down, then seal the job."""
        try:
            async for page in pages:
                await writer.write(JobInputs(self.job_id, tuple(page)))
                self._news.set()
            row = await self._store.job(self.job_id)
            await writer.write(JobSealed(self.job_id, (row.total or 0) if row else 0))
        except Exception:
            self._start_no_more("the input cannot be read to its end")
            raise
        finally:
            self._is_listed = True
            self._news.set()

    def _runner(
        self, parts: Parts, writer: DirectWriter, budget: JobBudget | None, journal: CallJournal
    ) -> DestinationRunner:
        async def process(
            destination: Destination, cancellation: Cancellation, options: JobOptions, attempt: int
        ) -> Processed:
            return await parts.processor.process(
                destination,
                use_cache=options.use_cache,
                columns=options.columns,
                fields=options.fields,
                attempt=attempt,
                budget=budget,
                terms=terms_of(options, self.job_id, destination),
                cancellation=cancellation,
            )

        return DestinationRunner(
            ledger=DirectBooks(writer),
            process=process,
            retry=self._retry,
            settings=self._settings,
            profiler=self.profiler,
            worker=self._name,
            journal=journal,
        )

    async def _work(
        self, parts: Parts, batches: FileBatchStore, keeping: asyncio.Task[None], runner: DestinationRunner
    ) -> None:
        """Give the lanes page after page of what is missing, until nothing is and no more can come."""

        async def work(destination: Destination) -> None:
            with (
                self.profiler.job(self.job_id) as records,
                self.profiler.destination(records, destination.id, destination.label, waited={}),
            ):
                await self._one(runner, batches, destination)

        count = max(parts.lanes.size * PAGE_PER_LANE, self._settings.work.max_chunk_size)
        place, running = -1, set[_Page]()
        try:
            while not self.is_stopped:
                # Asked before the page: what is listed or woken after that is not missed.
                is_listed = self._is_listed
                self._news.clear()
                page = await batches.woken(count)
                if not page:
                    page, place = await self._store.missing_after(self.job_id, place, count)
                if page:
                    running.add(asyncio.create_task(parts.lanes.run(page, work), name="page"))
                elif is_listed and not running and not await batches.is_waiting():
                    break
                elif keeping.done():
                    keeping.result()
                else:
                    running = await _next_of(running, self._news)
                while len(running) >= PAGES_IN_HAND:
                    running = await _next_of(running)
            while running:
                running = await _next_of(running)
        except BaseException:
            self.stop("an error ended the run")
            await asyncio.gather(*running, return_exceptions=True)
            raise

    async def _one(self, runner: DestinationRunner, batches: FileBatchStore, destination: Destination) -> None:
        """One destination; one that may not go on is left as it is, for the next run."""
        if self.is_stopped:
            return
        # As the first delivery of a chunk of its own: the attempt is one higher than the chunk's.
        chunk = Chunk(self.job_id, destination.id, (destination,), attempt=self._attempt - 1)
        try:
            with contextlib.suppress(ParkedError):
                await runner.run(Taken(chunk, 1, frozenset()), destination, self._options, self._halt)
                return
            await batches.park(destination)
        except JobPausedError as exc:
            await self._pause(exc)
        except DatabaseError:
            # What was made now could not be kept: nothing more is asked for.
            self._start_no_more("the database cannot be used")
            raise
        except JobStoppedError as exc:
            log.debug("action=destination_stopped job_id=%s name=%r %s", self.job_id, destination.label, exc)


async def _next_of(running: set[_Page], news: asyncio.Event | None = None) -> set[_Page]:
    """Those that go on when the first has ended, or there is news; an error of one that has ended is raised."""
    listening = [] if news is None else [asyncio.create_task(wait_at_most(NEWS_SECONDS, news), name="news")]
    await asyncio.wait([*running, *listening], return_when=asyncio.FIRST_COMPLETED)
    await end_tasks(*listening)
    done = {task for task in running if task.done()}
    for task in done:
        task.result()
    return running - done
