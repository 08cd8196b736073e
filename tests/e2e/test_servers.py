"""The conformance of servers: what runs on the bundled one in every other test, on the other generations in this one.

A job of each tier with faults, a killed worker and a pause; and beside it the tests below, which need nothing but the
server. Together they give it every script.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tests.e2e.conftest import DEADLINE, Engine, until
from tests.support.scripts_given import ROOT, given, names
from tests.support.servers import SERVERS, on_path

COUNT = 40
ROWS = "name,country\n" + "".join(f"City {number},Country {number % 7}\n" for number in range(COUNT))
QUICK = {
    "THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
    "THEMES_LLM__BATCH_FORM_SECONDS": "0.2",
    "THEMES_LLM__BATCH_POLL_SECONDS": "0.2",
    "THEMES_LLM__BATCH_SETTLE_SECONDS": "1",
    "THEMES_TEAMS__BUDGETS": "{research: {usd_per_day: 100, usd_per_month: 100}}",
    # Nobody takes the notices: the host is private.
    "THEMES_WEBHOOK__URL": "http://127.0.0.1:9/",
    "THEMES_WEBHOOK__SECRET": "whsec_YW55",
    "THEMES_WORK__LEASE_SECONDS": "2",
    "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
    "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.5",
}
#: Tests of scripts that no quiet job needs: limits, cool-downs, splits, what is handed off, and what was lost.
SCRIPTS = (
    "test_ledger.py",
    "test_leftovers.py",
    "test_batch_course.py::test_a_job_waits_for_no_question_of_a_paused_one",
    "test_budget.py::test_a_limit_that_is_no_amount_lets_no_call_through_and_pauses_the_job",
    "test_cache.py::test_a_report_whose_reply_was_lost_is_counted_once",
    "test_known_profiles.py::test_the_process_that_made_it_had_the_answers_in_memory",
    "test_probes.py::test_a_probe_whose_process_dies_is_made_by_another_one",
    "test_rate_limit.py::test_every_key_of_the_limits_has_a_ttl",
    "test_rate_limit.py::test_who_waits_far_off_is_served_at_once_when_the_limit_is_raised_and_no_window_has_too_much",
    "test_shared_flight.py::test_a_prompt_whose_owner_is_lost_is_asked_by_a_waiter_within_a_lease[9]",
    "test_shared_flight.py::test_a_fresh_answer_is_never_an_older_one_and_is_shared_by_all_that_want_one",
    "test_sweeper.py::test_what_redis_has_lost_ends_as_a_failure_and_the_job_ends",
)


@pytest.fixture(params=[name for name in SERVERS if name != "valkey 9.1"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server of a generation is the one on the path."""
    monkeypatch.setenv("PATH", on_path(request.param, tmp_path / "bin"))
    return str(request.param)


@pytest.fixture
def stack(engine: Engine, tmp_path: Path, path: str) -> Iterator[Engine]:
    """As `stack`, on that server."""
    with LocalRedis(tmp_path / "var", "system") as server:
        engine.env |= QUICK | {"REDIS_URL": server.url}
        with Redis.from_url(server.url) as redis:
            info = redis.info("server")
        kind = "valkey" if "valkey_version" in info else "redis"
        assert f"{kind} {info[f'{kind}_version']}".startswith(path)
        engine.sandbox("--latency", "40ms", "--fault", "500=0.02", "--batches", "delay=0.2")
        engine.themes("consumer", "consumer")
        yield engine
        engine.stop()


def test_jobs_and_every_script_run_on_each_generation_of_servers(stack: Engine, tmp_path: Path) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.support.scripts_given", "-p", "no:cacheprovider"]
    env = os.environ | {"THEMES_REDIS__SERVER": "system", "SCRIPTS_GIVEN": str(tmp_path / "given.txt")}
    with (tmp_path / "tests.log").open("w") as log, subprocess.Popen(
        [*tests, *(f"tests/integration/{one}" for one in SCRIPTS)], cwd=ROOT, env=env, stdout=log, stderr=log
    ) as beside:  # fmt: skip
        _jobs(stack)
        assert beside.wait(DEADLINE) == 0, (tmp_path / "tests.log").read_text()
    found = given(stack.env["REDIS_URL"]) | set((tmp_path / "given.txt").read_text().split())
    assert set(names().values()) - found == set(), "scripts that this server was never given"


def _jobs(stack: Engine) -> None:
    for name in ("a", "b"):
        stack.themes(name, "worker", "--name", name)
    in_batches = stack.run("enqueue", "-", "--tier", "batch", stdin="name\nOslo\nLima\n").stdout.strip()
    job_id = stack.run("enqueue", "-", "--budget", "100", "--team", "research", stdin=ROWS).stdout.strip()
    until("some progress", lambda: stack.status(job_id)["done"] >= 3)
    # Its supervisor frees what it held, and starts it again.
    for child in psutil.Process(stack.processes["a"].pid).children(recursive=True):
        child.kill()
    assert stack.run("pause", job_id).returncode == 0
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the notice of the pause", lambda: redis.exists(keys.WEBHOOKS))
    # What was in hand at the pause may have been all that was left.
    said = stack.run("resume", job_id)
    assert said.returncode == 0 or "is done" in said.stderr
    for one, count in ((job_id, COUNT), (in_batches, 2)):
        until("the job to end", lambda one=one: stack.status(one)["state"] == "done")
        with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
            query = "SELECT count(*), count(DISTINCT destination_id) FROM profiles WHERE job_id = ?"
            assert database.execute(query, (one,)).fetchall() == [(count, count)]
