"""How a job stands by the results database alone, where Redis does not know it or is not there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from config.settings import Settings
from tasks.jobs.registry import JobStatus
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.status import status_of


def stored_status(row: JobRow, **more: Any) -> JobStatus:
    """A job's status from its row; unfinished, nobody works on it. `more` are fields that are known better."""
    return status_of(row, **more)


async def stored_statuses(settings: Settings) -> list[JobStatus]:
    """Every job in the database, the newest first; none where there is no database yet."""
    async with _open(settings) as store:
        return [] if store is None else [stored_status(row) for row in await store.jobs()]


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[AsyncDatabaseManager | None]:
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        if not store.exists():
            yield None
            return
        await store.open()
        yield store
    finally:
        await store.close()
