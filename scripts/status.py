"""`themes status`: one job, or all of them."""

import asyncio
import sys
from typing import Final

import click
from redis import Redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from scripts.main import settings_from
from scripts.partial import partial_lines
from scripts.watch import STALLED, summary
from tasks import worker_reports as fleet
from tasks.connection import check_server, connect, locate
from tasks.errors import JobNotFoundError, ThemesError
from tasks.jobs import registry as jobs
from tasks.waits import duration

#: Characters of a job's id.
JOB_ID_WIDTH: Final = 22
#: Columns of the table where nobody says how wide the terminal is.
PLAIN_WIDTH: Final = 150


@click.command()
@click.argument("job", metavar="[JOB]", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON: one object, or one a line for all jobs.")
def command(job: str | None, *, as_json: bool) -> None:
    """Show JOB, or the newest jobs."""
    settings = settings_from()
    known = known_jobs(settings, job)
    if as_json:
        for status in known:
            print(status.json())
    elif job:
        stopped = f"stopped: `themes run --resume {job}` goes on with it"
        print(summary(known[0], stalled=_stalled(settings, job) if settings.redis.enabled else stopped))
        for text in partial_lines(settings, known[0]) if known[0].is_final else ():
            print(text)
    else:
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        console.print(_table(known))
        for wait in {one.wait.reason: one.wait for one in known if one.wait}.values():
            console.print(Text(f"waiting: {wait.format()}"), soft_wrap=True)


def known_jobs(settings: Settings, job: str | None) -> list[jobs.JobStatus]:
    """One job, or the newest: as Redis says, or, where there is to be none, as the database does."""
    if not settings.redis.enabled:
        # Late: the usual case needs no database.
        from scripts.stored_status import stored_statuses

        found = asyncio.run(stored_statuses(settings))
        if job and not (found := [one for one in found if one.job_id == job]):
            raise JobNotFoundError(f"no job {job!r} in the database; `themes status` lists the jobs")
        return found
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    for name, report in sorted(fleet.workers(redis).items()):
        if reason := report.journal_off:
            print(f"themes: {name}: call journal off, a kill would lose calls: {reason}", file=sys.stderr)
    return [_status(redis, settings, job)] if job else list(jobs.list_jobs(redis))


def _status(redis: Redis, settings: Settings, job_id: str) -> jobs.JobStatus:
    """A job's status from Redis, or, where Redis has forgotten the job, from the database."""
    try:
        return jobs.status(redis, job_id)
    except JobNotFoundError as unknown:
        # Late: the usual case needs no database.
        from scripts.retry import forgotten_status

        try:
            found = asyncio.run(forgotten_status(settings, job_id))
        except ThemesError:
            raise unknown from None
        if not found.is_final:
            print(f"themes: Redis no longer knows this job: `themes retry {job_id}` goes on with it", file=sys.stderr)
        return found


def _stalled(settings: Settings, job_id: str) -> str:
    """Why a job that is stalled may be so."""
    # Late: the usual case needs no Celery.
    from tasks.queue.retry import has_nothing_left

    with connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds) as redis:
        if has_nothing_left(redis, job_id):
            return f"nothing is left to do, and rows are missing: `themes retry {job_id}`"
    return STALLED


def _state(status: jobs.JobStatus) -> str:
    if status.unreadable:
        return f"unreadable: {status.unreadable}"
    return f"{status.state} ({status.paused})" if status.paused else "waiting" if status.wait else status.state


def _table(known: list[jobs.JobStatus]) -> Table:
    table = Table("job", "name", "state", "done", "failed", "total", "calls", "hits", "time", box=None)
    # An id that is cut short is of no use.
    table.columns[0].no_wrap = True
    table.columns[0].min_width = JOB_ID_WIDTH
    for status in known:
        table.add_row(
            status.job_id, status.name, _state(status), str(status.done), str(status.failed), str(status.total),
            str(status.llm_calls), str(status.cache_hits), "" if status.seconds is None else duration(status.seconds),
        )  # fmt: skip
    return table
