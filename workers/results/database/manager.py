"""The results database: one writer, many readers, and the rule that a batch is written whole or not at all.

Lives as long as the process that opened it. The consumer opens it for writing and creates it; other
processes open it for reading. It knows nothing of Redis.
"""

import contextlib
import sqlite3
import time
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Integer, RowMapping, Select, column, func, literal_column, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from config.settings import Settings
from tasks.errors import DatabaseError
from tasks.messages import Destination, StreamEntry
from tasks.state_dir import elsewhere
from workers.observe.measurements import ProcessMeasurements
from workers.results.database import tables, totals
from workers.results.database.backend import Backend, backend_of
from workers.results.database.batch_writer import BatchWriter
from workers.results.database.rows import (
    Applied,
    DestinationRow,
    DestinationStatus,
    ExportRow,
    FailureRow,
    JobRow,
    ProfileRow,
    StoreStats,
)
from workers.results.database.schema import bring_up_to_date, schema_version
from workers.results.database.statements import StatementStatistics
from workers.results.database.writer import Writer
from workers.results.stream import DeadEntry

T = TypeVar("T")

#: Rows of one page: a read transaction ends after each, because one left open stops WAL checkpoints.
PAGE_ROWS: Final = 500


class AsyncDatabaseManager:
    """The results database: an SQLite file, or a PostgreSQL server.

    Args:
        url: SQLAlchemy's URL of it.
        pool_size: connections in all; one of them writes, at least one reads.
        timeout_seconds: how long to wait for a lock or a free connection.
        is_acknowledged: see `workers.results.database.sqlite.SQLiteFile`.
    """

    def __init__(
        self, url: str, *, pool_size: int = 20, timeout_seconds: float = 30.0, is_acknowledged: bool = True
    ) -> None:
        self._backend: Backend = backend_of(
            url, pool_size=pool_size, timeout_seconds=timeout_seconds, is_acknowledged=is_acknowledged
        )
        self._timeout_seconds = timeout_seconds
        self._stats = StoreStats()
        self.times = StatementStatistics()
        self._writer = Writer(self._backend.writer.dialect, self.times)
        self._batches = BatchWriter(self._backend, self._writer, self.writing)

    @classmethod
    def from_settings(cls, settings: Settings, *, is_acknowledged: bool = True) -> Self:
        performance = settings.performance_optimization
        return cls(
            settings.database_url,
            pool_size=performance.database_connection_pool_size,
            timeout_seconds=performance.database_timeout_seconds,
            is_acknowledged=is_acknowledged,
        )

    def __repr__(self) -> str:
        s = self._stats
        return (
            f"<AsyncDatabaseManager {self._backend!r} batches={s.batches} rows={s.rows} "
            f"seconds_per_batch={s.seconds_per_batch:.4f}>"
        )

    def stats(self) -> StoreStats:
        return self._stats

    @property
    def place(self) -> str:
        """Where the results are, for messages; no password."""
        return self._backend.place

    @property
    def dialect(self) -> str:
        """Sqlite or postgresql."""
        return self._backend.readers.dialect.name

    def exists(self) -> bool:
        """Whether there is a database to open; of a server only opening tells."""
        return self._backend.exists()

    async def create(self) -> None:
        """Open for writing; make the file and its tables where they are missing.

        Raises:
            DatabaseError: it cannot be used as it is, with the place and the mend.
            DatabaseBusyError: another process holds it.
        """
        self._backend.prepare()
        with self._backend.translated():
            async with self._transaction() as connection:
                await bring_up_to_date(connection, self.place)
        self._backend.remember()

    async def open(self) -> None:
        """Open for reading only. Raises DatabaseError: there is none yet, or it cannot be used as it is."""
        if not self.exists():
            raise DatabaseError(
                f"{self.place}: there is no results database yet; "
                + elsewhere("`themes consumer` (or `themes up`) makes it")
            )
        async with self.reading() as connection:
            version = await schema_version(connection, self.place)
        if 0 < version < tables.SCHEMA_VERSION:
            raise DatabaseError(
                f"{self.place}: made by an older version of themes; `themes consumer` (or `themes up`) brings it "
                "up to date"
            )
        if version == 0:
            raise DatabaseError(f"{self.place}: is empty; `themes consumer` (or `themes up`) fills it")

    async def is_empty(self) -> bool:
        """Whether nothing was ever written: there is no database yet, or one without tables."""
        if not self.exists():
            return True
        async with self.reading() as connection:
            return await schema_version(connection, self.place) == 0

    async def close(self) -> None:
        await self._backend.close()

    async def __aenter__(self) -> Self:
        try:
            await self.create()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction on the one writing connection: committed at the end, rolled back on any error.

        Raises:
            DatabaseError: also when the file was deleted or replaced since it was opened: what is written into a
                deleted file is written into nothing, without an error. Looked at again before the commit counts.
            DatabaseBusyError: nothing was written; try again later.
        """
        self._backend.refuse_another()
        with self._backend.translated():
            async with self._transaction() as connection:
                yield connection
        self._backend.refuse_another()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that holds the write lock, waited for in slices so that the wait can be cancelled."""
        until = time.monotonic() + self._timeout_seconds
        async with contextlib.AsyncExitStack() as stack:
            while True:
                try:
                    connection = await stack.enter_async_context(self._backend.writer.begin())
                    break
                except (DBAPIError, sqlite3.Error) as bad:
                    if not self._backend.is_locked(bad) or time.monotonic() >= until:
                        raise
            yield connection

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A read transaction: one consistent view. Keep it short."""
        with self._backend.translated():
            async with self._backend.readers.begin() as connection:
                yield connection

    async def apply(self, entries: Sequence[StreamEntry], dead: Sequence[DeadEntry] = ()) -> Applied:
        """Write one batch in one transaction; every entry may come twice, or hundred times.

        A result that cannot be stored (a lone surrogate, an integer beyond 2^63-1) becomes a failure that says so, and
        is among the rejected. `dead` are entries that could not even be read: they are kept as dead letters.

        Raises:
            DatabaseBusyError: nothing was written; the same batch may be written later.
            DatabaseError: nothing was written, and nothing will be until a person mends it.
        """
        started = time.perf_counter()
        applied, rows = await self._batches.write(entries, dead)
        s, seconds = self._stats, time.perf_counter() - started
        rejected = s.rejected + len(applied.rejected)
        self._stats = StoreStats(s.batches + 1, s.entries + len(entries), s.rows + rows, rejected, s.seconds + seconds)
        await self.tidy()
        return applied

    async def tidy(self) -> None:
        if tidied := await self._backend.tidy():
            self.times.add("checkpoint", tidied, 0)

    async def bury(self, dead: Sequence[DeadEntry]) -> None:
        """Keep entries that cannot be stored, with their reasons. Raises as `apply`."""
        async with self.writing() as connection:
            await self._writer.bury(connection, dead, time.time())

    async def keep_measurements(self, job_id: str, parts: Mapping[str, str]) -> None:
        """Keep measurements of a job, JSON by process; newer ones replace older ones. Raises as `apply`."""
        async with self.writing() as connection:
            await self._writer.keep_measurements(connection, job_id, parts)

    async def job(self, job_id: str) -> JobRow | None:
        """One job; before it is sealed, `total` counts the destinations seen so far."""
        found = [row async for row in self._jobs(tables.jobs.c.job_id == job_id)]
        return found[0] if found else None

    async def jobs(self) -> list[JobRow]:
        """Every job, the newest first; `total` as in `job`."""
        return [row async for row in self._jobs()]

    async def totals(self) -> dict[str, int]:
        """The counters over all jobs (`tasks.jobs.totals`), and `since`: when they began, in us since 1970."""
        async with self.reading() as connection:
            return await totals.read(connection)

    def destinations(self, job_id: str, state: DestinationStatus | None = None) -> AsyncIterator[DestinationRow]:
        """A job's destinations in the order they came, all or those in one state."""
        table = tables.destinations
        query = select(table).where(table.c.job_id == job_id)
        return self._pages(query if state is None else query.where(table.c.state == state), DestinationRow.of)

    def missing(self, job_id: str) -> AsyncIterator[DestinationRow]:
        """A job's destinations that have neither a profile nor a failure, in the order they came."""
        return self.destinations(job_id, "queued")

    async def missing_after(self, job_id: str, place: int, count: int) -> tuple[list[Destination], int]:
        """As `missing`, at most `count` of those that come after a place, and the place of the last; -1 is the start.

        Those that are listed later come later.
        """
        table = tables.destinations
        at = literal_column("destinations.rowid", Integer).label("place")
        query = select(table, at).where(table.c.job_id == job_id, table.c.state == "queued", at > place)
        async with self.reading() as connection:
            rows = (await connection.execute(query.order_by(column("place")).limit(count))).mappings().all()
        return [DestinationRow.of(row).destination for row in rows], rows[-1]["place"] if rows else place

    def failed(
        self, job_id: str, error_class: str | None = None, stages: Sequence[str] = ()
    ) -> AsyncIterator[DestinationRow]:
        """A job's destinations that failed, all or those with one class of error, or at one of some stages."""
        table, failures = tables.destinations, tables.failures
        query = select(table).join_from(table, failures).where(table.c.job_id == job_id, table.c.state == "failed")
        if error_class is not None:
            query = query.where(failures.c.error_class == error_class)
        if stages:
            query = query.where(failures.c.stage.in_(stages))
        return self._pages(query, DestinationRow.of)

    def partial(
        self, job_id: str, error_class: str | None = None, stages: Sequence[str] = ()
    ) -> AsyncIterator[DestinationRow]:
        """A job's destinations whose profile lacks something: all, by the class of the reason, or of some stages."""
        table, profiles, missing = tables.destinations, tables.profiles, tables.missing
        query = select(table).join_from(table, profiles)
        query = query.where(table.c.job_id == job_id, table.c.state == "done", table.c.partial == 1)
        lacks = select(missing.c.profile_no).where(missing.c.profile_no == profiles.c.profile_no)
        if error_class is not None:
            lacks = lacks.where(missing.c.reason.startswith(f"{error_class}:", autoescape=True))
        if stages:
            lacks = lacks.where(missing.c.stage.in_(stages))
        return self._pages(query.where(lacks.exists()), DestinationRow.of)

    async def last_attempt(self, job_id: str) -> int:
        """The highest attempt that any destination of a job has had; 0 before the first."""
        query = select(func.coalesce(func.max(tables.destinations.c.attempt), 0))
        async with self.reading() as connection:
            found = await connection.execute(query.where(tables.destinations.c.job_id == job_id))
        return max(0, int(found.scalar_one()))

    async def current(self, destination_ids: Sequence[str], pipeline_version: str) -> set[str]:
        """Which of these destinations have a complete profile, in any job, that was made by these prompts."""
        table = tables.profiles
        query = select(table.c.destination_id).where(
            table.c.status == "ok",
            table.c.pipeline_version == pipeline_version,
            table.c.destination_id.in_(destination_ids),
        )
        async with self.reading() as connection:
            return set((await connection.execute(query)).scalars())

    def profiles(
        self, job_id: str, conditions: Sequence[ColumnElement[bool]] = (), *, as_finished: bool = False
    ) -> AsyncIterator[ProfileRow]:
        """A job's profiles that meet conditions on both tables, in the input's order, or `as_finished` first."""
        query = select(*tables.PROFILE_COLUMNS).join_from(tables.destinations, tables.profiles)
        chosen = (tables.destinations.c.job_id == job_id, *conditions)
        return (
            self._finished(query, chosen, ProfileRow.of) if as_finished else self._pages(query, ProfileRow.of, chosen)
        )

    def exported(
        self, job_id: str, conditions: Sequence[ColumnElement[bool]] = (), *, as_finished: bool = False
    ) -> AsyncIterator[ExportRow]:
        """As `profiles`, with where each destination lies."""
        d = tables.destinations
        query = select(*tables.PROFILE_COLUMNS, d.c.region, d.c.lat, d.c.lon).join_from(d, tables.profiles)
        chosen = (d.c.job_id == job_id, *conditions)
        return self._finished(query, chosen, ExportRow.of) if as_finished else self._pages(query, ExportRow.of, chosen)

    def failures(self, job_id: str) -> AsyncIterator[FailureRow]:
        """A job's failures in the order of its destinations."""
        table = tables.destinations
        query = select(tables.failures, table.c.name, table.c.country).join_from(table, tables.failures)
        return self._pages(query.where(table.c.job_id == job_id), FailureRow.of)

    async def measurements(self, job_id: str) -> list[ProcessMeasurements]:
        """What each process has measured of a job, as far as it was copied here; [] for an unknown one."""
        table = tables.job_measurements
        async with self.reading() as connection:
            found = await connection.execute(select(table.c.payload).where(table.c.job_id == job_id))
        return [msgspec.json.decode(payload, type=ProcessMeasurements) for payload in found.scalars()]

    async def _jobs(self, *conditions: Any) -> AsyncIterator[JobRow]:
        j, d = tables.jobs, tables.destinations
        known = select(func.count()).select_from(d).where(d.c.job_id == j.c.job_id).scalar_subquery()
        others = [c for c in j.c if c.name != "total"]
        query = select(*others, func.coalesce(j.c.total, known).label("total")).where(*conditions)
        async with self.reading() as connection:
            found = (await connection.execute(query.order_by(j.c.created_at.desc()))).mappings()
        for row in found:
            yield JobRow.of(row)

    async def _pages(
        self, query: Select[Any], make: Callable[[RowMapping], T], chosen: Sequence[ColumnElement[bool]] = ()
    ) -> AsyncIterator[T]:
        """The rows of a query over `destinations`, each page in a short transaction of its own."""
        place = literal_column("destinations.rowid", Integer).label("place")
        last = -1
        while True:
            page = query.add_columns(place).where(place > last, *chosen).order_by(column("place")).limit(PAGE_ROWS)
            async with self.reading() as connection:
                rows = (await connection.execute(page)).mappings().all()
            for row in rows:
                last = row["place"]
                yield make(row)
            if len(rows) < PAGE_ROWS:
                return

    async def _finished(
        self, query: Select[Any], chosen: Sequence[ColumnElement[bool]], make: Callable[[RowMapping], T]
    ) -> AsyncIterator[T]:
        """As `_pages`, over the profiles that are chosen, in the order in which they were first written.

        Their numbers are read first, 8 bytes each. A page is asked for by them alone: with the job beside them SQLite
        would go through the whole job for each page.
        """
        number = tables.profiles.c.profile_no
        numbers = array("q")
        async with self.reading() as connection:
            found = query.with_only_columns(number).where(*chosen).order_by(number)
            async for each in await connection.stream_scalars(found):
                numbers.append(each)
        for start in range(0, len(numbers), PAGE_ROWS):
            page = query.where(number.in_(numbers[start : start + PAGE_ROWS].tolist())).order_by(number)
            async with self.reading() as connection:
                rows = (await connection.execute(page)).mappings().all()
            for row in rows:
                yield make(row)
