"""A job's status out of the database, where Redis does not know it."""

from tasks.jobs.registry import FINAL, JobStatus
from workers.results.database.rows import JobRow


def status_of(row: JobRow) -> JobStatus:
    """How a job stands by the database alone: an unfinished one that Redis has forgotten is worked on by nobody."""
    usage = row.usage
    return JobStatus(
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
