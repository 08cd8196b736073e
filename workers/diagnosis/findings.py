"""All findings of a job, the most pressing first."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from tasks.jobs.registry import JobStatus
from workers.diagnosis.bottleneck import EXPLAINS, diagnose
from workers.diagnosis.conditions import conditions
from workers.diagnosis.finding import Finding
from workers.diagnosis.measured import Measured, measured
from workers.diagnosis.verdict import Verdict, of_findings
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.job_stats import JobStats, read_job_stats

#: What explains nothing while a provider has the questions: idle lanes, and shares of the little time that is left.
IDLE: Final = frozenset({"work", "unknown", "llm", "redis"})


def measured_of(picture: JobMeasurements, row: JobRow, account: JobStats) -> Measured | None:
    if not picture.workers:
        return None
    # Calls of runs that failed or were stopped are the database's too, so the calls of a destination are by all runs.
    ended = max(0, account.runs - account.stopped)
    return measured(picture, total=row.total or row.finished, ended=ended, calls=row.usage.llm_calls)


def findings_of(
    status: JobStatus,
    account: JobStats,
    picture: JobMeasurements,
    m: Measured | None,
    *,
    alive: int | None,
    statements: Mapping[str, Mapping[str, float]],
) -> list[Finding]:
    special = conditions(status, account, picture, alive=alive, statements=statements)
    pressing = [each for each in special if each.share >= EXPLAINS]
    beside = [each for each in special if each not in pressing]
    measured_ones = diagnose(m) if m else []
    if any(each.resource == "batches" for each in special):
        measured_ones = [each for each in measured_ones if each.resource not in IDLE]
    first, *others = measured_ones or (None,)
    if first and first.resource not in {"work", "unknown"}:
        # Of what held it up for most of its time, the larger part leads.
        pressing = sorted([*pressing, first], key=lambda each: -each.share)
    elif first:
        pressing.append(first)
    return [*pressing, *others, *beside]


async def verdict_of_ended(
    store: AsyncDatabaseManager, row: JobRow, status: JobStatus, parts: Sequence[ProcessMeasurements]
) -> Verdict:
    """What limited a job that has ended, as its report says it; `parts` are its measurements where Redis has them."""
    account = await read_job_stats(store, row, now=time.time())
    picture = JobMeasurements.of(parts or await store.measurements(row.job_id))
    m = measured_of(picture, row, account)
    return of_findings(findings_of(status, account, picture, m, alive=None, statements={}))
