"""Why a job is paused, in words, and what lets it go on."""

import time
from typing import Final

from tasks.jobs import budget
from tasks.jobs.registry import JobStatus
from tasks.texts import count

RESUME: Final = "themes resume"


def format_paused(known: JobStatus, *, resume: str = RESUME) -> str:
    done = f"{known.done + known.failed:,} of {count(known.total, 'destination')} finished"
    if known.paused == "user":
        return f"paused: {done}; go on with: {resume_command(known, resume=resume)}"
    then = f"mend that, then: {resume} {known.job_id}"
    if known.paused == "price":
        return f"stopped, because the model of a worker has no price (llm.prices): {done}; {then}"
    if known.paused == "team":
        at = f" at {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(known.paused_until))}" if known.paused_until else ""
        then = f"it goes on by itself{at}" if at else then
        return f"stopped at the budget of team {known.team}: {known.paused_message}; {done}; {then}"
    if known.paused == "account":
        return f"stopped, because the LLM refuses every request: {known.paused_message}; {done}; {then}"
    if known.paused == "batch":
        again = "with another --tier (answers so far are in the cache)"
        mend = f"{resume_command(known)}, and enqueue it {again}" if resume == RESUME else f"run it {again}, or {then}"
        return f"stopped, because batches cannot be used: {known.paused_message}; {done}; {mend}"
    limit, spent = known.budget_usd or 0.0, known.spent_usd or 0.0
    return (
        f"stopped at its budget: {budget.dollars(spent)} of {budget.dollars(limit)} spent, {done}; "
        f"go on with: {resume_command(known, resume=resume)}"
    )


def resume_command(known: JobStatus, job_id: str | None = None, *, resume: str = RESUME) -> str:
    """What lets a paused job go on, by its id or another name of it; what ends it, where nothing does."""
    if known.paused == "batch":
        return f"themes cancel {job_id or known.job_id}"
    more = (
        f" --budget {2 * max(known.budget_usd or 0.0, known.spent_usd or 0.0):.4g}" if known.paused == "budget" else ""
    )
    return f"{resume} {job_id or known.job_id}{more}"
