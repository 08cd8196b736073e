"""`themes extend`: fields are added to the profiles of a job that has ended."""

import asyncio

import click

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.lib.extending import Extended, Extension, extend
from scripts.lib.follow import follow_to_end, last_event_id
from scripts.lib.partial import fail_on_partial
from scripts.lib.stored import job_in_database
from scripts.lib.terminal import say, say_unpriced
from scripts.main import settings_from
from tasks.jobs.budget import check, unpriced
from tasks.texts import count
from workers.pipeline.prompts import stages_of


@click.command(epilog="Example: themes extend df5a3a --fields rationale,price --budget 5")
@click.argument("job", metavar="JOB")
@click.option("--fields", metavar="NAMES", required=True, help="What is added (rationale,price), by name or pattern.")
@click.option("--budget", type=float, metavar="USD", help="What the whole job may cost, what is spent included.")
@click.option("--wait", is_flag=True, help="Watch the job and end with it; exit 1 when any destination failed.")
@fail_on_partial
def command(job: str, *, fields: str, budget: float | None, wait: bool, is_partial_failure: bool) -> int:
    """Add fields to the finished profiles of JOB; their themes stay, only what they lack is asked and paid."""
    settings = settings_from()
    if budget is not None:
        check(budget, settings)
    extension = Extension(stages_of(settings), [name for part in fields.split(",") if (name := part.strip())])
    job_id, after, found = asyncio.run(_extend(settings, job, extension, budget))
    for number, what in (
        (found.had, "had all of it before"),
        (found.without, "have no profile (`themes retry` asks for one)"),
        (found.held, "are with workers"),
    ):
        if number:
            say(f"{number:,} of job {job} {what}")
    if not found.asked:
        say("nothing to add")
        return 0
    say(f"adding fields to {count(found.asked, 'profile')} of job {job}")
    say_unpriced(unpriced(settings))
    redis = connected(settings)
    return follow_to_end(redis, job_id, settings, after=after, is_partial_failure=is_partial_failure) if wait else 0


async def _extend(
    settings: Settings, job: str, extension: Extension, budget: float | None
) -> tuple[str, str, Extended]:
    """The job's id, its last event before, and what was asked."""
    redis = connected(settings)
    async with job_in_database(settings, job) as (store, row):
        after = last_event_id(redis, row.job_id)
        found = await extend(store, row, extension, budget_usd=budget, settings=settings, redis=redis)
        return row.job_id, after, found
