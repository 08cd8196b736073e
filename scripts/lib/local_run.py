"""A job in this process, from its input to its exit code: interrupts, progress, and what is said at its end."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from config.settings import Settings
from scripts.lib.job_words import exit_code
from scripts.lib.only_missing import OnlyMissing
from scripts.lib.pages import Pages
from scripts.lib.partial import lines_of
from scripts.lib.reading import BadRows, show, show_start
from scripts.lib.reading import summary as summary_of_reading
from scripts.lib.run_progress import Progress, quiet_logs, words
from scripts.lib.terminal import say, warn
from scripts.lib.wanted import Wanted
from scripts.main import INTERRUPTED
from tasks.errors import ConfigError, InputError, JobNotFoundError, ThemesError
from tasks.inputs.reader import Reader
from tasks.jobs.registry import JobStatus, job_name, new_job_id, options_of
from tasks.jobs.short_ids import short_id
from tasks.messages import Destination, JobOptions
from tasks.texts import count
from workers.local.job import LocalJob
from workers.local.state_file import StateFile
from workers.local.writer import book_orphans_in_database
from workers.observe.metrics import Histogram
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.status import status_of, whole_id

#: Seconds that the second signal leaves to what is under way.
HURRY_SECONDS: Final = 3.0
OnJob = Callable[[str], None]
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class RunRequest:
    file: str | None = None
    resume: str | None = None
    name: str | None = None
    limit: int | None = None
    budget_usd: float | None = None
    use_cache: bool = True
    only_missing: bool = False
    strict: bool = False
    #: With `resume`: what else is asked again, and whether a partial profile at the end is a failure.
    again: Wanted = Wanted()
    is_partial_failure: bool = False
    mapped: tuple[str, ...] = ()
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    tier: str = ""
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: its exit code, and the job as the database has it; None where there is none."""

    code: int
    job: JobStatus | None
    #: Whether a thread still waits for input, which nothing can interrupt.
    is_reading: bool = False
    measured: dict[str, Histogram] = field(default_factory=dict)


def reader_of(file: str, request: RunRequest) -> Reader:
    return Reader(
        file, strict=request.strict, limit=request.limit, columns=request.columns, id_column=request.id_column,
        mapped=request.mapped, on_bad_row=BadRows(), on_start=show_start,
    )  # fmt: skip


def run(settings: Settings, request: RunRequest, *, on_job: OnJob | None = None) -> RunResult:
    """Run a job to its end or an interrupt; `on_job` gets its id as soon as it exists. Raises ThemesError."""
    with quiet_logs(settings):
        return asyncio.run(_Run(settings, request, on_job).run())


class _Run:
    def __init__(self, settings: Settings, request: RunRequest, on_job: OnJob | None) -> None:
        self._settings = settings
        self._request = request
        self._on_job = on_job
        self._progress = Progress(settings)
        self._pages: Pages | None = None
        self._job: LocalJob | None = None
        self._signals = 0
        self._task: asyncio.Task[RunResult] | None = None

    async def run(self) -> RunResult:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt)
        try:
            return await self._run()
        except asyncio.CancelledError:
            warn("interrupted")
            return RunResult(INTERRUPTED, None, is_reading=self._is_reading)
        except ThemesError as exc:
            if not self._is_reading:
                raise
            warn(str(exc))
            return RunResult(exc.exit_code, None, is_reading=True)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    @property
    def _is_reading(self) -> bool:
        return self._pages is not None and self._pages.is_reading

    def _interrupt(self) -> None:
        """The first signal lets calls under way end, the second cuts them off, the third ends the process."""
        self._signals += 1
        if self._signals > 2:  # noqa: PLR2004  # the third
            os._exit(INTERRUPTED)
        if self._job is None:
            if self._task:
                self._task.cancel()
        elif self._signals == 1:
            warn("stopping: calls under way are awaited and kept; Ctrl-C again ends at once")
            self._job.stop("interrupted")
        else:
            self._job.stop("interrupted", at_once=True)
            asyncio.get_running_loop().call_later(HURRY_SECONDS, os._exit, INTERRUPTED)

    async def _run(self) -> RunResult:
        settings, request = self._settings, self._request
        store = AsyncDatabaseManager.from_settings(settings, is_acknowledged=False)
        if request.resume and not store.exists():
            raise JobNotFoundError(f"no job {request.resume!r}: there is no results database yet ({store.place})")
        with StateFile(settings.state_dir) as file:
            async with store:
                await book_orphans_in_database(settings, store)
                if request.resume:
                    return await self._resume(store, file, request.resume)
                return await self._begin(store, file)

    async def _begin(self, store: AsyncDatabaseManager, file: StateFile) -> RunResult:
        request = self._request
        assert request.file  # noqa: S101  # the verb has checked it
        with reader_of(request.file, request) as reader:
            options = JobOptions(
                use_cache=request.use_cache, budget_usd=request.budget_usd, is_in_process=True,
                columns=request.columns, id_column=reader.id_column, tier=request.tier,
                deadline_at=request.deadline_at, fields=request.fields,
            )  # fmt: skip
            missing = None
            if request.only_missing:
                missing = OnlyMissing(reader, self._settings, columns=request.columns, fields=request.fields)
            pages = await self._read(reader if missing is None else missing)
            if pages is None:
                say(f"nothing to do: all {missing.skipped if missing else 0} have a current profile")
                return RunResult(0, None)
            name = job_name(request.name or ("standard input" if request.file == "-" else Path(request.file).name))
            job = self._job_of(store, file, new_job_id(), options, attempt=1)
            try:
                await self._work(job, name, pages)
            except InputError:
                await job.close_cancelled()
                raise
            finally:
                report = reader.report
                show(report)
                left_out = f", {missing.skipped} with a current profile" if missing else ""
                if report.duplicates or report.rejected or report.likely_duplicates or left_out:
                    say(f"read {summary_of_reading(report)}{left_out}")
            return await self._end(store, job)

    async def _resume(self, store: AsyncDatabaseManager, file: StateFile, job_id: str) -> RunResult:
        request = self._request
        job_id = await whole_id(store, job_id)
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        options = options_of(row.options)
        self._refuse_resume(row, options)
        failed = [destination.id for destination in await request.again.of(store, job_id)]
        waiting, _ = await store.missing_after(job_id, -1, 1)
        if not failed and not waiting and request.file is None and not await file.has_batches(job_id):
            status = status_of(row)
            say(f"nothing is missing: {words(status)}")
            await _print_partial(store, status)
            return RunResult(0, status)
        job = self._job_of(store, file, job_id, options, attempt=await store.last_attempt(job_id) + 1)
        with contextlib.ExitStack() as stack:
            pages = None
            if request.file is not None:
                pages = await self._read(stack.enter_context(reader_of(request.file, request)))
            await self._work(job, row.name, pages, failed)
        return await self._end(store, job)

    def _refuse_resume(self, row: JobRow, options: JobOptions) -> None:
        if not options.is_in_process and self._settings.redis.enabled and row.state != "done":
            raise ConfigError(
                f"job {row.job_id} was enqueued, and workers may have it: `themes retry {row.job_id}` goes on with it; "
                "where its Redis is gone for good, set THEMES_REDIS__ENABLED=false"
            )
        if not row.sealed and self._request.file is None:
            raise ConfigError(
                f"job {row.job_id} was cut off while its input was still being read: name the file again: "
                f"`themes run FILE --resume {row.job_id}`"
            )

    async def _read(self, rows: Iterable[Destination]) -> Pages | None:
        self._pages = Pages(rows)
        return self._pages if await self._pages.start() else None

    def _job_of(
        self, store: AsyncDatabaseManager, file: StateFile, job_id: str, options: JobOptions, *, attempt: int
    ) -> LocalJob:
        return LocalJob(
            self._settings, store, file, job_id=job_id, options=options, attempt=attempt,
            written=self._progress.written, limit_usd=self._request.budget_usd,
        )  # fmt: skip

    async def _work(self, job: LocalJob, name: str, pages: Pages | None, failed: list[str] | None = None) -> None:
        def opened() -> None:
            if self._on_job:
                self._on_job(job.job_id)

        self._job = job
        shown = asyncio.create_task(self._progress.show(job), name="progress")
        try:
            await job.run(name, time.time(), pages, failed, opened)
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)

    async def _end(self, store: AsyncDatabaseManager, job: LocalJob) -> RunResult:
        row = await store.job(job.job_id)
        assert row is not None  # noqa: S101  # it was written first
        status = self._progress.status_of(row, job)
        say(words(status))
        self._progress.view.print_failures(job.job_id)
        code = exit_code(status, is_partial_failure=self._request.is_partial_failure)
        if status.is_final:
            await _print_partial(store, status)
        else:
            file = "" if row.sealed else f"{self._request.file or 'FILE'} "
            if job.batches and job.batches.under_way:
                what = count(job.batches.under_way, "batch")
                say(f"{what} at the provider may go on: the next run reads the answers")
            budget = " --budget USD" if status.paused == "budget" else ""
            say(f"to go on: themes run {file}--resume {job.job_id}{budget}")
            code = INTERRUPTED if self._signals else code
        return RunResult(code, status, is_reading=self._is_reading, measured=job.profiler.totals())


async def _print_partial(store: AsyncDatabaseManager, status: JobStatus) -> None:
    for text in await lines_of(store, status, again=f"themes run --resume {short_id(status.job_id)} --partial"):
        warn(text)
