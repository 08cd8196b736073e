"""What a batch asks of the database before it writes: how its jobs and destinations stand, and what they have cost.

Each question is one visit to the driver, for any number of ids: these travel as one value.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Dialect, Select, Text, any_, bindparam, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from workers.results.database import tables
from workers.results.database.rows import JobRow
from workers.results.database.statements import Statement, StatementStatistics

_J, _D, _A, _P = tables.jobs, tables.destinations, tables.attempts, tables.profiles
_M, _T = tables.missing, tables.profile_themes
_ZERO: Final[ColumnElement[int]] = literal_column("0")
_ONE: Final[ColumnElement[int]] = literal_column("1")
_USAGE_COLUMNS: Final = [_D.c[name] for name in tables.USAGE_COLUMNS]

_STATES: Final = select(
    _D.c.destination_id, _D.c.name, _D.c.country, _D.c.state, _D.c.partial, _D.c.attempt,
    # Whether there can be runs of it.
    or_(_D.c.attempt >= _ZERO, _D.c.cost_usd.is_(None), *(column != _ZERO for column in _USAGE_COLUMNS)),
)  # fmt: skip
#: Profiles of destinations that are asked again: their attempt, and how good they are.
_KEPT_PROFILES: Final = select(
    _P.c.destination_id,
    _P.c.attempt,
    _P.c.status,
    select(func.count(_M.c.stage.distinct())).where(_M.c.profile_no == _P.c.profile_no).scalar_subquery(),
    select(func.count()).where(_T.c.profile_no == _P.c.profile_no).scalar_subquery(),
)
#: Profiles that fields are added to.
_STORED: Final = select(
    _P.c.destination_id, _P.c.name, _P.c.country, _P.c.status, _P.c.model, _P.c.pipeline_version, _P.c.stages,
    _P.c.missing, _P.c.elapsed_ms, _P.c.created_at, _P.c.payload,
)  # fmt: skip
_NEXT: Final = select(
    select(func.coalesce(func.max(_P.c.profile_no), _ZERO) + _ONE).scalar_subquery(),
    select(func.coalesce(func.max(_T.c.theme_no), _ZERO) + _ONE).scalar_subquery(),
)


class _About:
    """A question about some destinations of a job."""

    def __init__(self, dialect: Dialect, name: str, query: Select[Any], table: Any) -> None:
        self._is_sqlite = dialect.name == "sqlite"
        query = query.where(table.c.job_id == bindparam("of_job"), _among(table.c.destination_id, dialect))
        self._statement = Statement(dialect, name, query)
        if self._statement.columns != ("of_job", "ids"):
            raise AssertionError(f"{name}: asks {self._statement.columns}")

    async def of(
        self, connection: AsyncConnection, job_id: str, ids: Sequence[str], times: StatementStatistics
    ) -> Sequence[Any]:
        return await self._statement.fetch(connection, (job_id, _listed(ids, is_sqlite=self._is_sqlite)), times)


class Asked:
    """The questions in one dialect, compiled."""

    def __init__(self, dialect: Dialect) -> None:
        self._is_sqlite = dialect.name == "sqlite"
        self._jobs = Statement(dialect, "select jobs", select(_J).where(_among(_J.c.job_id, dialect)))
        self.states = _About(dialect, "select destinations", _STATES, _D)
        self.kept = _About(dialect, "select kept profiles", _KEPT_PROFILES, _P)
        self.runs = _About(
            dialect, "select attempts", select(_A.c.destination_id, _A.c.attempt, _A.c.worker, _A.c.at), _A
        )
        self.usage = _About(dialect, "select usage", select(_D.c.destination_id, *_USAGE_COLUMNS), _D)
        self.profiles = _About(dialect, "select profiles", select(_P.c.destination_id, _P.c.profile_no), _P)
        self.stored = _About(dialect, "select stored profiles", _STORED, _P)
        #: The next free numbers of profiles and themes; the transaction that asks holds the lock.
        self.numbers = Statement(dialect, "select numbers", _NEXT)

    async def jobs(
        self, connection: AsyncConnection, ids: Iterable[str], times: StatementStatistics
    ) -> dict[str, JobRow]:
        found = await self._jobs.fetch(connection, (_listed([*ids], is_sqlite=self._is_sqlite),), times)
        names = _J.c.keys()
        rows = (JobRow.of(dict(zip(names, row, strict=True))) for row in found)
        return {row.job_id: row for row in rows}


def _among(column: Column[Any], dialect: Dialect) -> ColumnElement[bool]:
    """That a column is one of the ids in the parameter `ids`."""
    if dialect.name == "sqlite":
        each = func.json_each(bindparam("ids")).table_valued("value")
        return column.in_(select(each.c.value))
    from sqlalchemy.dialects.postgresql import ARRAY  # late: a tenth of a second that SQLite's users need not wait for

    return column == any_(bindparam("ids", type_=ARRAY(Text)))


def _listed(ids: Sequence[str], *, is_sqlite: bool) -> Any:
    return json.dumps(ids) if is_sqlite else list(ids)
