"""Downloads of a job's results: the real handler on a real socket, a real database, an HTTP client."""

import asyncio
import io
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from config.settings import Settings
from tasks.connection import connect_async
from tasks.messages import Destination, JobInputs
from tests.support.stored import holding, theme
from workers.dashboard import downloads
from workers.dashboard.jobs_pages import Site
from workers.dashboard.recent import RecentJobs
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.export import WRITERS
from workers.results.queries.selection import Selection

SECONDS = 180
SMALL, LARGE = 600, 3_000


@dataclass
class Downloads:
    url: str
    site: Site
    database: Path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs whose profiles have 16 KB each: 10 MB and 48 MB."""
    file = tmp_path_factory.mktemp("downloads") / "themes.db"

    async def fill() -> None:
        themes = [msgspec.structs.replace(theme(n), description="=x" * 1_250) for n in range(3)]
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{file}") as manager:
            for job, size in (("small", SMALL), ("large", LARGE)):
                towns = [Destination.of(f"Town {n}", "Utopia", extra={"tier": "1"}) for n in range(size)]
                await manager.apply([JobInputs(job, tuple(towns))])
                for at in range(0, size, 500):
                    some = towns[at : at + 500]
                    made = [holding(town, themes=themes, more={"told": "x" * 8_500}) for town in some]
                    await manager.apply([msgspec.structs.replace(each, job_id=job) for each in made])

    asyncio.run(fill())
    return file


@pytest.fixture
async def served(filled: Path, redis_url: str, settings_for: Callable[..., Settings]) -> AsyncIterator[Downloads]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    settings = settings_for(DATABASE_URL=f"sqlite+aiosqlite:///{filled}")
    site = Site(settings, redis_url, RecentJobs(client))
    application = Application(downloads.handlers(site))
    application.options = SimpleNamespace(basic_auth=None, auth=None, url_prefix="")  # type: ignore[attr-defined]
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield Downloads(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/jobs", site, filled)
    server.stop()
    await server.close_all_connections()
    await (await site.store()).close()
    site.redis.close()
    await client.aclose()


def _running() -> list[asyncio.Task[None]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("download of ")]


async def _ended() -> None:
    async with asyncio.timeout(SECONDS):
        while _running():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", downloads.KINDS)
async def test_a_download_is_what_the_verb_writes(served: Downloads, kind: str) -> None:
    store = await served.site.store()
    expected = io.StringIO(newline="")
    await WRITERS[kind](store.exported("small"), expected, Selection(), ["tier"])
    async with aiohttp.ClientSession() as session, session.get(f"{served.url}/small/results.{kind}") as answer:
        assert answer.headers["Content-Disposition"] == f'attachment; filename="themes-small.{kind}"'
        assert (await answer.text()) == expected.getvalue()
    assert len(expected.getvalue()) > SMALL * 5_000


async def test_a_large_job_needs_no_more_memory_than_a_small_one(served: Downloads) -> None:
    peaks, sizes = {}, {}
    tracemalloc.start()
    async with aiohttp.ClientSession() as session:
        for job in ("small", "small", "large"):
            tracemalloc.reset_peak()
            sizes[job] = 0
            async with session.get(f"{served.url}/{job}/results.jsonl") as answer:
                async for piece in answer.content.iter_any():
                    sizes[job] += len(piece)
            peaks[job] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes["large"] > 40_000_000
    assert peaks["large"] < peaks["small"] + 4_000_000, peaks


async def test_a_browser_that_goes_away_ends_the_reading(served: Downloads) -> None:
    async with aiohttp.ClientSession(read_bufsize=2**12) as session:
        answer = await session.get(f"{served.url}/large/results.jsonl")
        assert await answer.content.readany()
        (task,) = _running()
        # It takes no more, so the rest stays where it is.
        await asyncio.wait({task}, timeout=0.5)
        assert not task.done()
        answer.close()
        await _ended()
        assert task.cancelled()


async def test_a_download_that_breaks_off_is_not_taken_for_all(
    served: Downloads, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiohttp.ClientSession(read_bufsize=2**12) as session:
        answer = await session.get(f"{served.url}/large/results.jsonl")
        assert await answer.content.readany()
        with sqlite3.connect(served.database) as writer:
            writer.execute("PRAGMA legacy_alter_table=ON")
            writer.execute("ALTER TABLE profiles RENAME TO elsewhere")
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
        with sqlite3.connect(served.database) as writer:
            writer.execute("PRAGMA legacy_alter_table=ON")
            writer.execute("ALTER TABLE elsewhere RENAME TO profiles")
        writer.close()
    await _ended()
    assert "action=download_failed job_id=large" in caplog.text
