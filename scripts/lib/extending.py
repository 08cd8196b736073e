"""Which profiles of a job lack fields that are to be added, and the asking for them, a page at a time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from redis import Redis

from config.settings import Settings
from tasks.errors import ConfigError
from tasks.jobs.registry import options_of
from tasks.messages import Addition, Destination, JobOptions
from tasks.packed import stages_of as records_of
from tasks.queue.retry import check, has_nothing_left, retry
from workers.pipeline.fields import canonical, matching, needed
from workers.pipeline.prompts import Stage
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import FINAL_STATES, ExportRow, JobRow
from workers.results.queries.retrying import known_job

#: Destinations whose themes are held in memory at once: some 5 KB each.
PAGE: Final = 5_000


@dataclass(slots=True)
class Extended:
    """How many profiles get fields, had them before, and are still held by workers; destinations without a profile."""

    asked: int = 0
    had: int = 0
    held: int = 0
    without: int = 0


class Extension:
    """Adds fields to the profiles of a job.

    Args:
        stages: all that there are.
        fields: names or patterns.

    Raises:
        ConfigError: a name means no field, or all of them mean `themes`, which every profile has.
    """

    def __init__(self, stages: Sequence[Stage], fields: Sequence[str]) -> None:
        self._stages = stages
        try:
            self._wanted = [one for one in matching(stages, fields) if one.asks != "new themes"]
        except ConfigError as exc:
            raise ConfigError(f"--fields: {exc}") from exc
        if not self._wanted:
            raise ConfigError("--fields: every profile has its themes; name what is to be added to them")

    def options(self, before: JobOptions, budget_usd: float | None) -> JobOptions:
        """What the job makes from now on."""
        names = [one.name for one in self._wanted]
        fields = canonical(self._stages, [*before.fields, *names]) if before.fields else ()
        budget = before.budget_usd if budget_usd is None else budget_usd
        return msgspec.structs.replace(before, fields=fields, budget_usd=budget, is_in_process=False)

    def of(self, stored: ExportRow) -> Destination | None:
        """A destination with what its profile is asked for; None where it has all of it."""
        row = stored.row
        whole = {record.stage for record in records_of(row.stages) if record.status == "ok"}
        lacking = [one.name for one in self._wanted if one.name not in whole]
        if not lacking:
            return None
        about = [one for one in needed(self._stages, lacking) if one.asks != "new themes"]
        addition = Addition(
            stages=tuple(one.name for one in about if one.name not in whole),
            themes=tuple((theme.category, theme.name) for theme in row.profile().themes),
        )
        return Destination(
            row.destination_id, row.name, row.country, stored.region, stored.lat, stored.lon, row.extra, addition
        )


async def extend(
    store: AsyncDatabaseManager,
    job: JobRow,
    extension: Extension,
    *,
    budget_usd: float | None,
    settings: Settings,
    redis: Redis,
) -> Extended:
    """Ask for what the profiles of a job lack. Blocks while it enqueues.

    Raises:
        ConfigError: the job has not ended, or is paused.
        RedisUnavailableError: Redis cannot be used; `extend` may be repeated.
    """
    known = known_job(job)
    check(redis, known)
    if job.state not in FINAL_STATES and not has_nothing_left(redis, job.job_id):
        raise ConfigError(f"job {job.job_id} is {job.state}: fields are added when it has ended")
    options = extension.options(options_of(job.options), budget_usd)
    attempt = await store.last_attempt(job.job_id) + 1
    found = Extended()
    async for page in _pages(store, job.job_id, extension, found):
        asked = retry(
            replace(known, options=job.options), page, attempt=attempt, settings=settings, redis=redis, adds=options
        )
        found.asked += asked
        found.held += len(page) - asked
    found.without = (job.total or 0) - found.asked - found.had - found.held
    return found


async def _pages(
    store: AsyncDatabaseManager, job_id: str, extension: Extension, found: Extended
) -> AsyncIterator[list[Destination]]:
    page: list[Destination] = []
    async for row in store.exported(job_id):
        lacking = extension.of(row)
        if lacking is None:
            found.had += 1
            continue
        page.append(lacking)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
