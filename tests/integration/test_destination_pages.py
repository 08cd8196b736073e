"""A job's destinations as a list asks for them, from a real database: which, in which order, by which index."""

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from tasks.messages import Destination, Missing, QualityAssessment, StageRecord, Usage
from tests.support.stored import SPENT, announced, done, failed, holding
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.destination_pages import (
    ORDERS,
    STATES,
    Choice,
    DestinationLine,
    _ids,
    destination_page,
    found_count,
    steps_and_model,
)

TOWNS = [Destination.of(name, "Utopia") for name in ("Oslo", "Bonn", "Rome", "Cork", "Nice", "Lima")]
STAGES = [StageRecord(f"s{n}", "ok", "1", "sandbox", "called", Usage(), 1.0) for n in range(16)]


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    """Oslo and Bonn are complete, Rome and Cork partial, Nice failed, Lima waits; and another job's destination."""
    lacks = [
        Missing("s1", "price", "InvalidAnswerError: no JSON"),
        Missing("s1", "level", "x"),
        Missing("s2", "m", "y"),
    ]
    results = []
    for number, town in enumerate(TOWNS[:4]):
        usage = msgspec.structs.replace(SPENT, cost_usd=float(number))
        made = done(town, partial=number > 1, themes=number + 1, usage=usage)
        more = {"missing": lacks} if number > 1 else {}
        quality = QualityAssessment(0.5, 0.5, 0.5, overall=(0.9, 0.7, 0.8, 0.6)[number])
        results.append(
            holding(town, made, stages=STAGES, quality_assessment=quality, elapsed_ms=100.0 - number, **more)
        )
    broken = failed(TOWNS[4], message="RateLimitedError: 429")
    other = Destination.of("Elsewhere")
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        await manager.apply([*announced(*TOWNS), *results, broken])
        await manager.apply([*announced(other, job="k"), done(other, job="k")])
        yield manager


async def _names(store: AsyncDatabaseManager, choice: Choice, *, offset: int = 0, limit: int = 50) -> str:
    found = await destination_page(store, "j", choice, offset=offset, limit=limit)
    return " ".join(line.name for line in found)


CHOICES = [
    (Choice(), "Oslo Bonn Rome Cork Nice Lima"),
    (Choice(is_descending=True), "Lima Nice Cork Rome Bonn Oslo"),
    (Choice(order="name"), "Bonn Cork Lima Nice Oslo Rome"),
    (Choice("complete"), "Oslo Bonn"),
    (Choice("partial", "name"), "Cork Rome"),
    (Choice("failed"), "Nice"),
    (Choice("waiting"), "Lima"),
    (Choice(order="quality"), "Cork Bonn Rome Oslo"),
    (Choice("partial", "quality", is_descending=True), "Rome Cork"),
    (Choice(order="cost", is_descending=True), "Cork Rome Bonn Oslo"),
    (Choice("complete", "time"), "Bonn Oslo"),
    (Choice(text="o"), "Oslo Bonn Rome Cork Nice Lima"),  # all are in Utopia
    (Choice(text="ROM"), "Rome"),
    (Choice(text="c_rk"), ""),
    (Choice(order="quality", text="cork"), "Cork"),
]


async def test_a_state_a_search_and_an_order_choose(store: AsyncDatabaseManager) -> None:
    for choice, names in CHOICES:
        assert await _names(store, choice) == names, choice
        assert await found_count(store, "j", choice) == len(names.split()), choice
        if names.count(" ") > 1:
            assert await _names(store, choice, offset=1, limit=2) == " ".join(names.split()[1:3]), choice


async def test_a_line_says_what_there_is_and_leaves_the_rest_out(store: AsyncDatabaseManager) -> None:
    lines = {line.name: line for line in await destination_page(store, "j", Choice(), offset=0, limit=50)}
    oslo, rome, nice, lima = (lines[name] for name in ("Oslo", "Rome", "Nice", "Lima"))
    assert (oslo.quality, oslo.themes, oslo.lacking, oslo.steps, oslo.cost_usd) == (0.9, 1, 0, 16, 0.0)
    assert (rome.lacking, rome.steps, rome.stage) == (2, 16, "s1"), "two steps of sixteen, however many fields"
    assert (nice.error_class, nice.message, nice.themes) == ("RateLimitedError", "RateLimitedError: 429", None)
    assert lima == DestinationLine(lima.destination_id, "Lima", "Utopia", "queued", partial=False, cost_usd=0.0)
    assert await steps_and_model(store, "j") == (16, "sandbox")
    assert await steps_and_model(store, "unknown") == (0, "")


async def test_every_page_is_read_by_an_index(store: AsyncDatabaseManager) -> None:
    if store.dialect != "sqlite":
        pytest.skip("plans are SQLite's")
    for state in STATES:
        for order in ORDERS:
            choice = Choice(state, order)
            query = _ids("j", replace(choice)).limit(50).compile(
                dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
            )  # fmt: skip
            async with store.reading() as connection:
                plan = [row[3] for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))]
            assert not [step for step in plan if step.startswith("SCAN")], (choice, plan)
            if order in {"input", "name"}:
                assert "USE TEMP B-TREE FOR ORDER BY" not in plan, (choice, plan)
            else:
                assert "COVERING INDEX profiles_by_quality" in plan[0], "wide rows are read for one page alone"
