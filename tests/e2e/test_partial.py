"""Partial is not fine: a job says what is partial and why, and asks again for nothing but what is missing."""

import json
import sqlite3
from typing import Any

from tests.e2e.conftest import Engine

#: Prompts of one destination.
PROMPTS = 16
QUICK = {
    "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
}
CITIES = "name,country\nKyoto,Japan\nRome,Italy\nOslo,Norway\n"
#: What only the prompts of one stage contain (analyse.price).
PRICE = "give the price level"


def _query(engine: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _refuse(engine: Engine, *texts: str) -> None:
    engine.ask_sandbox("/faults", [f"400=1,match={text}" for text in texts])


def _requests(engine: Engine) -> int:
    return int(engine.ask_sandbox("/stats")["requests"])


def _stages(engine: Engine) -> set[str]:
    return {row[0] for row in _query(engine, "SELECT DISTINCT stage FROM missing")}


def test_a_partial_job_says_why_and_a_retry_asks_for_what_is_missing_alone(stack: Engine) -> None:
    stack.env |= QUICK
    stack.themes("w", "worker", "--name", "w")
    _refuse(stack, PRICE)
    said = stack.run("enqueue", "-", "--wait", stdin=CITIES)
    assert said.returncode == 0, said.stderr
    job = said.stdout.strip()
    stages = _stages(stack)
    assert len(stages) == 1, "the fault meets one stage"
    (stage,) = stages
    for text in (said.stderr, stack.run("status", job).stdout):
        assert "3 of 3 profiles are partial:" in text
        assert f"3 lack {stage}: BadRequestError: " in text
        assert f"themes retry {job} --partial" in text
    assert stack.run("watch", job).returncode == 0
    assert stack.run("watch", job, "--fail-on-partial").returncode == 1
    kinds = stack.run("failures", job, "--partial")
    assert kinds.returncode == 1
    first, second, third = kinds.stdout.splitlines()
    assert first.startswith(f"3 partial  BadRequestError  {stage}  ")
    assert second == "  Kyoto, Japan · Rome, Italy · and 1 more"
    assert third == f"retry: themes retry {job[-6:]} --partial"
    each = [json.loads(line) for line in stack.run("failures", job, "--partial", "--json").stdout.splitlines()]
    assert {(one["name"], one["stage"], one["error_class"]) for one in each} == {
        (name, stage, "BadRequestError") for name in ("Kyoto", "Rome", "Oslo")
    }
    assert stack.run("failures", job).returncode == 0
    said = stack.run("retry", job)
    assert "nothing to retry" in said.stderr
    assert "partial: 3" in said.stderr
    assert "\nnothing to retry" in stack.run("retry", job, "--stage", "discover.food").stderr
    before = _requests(stack)
    again = stack.run("retry", job, "--partial", "--wait", "--fail-on-partial")
    assert again.returncode == 1, "it is refused again"
    assert _requests(stack) - before == 3
    assert (stack.status(job)["done"], stack.status(job)["partial"]) == (3, 3)
    _refuse(stack)
    before = _requests(stack)
    again = stack.run("retry", job, "--stage", stage, "--wait", "--fail-on-partial")
    assert again.returncode == 0, again.stderr
    # Before: how the job stood when it was asked again.
    assert "partial" not in again.stderr.splitlines()[-1]
    assert _requests(stack) - before == 3, "what was paid for came from the cache"
    status = stack.status(job)
    assert (status["done"], status["failed"], status["partial"]) == (3, 0, 0)
    assert _query(stack, "SELECT count(*), count(DISTINCT destination_id), min(status) FROM profiles") == [(3, 3, "ok")]


def test_a_run_does_so_too_without_redis(engine: Engine) -> None:
    engine.env |= QUICK | {"THEMES_REDIS__ENABLED": "false"}
    engine.sandbox("--latency", "0")
    _refuse(engine, PRICE)
    said = engine.run("run", "-", "--fail-on-partial", stdin=CITIES)
    assert said.returncode == 1
    job = said.stdout.strip()
    (stage,) = _stages(engine)
    assert f"3 lack {stage}: BadRequestError: " in said.stderr
    assert f"themes run --resume {job} --partial" in said.stderr
    assert f"themes run --resume {job} --partial" in engine.run("status", job).stdout
    assert "nothing is missing" in engine.run("run", "--resume", job).stderr
    # A retry that fails outright loses nothing.
    engine.ask_sandbox("/faults", ["400=1"])
    broken = engine.run("run", "--resume", job, "--partial")
    assert broken.returncode == 0, broken.stderr
    assert _query(engine, "SELECT count(*), min(status) FROM profiles") == [(3, "partial")]
    assert _query(engine, "SELECT count(*) FROM failures") == [(0,)]
    engine.ask_sandbox("/faults", [])
    before = _requests(engine)
    again = engine.run("run", "--resume", job, "--stage", stage, "--fail-on-partial")
    assert again.returncode == 0, again.stderr
    assert _requests(engine) - before == 3
    assert _query(engine, "SELECT count(*), min(status) FROM profiles") == [(3, "ok")]
