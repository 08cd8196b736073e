"""A job's status out of the database, where Redis does not know it."""

from typing import Any

from tasks.jobs.registry import FINAL, JobStatus
from workers.results.database.rows import JobRow


def status_of(row: JobRow, **known: Any) -> JobStatus:
    """A job's status by its row: no worker works on an unfinished one. `known` are fields that are known better."""
    names = ("job_id", "name", "done", "failed", "partial", "created_at", "started_at", "finished_at")
    usage = ("llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens", "cost_usd")
    fields = {name: getattr(row, name) for name in names} | {name: getattr(row.usage, name) for name in usage}
    state = row.state if row.state in FINAL else "stalled"
    return JobStatus(**fields | {"state": state, "total": row.total or 0} | known)
