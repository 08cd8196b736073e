"""`themes run`: a job in this one process, without Redis and without Celery."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import msgspec

from config.settings import Settings
from scripts.main import INTERRUPTED, settings_from
from scripts.only_missing import OnlyMissing
from scripts.pages import Pages
from scripts.partial import lines_of
from scripts.reading import BadRows, reading_options, show, show_start
from scripts.reading import summary as summary_of_reading
from scripts.run_progress import RESUME, STOPPED, Progress, quiet_logs
from scripts.stored_status import stored_status
from scripts.wanted import Wanted
from scripts.watch import exit_code, fail_on_partial, summary
from tasks.errors import ConfigError, InputError, JobNotFoundError, ThemesError
from tasks.inputs.reader import Reader
from tasks.jobs.budget import check
from tasks.jobs.registry import JobStatus, job_name, new_job_id
from tasks.messages import Destination, JobOptions
from workers.local.job import InProcessJob
from workers.local.state_file import StateFile
from workers.local.writer import book_orphans_in_database
from workers.observe.metrics import Histogram
from workers.results.database.manager import AsyncDatabaseManager

#: Seconds that the second signal leaves to what is under way.
HURRY_SECONDS: Final = 3.0
#: Told a job's id.
OnJob = Callable[[str], None]
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be run: a file, or the rest of an earlier job, or both."""

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


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended: its exit code, and the job as the database has it; None where no job came of it."""

    code: int
    job: JobStatus | None
    #: Whether a thread still waits for input, which nothing can interrupt.
    is_reading: bool = False
    #: What its steps took, by span.
    measured: dict[str, Histogram] = field(default_factory=dict)


@click.command()
@click.argument("file", metavar="FILE|-", required=False)
@click.option("--resume", metavar="JOB", help="Go on with JOB: ask for what has no profile, and for nothing else.")
@click.option("--partial", is_flag=True, help="With --resume: also what has a partial profile.")
@click.option("--stage", "stages", metavar="NAME", multiple=True, help="With --resume: only what lacks this stage.")
@fail_on_partial
@click.option("--name", metavar="NAME", help="The job's name in lists; by default the file's.")
@reading_options
@click.option("--only-missing", is_flag=True, help="Leave out what has a complete profile by today's prompts.")
@click.option("--no-cache", is_flag=True, help="Ask the LLM again even where the answer is known.")
@click.option("--budget", type=float, metavar="USD", help="Stop before the job costs more; --resume goes on.")
@click.option("--dry-run", is_flag=True, help="Ask nothing; forecast calls, tokens, cost and time.")
@click.option(
    "--json", "as_json", is_flag=True,
    help="At the end print the job as one JSON object, instead of its id; with --dry-run the forecast.",
)  # fmt: skip
def command(
    *,
    file: str | None,
    resume: str | None,
    stages: tuple[str, ...],
    name: str | None,
    limit: int | None,
    mapped: tuple[str, ...],
    id_column: str | None,
    columns: tuple[str, ...],
    budget: float | None,
    partial: bool,
    is_partial_failure: bool,
    only_missing: bool,
    no_cache: bool,
    strict: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Do the job of FILE (CSV, JSONL, JSON, text; - is standard input) here, without Redis, and print its id.

    Ctrl-C lets calls under way end and keeps their answers; a second one does not wait. `--resume JOB` goes on, also
    after a kill: nothing that is done is asked again, and nothing that was answered is paid again.
    """
    settings = settings_from()
    if file is None and resume is None:
        raise click.UsageError("name a FILE (- is standard input), or a job with --resume JOB")
    if resume and (name or no_cache or only_missing or columns):
        raise click.UsageError(
            "--resume goes on with a job as it is: leave out --name, --no-cache, --only-missing and --column"
        )
    if (partial or stages) and not resume:
        raise click.UsageError("--partial and --stage go with --resume JOB")
    if budget is not None:
        check(budget, settings)
    wish = Wish(
        file=file, resume=resume, name=name, limit=limit, budget_usd=budget, use_cache=not no_cache,
        only_missing=only_missing, strict=strict, is_partial_failure=is_partial_failure,
        again=Wanted(stages=stages, partial=partial or bool(stages)), mapped=mapped, id_column=id_column,
        columns=columns,
    )  # fmt: skip
    if dry_run:
        if resume or file is None:
            raise click.UsageError("--dry-run forecasts a new job: name a FILE, and leave out --resume")
        return _forecast(settings, file, wish, as_json=as_json)
    ran = run(settings, wish, on_job=None if as_json else _print_id)
    if as_json and ran.job:
        print(ran.job.json(), flush=True)
    if ran.is_reading:
        # Python's own end would wait for, or break over, the thread that waits for input.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ran.code)
    return ran.code


def _forecast(settings: Settings, file: str, wish: Wish, *, as_json: bool) -> int:
    # Late: a job needs nothing of it.
    from scripts.dry_run import dry_run

    with reader_of(file, wish) as reader:
        rows = OnlyMissing(reader, settings, columns=wish.columns) if wish.only_missing else reader
        return dry_run(
            rows, reader.report, settings, wish.columns, use_cache=wish.use_cache, as_json=as_json, is_in_process=True
        )


def reader_of(file: str, wish: Wish) -> Reader:
    """A reader of a file that shows how it is read."""
    return Reader(
        file, strict=wish.strict, limit=wish.limit, columns=wish.columns, id_column=wish.id_column,
        mapped=wish.mapped, on_bad_row=BadRows(), on_start=show_start,
    )  # fmt: skip


def _print_id(job_id: str) -> None:
    print(job_id, flush=True)


def run(settings: Settings, wish: Wish, *, on_job: OnJob | None = None) -> Ran:
    """Run a job to its end, or until it is interrupted; `on_job` is told its id as soon as it exists.

    Raises:
        ThemesError: it cannot be run; what was done of it is kept.
    """
    with quiet_logs(settings):
        return asyncio.run(_Run(settings, wish, on_job).run())


class _Run:
    """One run."""

    def __init__(self, settings: Settings, wish: Wish, on_job: OnJob | None) -> None:
        self._settings = settings
        self._wish = wish
        self._on_job = on_job
        self._pages: Pages | None = None
        self._job: InProcessJob | None = None
        self._signals = 0
        self._task: asyncio.Task[Ran] | None = None

    async def run(self) -> Ran:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt)
        try:
            return await self._run()
        except asyncio.CancelledError:
            # Interrupted before there was a job.
            print("themes: interrupted", file=sys.stderr)
            return Ran(INTERRUPTED, None, is_reading=self._is_reading)
        except ThemesError as exc:
            if not self._is_reading:
                raise
            print(f"themes: {exc}", file=sys.stderr)
            return Ran(exc.exit_code, None, is_reading=True)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    @property
    def _is_reading(self) -> bool:
        return self._pages is not None and self._pages.is_reading

    def _interrupt(self) -> None:
        """A signal: the first lets calls under way end, the second cuts them off, the third asks nobody."""
        self._signals += 1
        if self._signals > 2:  # noqa: PLR2004  # the third
            os._exit(INTERRUPTED)
        if self._job is None:
            if self._task:
                self._task.cancel()
        elif self._signals == 1:
            print("themes: stopping: calls under way are awaited and kept; Ctrl-C again ends at once", file=sys.stderr)
            self._job.stop("interrupted")
        else:
            self._job.stop("interrupted", at_once=True)
            asyncio.get_running_loop().call_later(HURRY_SECONDS, os._exit, INTERRUPTED)

    async def _run(self) -> Ran:
        settings, wish = self._settings, self._wish
        store = AsyncDatabaseManager.from_settings(settings, is_acknowledged=False)
        if wish.resume and not store.exists():
            raise JobNotFoundError(f"no job {wish.resume!r}: there is no results database yet ({store.place})")
        with StateFile(settings.state_dir) as file:
            async with store:
                await book_orphans_in_database(settings, store)
                if wish.resume:
                    return await self._resume(store, file, wish.resume)
                return await self._begin(store, file)

    async def _begin(self, store: AsyncDatabaseManager, file: StateFile) -> Ran:
        """A new job."""
        wish = self._wish
        assert wish.file  # noqa: S101  # the verb has seen to it
        with reader_of(wish.file, wish) as reader:
            options = JobOptions(
                use_cache=wish.use_cache, budget_usd=wish.budget_usd, is_in_process=True, columns=wish.columns,
                id_column=reader.id_column,
            )  # fmt: skip
            missing = OnlyMissing(reader, self._settings, columns=wish.columns) if wish.only_missing else None
            pages = await self._reading(reader if missing is None else missing)
            if pages is None:
                print(f"nothing to do: all {missing.skipped if missing else 0} have a current profile", file=sys.stderr)
                return Ran(0, None)
            name = job_name(wish.name or ("standard input" if wish.file == "-" else Path(wish.file).name))
            progress = Progress(self._settings)
            job = self._made(store, file, progress, job_id=new_job_id(), options=options, attempt=1)
            try:
                await self._work(job, progress, name=name, pages=pages)
            except InputError:
                await job.close_cancelled()
                raise
            finally:
                report = reader.report
                show(report)
                left_out = f", {missing.skipped} with a current profile" if missing else ""
                if report.duplicates or report.rejected or report.likely_duplicates or left_out:
                    print(f"read {summary_of_reading(report)}{left_out}", file=sys.stderr)
            return await self._ended(store, job, progress)

    async def _resume(self, store: AsyncDatabaseManager, file: StateFile, job_id: str) -> Ran:
        """An earlier job, or what is left of it."""
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        options = msgspec.json.decode(row.options, type=JobOptions) if row.options else JobOptions()
        if not options.is_in_process and self._settings.redis.enabled and row.state != "done":
            raise ConfigError(
                f"job {job_id} was enqueued, and workers may be at it: `themes retry {job_id}` goes on with it; where "
                "its Redis is gone for good, set THEMES_REDIS__ENABLED=false"
            )
        if not row.sealed and self._wish.file is None:
            raise ConfigError(
                f"job {job_id} was cut off while its input was still being read: name the file again: "
                f"`themes run FILE --resume {job_id}`"
            )
        failed = [destination.id for destination in await self._wish.again.of(store, job_id)]
        waiting, _ = await store.missing_after(job_id, -1, 1)
        if not failed and not waiting and self._wish.file is None:
            status = stored_status(row)
            print(f"nothing is missing: {summary(status)}", file=sys.stderr)
            await _say_partial(store, status)
            return Ran(0, status)
        progress = Progress(self._settings)
        job = self._made(
            store, file, progress, job_id=job_id, options=options, attempt=await store.last_attempt(job_id) + 1
        )
        with contextlib.ExitStack() as stack:
            pages = None
            if self._wish.file is not None:
                pages = await self._reading(stack.enter_context(reader_of(self._wish.file, self._wish)))
            await self._work(job, progress, name=row.name, pages=pages, failed=failed)
        return await self._ended(store, job, progress)

    async def _reading(self, rows: Iterable[Destination]) -> Pages | None:
        """The input's pages, the first one read; None where it has none."""
        self._pages = Pages(rows)
        return self._pages if await self._pages.start() else None

    def _made(
        self,
        store: AsyncDatabaseManager,
        file: StateFile,
        progress: Progress,
        *,
        job_id: str,
        options: JobOptions,
        attempt: int,
    ) -> InProcessJob:
        return InProcessJob(
            self._settings,
            store,
            file,
            job_id=job_id,
            options=options,
            attempt=attempt,
            written=progress.written,
            limit_usd=self._wish.budget_usd,
        )

    async def _work(
        self,
        job: InProcessJob,
        progress: Progress,
        *,
        name: str,
        pages: Pages | None,
        failed: list[str] | None = None,
    ) -> None:
        def opened() -> None:
            if self._on_job:
                self._on_job(job.job_id)

        self._job = job
        async with _shown(progress, job):
            await job.run(name, time.time(), pages, failed, opened)

    async def _ended(self, store: AsyncDatabaseManager, job: InProcessJob, progress: Progress) -> Ran:
        """Say how it ended."""
        row = await store.job(job.job_id)
        assert row is not None  # noqa: S101  # it was written first
        status = progress.status_of(row, job)
        print(summary(status, resume=RESUME, stalled=STOPPED), file=sys.stderr)
        progress.say_failures(job.job_id)
        if status.is_final:
            await _say_partial(store, status)
        if not status.is_final:
            again = f"themes run --resume {job.job_id}"
            if not row.sealed:
                again = f"themes run {self._wish.file or 'FILE'} --resume {job.job_id}"
            if status.paused == "budget":
                again += " --budget USD"
            print(f"to go on: {again}", file=sys.stderr)
        code = exit_code(status, is_partial_failure=self._wish.is_partial_failure)
        if self._signals and not status.is_final:
            code = INTERRUPTED
        return Ran(code, status, is_reading=self._is_reading, measured=job.profiler.totals())


async def _say_partial(store: AsyncDatabaseManager, status: JobStatus) -> None:
    for text in await lines_of(store, status, again=f"themes run --resume {status.job_id} --partial"):
        print(f"themes: {text}", file=sys.stderr)


@contextlib.asynccontextmanager
async def _shown(progress: Progress, job: InProcessJob) -> AsyncIterator[None]:
    """Within the body, progress is shown."""
    task = asyncio.create_task(progress.show(job), name="progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
