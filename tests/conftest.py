"""Real parts for every test: a private redis-server for the session, the sandbox LLM over HTTP."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from config.settings import Settings, load
from scripts.lib.local_redis import LocalRedis
from tests.support import postgresql
from tests.support.forks import Forks
from workers.sandbox.server import SandboxServer

# A slow machine makes an example slow, not wrong. Examples are the same each time: what is green stays green.
# `scripts/soak --search` looks for new ones.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", parent=settings.get_profile("repeatable"), derandomize=False, max_examples=2_000)
settings.load_profile("search" if os.environ.get("TEST_SEARCH") else "repeatable")

#: Databases of the private server that tests take in turn; 0 is left alone.
_DATABASES = cycle(range(1, 16))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user's reaches a test, but which redis-server to start."""
    for name in list(os.environ):
        ours = name.startswith(("THEMES_", "OPENAI_")) and name != "THEMES_REDIS__SERVER"
        if ours or name in {"REDIS_URL", "CELERY_BROKER_URL", "DATABASE_URL"}:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """One private redis-server for all tests of this process."""
    choice = os.environ.get("THEMES_REDIS__SERVER", "auto")
    with LocalRedis(tmp_path_factory.mktemp("redis"), choice) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: LocalRedis) -> Iterator[str]:
    """An empty database of the private server."""
    url = f"{redis_server.url.rpartition('/')[0]}/{next(_DATABASES)}"
    with Redis.from_url(url) as client:
        client.flushdb()
        yield url
        forgotten = [
            key.decode()
            for pattern in ("themes:cache:*", "themes:worker:*", "themes:job:*:measurements", "themes:series:*")
            for key in client.scan_iter(pattern)
            if client.ttl(key) == -1
        ]
        assert not forgotten, f"keys without a TTL: {forgotten}"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the test's database."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    """A sandbox LLM that answers at once."""
    async with SandboxServer(latency="0") as server:
        yield server


@pytest.fixture
def settings_for(tmp_path: Path) -> Callable[..., Settings]:
    """Make settings from environment variables, with a state directory of the test's own."""

    def make(**env: str) -> Settings:
        return load(env={"THEMES_STATE_DIR": str(tmp_path / "var"), **env})

    return make


@pytest.fixture(scope="session")
def postgresql_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder of the socket of one private PostgreSQL server for all tests of this process."""
    if postgresql.binaries() is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is missing: .ci/run installs it")
        pytest.skip("needs a PostgreSQL server (Debian: apt-get install postgresql)")
    with postgresql.server(tmp_path_factory.mktemp("postgresql")) as folder:
        yield folder


@pytest.fixture
async def postgresql_url(postgresql_socket: str) -> str:
    """An empty database of the private server."""
    return postgresql.url(postgresql_socket, await postgresql.created(postgresql_socket))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What starts `themes` quickly."""
    with Forks() as made:
        yield made


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI"):
        pytest.fail("Chromium is missing: .ci/run installs it")
    if found is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    return found
