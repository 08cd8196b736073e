"""What a job page has of the results database: why destinations lack something, the model, the steps of a profile.

Counting reasons goes through all that a job lacks, so it is done for one reader at a time, and no more often than a
small share of the time allows. Others get what was counted last.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Final

from tasks.errors import DatabaseError
from tasks.jobs.registry import JobStatus
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.destination_pages import steps_and_model
from workers.results.queries.reasons import Reason, failure_reasons, partial_reasons

log = logging.getLogger("themes.dashboard")

#: Seconds that a page waits for a count; what takes longer comes with the page's next question.
WAIT_SECONDS: Final = 1.0
#: Between two counts of a job lies the time of one, so many times.
REST: Final = 20
JOBS: Final = 100
MAX_CLASSES: Final = 12
#: Kinds of message that are shown of one class.
MAX_KINDS: Final = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """Destinations that failed, or lack something, with one kind of message."""

    number: int
    outcome: str
    stages: str
    message: str
    example: str


@dataclass(slots=True)
class Problem:
    """All of one class of error, and the command that asks again for it. `failed` and `partial` count destinations."""

    error_class: str
    command: str = ""
    failed: int = 0
    partial: int = 0
    kinds: list[Kind] = field(default_factory=list)
    more_kinds: int = 0


@dataclass(frozen=True, slots=True)
class JobFacts:
    """`problems` is None until they are counted; `steps` is 0 and `model` empty before the first profile."""

    problems: list[Problem] | None = None
    more_problems: int = 0
    steps: int = 0
    model: str = ""


@dataclass(slots=True)
class _Known:
    facts: JobFacts = field(default_factory=JobFacts)
    of: tuple[int, ...] = ()
    due_at: float = float("-inf")
    task: asyncio.Task[None] | None = None


class FactsReader:
    def __init__(self) -> None:
        self._jobs: dict[str, _Known] = {}

    async def of(self, store: AsyncDatabaseManager, status: JobStatus) -> JobFacts:
        """What was counted last; of a job that has changed since, what is counted now if that is quick."""
        known = self._jobs.pop(status.job_id, None) or _Known()
        while len(self._jobs) >= JOBS:
            del self._jobs[next(iter(self._jobs))]
        self._jobs[status.job_id] = known
        is_new = known.of != (status.done, status.partial, status.failed)
        if known.task is None and is_new and time.monotonic() >= known.due_at:
            known.task = asyncio.create_task(_count(known, store, status), name=f"facts of {status.job_id}")
        if known.task is not None:
            await asyncio.wait({known.task}, timeout=WAIT_SECONDS)
        return known.facts


async def _count(known: _Known, store: AsyncDatabaseManager, status: JobStatus) -> None:
    began = time.monotonic()
    try:
        found = problems_of(
            status,
            await failure_reasons(store, status.job_id) if status.failed else [],
            await partial_reasons(store, status.job_id) if status.partial else [],
        )
        steps, model = await steps_and_model(store, status.job_id)
        known.facts = JobFacts(found[:MAX_CLASSES], max(0, len(found) - MAX_CLASSES), steps, model)
        known.of = (status.done, status.partial, status.failed)
    except DatabaseError as bad:
        log.warning("action=facts_missed job_id=%s %s", status.job_id, bad)
    finally:
        known.due_at = time.monotonic() + REST * (time.monotonic() - began)
        known.task = None


def problems_of(status: JobStatus, failures: list[Reason], gaps: list[Reason]) -> list[Problem]:
    """Reasons by class, the most frequent first. One destination may lack several things of one class."""
    found: dict[str, Problem] = {}
    for outcome, reasons in (("failed", failures), ("partial", gaps)):
        for reason in reasons:
            problem = found.setdefault(reason.error_class, Problem(reason.error_class))
            total = getattr(problem, outcome) + reason.destinations
            setattr(problem, outcome, min(total, getattr(status, outcome)))
            if len(problem.kinds) < MAX_KINDS:
                stages = ", ".join(reason.stages)
                message = reason.message.removeprefix(f"{reason.error_class}: ")
                problem.kinds.append(Kind(reason.destinations, outcome, stages, message, reason.example))
            else:
                problem.more_kinds += 1
    for problem in found.values():
        problem.command = retry_command(status.job_id, problem.error_class, partial=bool(problem.partial))
    return sorted(found.values(), key=lambda one: (-one.failed, -one.partial, one.error_class))


def retry_command(job_id: str, error_class: str = "", *, partial: bool = False) -> str:
    only = f" --only {error_class}" if error_class else ""
    return f"themes retry {job_id}{only}{' --partial' if partial else ''}"
