"""Redis killed while workers work: prompts go on from memory, it is said, and the job ends when Redis is back."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine, until
from tests.faults.stack import Server

#: Destinations of the job, and prompts of one.
COUNT, PROMPTS = 80, 16


@pytest.fixture
def server(engine: Engine, tmp_path: Path) -> Iterator[Server]:
    """A Redis with a fixed address, so that it can come back."""
    (tmp_path / "redis").mkdir()
    server = Server(tmp_path / "redis", aof=True)
    engine.env["REDIS_URL"] = f"redis://127.0.0.1:{server.port}/1"
    yield server
    engine.stop()
    server.kill()


def test_prompts_go_on_from_memory_while_redis_is_dead_and_the_job_ends_when_it_is_back(
    engine: Engine, server: Server, tmp_path: Path
) -> None:
    engine.sandbox("--latency", "60ms")
    engine.themes("consumer", "consumer")
    engine.themes("w", "worker", "--name", "w")
    file = tmp_path / "cities.csv"
    file.write_text("name\n" + "".join(f"City {number}\n" for number in range(COUNT)))
    job_id = engine.run("enqueue", str(file)).stdout.strip()
    until("some destinations to be done", lambda: engine.status(job_id)["done"] >= 15)
    server.kill()
    asked = engine.ask_sandbox("/stats")["requests"]
    until("the cache to say that it goes on alone", lambda: engine.logged("w", "cache_degraded"))
    until("prompts to be answered without Redis", lambda: engine.ask_sandbox("/stats")["requests"] > asked + 20)
    # Long enough for several tries: they are not said again.
    time.sleep(3)
    server.start()
    until("the job to end", lambda: engine.status(job_id)["state"] == "done")
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        rows = database.execute("SELECT status, COUNT(*) FROM profiles GROUP BY status").fetchall()
    assert rows == [("ok", COUNT)], "no prompt failed for it"
    processes = 1 + len(engine.logged("w", "restart"))
    for part in ("cache", "flights"):
        gone = len(engine.logged("w", f"{part}_degraded"))
        assert 1 <= gone <= processes, f"{part}: said once by each process that met it"
    if processes == 1:
        until("it to be said that it is back", lambda: engine.logged("w", "cache_restored"))
        assert "Redis was away 1 time" in engine.run("doctor").stdout
