"""Calls in status, report, database, totals and Prometheus = calls that the LLM counted, after kills too."""

import contextlib
import json
import random
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from tasks import worker_reports as fleet
from tasks.jobs.totals import read_totals
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _free_port, _get
from workers.observe.call_file import read

WORKERS = ("w0", "w1", "w2")
DESTINATIONS = 48
#: Every kind of answer that makes a call be made again, and one that loses its connection.
FAULTS = ["500=0.04,times=1", "429=0.04,times=1,retry_after=0", "truncated=0.03,times=1", "reset=0.03,times=1"]
QUICK = {
    "THEMES_WORK__LEASE_SECONDS": "2",
    "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
    "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.3",
    "THEMES_LLM__FLIGHT_LEASE_SECONDS": "1",
    "THEMES_PERFORMANCE_OPTIMIZATION__PROFILE_INTERVAL_SECONDS": "0.2",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.05",
    "THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
}


def _watched(stack: Engine) -> None:
    """Start a dashboard, which Prometheus would ask."""
    stack.env["THEMES_DASHBOARD__PORT"] = str(_free_port())
    stack.themes("dashboard", "dashboard")


@pytest.fixture
def shop(stack: Engine) -> Engine:
    """Three supervised workers, a consumer, and an LLM that fails now and then."""
    stack.env |= QUICK
    stack.end("consumer")
    stack.sandbox("--latency", "60ms", *(part for fault in FAULTS for part in ("--fault", fault)))
    stack.themes("consumer-2", "consumer")
    _watched(stack)
    for name in WORKERS:
        stack.themes(name, "worker", "--name", name)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the workers", lambda: len(list(redis.scan_iter("themes:worker:*"))) == len(WORKERS))
    return stack


def _query(engine: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _enqueue(engine: Engine, label: str) -> str:
    path = Path(engine.folder, f"{label}.csv")
    path.write_text("name\n" + "".join(f"{label} {number}\n" for number in range(DESTINATIONS)))
    said = engine.run("enqueue", str(path))
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def _numbers(engine: Engine) -> dict[str, int]:
    """What each of those who count says of the calls of all jobs."""
    ids = [row[0] for row in _query(engine, "SELECT job_id FROM jobs")]
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        totals = read_totals(redis)
    reports = [json.loads(engine.run("report", job_id, "--json").stdout) for job_id in ids]
    return {
        "report": sum(report["usage"]["llm_calls"] for report in reports),
        "prometheus": _scraped(engine),
        "status": sum(engine.status(job_id)["llm_calls"] for job_id in ids),
        "attempts": _query(engine, "SELECT sum(llm_calls) FROM attempts")[0][0],
        "totals": totals["llm_calls"],
        "counters": _query(engine, "SELECT value FROM counters WHERE name = 'llm_calls'")[0][0],
        "llm": engine.ask_sandbox("/stats")["requests"],
    }


def _scraped(engine: Engine) -> int:
    """The calls that Prometheus would be told of."""
    text = _get(f"http://127.0.0.1:{engine.env['THEMES_DASHBOARD__PORT']}/metrics")[1]
    found = re.search(r"^themes_llm_calls_total (\S+)$", text, re.MULTILINE)
    return round(float(found.group(1))) if found else 0


def _agree(engine: Engine) -> dict[str, int]:
    """The numbers once they agree, and none is left to be booked; fails with them when they never do."""
    until("the LLM to be idle", lambda: engine.ask_sandbox("/stats")["in_flight"] == 0)
    deadline = time.monotonic() + 60
    while len(set((numbers := _numbers(engine)).values())) > 1:
        assert time.monotonic() < deadline, numbers
        time.sleep(0.2)
    return numbers


def _under_way(engine: Engine, job_id: str, chance: random.Random) -> None:
    """Wait for a random moment in the middle of the job."""
    part = chance.uniform(0.1, 0.4) * DESTINATIONS
    done = f"SELECT count(*) FROM profiles WHERE job_id = '{job_id}'"  # noqa: S608 - our own id
    until("the middle of the job", lambda: _query(engine, done)[0][0] >= part)
    time.sleep(chance.uniform(0, 0.2))


def _asking(engine: Engine, chance: random.Random) -> str:
    """One of the workers that have calls under way, by their heartbeats of a moment ago."""

    def those() -> list[str]:
        with Redis.from_url(engine.env["REDIS_URL"]) as redis:
            reports = fleet.workers(redis)
        return sorted(name.partition("@")[0] for name, one in reports.items() if one.connections_in_use > 0)

    return chance.choice(until("a worker to ask", those))


def _celery(worker: psutil.Process) -> psutil.Process:
    found: list[psutil.Process] = until("a Celery process", worker.children)
    return found[0]


@pytest.mark.timeout(600)
def test_every_call_is_in_every_book_although_the_call_journal_was_deleted_in_mid_job(shop: Engine) -> None:
    chance = random.Random(1)
    journals = shop.folder / "var" / "calls"
    job_id = _enqueue(shop, "Town")
    _under_way(shop, job_id, chance)
    shutil.rmtree(journals)
    celery = _celery(psutil.Process(shop.processes[_asking(shop, chance)].pid))
    until("a new journal", lambda: _is_written_down(journals, celery.pid))
    celery.kill()
    assert shop.run("watch", job_id).returncode == 0
    first = _agree(shop)
    # No journal can be made, which is said; then it can.
    shutil.rmtree(journals)
    journals.write_text("in the way")
    until("status to say it", lambda: shop.run("status").stderr.count("call journal off") == len(WORKERS))
    # It would ask the LLM itself.
    assert "call journal off" in shop.run("doctor", OPENAI_BASE_URL="http://127.0.0.1:1/v1").stdout
    assert shop.run("top", "--once", "--json").stdout.count("call journal off") == len(WORKERS)
    job_id = _enqueue(shop, "City")
    _under_way(shop, job_id, chance)
    journals.unlink()
    name = _asking(shop, chance)
    celery = _celery(psutil.Process(shop.processes[name].pid))
    until("a new journal", lambda: _is_written_down(journals, celery.pid))
    _kill_with_its_supervisor(shop, name)
    assert shop.run("watch", job_id).returncode == 0
    assert _agree(shop)["llm"] > first["llm"]
    assert "call journal off" not in shop.run("status").stderr


def _is_written_down(journals: Path, pid: int) -> bool:
    """Whether a process has what it works on in a journal."""
    for path in journals.glob("*.calls"):
        with contextlib.suppress(FileNotFoundError):
            remains = read(path.read_bytes())
            if remains.pid == pid and remains.orphans:
                return True
    return False


def _kill_with_its_supervisor(shop: Engine, name: str) -> None:
    worker = psutil.Process(shop.processes[name].pid)
    both = [worker, _celery(worker)]
    for process in both:
        process.suspend()
    for process in both:
        process.kill()
    shop.processes.pop(name).wait()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6))])
def test_every_call_is_in_every_book_although_processes_die_and_calls_fail(shop: Engine, seed: int) -> None:
    chance = random.Random(seed)
    # The Celery process under its supervisor, and once more: it was started again.
    job_id = _enqueue(shop, "Town")
    _under_way(shop, job_id, chance)
    _celery(psutil.Process(shop.processes[_asking(shop, chance)].pid)).kill()
    assert shop.run("watch", job_id).returncode == 0
    first = _agree(shop)
    # Process and supervisor together: nobody is left to book for them but those who come by.
    job_id = _enqueue(shop, "City")
    _under_way(shop, job_id, chance)
    _kill_with_its_supervisor(shop, _asking(shop, chance))
    assert shop.run("watch", job_id).returncode == 0
    second = _agree(shop)
    statuses = shop.ask_sandbox("/stats")["by_status"]
    assert {"429", "500", "reset", "200"} <= statuses.keys()
    # What was killed had calls under way, and they are among those that agree.
    assert _query(shop, "SELECT count(*) > 0, sum(llm_calls) > 0 FROM attempts WHERE outcome = 'lost'") == [(1, 1)]
    assert second["llm"] > first["llm"] > DESTINATIONS * 16
    with Redis.from_url(shop.env["REDIS_URL"]) as redis:
        totals = read_totals(redis)
    ends = dict(_query(shop, "SELECT outcome, count(*) FROM attempts GROUP BY outcome"))
    assert totals["lost_runs"] == ends["lost"]
    assert totals["destinations_ok"] == ends.get("ok", 0)
    assert totals["destinations_partial"] == ends.get("partial", 0)
    assert totals["runs"] == sum(ends.values())
    cost = _query(shop, "SELECT sum(CAST(round(cost_usd * 1000000000) AS INTEGER)) FROM attempts")[0][0]
    assert totals["cost_nano_usd"] == cost > 0
    assert not list(Path(shop.folder, "var", "calls").glob("*.bad"))


def test_calls_that_a_stopping_worker_cuts_off_are_in_every_book(stack: Engine) -> None:
    stack.sandbox("--latency", "2s")
    _watched(stack)
    stack.themes("w0", "worker", "--name", "w0", THEMES_WORK__SHUTDOWN_GRACE_SECONDS="0.2")
    job_id = _enqueue(stack, "Town")
    until("every connection to be busy", lambda: stack.ask_sandbox("/stats")["in_flight"] >= 15)
    stack.end("w0")
    numbers = _agree(stack)
    assert numbers["llm"] >= 15
    # Nobody has heard their answers: they count with estimated tokens.
    usage = "sum(llm_calls), sum(estimated_calls), min(prompt_tokens) > 0"
    assert _query(stack, f"SELECT {usage} FROM attempts WHERE llm_calls > 0") == [(numbers["llm"], numbers["llm"], 1)]  # noqa: S608
    stack.run("cancel", job_id)
