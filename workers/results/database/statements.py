"""Statements for many rows, handed to the driver as they are.

SQLAlchemy compiles each once for a dialect; a batch is the driver's `executemany` over tuples, at 0.9 or more of its
speed (`scripts/bench -k store`). Rows as dictionaries took twice as long.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Dialect, Table
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from workers.observe.metrics import Histogram


def insert(dialect: Dialect, table: Table) -> Insert:
    """An INSERT that knows ON CONFLICT: the two dialects spell it alike, each by a function of its own."""
    if dialect.name == "sqlite":
        return sqlite_insert(table)
    # Late: a tenth of a second that SQLite's users need not wait for.
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return cast("Insert", postgresql_insert(table))


@dataclass(slots=True)
class StatementTimes:
    """How one statement has run: `seconds` of each run, rows of all runs, and the slowest run with its rows."""

    seconds: Histogram = field(default_factory=Histogram)
    rows: int = 0
    slowest_seconds: float = 0.0
    slowest_rows: int = 0

    def add(self, seconds: float, rows: int) -> None:
        self.seconds.add(seconds)
        self.rows += rows
        if seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest_rows = seconds, rows

    @property
    def rows_per_second(self) -> float:
        """While it ran; 0 before the first run."""
        return self.rows / self.seconds.total if self.seconds.total else 0.0

    def as_dict(self) -> dict[str, float]:
        """For reports; times in ms."""
        return {
            "count": self.seconds.count,
            "p50_ms": round(self.seconds.quantile(0.5) * 1000, 3),
            "p95_ms": round(self.seconds.quantile(0.95) * 1000, 3),
            "p99_ms": round(self.seconds.quantile(0.99) * 1000, 3),
            "rows": self.rows,
            "rows_per_second": round(self.rows_per_second, 1),
            "slowest_ms": round(self.slowest_seconds * 1000, 3),
            "slowest_rows": self.slowest_rows,
        }


class StatementStatistics:
    """The times of every statement by its name. Bounded: there are as many names as there are statements."""

    def __init__(self) -> None:
        self.by_name: dict[str, StatementTimes] = {}

    def add(self, name: str, seconds: float, rows: int) -> None:
        self.by_name.setdefault(name, StatementTimes()).add(seconds, rows)

    @contextlib.contextmanager
    def timed(self, name: str, rows: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began, rows)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The slowest in sum first."""
        slowest_first = sorted(self.by_name.items(), key=lambda item: -item[1].seconds.total)
        return {name: times.as_dict() for name, times in slowest_first}


class Statement:
    """One statement for rows given as tuples, in the order of its parameters.

    Args:
        name: under which its times are kept.
        clause: an INSERT, UPDATE or DELETE.
        columns: the parameters of an INSERT, in the order in which rows have them.
    """

    def __init__(
        self, dialect: Dialect, name: str, clause: ClauseElement, columns: Sequence[str] | None = None
    ) -> None:
        compiled = clause.compile(dialect=dialect, column_keys=None if columns is None else list(columns))
        self.name = name
        self._is_sqlite = dialect.name == "sqlite"
        self.sql = str(compiled)
        self.columns = tuple(cast("list[str]", getattr(compiled, "positiontup", None) or ()))
        if columns is not None and self.columns != tuple(columns):
            raise AssertionError(f"{name}: rows are {tuple(columns)}, the statement takes {self.columns}")

    async def run(
        self, connection: AsyncConnection, rows: Sequence[tuple[Any, ...]], times: StatementStatistics
    ) -> int:
        """Run it for all rows in one go; returns how many those are."""
        if rows:
            began = time.perf_counter()
            # One visit to the driver's thread; through a cursor of SQLAlchemy's it would be three.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.executemany(self.sql, rows)
            times.add(self.name, time.perf_counter() - began, len(rows))
        return len(rows)

    async def fetch(
        self, connection: AsyncConnection, values: Sequence[Any], times: StatementStatistics
    ) -> Sequence[Any]:
        """Run it once, and return the rows that it gives back. One visit to the driver, as `run`."""
        began = time.perf_counter()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        rows: Sequence[Any] = (
            await driver.execute_fetchall(self.sql, values)
            if self._is_sqlite
            else await driver.fetch(self.sql, *values)
        )
        times.add(self.name, time.perf_counter() - began, len(rows))
        return rows
