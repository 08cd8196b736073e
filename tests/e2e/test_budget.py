"""A job with a budget, through real processes: never above, resumable, nothing paid twice."""

import json
import re
import sqlite3
from typing import Any

import psutil
import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until

PRICES = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}
DESTINATIONS = 90
CALLS = 16


@pytest.fixture
def priced(stack: Engine) -> Engine:
    """The stack, with a price for the sandbox, and quick to find a dead worker."""
    stack.env |= PRICES | {
        "THEMES_WORK__LEASE_SECONDS": "2",
        "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
        "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.5",
        "THEMES_LLM__REQUEST_TIMEOUT_SECONDS": "3",
    }
    stack.end("consumer")
    stack.themes("consumer-2", "consumer")
    return stack


def _rows(count: int, kind: str = "City") -> str:
    return "name,country\n" + "".join(f"{kind} {number},Country {number % 7}\n" for number in range(count))


def _query(engine: Engine, sql: str) -> Any:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _charged(engine: Engine) -> float:
    """What the sandbox would send a bill for."""
    stats = engine.ask_sandbox("/stats")
    return float(stats["prompt_tokens"] * 1 + stats["completion_tokens"] * 2) / 1e6


def _enqueue(engine: Engine, budget: float, count: int = DESTINATIONS) -> str:
    said = engine.run("enqueue", "-", "--budget", f"{budget}", stdin=_rows(count))
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def _paused(engine: Engine, job_id: str) -> dict[str, Any]:
    """The job's status once it is paused and nobody has anything of it in hand."""

    def look() -> dict[str, Any] | None:
        status = engine.status(job_id)
        with Redis.from_url(engine.env["REDIS_URL"]) as redis:
            at_rest = not redis.exists(keys.leases(job_id))
        return status if status["paused"] and at_rest and not engine.ask_sandbox("/stats")["in_flight"] else None

    status: dict[str, Any] = until("the job to pause", look)
    return status


def _in_the_database(engine: Engine, job_id: str) -> tuple[int, float]:
    ((count, cost),) = _query(
        engine,
        f"SELECT COUNT(*), COALESCE(SUM(cost_usd), 0) FROM destinations WHERE job_id = '{job_id}' AND state = 'done'",  # noqa: S608
    )
    return count, cost


def test_a_job_stops_before_its_budget_and_goes_on_without_paying_twice(priced: Engine) -> None:
    for name in ("a", "b"):
        priced.themes(name, "worker", "--name", name)
    # One destination without a budget says what one costs.
    said = priced.run("enqueue", "-", "--wait", stdin=_rows(3, "Probe"))
    assert said.returncode == 0, said.stderr
    with Redis.from_url(priced.env["REDIS_URL"]) as redis:
        assert not list(redis.scan_iter("themes:job:*:budget")), "a job without a budget makes no keys for one"
    before, asked = _charged(priced), priced.ask_sandbox("/stats")["requests"]
    budget = round(before / 3 * DESTINATIONS / 3, 4)

    job_id = _enqueue(priced, budget)
    watched = priced.run("watch", job_id)
    assert watched.returncode == 1
    assert "stopped at its budget" in watched.stderr
    assert f"themes resume {job_id} --budget" in watched.stderr
    status = _paused(priced, job_id)
    assert (status["state"], status["paused"], status["budget_usd"]) == ("stalled", "budget", budget)
    count, cost = _in_the_database(priced, job_id)
    assert 0 < count < DESTINATIONS
    assert status["failed"] == 0
    assert cost <= _charged(priced) - before <= status["spent_usd"] + 1e-9
    assert status["spent_usd"] <= budget
    assert "stopped at its budget" in priced.run("status", job_id).stdout
    assert re.search(rf"{job_id[-6:]}  paused +.*themes resume {job_id[-6:]} --budget", priced.run("status").stdout)
    events = [json.loads(line) for line in priced.run("watch", job_id, "--json").stdout.splitlines()]
    assert [event["type"] for event in events].count("job.paused") == 1

    # At rest: the sweeper wakes nobody, and nothing is asked.
    requests = priced.ask_sandbox("/stats")["requests"]
    with Redis.from_url(priced.env["REDIS_URL"]) as redis:
        until("the messages to be used up", lambda: not any(redis.llen(key) for key in keys.queue_keys()))
        assert set(redis.hvals(keys.deliveries(job_id))) <= {b"0"}

    too_little = priced.run("resume", job_id, "--budget", f"{status['spent_usd'] / 2:.4f}")
    assert too_little.returncode == 2
    assert "spent already" in too_little.stderr
    assert priced.run("resume", job_id).returncode == 2
    assert priced.ask_sandbox("/stats")["requests"] == requests
    assert priced.run("resume", job_id, "--budget", f"{10 * budget}").returncode == 0
    assert priced.run("watch", job_id).returncode == 0
    count, cost = _in_the_database(priced, job_id)
    assert count == DESTINATIONS
    assert len(_query(priced, f"SELECT * FROM profiles WHERE job_id = '{job_id}'")) == DESTINATIONS  # noqa: S608
    done = priced.status(job_id)
    assert (done["state"], done["done"], done["failed"], done["paused"]) == ("done", DESTINATIONS, 0, None)
    assert priced.ask_sandbox("/stats")["requests"] - asked == DESTINATIONS * CALLS == done["llm_calls"]
    assert cost == pytest.approx(_charged(priced) - before), "what was paid before the pause is in the books too"
    assert done["spent_usd"] == pytest.approx(cost)


def test_a_killed_worker_does_not_let_its_job_cross_the_budget(priced: Engine) -> None:
    victim = priced.themes("victim", "worker", "--name", "victim")
    job_id = _enqueue(priced, 0.6)
    until("some destinations to be done", lambda: priced.status(job_id)["done"] >= 3)
    priced.themes("heir", "worker", "--name", "heir")
    for child in psutil.Process(victim.pid).children(recursive=True):
        child.kill()
    victim.kill()
    status = _paused(priced, job_id)
    count, cost = _in_the_database(priced, job_id)
    assert count > 0
    assert cost <= _charged(priced) <= 0.6
    assert status["spent_usd"] <= 0.6
    assert priced.run("resume", job_id, "--budget", "9").returncode == 0
    assert priced.run("watch", job_id).returncode == 0
    assert _in_the_database(priced, job_id)[0] == DESTINATIONS


def test_a_paused_job_can_be_cancelled(priced: Engine) -> None:
    priced.themes("w", "worker", "--name", "w")
    said = priced.run("enqueue", "-", "--wait", "--budget", "0.05", stdin=_rows(20))
    assert said.returncode == 1
    assert "stopped at its budget" in said.stderr
    job_id = said.stdout.strip()
    _paused(priced, job_id)
    cancelled = priced.run("cancel", job_id)
    assert cancelled.returncode == 0
    assert "cancelled" in cancelled.stderr
    status = priced.status(job_id)
    assert (status["state"], status["paused"]) == ("cancelled", None)
    with Redis.from_url(priced.env["REDIS_URL"]) as redis:
        left = {key.decode().rpartition(":")[2] for key in redis.scan_iter(f"{keys.job(job_id)}:*")}
        assert left <= {"events", "budget", "measurements"}
        assert redis.ttl(keys.budget(job_id)) > 0
    assert priced.run("resume", job_id, "--budget", "2").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--budget", "0"], {}, "above 0"),
        (["--budget", "nan"], {}, "above 0"),
        (["--budget", "1"], {"THEMES_LLM__PRICES": "{}"}, "llm.prices"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_in_one_line(
    priced: Engine, arguments: list[str], env: dict[str, str], says: str
) -> None:
    said = priced.run("enqueue", "-", *arguments, stdin=_rows(1), **env)
    assert said.returncode == 2
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_a_worker_whose_model_has_no_price_spends_nothing_and_says_so(priced: Engine) -> None:
    priced.themes("w", "worker", "--name", "w", THEMES_LLM__PRICES="{}")
    job_id = _enqueue(priced, 1.0, count=3)
    watched = priced.run("watch", job_id)
    assert watched.returncode == 1
    assert "no price (llm.prices)" in watched.stderr
    assert priced.ask_sandbox("/stats")["requests"] == 0
    priced.end("w")
    priced.themes("w", "worker", "--name", "w")
    assert priced.run("resume", job_id).returncode == 0
    assert priced.run("watch", job_id).returncode == 0


def test_jobs_of_a_team_stop_at_its_budget_of_the_day_and_go_on_the_day_after(priced: Engine) -> None:
    priced.themes("a", "worker", "--name", "a")
    said = priced.run("enqueue", "-", "--wait", stdin=_rows(3, "Probe"))
    assert said.returncode == 0, said.stderr
    before = _charged(priced)
    budget = round(before / 3 * 30, 4)
    priced.env["THEMES_TEAMS__BUDGETS"] = f"{{research: {{usd_per_day: {budget}, usd_per_month: {50 * budget}}}}}"
    priced.end("a")
    for name in ("b", "c"):
        priced.themes(name, "worker", "--name", name)
    unknown = priced.run("enqueue", "-", "--team", "resaerch", stdin=_rows(1))
    assert unknown.returncode == 2
    assert "no team 'resaerch' in teams.budgets (research)" in unknown.stderr
    jobs = []
    for kind in ("City", "Town"):
        said = priced.run("enqueue", "-", "--team", "research", stdin=_rows(40, kind))
        assert said.returncode == 0, said.stderr
        jobs.append(said.stdout.strip())

    statuses = [_paused(priced, job_id) for job_id in jobs]
    assert [(each["paused"], each["team"]) for each in statuses] == [("team", "research")] * 2
    assert "stopped at the budget of team research" in priced.run("status", jobs[0]).stdout
    assert "goes on by itself" in priced.run("status", jobs[0]).stdout
    done = sum(each["done"] for each in statuses)
    assert 0 < done < 80
    team = json.loads(priced.run("teams", "--json").stdout)
    charged = _charged(priced) - before
    assert charged <= team["day_usd"] + team["reserved_usd"] + 1e-9 <= budget + 1e-9
    assert team["month_usd"] == team["day_usd"]
    assert "research: $" in priced.run("teams").stdout

    # The next day, as far as Redis knows: what is spent stands under another date, and the pauses are over.
    with Redis.from_url(priced.env["REDIS_URL"]) as redis:
        redis.hdel(keys.team("research"), team["day"])
        for job_id in jobs:
            redis.hset(keys.job(job_id), "paused_until", 1)
    until("both to go on", lambda: sum(priced.status(job_id)["done"] for job_id in jobs) > done)
    statuses = [_paused(priced, job_id) for job_id in jobs]
    assert all(each["failed"] == 0 for each in statuses)
    # Resumed by hand, on a day with room: done, and nothing was asked twice.
    with Redis.from_url(priced.env["REDIS_URL"]) as redis:
        redis.hdel(keys.team("research"), team["day"])
    for job_id in jobs:
        priced.run("resume", job_id)
    for job_id in jobs:
        assert priced.run("watch", job_id).returncode == 0, priced.status(job_id)
    assert priced.ask_sandbox("/stats")["requests"] == CALLS * 83
