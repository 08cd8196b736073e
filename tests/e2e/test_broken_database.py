"""A database that cannot be used ends `themes consumer` with one line, and nothing is acknowledged."""

import asyncio
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine
from workers.results.database.manager import AsyncDatabaseManager


def _corrupt(path: Path) -> None:
    path.write_bytes(b"no database " * 1_000)


def _torn(path: Path) -> None:
    """A true file whose pages after the first are gone to rubbish."""
    _true(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\x5a" * (len(whole) - 4096))


def _newer(path: Path) -> None:
    _true(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def _strange(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (id)")


def _folder(path: Path) -> None:
    path.mkdir()


def _true(path: Path) -> None:
    async def make() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}"):
            pass

    asyncio.run(make())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_corrupt, "file is not a database; move this file away"),
        (_torn, "malformed; move this file away"),
        (_newer, "newer version"),
        (_strange, "holds another application's tables"),
        (_folder, "is a folder; remove it"),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_consumer_with_one_line_before_anything_is_acknowledged(
    spoil: Callable[[Path], None], told: str, stack: Engine
) -> None:
    stack.end("consumer")
    path = Path(stack.env["THEMES_STATE_DIR"]) / "themes.db"
    for file in path.parent.glob("themes.db*"):
        file.unlink()
    job_id = stack.run("enqueue", "-", stdin="Kyoto, Japan\n").stdout.strip()
    spoil(path)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        waiting = redis.xlen(keys.RESULTS)
        assert waiting
        said = stack.run("consumer")
        lines = [line for line in said.stderr.splitlines() if " INFO " not in line]
        assert said.returncode == 2
        assert len(lines) == 1, said.stderr
        assert re.fullmatch(rf"themes: {re.escape(str(path))}: .*{re.escape(told)}.*", lines[0])
        assert redis.xlen(keys.RESULTS) == waiting, "what is acknowledged is trimmed"
    # The mend: another place. Nothing that was waiting is lost.
    stack.themes("consumer", "consumer", DATABASE_URL=f"sqlite+aiosqlite:///{stack.folder / 'new.db'}")
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("watch", job_id).returncode == 0
