"""Why a job's destinations failed or are partial, in few lines: grouped by class and message, numbers left out.

The database counts equal messages; here those that differ in numbers alone become one, so what is held is bounded by
the kinds of message, not by the job.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import ColumnElement, Table, func, literal, select

from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager

#: Numbers, ids and digests: what tells apart two messages of one kind.
_NUMBERS: Final = re.compile(r"\b[0-9a-f]{8,}\b|\d[\d,._:]*")
#: The class of an error in front of its message, as the pipeline writes a reason.
_CLASS: Final = re.compile(r"([A-Z][A-Za-z]*): (.*)", re.DOTALL)
#: Kinds that are told apart; those in addition are counted as one of their class.
MAX_KINDS: Final = 1_000
OTHERS: Final = "and others"
#: Destinations of a kind that are named.
MAX_PLACES: Final = 3


@dataclass(slots=True)
class Reason:
    """One kind of reason. `message` is one of its messages; `destinations` how many it concerns."""

    error_class: str
    message: str
    #: Some of the destinations, as people name them; at most `MAX_PLACES`.
    places: list[str] = field(default_factory=list)
    destinations: int = 0
    #: Stage -> destinations that lack something of it, or failed at it, for this reason.
    stages: dict[str, int] = field(default_factory=dict)

    @property
    def example(self) -> str:
        return self.places[0] if self.places else ""

    def add(self, stage: str, count: int, places: Sequence[str] = ()) -> None:
        """Count destinations of one stage. One that lacks several stages for one reason counts once."""
        self.places = sorted({*self.places, *places})[:MAX_PLACES]
        self.stages[stage] = self.stages.get(stage, 0) + count
        self.destinations = max(self.destinations, self.stages[stage])


def kind(text: str) -> str:
    """A message without what differs from one destination to the next."""
    return _NUMBERS.sub("#", text)


def split(reason: str) -> tuple[str, str]:
    """Class and message of a reason as a profile has it; the class is empty where it names none."""
    found = _CLASS.fullmatch(reason)
    return (found[1], found[2]) if found else ("", reason)


def without_class(error_class: str, message: str) -> str:
    """A message that does not name its class again, as older versions wrote it."""
    return message.removeprefix(f"{error_class}: ") if error_class else message


async def partial_reasons(store: AsyncDatabaseManager, job_id: str, *, by_stage: bool = False) -> list[Reason]:
    """What partial profiles of a job lack, and why, the most frequent first; each stage by itself with `by_stage`."""
    missing, profiles = tables.missing, tables.profiles
    query = (
        select(
            missing.c.stage,
            missing.c.reason,
            func.min(_label(profiles)),
            func.max(_label(profiles)),
            func.count(missing.c.profile_no.distinct()),
        )
        .join_from(missing, profiles, missing.c.profile_no == profiles.c.profile_no)
        .where(profiles.c.job_id == job_id)
        .group_by(missing.c.stage, missing.c.reason)
    )
    found = _Kinds(by_stage=by_stage)
    async with store.reading() as connection:
        async for stage, reason, first, last, count in await connection.stream(query):
            found.add(stage, *split(reason), (first, last), count)
    return found.ranked()


async def failure_reasons(store: AsyncDatabaseManager, job_id: str) -> list[Reason]:
    """Why destinations of a job failed, by class, stage and message, the most frequent first."""
    table, names = tables.failures, tables.destinations
    query = (
        select(
            table.c.stage,
            table.c.error_class,
            table.c.message,
            func.min(_label(names)),
            func.max(_label(names)),
            func.count(),
        )
        .join_from(names, table)
        .where(table.c.job_id == job_id)
        .group_by(table.c.stage, table.c.error_class, table.c.message)
    )
    found = _Kinds(by_stage=True)
    async with store.reading() as connection:
        async for stage, error_class, message, first, last, count in await connection.stream(query):
            found.add(stage, error_class, message, (first, last), count)
    return found.ranked()


async def stages_of_partial(store: AsyncDatabaseManager, job_id: str) -> int:
    """How many stages a partial profile of a job has; 0 where there is none."""
    stages, profiles = tables.stages, tables.profiles
    one = select(profiles.c.profile_no).where(profiles.c.job_id == job_id, profiles.c.status == "partial").limit(1)
    query = select(func.count()).select_from(stages).where(stages.c.profile_no == one.scalar_subquery())
    async with store.reading() as connection:
        return int((await connection.execute(query)).scalar_one())


def _label(table: Table) -> ColumnElement[str]:
    return table.c.name + func.coalesce(literal(", ") + table.c.country, "")


class _Kinds:
    """Reasons while they are counted; each stage by itself with `by_stage`."""

    def __init__(self, *, by_stage: bool) -> None:
        self._by_stage = by_stage
        self._found: dict[tuple[str, str, str], Reason] = {}

    def add(self, stage: str, error_class: str, message: str, places: Sequence[str], count: int) -> None:
        message = without_class(error_class, message)
        key = (error_class, kind(message), stage if self._by_stage else "")
        if key not in self._found and len(self._found) >= MAX_KINDS:
            key, message = (error_class, OTHERS, key[2]), OTHERS
        self._found.setdefault(key, Reason(error_class, message)).add(stage, count, places)

    def ranked(self) -> list[Reason]:
        """Those of most destinations first, then those of most stages."""
        found = self._found.values()
        return sorted(found, key=lambda one: (-one.destinations, -len(one.stages), one.error_class, one.message))
