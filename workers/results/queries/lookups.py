"""What pages ask of the results database: one profile, one page of a job's destinations."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Integer, Select, cast, func, literal_column, or_, select, true, tuple_

from tasks.inputs.columns import MAX_COLUMNS
from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import DestinationStatus, FailureRow, ProfileRow


@dataclass(frozen=True, slots=True)
class DestinationLine:
    """A destination of a job in a list; `why` says what failed."""

    destination_id: str
    name: str
    country: str | None
    state: DestinationStatus
    partial: bool
    llm_calls: int
    cache_hits: int
    why: str | None


async def profile_of(store: AsyncDatabaseManager, job_id: str, destination_id: str) -> ProfileRow | None:
    d = tables.destinations
    query = select(*tables.PROFILE_COLUMNS).join_from(d, tables.profiles)
    query = query.where(d.c.job_id == job_id, d.c.destination_id == destination_id)
    async with store.reading() as connection:
        found = (await connection.execute(query)).mappings().one_or_none()
    return ProfileRow.of(found) if found else None


@dataclass(frozen=True, slots=True)
class Neighbour:
    destination_id: str
    name: str
    country: str | None


async def neighbours(
    store: AsyncDatabaseManager, job_id: str, destination_id: str
) -> tuple[Neighbour | None, Neighbour | None]:
    """The destinations with a profile before and after this one, by name."""
    d = tables.destinations
    place = tuple_(d.c.name, d.c.destination_id)
    here = (
        select(d.c.name, d.c.destination_id)
        .where(d.c.job_id == job_id, d.c.destination_id == destination_id)
        .subquery()
    )
    query = select(d.c.destination_id, d.c.name, d.c.country).where(d.c.job_id == job_id, d.c.state == "done").limit(1)
    mine = tuple_(here.c.name, here.c.destination_id)
    before = query.where(place < mine).order_by(d.c.name.desc(), d.c.destination_id.desc())
    after = query.where(place > mine).order_by(d.c.name, d.c.destination_id)
    async with store.reading() as connection:
        rows = [(await connection.execute(each)).one_or_none() for each in (before, after)]
    first, second = (row and Neighbour(*row) for row in rows)
    return first, second


async def lines(
    store: AsyncDatabaseManager, job_id: str, *, state: DestinationStatus | None, text: str, offset: int, limit: int
) -> list[DestinationLine]:
    """A page of a job's destinations by name; `text` is looked for in name and country, in any case."""
    d, f = tables.destinations, tables.failures
    query: Select[Any] = (
        select(
            d.c.destination_id, d.c.name, d.c.country, d.c.state, d.c.partial, d.c.llm_calls, d.c.cache_hits,
            f.c.error_class, f.c.message,
        )
        .join_from(d, f, isouter=True)
        .where(d.c.job_id == job_id)
        .order_by(d.c.name, d.c.destination_id)
        .offset(offset)
        .limit(limit)
    )  # fmt: skip
    if state is not None:
        query = query.where(d.c.state == state)
    if text:
        query = query.where(
            or_(d.c.name.icontains(text, autoescape=True), d.c.country.icontains(text, autoescape=True))
        )
    async with store.reading() as connection:
        found: list[Any] = list((await connection.execute(query)).all())
    return [
        DestinationLine(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6], row[7] and f"{row[7]}: {row[8]}")
        for row in found
    ]


async def first_failures(store: AsyncDatabaseManager, job_id: str, limit: int) -> list[FailureRow]:
    found = []
    async for failure in store.failures(job_id):
        found.append(failure)
        if len(found) >= limit:
            break
    return found


async def input_titles(store: AsyncDatabaseManager, job_id: str) -> list[str]:
    """The titles of the columns that a job's input has beside those we know, in their order, at most `MAX_COLUMNS`."""
    d = tables.destinations
    if store.dialect == "postgresql":
        keys = func.json_object_keys(cast(d.c.extra, JSON)).table_valued("key", with_ordinality="id")
        each = keys.render_derived()
    else:
        each = func.json_each(d.c.extra).table_valued("key", "id")
    first = func.min(literal_column("destinations.rowid", Integer))
    query = (
        select(each.c.key)
        .select_from(d.join(each, true()))
        .where(d.c.job_id == job_id)
        .group_by(each.c.key)
        .order_by(first, func.min(each.c.id))
        .limit(MAX_COLUMNS)
    )
    async with store.reading() as connection:
        return list((await connection.execute(query)).scalars())
