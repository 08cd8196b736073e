"""What is said at a job's end about its partial profiles: why, and how to ask again for what they lack."""

import asyncio
from typing import TYPE_CHECKING, Final

import click

from config.settings import Settings
from tasks.errors import ThemesError
from tasks.jobs.registry import JobStatus
from tasks.texts import clean_line, count

if TYPE_CHECKING:
    from workers.results.database.manager import AsyncDatabaseManager

#: Reasons that are named; `themes failures JOB --partial` has all.
MAX_REASONS: Final = 4
MAX_STAGES: Final = 3

fail_on_partial = click.option(
    "--fail-on-partial", "is_partial_failure", is_flag=True, help="Exit 1 also when any profile is partial."
)


def partial_lines(settings: Settings, status: JobStatus) -> list[str]:
    """The lines about a job's partial profiles; none where it has none. Without the database, no reasons."""
    if not status.partial:
        return []
    # Late: a job without partial profiles needs no database.
    from scripts.lib.stored import job_in_database

    async def read() -> list[str]:
        async with job_in_database(settings, status.job_id) as (store, _):
            verb = "retry" if settings.redis.enabled else "run --resume"
            return await lines_of(store, status, again=f"themes {verb} {status.job_id} --partial")

    try:
        return asyncio.run(read())
    except ThemesError as exc:
        return [f"{_of_profiles(status)}; why cannot be read here: {exc}"]


def _of_profiles(status: JobStatus) -> str:
    return f"{status.partial:,} of {count(status.done, 'profile')} {'is' if status.partial == 1 else 'are'} partial"


async def lines_of(store: "AsyncDatabaseManager", status: JobStatus, *, again: str) -> list[str]:
    """As `partial_lines`, out of a database that is open; `again` is the command that asks for what is missing."""
    from workers.results.queries.reasons import partial_reasons, stages_of_partial

    if not status.partial:
        return []
    reasons = await partial_reasons(store, status.job_id)
    total = await stages_of_partial(store, status.job_id)
    lines = [f"{_of_profiles(status)}:"]
    for reason in reasons[:MAX_REASONS]:
        names = sorted(reason.stages)
        what = names[0] if len(names) == 1 else f"{len(names)} of {count(total, 'stage')}"
        more = [f"{len(names) - MAX_STAGES} more"] if names[MAX_STAGES:] else []
        named = "" if len(names) == 1 else f" ({', '.join([*names[:MAX_STAGES], *more])})"
        said = clean_line(f"{reason.error_class}: {reason.message}" if reason.error_class else reason.message)
        # Where destinations lack different stages, how many they are together is not known.
        is_each = len({*reason.stages.values()}) == 1
        lack = "lack" if is_each else "or more lack some of"
        lines.append(f"  {reason.destinations} {lack} {what}{named}: {said}")
    if len(reasons) > MAX_REASONS:
        lines.append(
            f"  and {count(len(reasons) - MAX_REASONS, 'other reason')}: themes failures {status.job_id} --partial"
        )
    return [*lines, f"ask again for what they lack: {again}"]
