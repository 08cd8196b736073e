"""The questions of docs/reference/results.md: the same answers as ever, and none without an index.

`answers.json` beside this file was written with tables of one row a month, traveller, sub-theme and stage.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tasks.messages import Destination, Missing, Result, StreamEntry
from tests.support.full import Prose
from tests.support.stored import announced
from workers.results.database.manager import AsyncDatabaseManager

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "reference" / "results.md").read_text("utf-8")
QUESTIONS: list[str] = re.findall(r"```sql\n(.*?);\n```", PAGE, re.DOTALL)
WORDS = [f"{a}{b}" for b in ("ra", "mo", "ti", "sel") for a in ("ka", "no", "ve", "lu", "pi", "dor", "gan", "wes")]
#: What a view has beside the time of its writing.
VIEWS = {
    "newest_profiles": "job_id, destination_id, name, country, status, model, quality, attempt, llm_calls",
    "theme_months": "theme_no, month, season",
    "theme_travelers": "theme_no, traveler_type",
    "theme_subthemes": "theme_no, level, position, name",
    "themes": "theme_no, job_id, destination_id, rank, category, name, description, confidence, price_point, "
    "authenticity",
    "stages": "*",
    "missing": "*",
    "destinations_by_theme": "*",
    "destinations_by_month": "*",
    "top_themes_by_country": "*",
    "provenance": "*",
    "stage_costs": "*",
    "gaps": "*",
}
#: What SQLite alone takes of the questions, and how PostgreSQL has it.
POSTGRESQL = (
    (r"sum\((category = '\w+')\)", r"count(*) FILTER (WHERE \1)"),
    (r"SELECT profiles.name AS destination, month", "SELECT min(profiles.name) AS destination, month"),
    (r"(USING \(job_id, destination_id\)\)\n)GROUP BY name", r"\1AS named GROUP BY name"),
)
#: A word that tells that an index or a key was used, not the table from end to end.
USED = {"sqlite": r"USING (?:COVERING )?INDEX|USING INTEGER PRIMARY KEY", "postgresql": r"Index"}


def entries() -> list[StreamEntry]:
    """Two jobs over some of the same destinations, one profile of which lacks something."""
    prose = Prose(11, [*WORDS, *reversed(WORDS)] * 20)
    towns = [Destination.of(name, "Japan" if number % 2 else "Peru") for number, name in enumerate(WORDS[:4])]
    towns.append(Destination.of("Kyoto", "Japan"))
    lacks = [
        Missing("analyse.price", "price_point", "RateLimitedError: 429", ["t2", "t3"]),
        Missing("assess.quality", "quality", "told otherwise"),
    ]
    found: list[StreamEntry] = [*announced(*towns), *announced(*towns[2:], job="k")]
    for job_id, some in (("j", towns), ("k", towns[2:])):
        found += [_result(prose, town, job_id, lacks if town is towns[2] else []) for town in some]
    return found


def _result(prose: Prose, town: Destination, job_id: str, lacks: list[Missing]) -> Result:
    return prose.result(town, job_id=job_id, at=1000.0 + ord(job_id), themes=7, missing=lacks)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        await manager.apply(entries())
        yield manager


async def rows(store: AsyncDatabaseManager, sql: str) -> list[Any]:
    async with store.reading() as connection:
        found = (await connection.exec_driver_sql(sql)).all()
    return [[float(f"{x:.6g}") if not isinstance(x, str | None) else x for x in row] for row in found]


def asked(question: str, dialect: str) -> str:
    for pattern, words in POSTGRESQL if dialect == "postgresql" else ():
        question = re.sub(pattern, words, question)
    return question


async def answers(store: AsyncDatabaseManager) -> dict[str, list[Any]]:
    """Of each question, without its LIMIT, and each view: how many rows, one of them, and a digest of all."""
    asks = {f"question {number}": sql.rpartition(" LIMIT ")[0] or sql for number, sql in enumerate(QUESTIONS, start=1)}
    asks |= {name: f"SELECT {columns} FROM {name}" for name, columns in VIEWS.items()}  # noqa: S608
    found = {}
    for name, sql in asks.items():
        of = sorted(await rows(store, asked(sql, store.dialect)), key=repr)
        found[name] = [len(of), of[0], hashlib.sha256(json.dumps(of).encode()).hexdigest()]
    return found


async def test_questions_and_views_answer_as_they_did_when_each_value_had_a_row(store: AsyncDatabaseManager) -> None:
    expected = json.loads((HERE / "answers.json").read_text("utf-8"))
    assert len(QUESTIONS) == 10
    assert await answers(store) == expected


@pytest.mark.parametrize("number", range(10))
async def test_a_question_goes_by_an_index(store: AsyncDatabaseManager, number: int) -> None:
    sql = asked(QUESTIONS[number], store.dialect)
    async with store.reading() as connection:
        if store.dialect == "postgresql":
            # A table of some rows is read whole, whatever indexes it has.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = (await connection.exec_driver_sql(f"EXPLAIN {sql}")).scalars().all()
        else:
            plan = [row[3] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")]
    assert re.search(USED[store.dialect], "\n".join(plan)), "\n".join(plan)
