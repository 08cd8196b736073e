"""Redis behind Sentinel: every role finds the master, and follows when another server becomes it."""

import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine, until
from tests.support.servers import Watched

COUNT = 60


@pytest.fixture
def watched(engine: Engine, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    try:
        made.start()
        engine.env |= {
            "REDIS_URL": made.url,
            "THEMES_WORK__LEASE_SECONDS": "4",
            "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
            "THEMES_LOGGING__FORMAT": "json",
        }
        engine.sandbox("--latency", "60ms")
        for role in ("consumer", "worker", "dashboard"):
            engine.themes(role, role)
        yield made
        engine.stop()
    finally:
        made.stop()


def _begun(engine: Engine) -> str:
    """A job of which a part is done."""
    rows = "name\n" + "".join(f"City {number}\n" for number in range(COUNT))
    said = engine.run("enqueue", "-", stdin=rows)
    job_id = said.stdout.strip()
    until("some progress", lambda: engine.status(job_id)["done"] >= COUNT // 6)
    return job_id


def _ended_whole(engine: Engine, watched: Watched, job_id: str) -> None:
    """The replica takes over, the job ends, and each destination has its one row."""
    until("a verb to find the new master", lambda: engine.run("status").returncode == 0)
    assert watched.replica.client.info()["role"] == "master"
    until("the job to end", lambda: engine.status(job_id)["state"] == "done")
    found = _query(engine, "SELECT status, count(*), count(DISTINCT destination_id) FROM profiles GROUP BY status")
    assert found == [("ok", COUNT, COUNT)]


def _query(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(statement).fetchall()


def test_a_job_is_whole_and_in_the_books_when_its_master_is_killed(engine: Engine, watched: Watched) -> None:
    job_id = _begun(engine)
    watched.master.kill()
    _ended_whole(engine, watched, job_id)
    assert _query(engine, "SELECT sum(llm_calls) FROM jobs") == [(engine.ask_sandbox("/stats")["requests"],)]
    # What asks by Celery's remote control, and Flower, follow too.
    for words in ("top --once", "tune log_level=INFO", "doctor", f"report {job_id}", "health worker"):
        ran = engine.run(*words.split())
        assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
        assert Watched.PASSWORD not in ran.stdout + ran.stderr
    assert engine.run("enqueue", "-", "--wait", stdin="Bergen\n").returncode == 0
    port = until("the dashboard", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", engine.log("dashboard")))[1]
    engine.end("worker")
    engine.run("enqueue", "-", stdin="Kyoto\n")
    for page in ("jobs", "metrics", "workers", "broker"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=180) as answer:
            assert answer.status == 200
            shown = answer.read().decode()
    assert re.search(r'<td class="broker-secondary-column">1<', shown), "Flower has counted the message that waits"
    for role in ("consumer", "worker", "dashboard"):
        assert Watched.PASSWORD not in engine.log(role)
        assert Watched.SENTINEL_PASSWORD not in engine.log(role)


def test_what_the_replica_had_not_heard_of_is_done_again(engine: Engine, watched: Watched) -> None:
    job_id = _begun(engine)
    watched.replica.client.config_set("masterauth", "wrong")
    watched.master.client.client_kill_filter(_type="replica")
    unheard = engine.status(job_id)["done"]
    until("more to be done", lambda: engine.status(job_id)["done"] >= unheard + COUNT // 6)
    watched.master.kill()
    _ended_whole(engine, watched, job_id)
