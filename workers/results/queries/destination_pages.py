"""A page of a job's destinations as a list shows them: which ones, in which order, and what there is to say of each.

The destinations of a page are chosen by indexes alone where the order is that of the input, of names or of quality;
by cost and time the database goes through one index of the job. Either holds one page, however large the job.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec
from sqlalchemy import Integer, Select, func, literal_column, or_, select

from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import DestinationStatus

State = Literal["all", "complete", "partial", "failed", "waiting"]
Order = Literal["input", "name", "quality", "cost", "time"]
STATES: Final[tuple[State, ...]] = get_args(State)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)
#: Found names that are counted; more are "10,000+".
MAX_COUNTED: Final = 10_000

_d, _p, _f = tables.destinations, tables.profiles, tables.failures
_ROWID: Final = literal_column("destinations.rowid", Integer)
#: Columns of profiles that a list can be ordered by.
_OF_PROFILES: Final = {"quality": _p.c.quality, "cost": _p.c.cost_usd, "time": _p.c.elapsed_ms}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which destinations, in which order. By quality, cost and time there are only those that have a profile."""

    state: State = "all"
    order: Order = "input"
    is_descending: bool = False
    text: str = ""

    @property
    def needs_profiles(self) -> bool:
        return self.order in _OF_PROFILES


@dataclass(frozen=True, slots=True)
class DestinationLine:
    """One destination. `lacking` of its `steps` gave nothing; what no profile or failure says is None."""

    destination_id: str
    name: str
    country: str | None
    state: DestinationStatus
    partial: bool
    cost_usd: float | None
    quality: float | None = None
    elapsed_ms: float | None = None
    themes: int | None = None
    lacking: int = 0
    steps: int = 0
    #: Class and text of what failed it, or of the first thing that a partial profile lacks, and the stage.
    error_class: str = ""
    message: str = ""
    stage: str = ""


async def destination_page(
    store: AsyncDatabaseManager, job_id: str, choice: Choice, *, offset: int, limit: int
) -> list[DestinationLine]:
    async with store.reading() as connection:
        page = _ids(job_id, choice).offset(offset).limit(limit)
        chosen = list((await connection.execute(page)).scalars())
        if choice.needs_profiles and chosen:
            numbered = select(_p.c.profile_no, _p.c.destination_id).where(_p.c.profile_no.in_(chosen))
            ids = {row[0]: row[1] for row in await connection.execute(numbered)}
            chosen = [ids[number] for number in chosen]
        rows = (await connection.execute(_details(job_id, chosen))).mappings().all() if chosen else []
        numbers = [row["profile_no"] for row in rows if row["profile_no"] is not None]
        counts = await connection.execute(_themes(numbers)) if numbers else ()
        themes = {row[0]: row[1] for row in counts}
    known = {row["destination_id"]: _line(row, themes) for row in rows}
    return [known[each] for each in chosen if each in known]


async def found_count(store: AsyncDatabaseManager, job_id: str, choice: Choice) -> int:
    """How many destinations a search finds, up to `MAX_COUNTED`. Without one the job's own counters know."""
    some = _ids(job_id, choice).order_by(None).limit(MAX_COUNTED).subquery()
    async with store.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())


async def steps_and_model(store: AsyncDatabaseManager, job_id: str) -> tuple[int, str]:
    """How many steps a profile of a job has, and the model that made it; 0 and nothing before the first."""
    query = select(_p.c.stages, _p.c.model).where(_p.c.job_id == job_id).limit(1)
    async with store.reading() as connection:
        found = (await connection.execute(query)).one_or_none()
    return (len(msgspec.json.decode(found[0])), found[1]) if found else (0, "")


def _ids(job_id: str, choice: Choice) -> Select[Any]:
    """The ids of all that are chosen, in order; where profiles are ordered their numbers, which the index has."""
    state = choice.state
    if choice.needs_profiles:
        query = select(_p.c.profile_no).where(_p.c.job_id == job_id)
        if choice.text:
            query = query.join(_d)
        if state in {"complete", "partial"}:
            query = query.where(_p.c.status == ("ok" if state == "complete" else "partial"))
        column: Any = _OF_PROFILES[choice.order]
        tie: Any = _p.c.profile_no
    else:
        query = select(_d.c.destination_id).where(_d.c.job_id == job_id, *_in_state(state))
        if state == "failed":
            query = query.join(_f)
        elif state == "partial":
            query = query.join(_p).where(_p.c.status == "partial")
        column, tie = (_d.c.name if choice.order == "name" else _ROWID), _ROWID
    if choice.text:
        found = (each.icontains(choice.text, autoescape=True) for each in (_d.c.name, _d.c.country))
        query = query.where(or_(*found))
    places = [column] if column is tie else [column, tie]
    return query.order_by(*(place.desc() if choice.is_descending else place for place in places))


def _in_state(state: State) -> list[Any]:
    return {
        "all": [],
        "complete": [_d.c.state == "done", _d.c.partial == 0],
        "partial": [_d.c.state == "done", _d.c.partial == 1],
        "failed": [_d.c.state == "failed"],
        "waiting": [_d.c.state == "queued"],
    }[state]


def _details(job_id: str, chosen: Sequence[str]) -> Select[Any]:
    return (
        select(
            _d.c.destination_id, _d.c.name, _d.c.country, _d.c.state, _d.c.partial, _d.c.cost_usd, _p.c.profile_no,
            _p.c.quality, _p.c.elapsed_ms, _p.c.missing, _p.c.stages, _f.c.stage, _f.c.error_class, _f.c.message,
        )
        .select_from(_d.join(_p, isouter=True).join(_f, onclause=_is_its_failure(), isouter=True))
        .where(_d.c.job_id == job_id, _d.c.destination_id.in_(chosen))
    )  # fmt: skip


def _is_its_failure() -> Any:
    return (_f.c.job_id == _d.c.job_id) & (_f.c.destination_id == _d.c.destination_id)


def _themes(numbers: Sequence[int]) -> Select[Any]:
    t = tables.profile_themes
    return select(t.c.profile_no, func.count()).where(t.c.profile_no.in_(numbers)).group_by(t.c.profile_no)


def _line(row: Any, themes: dict[int, int]) -> DestinationLine:
    head = (row["destination_id"], row["name"], row["country"], row["state"], bool(row["partial"]), row["cost_usd"])
    if row["state"] == "failed" and row["error_class"]:
        return DestinationLine(*head, error_class=row["error_class"], message=row["message"], stage=row["stage"])
    if row["profile_no"] is None:
        return DestinationLine(*head)
    missing = msgspec.json.decode(row["missing"]) if row["missing"] else []
    stage, _, reason = missing[0][:3] if missing else ("", "", "")
    return DestinationLine(
        *head,
        quality=row["quality"],
        elapsed_ms=row["elapsed_ms"],
        themes=themes.get(row["profile_no"], 0),
        lacking=len({lack[0] for lack in missing}),
        steps=len(msgspec.json.decode(row["stages"])),
        message=reason,
        stage=stage,
    )
