"""The statements of one batch: what its entries need to know, and the rows that they mean.

Every statement runs over many rows at once, as tuples. Nothing here decides anything: see `batch`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Dialect,
    Table,
    bindparam,
    delete,
    literal_column,
    update,
)
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.frames import WireError
from tasks.messages import JobInputs, JobOpened, JobReopened, PackedProfile, Result, Spent, StreamEntry, Theme, Usage
from tasks.packed import checked
from tasks.texts import clean_line
from workers.results.database import tables
from workers.results.database.additions import whole_entries
from workers.results.database.asked import Asked
from workers.results.database.reducer import BatchReducer, Changes, DestinationState, Kept, Key, UnusableEntryError
from workers.results.database.rows import JobRow
from workers.results.database.statements import Statement, StatementStatistics, insert
from workers.results.database.totals import Totals
from workers.results.database.values import (  # fmt: skip
    Values,
    as_json,
    dead_row,
    destination_row,
    failure_row,
    job_row,
    listed_row,
    profile_row,
    run_row,
    theme_rows,
)
from workers.results.stream import DeadEntry

#: Columns that an upsert leaves as the first writer set them.
_KEPT: Final = {"created_at", "profile_no"}


class _Statements:
    """Every statement of one dialect, compiled."""

    def __init__(self, dialect: Dialect) -> None:
        listed = ("name", "country", "region", "lat", "lon", "extra", "listed")
        t = tables.destinations

        def statement(name: str, clause: Insert, table: Table, leave: Iterable[str] = ()) -> Statement:
            left = set(leave)
            return Statement(dialect, name, clause, [c.name for c in table.columns if c.name not in left])

        def upsert(table: Table, key: Sequence[str], but: Iterable[str] = (), leave: Iterable[str] = ()) -> Statement:
            """INSERT … ON CONFLICT DO UPDATE every column but the key, `created_at` and those in `but`."""
            clause = insert(dialect, table)
            kept = {*key, *_KEPT, *but, *leave}
            changed = {c.name: clause.excluded[c.name] for c in table.columns if c.name not in kept}
            return statement(
                f"upsert {table.name}", clause.on_conflict_do_update(index_elements=key, set_=changed), table, leave
            )

        def fill(
            name: str, table: Table, names: Sequence[str], where: ColumnElement[bool], given: set[str]
        ) -> Statement:
            """INSERT … ON CONFLICT: fill in `names`, but only in a row that stood in for the real one."""
            clause = insert(dialect, table)
            changed = {n: clause.excluded[n] for n in names}
            clause = clause.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed, where=where)
            return Statement(dialect, name, clause, [c.name for c in table.columns if c.name in given])

        def gone(table: Table) -> Statement:
            clause = delete(table).where(
                table.c.job_id == bindparam("of_job"), table.c.destination_id == bindparam("of_destination")
            )
            return Statement(dialect, f"delete {table.name}", clause)

        job_seen = insert(dialect, tables.jobs).on_conflict_do_nothing()
        opened = {"job_id", "name", "created_at", "options"}
        self.job_opened = fill(
            "open jobs", tables.jobs, ("name", "created_at", "options"), tables.jobs.c.options.is_(None), opened
        )
        self.job_seen = Statement(dialect, "see jobs", job_seen, ["job_id", "name", "created_at"])
        self.listed = fill(
            "list destinations", t, listed, t.c.listed == literal_column("0"),
            {"job_id", "destination_id", *listed, "created_at", "updated_at"},
        )  # fmt: skip
        self.destination = upsert(
            t, ("job_id", "destination_id"), ("name", "country", "extra", "listed"), ("region", "lat", "lon")
        )
        self.run = statement(
            "insert attempts", insert(dialect, tables.attempts).on_conflict_do_nothing(), tables.attempts
        )
        self.totals = Totals(dialect)
        self.profile = upsert(tables.profiles, ("job_id", "destination_id"))
        self.failure = upsert(tables.failures, ("job_id", "destination_id"))
        self.themes = statement("insert themes", insert(dialect, tables.profile_themes), tables.profile_themes)
        self.no_profile, self.no_failure = gone(tables.profiles), gone(tables.failures)
        t = tables.profile_themes
        self.no_themes = Statement(dialect, "delete themes", delete(t).where(t.c.profile_no == bindparam("of_profile")))
        self.dead = statement(
            "insert dead_letters", insert(dialect, tables.dead_letters).on_conflict_do_nothing(), tables.dead_letters
        )
        self.part = upsert(tables.job_measurements, ("job_id", "process"))
        jobs = tables.jobs
        values: dict[str, Any] = {name: bindparam(name) for name in jobs.c.keys() if name != "job_id"}  # noqa: SIM118 - a column collection
        self.job = Statement(
            dialect, "update jobs", update(jobs).where(jobs.c.job_id == bindparam("of_job")).values(values)
        )
        self.asked = Asked(dialect)


#: By the dialect's name: those of one database are those of every other of its kind.
_COMPILED: Final[dict[str, _Statements]] = {}


class Writer:
    """Writes batches of one dialect, and holds the times of its statements."""

    def __init__(self, dialect: Dialect, times: StatementStatistics) -> None:
        self._dialect = dialect
        self.times = times

    @property
    def _all(self) -> _Statements:
        """Compiled for the first batch of a process: one that only reads needs none."""
        if self._dialect.name not in _COMPILED:
            _COMPILED[self._dialect.name] = _Statements(self._dialect)
        return _COMPILED[self._dialect.name]

    async def write(
        self, connection: AsyncConnection, entries: Sequence[StreamEntry], now: float
    ) -> tuple[Changes, int]:
        """Write one batch inside the caller's transaction: its changes, and how many rows they were."""
        if any("\0" in each for each in chain((e.job_id for e in entries), chain.from_iterable(_keys(entries)))):
            raise UnusableEntryError("an id holds the character U+0000")
        jobs, rows = await self._write_inputs(connection, entries, now)
        entries = await whole_entries(connection, entries, jobs, self._all.asked, self.times)
        changes = (await self._load(connection, entries, jobs, now)).changes(entries)
        return changes, rows + await self._write_changes(connection, changes, now)

    async def bury(self, connection: AsyncConnection, dead: Sequence[DeadEntry], now: float) -> int:
        """Write entries that cannot be stored, each with its reason; one that is there already stays."""
        return await self._all.dead.run(connection, [dead_row(entry, now) for entry in dead], self.times)

    async def keep_measurements(self, connection: AsyncConnection, job_id: str, parts: Mapping[str, str]) -> int:
        """Write the parts of a job's profile, by process, over those that are there."""
        rows = [(job_id, process, payload) for process, payload in parts.items()]
        return await self._all.part.run(connection, rows, self.times)

    async def _write_inputs(
        self, connection: AsyncConnection, entries: Sequence[StreamEntry], now: float
    ) -> tuple[dict[str, JobRow], int]:
        """Rows for announced jobs and destinations; the jobs of all entries, and how many rows were written."""
        opened = [
            (e.job_id, clean_line(e.name), e.created_at, as_json(e.options))
            for e in entries
            if isinstance(e, JobOpened)
        ]
        listed = [
            listed_row(e.job_id, destination, now)
            for e in entries
            if isinstance(e, JobInputs)
            for destination in e.destinations
        ]
        count = await self._all.job_opened.run(connection, opened, self.times)
        jobs = await self._jobs(connection, entries, now)
        return jobs, count + await self._all.listed.run(connection, listed, self.times)

    async def _jobs(self, connection: AsyncConnection, entries: Sequence[StreamEntry], now: float) -> dict[str, JobRow]:
        """The jobs of these entries; one whose first entry is not there gets a row that stands in for it."""
        seen = dict.fromkeys(e.job_id for e in entries)
        jobs = await self._all.asked.jobs(connection, seen, self.times)
        if new := [(job_id, job_id, now) for job_id in seen if job_id not in jobs]:
            await self._all.job_seen.run(connection, new, self.times)
            jobs = await self._all.asked.jobs(connection, seen, self.times)
        return jobs

    async def _load(
        self, connection: AsyncConnection, entries: Sequence[StreamEntry], jobs: dict[str, JobRow], now: float
    ) -> BatchReducer:
        """What the database holds about everything these entries name."""
        asked, times = self._all.asked, self.times
        keys = list(dict.fromkeys(_keys(entries)))
        adding = {key for e in entries if isinstance(e, JobReopened) and e.options for key in _keys([e])}
        reducer = BatchReducer(jobs, {}, set(), now)
        for job_id, of_job in groupby(sorted(keys), key=lambda key: key[0]):
            known = await asked.states.of(connection, job_id, [each for _, each in of_job], times)
            states = {(job_id, r[0]): DestinationState(r[1], r[2], r[3], bool(r[4]), r[5]) for r in known}
            reducer.destinations |= states
            if again := [r[0] for r in known if r[5] >= 0 and (r[3] == "queued" or r[4] or (job_id, r[0]) in adding)]:
                for row in await asked.kept.of(connection, job_id, again, times):
                    kept = reducer.stored[job_id, row[0]] = Kept(row[2] == "ok", -row[3], row[4])
                    if row[1] < states[job_id, row[0]].attempt:
                        states[job_id, row[0]].kept = kept
            # Most destinations of a batch are new: they have no runs, and have cost nothing.
            if tried := [r[0] for r in known if r[6]]:
                runs = await asked.runs.of(connection, job_id, tried, times)
                reducer.runs |= {(job_id, r[0], r[1], r[2], r[3]) for r in runs}
                for row in await asked.usage.of(connection, job_id, tried, times):
                    states[job_id, row[0]].usage = Usage(*row[1:])
        return reducer

    async def _write_changes(self, connection: AsyncConnection, changes: Changes, now: float) -> int:
        stands = [destination_row(key, s, now) for key, s in changes.destinations.items()]
        count = await self._all.destination.run(connection, stands, self.times)
        count += await self._all.run.run(connection, [run_row(r) for r in changes.runs.values()], self.times)
        if changes.runs:
            changes.totals = await self._all.totals.add(connection, changes.runs.values(), self.times)
        count += await self._write_outcomes(connection, changes, now)
        jobs = [job_row(job) for job in changes.jobs.values()]
        of_jobs = [tuple(job[name] for name in self._all.job.columns) for job in jobs]
        await self._all.job.run(connection, of_jobs, self.times)
        return count + len(jobs)

    async def _write_outcomes(self, connection: AsyncConnection, changes: Changes, now: float) -> int:
        """Each destination's profile with its rows, or its failure; what it had before goes."""
        numbers = await self._clear(connection, changes)
        profiles: list[tuple[Result, PackedProfile, list[Theme]]] = []
        for key, shown in changes.shown.items():
            if shown.profile is not None:
                profile, themes = _checked(shown.profile, shown.destination_id)
                changes.shown[key] = msgspec.structs.replace(shown, profile=profile)
                profiles.append((shown, profile, themes))
        next_profile = next_theme = 1
        if profiles:
            ((next_profile, next_theme),) = await self._all.asked.numbers.fetch(connection, (), self.times)
        of_profiles: list[Values] = []
        of_themes: list[Values] = []
        for result, profile, themes in profiles:
            profile_no = numbers.get((result.job_id, result.destination_id))
            if profile_no is None:
                profile_no, next_profile = next_profile, next_profile + 1
            of_profiles.append(profile_row(profile_no, result, profile, now))
            of_themes += theme_rows(profile_no, themes, next_theme)
            next_theme += len(themes)
        count = await self._all.profile.run(connection, of_profiles, self.times)
        count += await self._all.themes.run(connection, of_themes, self.times)
        failures = [failure_row(r) for r in changes.shown.values() if r.failure is not None]
        return count + await self._all.failure.run(connection, failures, self.times)

    async def _clear(self, connection: AsyncConnection, changes: Changes) -> dict[Key, int]:
        """Take away what destinations had that have an outcome again; returns the numbers of their profiles."""
        again = [key for key in changes.shown if key in changes.replaced]
        if not again:
            return {}
        numbers: dict[Key, int] = {}
        for job_id, of_job in groupby(sorted(again), key=lambda key: key[0]):
            found = await self._all.asked.profiles.of(connection, job_id, [each for _, each in of_job], self.times)
            numbers |= {(job_id, row[0]): row[1] for row in found}
        succeeded = [key for key in again if changes.shown[key].profile is not None]
        failed = [key for key in again if changes.shown[key].profile is None]
        await self._all.no_failure.run(connection, succeeded, self.times)
        had = [(numbers[key],) for key in succeeded if key in numbers]
        await self._all.no_themes.run(connection, had, self.times)
        await self._all.no_profile.run(connection, failed, self.times)
        return numbers


def _checked(profile: PackedProfile, destination_id: str) -> tuple[PackedProfile, list[Theme]]:
    try:
        return checked(profile, destination_id)
    except WireError as bad:
        raise UnusableEntryError(str(bad)) from bad


def _keys(entries: Iterable[StreamEntry]) -> Iterator[Key]:
    for entry in entries:
        if isinstance(entry, Result | Spent):
            yield entry.job_id, entry.destination_id
        elif isinstance(entry, JobReopened):
            yield from ((entry.job_id, destination_id) for destination_id in entry.destination_ids)
