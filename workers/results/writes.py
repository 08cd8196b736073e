"""The statements of one batch: what its entries need to know, and the rows that they mean.

Every statement runs over many rows at once. Nothing here decides anything: see `batch`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, Final

import msgspec
from sqlalchemy import RowMapping, Table, bindparam, delete, select, update
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.messages import (
    Destination,
    JobInputs,
    JobOpened,
    JobReopened,
    Profile,
    Result,
    Spent,
    StreamEntry,
    Theme,
    Usage,
)
from workers.results import tables
from workers.results.batch import Changes, Fold, Key, Standing
from workers.results.rows import JobRow, usage_columns, usage_of

#: Ids in one IN list: well below SQLite's bound of 32,766 parameters.
IDS_PER_QUERY: Final = 1_000
#: Columns that an upsert leaves as the first writer set them.
_KEPT: Final = {"created_at"}

Row = dict[str, Any]


def _upsert(table: Table, *, but: Iterable[str] = ()) -> Insert:
    """INSERT … ON CONFLICT DO UPDATE every column but the key, `created_at` and those in `but`."""
    statement = insert(table)
    kept = {column.name for column in table.primary_key} | _KEPT | set(but)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in kept}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)


def _fill(table: Table, names: Sequence[str], where: Any) -> Insert:
    """INSERT … ON CONFLICT: fill in `names`, but only in a row that stood in for the real one."""
    statement = insert(table)
    changed = {name: statement.excluded[name] for name in names}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed, where=where)


_JOB_OPENED: Final = _fill(tables.jobs, ("name", "created_at", "options"), tables.jobs.c.options.is_(None))
_JOB_SEEN: Final = insert(tables.jobs).on_conflict_do_nothing()
_DESTINATION_LISTED: Final = _fill(
    tables.destinations,
    ("name", "country", "region", "lat", "lon", "extra", "listed"),
    tables.destinations.c.listed == 0,
)
_DESTINATION_STANDS: Final = _upsert(
    tables.destinations, but=("name", "country", "region", "lat", "lon", "extra", "listed")
)
_JOB: Final = (
    update(tables.jobs)
    .where(tables.jobs.c.job_id == bindparam("of_job"))
    .values({name: bindparam(name) for name in tables.jobs.c.keys() if name != "job_id"})  # noqa: SIM118 - a column collection
)
_RUN: Final = insert(tables.attempts).on_conflict_do_nothing()
_PROFILE: Final = _upsert(tables.profiles)
_FAILURE: Final = _upsert(tables.failures)
_THEME: Final = insert(tables.themes)


def _delete(table: Table) -> Any:
    return delete(table).where(
        table.c.job_id == bindparam("of_job"), table.c.destination_id == bindparam("of_destination")
    )


_NO_THEMES: Final = _delete(tables.themes)
_NO_PROFILE: Final = _delete(tables.profiles)
_NO_FAILURE: Final = _delete(tables.failures)


async def write(connection: AsyncConnection, entries: Sequence[StreamEntry], now: float) -> tuple[Changes, int]:
    """Write one batch inside the caller's transaction: its changes, and how many rows they were."""
    rows = await _write_inputs(connection, entries, now)
    changes = (await _load(connection, entries, now)).changes(entries)
    return changes, rows + await _write_changes(connection, changes, now)


async def _run(connection: AsyncConnection, statement: Any, rows: Sequence[Row]) -> int:
    if rows:
        await connection.execute(statement, rows)
    return len(rows)


async def _write_inputs(connection: AsyncConnection, entries: Sequence[StreamEntry], now: float) -> int:
    """Rows for announced jobs and destinations, and for jobs whose first entries are not there."""
    opened = [_opened_row(e) for e in entries if isinstance(e, JobOpened)]
    seen = dict.fromkeys(e.job_id for e in entries)
    listed = [
        _listed_row(e.job_id, destination, now)
        for e in entries
        if isinstance(e, JobInputs)
        for destination in e.destinations
    ]
    count = await _run(connection, _JOB_OPENED, opened)
    await _run(connection, _JOB_SEEN, [{"job_id": j, "name": j, "created_at": now} for j in seen])
    return count + await _run(connection, _DESTINATION_LISTED, listed)


async def _load(connection: AsyncConnection, entries: Sequence[StreamEntry], now: float) -> Fold:
    """What the database holds about everything these entries name."""
    job_ids = list(dict.fromkeys(e.job_id for e in entries))
    keys = list(dict.fromkeys(_keys(entries)))
    fold = Fold({}, {}, set(), now)
    for some in _pieces(job_ids):
        found = await connection.execute(select(tables.jobs).where(tables.jobs.c.job_id.in_(some)))
        fold.jobs |= {row["job_id"]: JobRow.of(row) for row in found.mappings()}
    table, runs = tables.destinations, tables.attempts
    for job_id, of_job in groupby(sorted(keys), key=lambda key: key[0]):
        for ids in _pieces([destination_id for _, destination_id in of_job]):
            found = await connection.execute(
                select(table).where(table.c.job_id == job_id, table.c.destination_id.in_(ids))
            )
            fold.destinations |= {(job_id, r["destination_id"]): _standing(r) for r in found.mappings()}
            identity = select(*runs.primary_key).where(runs.c.job_id == job_id, runs.c.destination_id.in_(ids))
            fold.runs |= {(r[0], r[1], r[2], r[3], r[4]) for r in await connection.execute(identity)}
    return fold


async def _write_changes(connection: AsyncConnection, changes: Changes, now: float) -> int:
    stands = [_standing_row(key, s, now) for key, s in changes.destinations.items()]
    count = await _run(connection, _DESTINATION_STANDS, stands)
    count += await _run(connection, _RUN, [_run_row(r) for r in changes.runs.values()])
    count += await _write_outcomes(connection, changes.shown, now)
    return count + await _run(connection, _JOB, [_job_row(job) for job in changes.jobs.values()])


async def _write_outcomes(connection: AsyncConnection, shown: Mapping[Key, Result], now: float) -> int:
    """Each destination's profile with its themes, or its failure; the other of the two goes."""
    profiles = [(r, r.profile) for r in shown.values() if r.profile is not None]
    failures = [_failure_row(r) for r in shown.values() if r.failure is not None]
    themes = [_theme_row(r, rank, theme) for r, p in profiles for rank, theme in enumerate(p.themes, start=1)]
    await _run(connection, _NO_THEMES, [_of(r) for r in shown.values()])
    await _run(connection, _NO_FAILURE, [_of(r) for r, _ in profiles])
    await _run(connection, _NO_PROFILE, [_of(r) for r in shown.values() if r.failure is not None])
    count = await _run(connection, _PROFILE, [_profile_row(r, p, now) for r, p in profiles])
    count += await _run(connection, _THEME, themes)
    return count + await _run(connection, _FAILURE, failures)


def _keys(entries: Iterable[StreamEntry]) -> Iterator[Key]:
    for entry in entries:
        if isinstance(entry, Result | Spent):
            yield entry.job_id, entry.destination_id
        elif isinstance(entry, JobReopened):
            yield from ((entry.job_id, destination_id) for destination_id in entry.destination_ids)


def _pieces(ids: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while piece := list(islice(rest, IDS_PER_QUERY)):
        yield piece


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _json_or_none(value: Any) -> str | None:
    return None if value is None else _json(value)


def _of(result: Result) -> Row:
    return {"of_job": result.job_id, "of_destination": result.destination_id}


def _opened_row(entry: JobOpened) -> Row:
    return {
        "job_id": entry.job_id,
        "name": entry.name,
        "created_at": entry.created_at,
        "options": _json(entry.options),
    }


def _listed_row(job_id: str, destination: Destination, now: float) -> Row:
    return {
        "job_id": job_id,
        "destination_id": destination.id,
        "name": destination.name,
        "country": destination.country,
        "region": destination.region,
        "lat": destination.lat,
        "lon": destination.lon,
        "extra": _json(destination.extra),
        "listed": 1,
        "created_at": now,
        "updated_at": now,
    }


def _standing(row: RowMapping) -> Standing:
    return Standing(row["name"], row["country"], row["state"], bool(row["partial"]), row["attempt"], usage_of(row))


def _standing_row(key: Key, standing: Standing, now: float) -> Row:
    return {
        "job_id": key[0],
        "destination_id": key[1],
        "name": standing.name,
        "country": standing.country,
        "extra": "{}",
        "listed": 0,
        "state": standing.state,
        "partial": int(standing.partial),
        "attempt": standing.attempt,
        **usage_columns(standing.usage),
        "created_at": now,
        "updated_at": now,
    }


def _job_row(job: JobRow) -> Row:
    columns = job.columns()
    return {**columns, "of_job": columns.pop("job_id"), "sealed": int(job.sealed)}


def _run_row(result: Result | Spent) -> Row:
    outcome = "stopped"
    if isinstance(result, Result):
        outcome = result.profile.status if result.profile else "failed"
    return {
        "job_id": result.job_id,
        "destination_id": result.destination_id,
        "attempt": result.attempt,
        "worker": result.worker,
        "at": result.at,
        "outcome": outcome,
        "elapsed_ms": result.elapsed_ms,
        **usage_columns(result.usage),
    }


def _profile_row(result: Result, profile: Profile, now: float) -> Row:
    usage: Usage = profile.usage
    return {
        "job_id": result.job_id,
        "destination_id": result.destination_id,
        "name": profile.name,
        "country": profile.country,
        "status": profile.status,
        "model": profile.model,
        "pipeline_version": profile.pipeline_version,
        "quality": profile.quality_assessment.overall,
        "payload": _json(profile),
        "attempt": result.attempt,
        **usage_columns(usage),
        "elapsed_ms": profile.elapsed_ms,
        "created_at": profile.created_at,
        "updated_at": now,
    }


def _theme_row(result: Result, rank: int, theme: Theme) -> Row:
    seasons = theme.seasonality
    return {
        "job_id": result.job_id,
        "destination_id": result.destination_id,
        "rank": rank,
        "category": theme.category,
        "name": theme.name,
        "description": theme.description,
        "confidence": theme.confidence,
        "price_point": theme.price_point,
        "authenticity": theme.authenticity_score,
        "peak_months": _json(seasons.peak) if seasons else None,
        "avoid_months": _json(seasons.avoid) if seasons else None,
        "traveler_types": _json_or_none(theme.traveler_types),
    }


def _failure_row(result: Result) -> Row:
    failure = result.failure
    assert failure is not None  # noqa: S101 - the caller picked failures
    return {
        "job_id": result.job_id,
        "destination_id": result.destination_id,
        "stage": failure.stage,
        "error_class": failure.error_class,
        "message": failure.message,
        "attempts": failure.attempts,
        "at": result.at,
    }
