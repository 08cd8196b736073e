"""A job's status out of the database, where Redis does not know it."""

from typing import Any

from sqlalchemy import or_, select

from tasks.jobs.registry import FINAL, JobStatus
from tasks.jobs.short_ids import is_whole, the_one
from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow


def status_of(row: JobRow, **known: Any) -> JobStatus:
    """A job's status by its row: no worker works on an unfinished one. `known` are fields that are known better."""
    names = ("job_id", "name", "done", "failed", "partial", "created_at", "started_at", "finished_at")
    usage = (
        "llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens", "cached_tokens",
        "reasoning_tokens", "cost_usd",
    )  # fmt: skip
    fields = {name: getattr(row, name) for name in names} | {name: getattr(row.usage, name) for name in usage}
    state = row.state if row.state in FINAL else "stalled"
    return JobStatus(**fields | {"state": state, "total": row.total or 0} | known)


async def whole_id(store: AsyncDatabaseManager, text: str) -> str:
    """The id of the job that a short id means; the text itself where it means none that the database has."""
    if is_whole(text):
        return text
    job_id = tables.jobs.c.job_id
    like = or_(job_id.startswith(text, autoescape=True), job_id.contains(f"-{text}", autoescape=True))
    async with store.reading() as connection:
        found = list((await connection.execute(select(job_id).where(like))).scalars())
    return the_one(text, found) or text
