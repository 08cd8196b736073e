"""What earlier jobs have measured of a model: what a stage's answers cost, and how fast calls went out.

Bounded work, however large the database is: some of the newest jobs, some profiles of each, all by indexes.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from sqlalchemy import func, select

from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager

#: The newest jobs that are looked at, and of these the ones with the model that are measured.
LOOKED_AT: Final = 200
MAX_JOBS: Final = 10
#: Profiles of each job. An index gives them in the order of their ids, which are hashes: as good as by chance.
PROFILES: Final = 100


@dataclass(frozen=True, slots=True)
class StageMeasured:
    """What one stage of one destination took where nothing was cached: means, calls that were made again included."""

    calls: float
    prompt_tokens: float
    completion_tokens: float


@dataclass(frozen=True, slots=True)
class Earlier:
    """What some earlier jobs have measured. `calls_per_second` is the median job's; None where none is known."""

    jobs: int = 0
    calls_per_second: float | None = None
    #: By stage, then by the model that answered.
    stages: Mapping[str, Mapping[str, StageMeasured]] = field(default_factory=dict)

    def of(self, stage: str, model: str | None) -> StageMeasured | None:
        """What a stage took with a model that a user asks for."""
        known = self.stages.get(stage, {})
        return next((known[answered] for answered in known if model and is_model(answered, model)), None)


def is_model(answered: str, asked: str) -> bool:
    """Whether a server that was asked for a model may call it so: gpt-4o is gpt-4o-2024-08-06, too."""
    return answered == asked or re.fullmatch(rf"{re.escape(asked)}-[0-9-]+", answered) is not None


async def earlier_jobs(store: AsyncDatabaseManager, models: Collection[str]) -> Earlier:
    """What the newest jobs with any of some models have measured."""
    j, p, s = tables.jobs, tables.profiles, tables.stages
    first = select(p.c.model).where(p.c.job_id == j.c.job_id).limit(1).scalar_subquery()
    newest = (
        select(j.c.job_id, j.c.llm_calls, j.c.started_at, j.c.finished_at, first.label("model"))
        .where(j.c.llm_calls > 0)
        .order_by(j.c.created_at.desc())
        .limit(LOOKED_AT)
    )
    async with store.reading() as connection:
        rows = (await connection.execute(newest)).all()
        used = [row for row in rows if row.model and any(is_model(row.model, model) for model in models)][:MAX_JOBS]
        numbers: list[int] = []
        for row in used:
            some = select(p.c.profile_no).where(p.c.job_id == row.job_id).order_by(p.c.destination_id).limit(PROFILES)
            numbers += (await connection.execute(some)).scalars()
        sums = (func.sum(s.c[name]) for name in ("llm_calls", "prompt_tokens", "completion_tokens"))
        measured = (
            select(s.c.stage, s.c.model, func.count(), *sums)
            .where(s.c.profile_no.in_(numbers), s.c.source == "called", s.c.llm_calls > 0, s.c.model.is_not(None))
            .group_by(s.c.stage, s.c.model)
        )
        found: list[Any] = list((await connection.execute(measured)).all()) if numbers else []
    stages: dict[str, dict[str, StageMeasured]] = {}
    for stage, model, count, *totals in found:
        stages.setdefault(stage, {})[model] = StageMeasured(*(float(total) / count for total in totals))
    rates = [
        row.llm_calls / (row.finished_at - row.started_at)
        for row in used
        if row.started_at is not None and row.finished_at is not None and row.finished_at > row.started_at
    ]
    return Earlier(len(used), median(rates) if rates else None, stages)
