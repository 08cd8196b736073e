"""A results database of either kind, with its tables: a copy of one that is made once."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.support import postgresql
from workers.results.database.manager import AsyncDatabaseManager


async def _with_tables(url: str) -> None:
    async with AsyncDatabaseManager(url):
        pass


@pytest.fixture(scope="session")
def _sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tables") / "themes.db"
    asyncio.run(_with_tables(f"sqlite+aiosqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def _postgresql_tables(postgresql_socket: str) -> str:
    name = asyncio.run(postgresql.created(postgresql_socket))
    asyncio.run(_with_tables(postgresql.url(postgresql_socket, name)))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of either kind that holds nothing."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_tables"), tmp_path / "themes.db")
        return f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}"
    tables: str = request.getfixturevalue("_postgresql_tables")
    folder: str = request.getfixturevalue("postgresql_socket")
    return postgresql.url(folder, asyncio.run(postgresql.created(folder, tables)))
