"""Jobs as the results database has them: where Redis does not know a job, or is not there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from config.settings import Settings
from scripts.lib.connections import connected
from tasks.errors import DatabaseError, JobNotFoundError, RedisUnavailableError
from tasks.jobs import registry
from tasks.jobs.registry import JobStatus
from tasks.jobs.short_ids import is_whole
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.status import status_of, whole_id


@asynccontextmanager
async def database_if_any(settings: Settings) -> AsyncIterator[AsyncDatabaseManager | None]:
    """The results database, opened for reading; None where there is none yet. Raises DatabaseError."""
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        is_there = store.exists()
        if is_there:
            await store.open()
        yield store if is_there else None
    finally:
        await store.close()


@asynccontextmanager
async def job_in_database(settings: Settings, job_id: str) -> AsyncIterator[tuple[AsyncDatabaseManager, JobRow]]:
    """The results database, opened for reading, and a job's row by its id or a short one.

    Raises DatabaseError or JobNotFoundError.
    """
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        await store.open()
        row = await store.job(await whole_id(store, job_id))
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        yield store, row
    finally:
        await store.close()


async def known_id(settings: Settings, text: str) -> str:
    """The id of the job that a short id means, by the database or else Redis; the text itself where none."""
    found = text
    if not is_whole(text):
        with suppress(DatabaseError):
            async with database_if_any(settings) as store:
                found = text if store is None else await whole_id(store, text)
        if found == text and settings.redis.enabled:
            with suppress(RedisUnavailableError):
                found = registry.whole_id(connected(settings), text)
    return found


async def stored_statuses(settings: Settings) -> list[JobStatus]:
    """Every job in the database, the newest first; none where there is no database yet."""
    async with database_if_any(settings) as store:
        return [] if store is None else [status_of(row) for row in await store.jobs()]
