"""What the database knows of how a job went: every count of a report, exact, whatever was killed meanwhile.

All of it is summed up by the database, so a job of a million destinations takes as little memory as one of ten.
"""

from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Integer,
    RowMapping,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
)  # fmt: skip
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.jobs.batches import BOOKED_BY
from workers.results.database import tables
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow

POINTS: Final = 60
#: Shortest time that one point stands for, in seconds.
SHORTEST_POINT_SECONDS: Final = 0.25
SLOWEST: Final = 10
KINDS: Final = 20
#: The name of all batches together, beside those of workers.
BATCHES: Final = "batches"
_WORKER: Final = tables.attempts.c.worker
#: Whether a row is a worker's run: others are the books of a batch.
_IS_RUN: Final = or_(_WORKER.not_like(f"{BOOKED_BY}%"), _WORKER.like("%@%"))


class Point(msgspec.Struct, frozen=True):
    """Part of the job's time.

    When a call was made is not kept. What was started first is served first, so a run stands in line at its beginning:
    its calls are spread evenly over its last seconds, as many as the quickest run with calls took.
    """

    #: Seconds since the job's start.
    at: float
    seconds: float
    #: Destinations that came to an end, and those of them that failed.
    ended: int = 0
    failed: int = 0
    calls: float = 0.0
    #: Destinations in work, on average.
    in_work: float = 0.0


class StageRow(msgspec.Struct, frozen=True):
    """How one stage went, over all profiles of the job."""

    stage: str
    profiles: int
    not_ok: int
    called: int
    cached: int
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    mean_ms: float


class FailureKind(msgspec.Struct, frozen=True):
    """Failures of one class in one stage, with one of their messages."""

    error_class: str
    stage: str
    destinations: int
    message: str


class RunRow(msgspec.Struct, frozen=True):
    destination_id: str
    name: str
    country: str | None
    outcome: str
    elapsed_ms: float
    llm_calls: int
    cache_hits: int
    worker: str
    at: float


class WorkerRow(msgspec.Struct, frozen=True):
    """A worker's runs; or, under the name `BATCHES`, what all batches have cost."""

    worker: str
    runs: int
    llm_calls: int
    busy_seconds: float


class JobStats(msgspec.Struct, frozen=True):
    """A job's time and failures as the database has them. Times are seconds since 1970, or seconds."""

    started_at: float
    #: The end of the job, or the moment of the look.
    ended_at: float
    runs: int
    #: Of these, all but the first of a destination; and those that came to no end.
    retried: int
    stopped: int
    #: When the first destination came to an end; None before.
    first_at: float | None
    #: When the last one did, or was stopped; its row is durable a little later.
    last_at: float | None
    #: Percentiles of one run, in ms; empty before the first.
    elapsed_ms: dict[str, float]
    #: Sum of all runs' times in seconds: destinations in work x time.
    busy_seconds: float
    timeline: list[Point]
    stages: list[StageRow]
    failures: list[FailureKind]
    slowest: list[RunRow]
    workers: list[WorkerRow]
    dead_letters: int

    @property
    def seconds(self) -> float:
        """From the start of the first destination to the end of the job, or to now."""
        return max(0.0, self.ended_at - self.started_at)


def empty_job_stats(*, started_at: float, ended_at: float) -> JobStats:
    return JobStats(started_at, max(started_at, ended_at), 0, 0, 0, None, None, {}, 0.0, [], [], [], [], [], 0)


async def read_job_stats(store: AsyncDatabaseManager, job: JobRow, *, now: float) -> JobStats:
    """Read what there is of a job, in one consistent view."""
    table = tables.attempts
    stopped = and_(table.c.outcome == "stopped", _IS_RUN)
    query = select(
        func.count(case((_IS_RUN, 1))).label("runs"),
        func.count(case((_IS_RUN, table.c.destination_id)).distinct()).label("destinations"),
        func.coalesce(func.sum(case((stopped, 1), else_=0)), 0).label("stopped"),
        func.min(case((table.c.outcome != "stopped", table.c.at))).label("first_at"),
        func.max(table.c.at).label("last_at"),
        func.coalesce(func.sum(table.c.elapsed_ms), 0.0).label("busy_ms"),
    ).where(table.c.job_id == job.job_id)
    async with store.reading() as connection:
        sums = (await connection.execute(query)).mappings().one()
        started, ended = _window(job, sums, now)
        return JobStats(
            started_at=started,
            ended_at=ended,
            runs=sums["runs"],
            retried=sums["runs"] - sums["destinations"],
            stopped=int(sums["stopped"]),
            first_at=sums["first_at"],
            last_at=sums["last_at"],
            elapsed_ms=await _percentiles(connection, job.job_id),
            busy_seconds=float(sums["busy_ms"]) / 1000,
            timeline=await _timeline(connection, job.job_id, started, ended, dialect=store.dialect),
            stages=await _stages(connection, job.job_id),
            failures=await _failures(connection, job.job_id),
            slowest=await _slowest(connection, job.job_id),
            workers=await _workers(connection, job.job_id),
            dead_letters=await _dead_letters(connection, job.job_id),
        )


def _window(job: JobRow, sums: RowMapping, now: float) -> tuple[float, float]:
    """From when to when the job worked: what is final has ended, whatever was durable last."""
    started = job.started_at if job.started_at is not None else job.created_at
    last = sums["last_at"] if sums["last_at"] is not None else started
    ended = max(job.finished_at, last) if job.finished_at is not None else max(now, last)
    return started, max(started, ended)


async def _percentiles(connection: AsyncConnection, job_id: str) -> dict[str, float]:
    """All of them out of one sort."""
    table = tables.attempts
    mine = and_(table.c.job_id == job_id, table.c.outcome != "stopped")
    count = (await connection.execute(select(func.count()).where(mine))).scalar_one()
    if not count:
        return {}
    places = {f"p{share}": min(count, count * share // 100 + 1) for share in (50, 95, 99)}
    number = func.row_number().over(order_by=table.c.elapsed_ms).label("number")
    ranked = select(table.c.elapsed_ms, number).where(mine).subquery()
    query = select(ranked.c.number, ranked.c.elapsed_ms).where(ranked.c.number.in_(set(places.values())))
    found = {row["number"]: row["elapsed_ms"] for row in (await connection.execute(query)).mappings()}
    return {name: found[place] for name, place in places.items()}


async def _timeline(
    connection: AsyncConnection, job_id: str, started: float, ended: float, *, dialect: str
) -> list[Point]:
    """The runs by the points in which they began and ended: at most POINTS x POINTS groups, however many runs."""
    table = tables.attempts
    width = max(SHORTEST_POINT_SECONDS, (ended - started) / POINTS)
    count = max(1, min(POINTS, int((ended - started) / width + 0.999)))

    def place(moment: ColumnElement[Any]) -> ColumnElement[Any]:
        number = (moment - literal(started)) / literal(width)
        # SQLite cuts where PostgreSQL rounds.
        return cast(func.trunc(number) if dialect == "postgresql" else number, Integer)

    async def spread(seconds: ColumnElement[Any], *amounts: ColumnElement[Any]) -> list[list[float]]:
        """Amounts of each run: the first evenly over the seconds before its end, the others at its end."""
        query = (
            select(place(table.c.at - seconds), place(table.c.at), *(func.sum(amount) for amount in amounts))
            .where(table.c.job_id == job_id)
            .group_by(text("1"), text("2"))
        )
        over = [[0.0] * count for _ in amounts]
        for began, at, *found in await connection.execute(query):
            first, last = (min(count - 1, max(0, index)) for index in (began, at))
            for index in range(first, last + 1):
                over[0][index] += float(found[0]) / (last - first + 1)
            for row, amount in zip(over[1:], found[1:], strict=True):
                row[last] += float(amount)
        return over

    elapsed = table.c.elapsed_ms / 1000
    quickest = await _quickest(connection, job_id)
    is_ended, is_failed = (
        case((condition, 1), else_=0) for condition in (table.c.outcome != "stopped", table.c.outcome == "failed")
    )
    busy, ended_in, failed_in = await spread(elapsed, elapsed, is_ended, is_failed)
    (calls,) = await spread(case((elapsed < quickest, elapsed), else_=literal(quickest)), table.c.llm_calls)
    return [
        Point(
            at=round(index * width, 3),
            seconds=round(width, 3),
            ended=round(ended_in[index]),
            failed=round(failed_in[index]),
            calls=round(calls[index], 3),
            in_work=round(busy[index] / width, 3),
        )
        for index in range(count)
    ]


async def _quickest(connection: AsyncConnection, job_id: str) -> float:
    """Seconds of the quickest run that called: the others called as long, and stood in line before."""
    table = tables.attempts
    query = select(func.min(table.c.elapsed_ms)).where(
        table.c.job_id == job_id, table.c.llm_calls > 0, table.c.outcome == "ok"
    )
    found = (await connection.execute(query)).scalar_one()
    return float(found or 0.0) / 1000


async def _stages(connection: AsyncConnection, job_id: str) -> list[StageRow]:
    columns = ", ".join(StageRow.__struct_fields__)
    query = text(f"SELECT {columns} FROM stage_costs WHERE job_id = :job_id ORDER BY stage")  # noqa: S608  # our names
    found = (await connection.execute(query, {"job_id": job_id})).mappings()
    # A sum of PostgreSQL's is a Decimal.
    return [msgspec.convert({**row, **_floats(row)}, StageRow, strict=False) for row in found]


def _floats(row: Any) -> dict[str, Any]:
    whole = {"called", "cached", "not_ok", "llm_calls", "prompt_tokens", "completion_tokens"}
    return {
        name: None if value is None else int(value) if name in whole else float(value)
        for name, value in row.items()
        if name in whole | {"cost_usd", "mean_ms"}
    }


async def _failures(connection: AsyncConnection, job_id: str) -> list[FailureKind]:
    table = tables.failures
    query: Select[Any] = (
        select(
            table.c.error_class, table.c.stage, func.count().label("destinations"),
            func.min(table.c.message).label("message"),
        )
        .where(table.c.job_id == job_id)
        .group_by(table.c.error_class, table.c.stage)
        .order_by(func.count().desc(), table.c.error_class, table.c.stage)
        .limit(KINDS)
    )  # fmt: skip
    return [FailureKind(**row) for row in (await connection.execute(query)).mappings()]


async def _slowest(connection: AsyncConnection, job_id: str) -> list[RunRow]:
    # Their names are looked up for the few that are left.
    slow = (
        select(tables.attempts)
        .where(tables.attempts.c.job_id == job_id)
        .order_by(tables.attempts.c.elapsed_ms.desc())
        .limit(SLOWEST)
        .subquery()
    )
    names = tables.destinations
    is_its = and_(names.c.job_id == slow.c.job_id, names.c.destination_id == slow.c.destination_id)
    query = (
        select(
            slow.c.destination_id, names.c.name, names.c.country, slow.c.outcome, slow.c.elapsed_ms,
            slow.c.llm_calls, slow.c.cache_hits, slow.c.worker, slow.c.at,
        )
        .join_from(slow, names, is_its)
        .order_by(slow.c.elapsed_ms.desc())
    )  # fmt: skip
    return [RunRow(**row) for row in (await connection.execute(query)).mappings()]


async def _workers(connection: AsyncConnection, job_id: str) -> list[WorkerRow]:
    table = tables.attempts
    sums = func.count(), func.sum(table.c.llm_calls), func.sum(table.c.elapsed_ms)
    name = case((_IS_RUN, _WORKER), else_=literal_column(f"'{BATCHES}'"))
    query = select(name, *sums).where(table.c.job_id == job_id)
    found = await connection.execute(query.group_by(name).order_by(name))
    return [WorkerRow(worker, runs, int(calls), float(ms) / 1000) for worker, runs, calls, ms in found]


async def _dead_letters(connection: AsyncConnection, job_id: str) -> int:
    table = tables.dead_letters
    query = select(func.count()).select_from(table).where(table.c.job_id == job_id)
    return int((await connection.execute(query)).scalar_one())
