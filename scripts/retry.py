"""`themes retry`: what a job has no profile for is asked again."""

import asyncio

import click

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.lib.follow import follow_to_end, last_event_id
from scripts.lib.partial import fail_on_partial
from scripts.lib.stored import job_in_database
from scripts.lib.terminal import say
from scripts.lib.wanted import Wanted
from scripts.main import settings_from
from tasks.texts import count
from workers.results.queries.retrying import Candidates, ask_again, candidates


@click.command(epilog="Example: themes retry df5a3a --partial --wait")
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
    found = asyncio.run(_read(settings, job, wanted))
    job = found.known.job_id
    # What failed before is no part of what is shown.
    after = last_event_id(redis, job)
    number = ask_again(found, is_narrow=bool(only or stages), settings=settings, redis=redis)
    if not number:
        say(f"nothing to retry: {wanted.nothing(found.known)}")
        return 0
    say(f"asking again for {count(number, 'destination')} of job {job}")
    return follow_to_end(redis, job, settings, after=after, is_partial_failure=is_partial_failure) if wait else 0


async def _read(settings: Settings, job_id: str, wanted: Wanted) -> Candidates:
    async with job_in_database(settings, job_id) as (store, row):
        return await candidates(store, row, await wanted.of(store, row.job_id))
