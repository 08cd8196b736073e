"""`themes status`: one job, or all of them."""

import asyncio
from typing import Final

import click
from redis import Redis
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.lib.job_view import STALLED, summary
from scripts.lib.partial import partial_lines
from scripts.lib.terminal import console, table, warn
from scripts.main import settings_from
from tasks import worker_reports as fleet
from tasks.errors import JobNotFoundError, ThemesError
from tasks.jobs import registry as jobs
from tasks.texts import duration

JOB_ID_WIDTH: Final = 22


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
        out = console()
        out.print(_table(known))
        for wait in {one.wait.reason: one.wait for one in known if one.wait}.values():
            out.print(Text(f"waiting: {wait.format()}"), soft_wrap=True)


def known_jobs(settings: Settings, job: str | None) -> list[jobs.JobStatus]:
    """One job, or the newest: as Redis says, or, with `redis.enabled` off, as the database does."""
    if not settings.redis.enabled:
        # Late: the usual case needs no database.
        from scripts.lib.stored import stored_statuses

        found = asyncio.run(stored_statuses(settings))
        if job and not (found := [one for one in found if one.job_id == job]):
            raise JobNotFoundError(f"no job {job!r} in the database; `themes status` lists the jobs")
        return found
    redis = connected(settings)
    for name, report in fleet.workers(redis).items():
        if reason := report.journal_off:
            warn(f"{name}: call journal off, a kill would lose calls: {reason}")
    return [_status(redis, settings, job)] if job else list(jobs.list_jobs(redis))


def _status(redis: Redis, settings: Settings, job_id: str) -> jobs.JobStatus:
    try:
        return jobs.status(redis, job_id)
    except JobNotFoundError as unknown:
        try:
            found = asyncio.run(_stored(settings, job_id))
        except ThemesError:
            raise unknown from None
        if not found.is_final:
            warn(f"Redis no longer knows this job: `themes retry {job_id}` goes on with it")
        return found


async def _stored(settings: Settings, job_id: str) -> jobs.JobStatus:
    # Late: the usual case needs no database.
    from scripts.lib.stored import job_in_database
    from workers.results.queries.status import status_of

    async with job_in_database(settings, job_id) as (_, row):
        return status_of(row)


def _stalled(settings: Settings, job_id: str) -> str:
    # Late: the usual case needs no Celery.
    from tasks.queue.retry import has_nothing_left

    with connected(settings) as redis:
        if has_nothing_left(redis, job_id):
            return f"nothing is left to do, and rows are missing: `themes retry {job_id}`"
    return STALLED


def _state(status: jobs.JobStatus) -> str:
    if status.unreadable:
        return f"unreadable: {status.unreadable}"
    return f"{status.state} ({status.paused})" if status.paused else "waiting" if status.wait else status.state


def _table(known: list[jobs.JobStatus]) -> Table:
    found = table("job", "name", "state", "done", "failed", "total", "calls", "hits", "time")
    # An id that is cut short is of no use.
    found.columns[0].no_wrap = True
    found.columns[0].min_width = JOB_ID_WIDTH
    for status in known:
        found.add_row(
            status.job_id, status.name, _state(status), str(status.done), str(status.failed), str(status.total),
            str(status.llm_calls), str(status.cache_hits), "" if status.seconds is None else duration(status.seconds),
        )  # fmt: skip
    return found
