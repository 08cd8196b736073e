"""`themes status`: one job, or all of them."""

import asyncio
from typing import Final

import click
from redis import Redis

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.lib.job_words import STALLED, batch_lines, job_lines, summary
from scripts.lib.partial import partial_lines
from scripts.lib.terminal import height, say, warn, width
from scripts.main import settings_from
from tasks import worker_reports as fleet
from tasks.errors import JobNotFoundError, ThemesError
from tasks.jobs import registry as jobs
from tasks.jobs.short_ids import the_one

#: Jobs that are listed on the lowest terminal; lines of it that are kept for what is said beside them.
MIN_LINES: Final = 10
KEPT_LINES: Final = 5


@click.command(epilog="Example: themes status df5a3a --json")
@click.argument("job", metavar="[JOB]", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON: one object, or one a line for all jobs.")
def command(job: str | None, *, as_json: bool) -> None:
    """Show JOB, or the newest jobs."""
    settings = settings_from()
    known = known_jobs(settings, job)
    job = known[0].job_id if job else None
    if as_json:
        for status in known:
            print(status.json())
    elif job:
        stopped = f"stopped: `themes run --resume {job}` goes on with it"
        print(summary(known[0], stalled=_stalled(settings, job) if settings.redis.enabled else stopped))
        for text in (*batch_lines(known[0]), *(partial_lines(settings, known[0]) if known[0].is_final else ())):
            print(text)
        if settings.redis.enabled and not known[0].is_final and (words := _verdict(settings, known[0])):
            print(words)
    elif not known:
        say("no job yet: `themes enqueue FILE` makes one")
    else:
        most = max(MIN_LINES, lines - KEPT_LINES) if (lines := height()) else len(known)
        for line in job_lines(known[:most], width=width()):
            print(line)
        if known[most:]:
            say(f"{len(known) - most:,} older: themes status | less")
        for wait in {one.wait.reason: one.wait for one in known if one.wait and one.wait.kind != "batch"}.values():
            print(f"waiting: {wait.format()}")


def _verdict(settings: Settings, status: jobs.JobStatus) -> str:
    # Late: jobs that have ended need none.
    from scripts.lib.live_verdict import LiveVerdict

    with connected(settings) as redis:
        return LiveVerdict(settings, redis).of(status).words


def known_jobs(settings: Settings, job: str | None) -> list[jobs.JobStatus]:
    """One job, or the newest: as Redis says, or, with `redis.enabled` off, as the database does."""
    if not settings.redis.enabled:
        # Late: the usual case needs no database.
        from scripts.lib.stored import stored_statuses

        found = asyncio.run(stored_statuses(settings))
        if job and (job_id := the_one(job, [one.job_id for one in found])):
            found = [one for one in found if one.job_id == job_id]
        elif job:
            raise JobNotFoundError(f"no job {job!r} in the database; `themes status` lists the jobs")
        return found
    redis = connected(settings)
    for name, report in fleet.workers(redis).items():
        if reason := report.journal_off:
            warn(f"{name}: call journal off, a kill would lose calls: {reason}")
    return [_status(redis, settings, job)] if job else list(jobs.list_jobs(redis))


def _status(redis: Redis, settings: Settings, job_id: str) -> jobs.JobStatus:
    job_id = jobs.whole_id(redis, job_id)
    try:
        return jobs.status(redis, job_id)
    except JobNotFoundError as unknown:
        try:
            found = asyncio.run(_stored(settings, job_id))
        except ThemesError:
            raise unknown from None
        if not found.is_final:
            warn(f"Redis no longer knows this job: `themes retry {found.job_id}` goes on with it")
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
