"""How a job stands by the results database alone, where Redis does not know it or is not there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from config.settings import Settings
from tasks.jobs import FINAL, JobStatus
from workers.results.rows import JobRow
from workers.results.store import AsyncDatabaseManager


def stored_status(row: JobRow, **more: Any) -> JobStatus:
    """A job's status from its row; unfinished, nobody works on it. `more` are fields that are known better."""
    usage = row.usage
    status = JobStatus(
        job_id=row.job_id,
        name=row.name,
        state=row.state if row.state in FINAL else "stalled",
        total=row.total or 0,
        done=row.done,
        failed=row.failed,
        partial=row.partial,
        llm_calls=usage.llm_calls,
        cache_hits=usage.cache_hits,
        coalesced=usage.coalesced,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=usage.cost_usd,
        rate_per_second=0.0,
        eta_seconds=None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
    return replace(status, **more)


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
