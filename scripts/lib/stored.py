"""Jobs as the results database has them: where Redis does not know a job, or is not there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from config.settings import Settings
from tasks.errors import JobNotFoundError
from tasks.jobs.registry import JobStatus
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.status import status_of


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
    """The results database, opened for reading, and this job's row. Raises DatabaseError or JobNotFoundError."""
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        await store.open()
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        yield store, row
    finally:
        await store.close()


async def stored_statuses(settings: Settings) -> list[JobStatus]:
    """Every job in the database, the newest first; none where there is no database yet."""
    async with database_if_any(settings) as store:
        return [] if store is None else [status_of(row) for row in await store.jobs()]
