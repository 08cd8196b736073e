"""What a retry asks again, out of the database, and the asking: for the verb and for the dashboard."""

from dataclasses import dataclass
from typing import Any

from redis import Redis

from config.settings import Settings
from tasks.messages import Destination
from tasks.queue.retry import KnownJob, check, is_lost, retry
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow


@dataclass(frozen=True, slots=True)
class Candidates:
    """A job's destinations that were chosen, those without any outcome, and the last attempt of any."""

    known: KnownJob
    chosen: list[Destination]
    missing: list[Destination]
    last_attempt: int


async def candidates(store: AsyncDatabaseManager, row: JobRow, chosen: list[Destination]) -> Candidates:
    missing = [each.destination async for each in store.missing(row.job_id)]
    return Candidates(known_job(row), chosen, missing, await store.last_attempt(row.job_id))


def ask_again(found: Candidates, *, is_narrow: bool, settings: Settings, redis: Redis) -> int:
    """Enqueue what was chosen, and what is lost unless the choice `is_narrow`; returns how many these are. Blocks.

    Raises:
        ConfigError: the job cannot be retried now.
        RedisUnavailableError: Redis cannot be used.
    """
    check(redis, found.known)
    missing = [] if is_narrow or not is_lost(redis, found.known) else found.missing
    again = [*found.chosen, *missing]
    return retry(found.known, again, attempt=found.last_attempt + 1, settings=settings, redis=redis)


def known_job(row: JobRow) -> KnownJob:
    same = ("job_id", "name", "created_at", "options", "done", "failed", "partial")
    known: dict[str, Any] = {name: getattr(row, name) for name in same}
    return KnownJob(**known, is_sealed=row.sealed, listed=row.total or 0, cost_usd=row.usage.cost_usd)
