"""`themes retry`: what a job has no profile for is asked again."""

import asyncio
from typing import Any

import click

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.lib.follow import follow_to_end
from scripts.lib.partial import fail_on_partial
from scripts.lib.stored import job_in_database
from scripts.lib.terminal import say
from scripts.lib.wanted import Wanted
from scripts.main import settings_from
from tasks.messages import Destination
from tasks.queue.retry import KnownJob, check, is_lost, retry
from tasks.texts import count
from workers.results.database.rows import JobRow


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
    redis = connected(settings)
    wanted = Wanted(error_class=only, stages=stages, partial=partial or bool(stages))
    known, chosen, missing, last = asyncio.run(_read(settings, job, wanted))
    job = known.job_id
    check(redis, known)
    if only or stages or not is_lost(redis, known):
        missing = []
    number = retry(known, [*chosen, *missing], attempt=last + 1, settings=settings, redis=redis)
    if not number:
        say(f"nothing to retry: {wanted.nothing(known)}")
        return 0
    say(f"asking again for {count(number, 'destination')} of job {job}")
    return follow_to_end(redis, job, settings, is_partial_failure=is_partial_failure) if wait else 0


async def _read(
    settings: Settings, job_id: str, wanted: Wanted
) -> tuple[KnownJob, list[Destination], list[Destination], int]:
    async with job_in_database(settings, job_id) as (store, row):
        return (
            _known(row),
            await wanted.of(store, row.job_id),
            [each.destination async for each in store.missing(row.job_id)],
            await store.last_attempt(row.job_id),
        )


def _known(row: JobRow) -> KnownJob:
    same = ("job_id", "name", "created_at", "options", "done", "failed", "partial")
    known: dict[str, Any] = {name: getattr(row, name) for name in same}
    return KnownJob(**known, is_sealed=row.sealed, listed=row.total or 0, cost_usd=row.usage.cost_usd)
