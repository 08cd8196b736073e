"""`themes retry`: what a job has no profile for is asked again."""

import asyncio
import sys

import click

from config.settings import Settings
from scripts.main import settings_from
from scripts.results import reading
from scripts.stored_status import stored_status
from scripts.wanted import Wanted
from scripts.watch import fail_on_partial, watch_to_end
from tasks.connection import check_server, connect, locate
from tasks.jobs.registry import JobStatus
from tasks.messages import Destination
from tasks.queue.retry import KnownJob, check, is_lost, retry
from tasks.texts import count
from workers.results.database.manager import AsyncDatabaseManager


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--only", metavar="CLASS", help="Only failures of this class of error, for instance EndpointDownError.")
@click.option("--partial", is_flag=True, help="Also what has a partial profile; only the missing stages cost.")
@click.option(
    "--stage", "stages", metavar="NAME", multiple=True,
    help="Only what failed at, or lacks, this stage (analyse.price); implies --partial. May be given again.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Watch the job and end with it; exit 1 when any destination failed.")
@fail_on_partial
def command(
    job: str, only: str | None, stages: tuple[str, ...], *, partial: bool, wait: bool, is_partial_failure: bool
) -> int:
    """Ask again for the destinations of JOB that failed, and for those that a lost Redis took along.

    Answers that were paid for come from the cache. Without --only, what a cancelled job had left is asked for too.
    A partial profile stays until one comes that is not worse.
    """
    settings = settings_from()
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    wanted = Wanted(error_class=only, stages=stages, partial=partial or bool(stages))
    known, chosen, missing, last = asyncio.run(_read(settings, job, wanted))
    check(redis, known)
    if only or stages or not is_lost(redis, known):
        missing = []
    number = retry(known, [*chosen, *missing], attempt=last + 1, settings=settings, redis=redis)
    if not number:
        print(f"nothing to retry: {wanted.nothing(known)}", file=sys.stderr)
        return 0
    print(f"asking again for {count(number, 'destination')} of job {job}", file=sys.stderr)
    return watch_to_end(redis, job, settings, is_partial_failure=is_partial_failure) if wait else 0


async def _read(
    settings: Settings, job_id: str, wanted: Wanted
) -> tuple[KnownJob, list[Destination], list[Destination], int]:
    """The job, what is to be asked again, what has no outcome, and the highest attempt so far."""
    async with reading(settings, job_id) as store:
        return (
            await known_job(store, job_id),
            await wanted.of(store, job_id),
            [row.destination async for row in store.missing(job_id)],
            await store.last_attempt(job_id),
        )


async def known_job(store: AsyncDatabaseManager, job_id: str) -> KnownJob:
    """A job as the database has it."""
    row = await store.job(job_id)
    assert row is not None  # noqa: S101  # `reading` has seen it
    return KnownJob(
        job_id=job_id,
        name=row.name,
        created_at=row.created_at,
        options=row.options,
        is_sealed=row.sealed,
        listed=row.total or 0,
        done=row.done,
        failed=row.failed,
        partial=row.partial,
        cost_usd=row.usage.cost_usd,
    )


async def forgotten_status(settings: Settings, job_id: str) -> JobStatus:
    """How the database says that a job stands which Redis no longer knows: unfinished, nobody works on it.

    Raises:
        ThemesError: the database does not know it either, or cannot be read.
    """
    async with reading(settings, job_id) as store:
        row = await store.job(job_id)
        assert row is not None  # noqa: S101  # `reading` has seen it
    return stored_status(row)
