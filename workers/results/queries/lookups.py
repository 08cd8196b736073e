"""What is looked up in the results database: one profile, the titles of a job's input."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, Integer, cast, func, literal_column, select, true, tuple_

from tasks.inputs.columns import MAX_COLUMNS
from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import ProfileRow


async def profile_of(store: AsyncDatabaseManager, job_id: str, destination_id: str) -> ProfileRow | None:
    d = tables.destinations
    query = select(*tables.PROFILE_COLUMNS).join_from(d, tables.profiles)
    query = query.where(d.c.job_id == job_id, d.c.destination_id == destination_id)
    async with store.reading() as connection:
        found = (await connection.execute(query)).mappings().one_or_none()
    return ProfileRow.of(found) if found else None


@dataclass(frozen=True, slots=True)
class HowMade:
    """By which prompts a destination's profile was made: the version of all, and JSON of each stage's record."""

    destination_id: str
    pipeline_version: str
    stages: str


async def how_made(store: AsyncDatabaseManager, destination_ids: Sequence[str]) -> list[HowMade]:
    """Of all profiles that these destinations have in any job."""
    p = tables.profiles.c
    query = select(p.destination_id, p.pipeline_version, p.stages).where(p.destination_id.in_(destination_ids))
    async with store.reading() as connection:
        return [HowMade(*row) for row in await connection.execute(query)]


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
