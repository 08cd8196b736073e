"""docs/reference/results.md: its picture is of today's tables, its queries run."""

import asyncio
import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.stored import KYOTO, announced, done
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.tables import metadata
from workers.results.database.views import views

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(name: str) -> ModuleType:
    """A script that stands beside what it makes."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_generate" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_todays_tables() -> None:
    drawn = script("schema").draw()
    assert (DOCS / "reference" / "schema.svg").read_text("utf-8") == drawn, "python docs/_generate/schema.py"
    assert all(f">{name}</text>" in drawn for name in metadata.tables)


def test_every_table_and_view_is_named() -> None:
    text = (DOCS / "reference" / "results.md").read_text("utf-8")
    missing = [name for name in [*metadata.tables, *views("sqlite")] if f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("number", range(10))
def test_each_of_the_ten_queries_runs_on_a_database_of_today(number: int, tmp_path: Path) -> None:
    async def fill() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as store:
            await store.apply([*announced(KYOTO), done()])

    asyncio.run(fill())
    module = script("results")
    query = module.queries()[number]
    with closing(sqlite3.connect(tmp_path / "themes.db")) as connection:
        assert module.table(connection, query).splitlines()[0].split()
    page = (DOCS / "reference" / "results.md").read_text("utf-8")
    assert page.count("```sql") == page.count("```text") == 10
