"""What a user asks for, in the spelling of the database: case does not matter, nor how one letter is encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Column, Select, column, select, table, union

from tasks.texts import folded, nearest
from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.selection import COLUMNS, Selection, column_of

MAX_COMPARED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Spelling:
    """Values as they are written in the database, and a sentence for each value that nothing has."""

    values: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


async def spelling(store: AsyncDatabaseManager, query: Any, wanted: Sequence[str], option: str) -> Spelling:
    """The values of a query that are the wanted ones; a wanted one that is not among them stays as it is."""
    keys = {folded(text): text for text in wanted}
    found: list[str] = []
    others: list[str] = []
    async with store.reading() as connection:
        values = await connection.stream_scalars(query)
        async for value in values:
            if value is not None and folded(value) in keys:
                found.append(value)
            elif value is not None and len(others) < MAX_COMPARED:
                others.append(value)
    known = {folded(value) for value in found}
    unknown = [text for key, text in keys.items() if key not in known]
    others = sorted({*others, *found})
    return Spelling(
        (*found, *unknown), tuple(f"{option}{text}: nothing has it{nearest(text, others)}" for text in unknown)
    )


async def spelt(store: AsyncDatabaseManager, job_id: str, chosen: Selection) -> tuple[Selection, list[str]]:
    """The selection in the spelling of a job's rows, and a sentence for each value that nothing in the job has."""
    unknown: list[str] = []

    async def values(query: Select[Any], wanted: Sequence[str], option: str) -> tuple[str, ...]:
        if not wanted:
            return ()
        found = await spelling(store, query.distinct(), wanted, option)
        unknown.extend(found.unknown)
        return found.values

    d, t, k = tables.destinations, tables.themes, tables.theme_travelers
    where = {}
    for name, wanted in chosen.where.items():
        of_profile = name in COLUMNS and COLUMNS[name].table is tables.profiles
        of_job = (tables.profiles if of_profile else d).c.job_id == job_id
        where[name] = await values(select(column_of(name, store.dialect)).where(of_job), wanted, f"--where {name}=")
    travelers = select(k.c.traveler_type).join_from(k, t, k.c.theme_no == t.c.theme_no)
    spelled = replace(
        chosen,
        where=where,
        categories=await values(_of_themes(t.c.category, job_id), chosen.categories, "--category "),
        prices=await values(_of_themes(t.c.price_point, job_id), chosen.prices, "--price "),
        travelers=await values(travelers.where(t.c.job_id == job_id), chosen.travelers, "--traveler "),
    )
    return spelled, unknown


def _of_themes(named: Column[Any], job_id: str) -> Select[Any]:
    return select(named).where(tables.themes.c.job_id == job_id)


async def of_failures(
    store: AsyncDatabaseManager, job_id: str, name: str, wanted: Sequence[str], option: str
) -> Spelling:
    """As `spelling`, of `error_class` or `stage` of a job's failures and of what its partial profiles lack."""
    failures, gaps = tables.failures, table("gaps", column("job_id"), column("error_class"), column("stage"))
    both = union(*(select(each.c[name]).where(each.c.job_id == job_id) for each in (failures, gaps)))
    return await spelling(store, both, wanted, option) if wanted else Spelling()
