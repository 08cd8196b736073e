"""Counters over all jobs, kept in the database in the same transaction as the runs that they count.

A run counts once, when it is new: so the counters equal the sums over `attempts`, whatever is delivered twice, and they
only rise. Redis is told the values after the commit (`announce`); with several consumers the higher value stays.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Dialect, bindparam, case, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks import keys
from tasks.jobs.budget import NANO
from tasks.jobs.totals import NAMES, SUMS
from tasks.lua import lua
from tasks.messages import Result, Spent, Usage
from workers.results.database import tables
from workers.results.database.statements import Statement, StatementStatistics, insert

#: The row that tells one database from another: when its counters began, in microseconds since 1970.
SINCE: Final = "since"
#: The most that one batch may add: nothing real comes near, and what garbage claims cannot overflow a counter.
MAX_ADDED: Final = 2**53
#: The value above which a counter stands still: with `MAX_ADDED` it stays below what 64 bits hold.
MAX_TOTAL: Final = 1_000 * MAX_ADDED
#: How a run ended -> the counter of such runs.
_BY_END: Final = {
    "ok": "destinations_ok",
    "partial": "destinations_partial",
    "failed": "destinations_failed",
    "stopped": "stopped_runs",
    "lost": "lost_runs",
}

_FIELDS: Final = Usage.__struct_fields__
_values = msgspec.structs.astuple

_WRITE: Final = lua(__file__, "write_totals")


def ended(run: Result | Spent) -> str:
    """How a run ended, as `attempts` says it."""
    if isinstance(run, Spent):
        return "lost" if run.lost else "stopped"
    return run.profile.status if run.profile else "failed"


def counted(runs: Collection[Result | Spent]) -> dict[str, int]:
    columns = dict(zip(_FIELDS, zip(*(_values(run.usage) for run in runs), strict=True), strict=True))
    added = {name: sum(columns[name]) for name in SUMS}
    for name, dollars in (("cost_nano_usd", "cost_usd"), ("saved_nano_usd", "saved_usd")):
        added[name] = sum(nano(usd) or 0 for usd in columns[dollars])
    unpriced = zip(columns["llm_calls"], columns["cost_usd"], strict=True)
    added["unpriced_calls"] = sum(calls for calls, usd in unpriced if usd is None)
    added["runs"] = len(runs)
    ends = Counter(map(ended, runs))
    added |= {name: ends[end] for end, name in _BY_END.items()}
    return {name: min(MAX_ADDED, max(0, added[name])) for name in NAMES}


def nano(usd: float | None) -> int | None:
    """US dollars as whole nano-dollars; None where they are not known."""
    return round(usd * NANO) if usd is not None and math.isfinite(usd) else None


class Totals:
    def __init__(self, dialect: Dialect) -> None:
        table = tables.counters
        rows = [
            {"name": literal_column(f"'{name}'"), "value": bindparam(name, type_=BigInteger)}
            for name in (*NAMES, SINCE)
        ]
        clause = insert(dialect, table).values(rows)
        is_full = table.c.value > literal_column(str(MAX_TOTAL))
        value = case((is_full, table.c.value), else_=table.c.value + clause.excluded.value)
        clause = clause.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        self._add = Statement(dialect, "add to counters", clause.returning(table.c.name, table.c.value))

    async def add(
        self, connection: AsyncConnection, runs: Collection[Result | Spent], times: StatementStatistics
    ) -> dict[str, int]:
        """Count new runs inside the caller's transaction; returns every counter as it stands then."""
        added = counted(runs)
        rows = await self._add.fetch(connection, (*added.values(), 0), times)
        return {row[0]: int(row[1]) for row in rows}


async def read(connection: AsyncConnection) -> dict[str, int]:
    """Every counter of a database, and since when it counts."""
    found = await connection.execute(select(tables.counters.c.name, tables.counters.c.value))
    return dict.fromkeys(NAMES, 0) | {row[0]: int(row[1]) for row in found}


def write(pipe: Any, totals: Mapping[str, int]) -> None:
    """Queue the command that writes the counters into Redis."""
    values = [part for name in NAMES for part in (name, totals.get(name, 0))]
    pipe.eval(_WRITE, 2, keys.TOTALS, keys.TOTALS_SINCE, totals.get(SINCE, 0), *values)
