"""A job in words: its figures in one line, and a line a job for lists."""

from collections.abc import Sequence
from typing import Final

from scripts.lib.terminal import columns
from tasks.jobs.budget import dollars
from tasks.jobs.pauses import RESUME, format_paused, resume_command
from tasks.jobs.registry import JobStatus
from tasks.jobs.short_ids import short_ids
from tasks.texts import clean_line, count, duration

#: What is said of a job that is not finished and that no worker goes on with.
STALLED: Final = "stalled: is a worker running?"


def exit_code(status: JobStatus, *, is_partial_failure: bool) -> int:
    """0 where every destination has a profile, else 1; also 1 for a partial profile where that `is_partial_failure`."""
    return 0 if status.succeeded and not (is_partial_failure and status.partial) else 1


def state_of(status: JobStatus) -> str:
    """A job's state in one word: JSON calls a paused job stalled too."""
    return "paused" if status.paused else "waiting" if status.wait else status.state


def figures(status: JobStatus) -> list[str]:
    """A job's figures, the most important first."""
    found = [f"{status.done + status.failed:,}/{status.total:,} finished"]
    found += [
        f"{number:,} {what}" for number, what in ((status.failed, "failed"), (status.partial, "partial")) if number
    ]
    found += [rate(status), time_of(status)]
    found += [count(status.llm_calls, "call"), count(status.cache_hits, "cache hit")]
    tokens = (status.prompt_tokens + status.completion_tokens) / 1000
    found.append(f"{tokens / 1000:,.1f}M tokens" if tokens >= 1000 else f"{tokens:.0f}k tokens")  # noqa: PLR2004
    if status.cached_tokens:
        found[-1] += f" ({status.cached_tokens / 1000:,.0f}k cached)"
    if status.cost_usd:
        found.append(dollars(status.cost_usd))
    return [figure for figure in found if figure]


def summary(status: JobStatus, *, resume: str = RESUME, stalled: str = STALLED) -> str:
    """A job's figures in one line; `resume` lets a paused job go on, `stalled` is said of one that no worker has."""
    parts = [f"{status.name}: {state_of(status)}", *figures(status)]
    if status.team:
        parts.append(f"team {status.team}")
    if status.only_fields:
        parts.append(f"only {', '.join(status.only_fields)}")
    if status.waiting_for:
        parts.append(f"waiting: {status.waiting_for}")
    return "  ".join([*parts, *standstill(status, resume=resume, stalled=stalled)])


def standstill(status: JobStatus, *, resume: str = RESUME, stalled: str = STALLED) -> list[str]:
    """Why a job does not go on by itself, and what lets it; nothing where it does."""
    if status.paused == "user":
        return [f"go on with: {resume_command(status, resume=resume)}"]
    if status.paused:
        return [format_paused(status, resume=resume)]
    return [stalled] if status.state == "stalled" else []


def batch_lines(status: JobStatus) -> list[str]:
    """The line about a job's batches at providers; nothing where it has none."""
    return [status.batches.format()] if status.batches else []


def rate(status: JobStatus) -> str:
    return f"{status.rate_per_second:,.1f}/s" if status.rate_per_second and not status.is_final else ""


def _under_way(status: JobStatus) -> str:
    return count(status.batches.under_way, "batch") if status.batches and status.batches.under_way else ""


def time_of(status: JobStatus) -> str:
    """The time that is left, or the time that it took."""
    if status.eta_seconds is not None:
        return f"{duration(max(1.0, status.eta_seconds))} left"
    return "" if status.seconds is None else f"took {duration(status.seconds)}"


def job_lines(known: Sequence[JobStatus], *, width: int | None = None) -> list[str]:
    """A line a job: short id, state, finished of total, failed, rate, time, name. A paused one says what resumes it."""
    short = short_ids(status.job_id for status in known)
    goes_on = [
        (
            "" if status.paused or not status.failed else f"{status.failed:,} failed",
            rate(status) or _under_way(status), time_of(status),
        )
        for status in known
    ]  # fmt: skip
    middle = columns(goes_on, right=(0, 1)) or [""] * len(known)
    rows = []
    for status, now in zip(known, middle, strict=True):
        what = resume_command(status, short[status.job_id]) if status.paused else now
        finished = "" if status.unreadable else f"{status.done + status.failed:,}/{status.total:,}"
        name = f"{status.name}: {clean_line(status.unreadable)}" if status.unreadable else status.name
        rows.append((short[status.job_id], state_of(status), finished, what, name))
    return columns(rows, right=(2,), width=width)
