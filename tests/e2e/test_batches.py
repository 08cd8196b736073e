"""Answers bought in batches, through real processes: half the price, each line once, whatever is killed."""

import json
import sqlite3
from typing import Any

import pytest
from redis import Redis

from tasks import keys
from tasks.jobs.batches import of_job, read
from tests.e2e.conftest import Engine, until

PRICES = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}
QUICK = {
    "THEMES_LLM__BATCH_FORM_SECONDS": "0.3",
    "THEMES_LLM__BATCH_POLL_SECONDS": "0.5",
    "THEMES_LLM__BATCH_SETTLE_SECONDS": "2",
    "THEMES_WORK__LEASE_SECONDS": "2",
    "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
    "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.5",
}
CALLS = 16


def rows(count: int, kind: str = "City") -> str:
    return "name,country\n" + "".join(f"{kind} {number},Country {number % 7}\n" for number in range(count))


def query(engine: Engine, sql: str) -> Any:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def billed_usd(engine: Engine, factors: dict[str, float] | None = None) -> float:
    """What the sandbox would send a bill for."""
    factors = {"batch": 0.5, "flex": 0.5, "default": 1.0, "priority": 2.0} | (factors or {})
    billed = engine.ask_sandbox("/stats")["billed"]
    return sum(
        factors[tier] * (one["prompt_tokens"] + 2 * one["completion_tokens"]) / 1e6 for tier, one in billed.items()
    )


@pytest.fixture
def batching(stack: Engine) -> Engine:
    """The stack, with a price for the sandbox, and batches of a second."""
    stack.env |= PRICES | QUICK
    stack.end("consumer")
    stack.themes("consumer-2", "consumer")
    stack.sandbox("--latency", "0", "--batches", "delay=0.6")
    return stack


def enqueue(engine: Engine, count: int, *options: str, kind: str = "City") -> str:
    said = engine.run("enqueue", "-", "--tier", "batch", *options, stdin=rows(count, kind))
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def done(engine: Engine, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        status = engine.status(job_id)
        return status if status["state"] in {"done", "cancelled"} else None

    status: dict[str, Any] = until("the job to end", look)
    return status


def books(engine: Engine, job_id: str) -> tuple[int, float, float]:
    """Calls, their cost and what the tier has saved, as the database has them."""
    ((calls, cost, saved),) = query(
        engine,
        f"SELECT SUM(llm_calls), SUM(cost_usd), SUM(tier_saved_usd) FROM destinations WHERE job_id = '{job_id}'",  # noqa: S608
    )
    return calls, cost, saved


def nothing_is_left(engine: Engine) -> None:
    """Neither questions nor answers nor reservations stay behind."""
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        left = [key.decode() for key in redis.scan_iter("themes:batch*")]
        assert [key for key in left if not key.startswith(("themes:batch:form:", keys.BATCH_KEEPER))] == [
            keys.BATCHES_OPEN
        ]
        assert redis.get(keys.BATCHES_OPEN) == b"0"
        assert not list(redis.scan_iter("themes:job:*:parked:*"))
        until(
            "batches to end with their job",
            lambda: all(redis.ttl(one) > 0 for one in redis.scan_iter("themes:job:*:batches")),
        )


def test_a_job_in_batches_costs_half_and_each_prompt_once(batching: Engine) -> None:
    for name in ("a", "b"):
        batching.themes(name, "worker", "--name", name)
    job_id = enqueue(batching, 20)
    status = done(batching, job_id)
    assert (status["done"], status["failed"]) == (20, 0)
    stats = batching.ask_sandbox("/stats")
    assert list(stats["billed"]) == ["batch"]
    until("the books to be whole", lambda: books(batching, job_id)[0] == 20 * CALLS, 20)
    _, cost, saved = books(batching, job_id)
    assert cost == pytest.approx(billed_usd(batching))
    assert saved == pytest.approx(cost), "half of the standard price was saved"
    assert stats["batches"]["completed"] >= 2, "the second round follows the first"
    assert stats["batches"]["files"] == 0, "files are deleted"
    nothing_is_left(batching)
    stages = _stages_told(batching, job_id)
    assert len(stages) == len(set(stages)) == 20 * CALLS, "each stage is told once, however often its destination runs"
    # What is known costs nothing.
    again = enqueue(batching, 20)
    assert done(batching, again)["done"] == 20
    assert books(batching, again)[0] == 0


def test_what_no_batch_answers_is_asked_otherwise(batching: Engine) -> None:
    """Lines that expire go into one more batch; then their prompts are asked at the tier for stragglers."""
    batching.sandbox("--latency", "0", "--batches", "delay=0.3,window=1.2,share=0.6,line_errors=0.1")
    batching.themes("a", "worker", "--name", "a", THEMES_LLM__BATCH_STRAGGLERS="standard")
    job_id = enqueue(batching, 8)
    status = done(batching, job_id)
    assert (status["done"], status["failed"], status["partial"]) == (8, 0, 0)
    stats = batching.ask_sandbox("/stats")
    assert set(stats["billed"]) == {"batch", "default"}
    assert sum(one["requests"] for one in stats["billed"].values()) == 8 * CALLS
    assert stats["batches"]["expired"] >= 2
    until("the books to be whole", lambda: books(batching, job_id)[1] == pytest.approx(billed_usd(batching)), 20)
    nothing_is_left(batching)


def test_at_its_deadline_a_job_leaves_its_batches(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=100")
    batching.themes("a", "worker", "--name", "a")
    job_id = enqueue(batching, 6, "--deadline", "3s")
    status = done(batching, job_id)
    assert (status["done"], status["failed"]) == (6, 0)
    stats = batching.ask_sandbox("/stats")
    assert stats["batches"]["cancelled"] >= 1
    assert "default" in stats["billed"], "flex is no tier for a job in a hurry"
    assert sum(one["requests"] for one in stats["billed"].values()) == 6 * CALLS
    until("the books to be whole", lambda: books(batching, job_id)[1] == pytest.approx(billed_usd(batching)), 20)


def test_a_cancelled_job_cancels_its_batches_and_books_what_they_answered(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=20")
    batching.themes("a", "worker", "--name", "a")
    job_id = enqueue(batching, 60)
    until("some lines to be answered", lambda: batching.ask_sandbox("/stats")["billed"])
    assert batching.run("cancel", job_id).returncode == 0
    until("the batch to be cancelled", lambda: batching.ask_sandbox("/stats")["batches"].get("cancelled"))
    paid = billed_usd(batching)
    assert paid > 0
    until("the books to be whole", lambda: books(batching, job_id)[1] == pytest.approx(paid), 20)
    until("everything to be put away", lambda: _left(batching) == [], 20)
    # What was paid for is of use to the next job.
    again = enqueue(batching, 60, "--deadline", "1s")
    assert done(batching, again)["done"] == 60
    calls = sum(one["requests"] for one in batching.ask_sandbox("/stats")["billed"].values())
    assert calls == 60 * CALLS


def test_lost_replies_and_a_list_that_lags_behind_buy_nothing_twice(batching: Engine) -> None:
    habits = "delay=0.4,lag=1,lost_creates=2,lost_uploads=1,busy_uploads=1"
    batching.sandbox("--latency", "0", "--batches", habits)
    batching.themes("a", "worker", "--name", "a")
    job_id = enqueue(batching, 5)
    assert done(batching, job_id)["done"] == 5
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 5 * CALLS
    assert stats["batches"]["batches"] == stats["batches"]["completed"]
    assert stats["batches"]["files"] == 0, "also what was uploaded twice is deleted"


def test_a_budget_lets_no_batch_through_that_it_does_not_cover(batching: Engine) -> None:
    batching.themes("a", "worker", "--name", "a")
    budget = 0.006
    job_id = enqueue(batching, 6, "--budget", f"{budget}")
    status = until("the job to pause", lambda: (one := batching.status(job_id))["paused"] and one)
    assert status["paused"] == "budget"
    until("the batches to end", lambda: _open(batching, job_id) == 0)
    assert 0 < billed_usd(batching) <= budget
    assert batching.run("resume", job_id, "--budget", "5").returncode == 0
    assert done(batching, job_id)["done"] == 6
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 6 * CALLS
    until("the books to be whole", lambda: books(batching, job_id)[1] == pytest.approx(billed_usd(batching)), 20)
    assert batching.status(job_id)["spent_usd"] == pytest.approx(billed_usd(batching), abs=1e-6)


def test_two_jobs_with_the_same_prompts_buy_them_once(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=2")
    for name in ("a", "b"):
        batching.themes(name, "worker", "--name", name)
    jobs = [enqueue(batching, 6), enqueue(batching, 6)]
    # The first to ask may go: the other one asks for what is left.
    assert batching.run("cancel", jobs[0]).returncode == 0
    assert done(batching, jobs[1])["done"] == 6
    until("the first job's batch to end", lambda: _left(batching) == [], 20)
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 6 * CALLS
    spent = sum(books(batching, job_id)[1] for job_id in jobs)
    assert spent == pytest.approx(billed_usd(batching))


def test_a_paused_job_holds_no_other_back_and_goes_on_when_it_is_resumed(batching: Engine) -> None:
    batching.themes("a", "worker", "--name", "a", THEMES_LLM__BATCH_FORM_SECONDS="3")
    jobs = [enqueue(batching, 6), enqueue(batching, 6)]
    until("its questions to wait", lambda: batching.status(jobs[0]).get("batches", {}).get("waiting"))
    assert batching.run("pause", jobs[0]).returncode == 0
    assert done(batching, jobs[1])["done"] == 6
    assert batching.status(jobs[0])["paused"] == "user"
    assert batching.run("resume", jobs[0]).returncode == 0
    assert done(batching, jobs[0])["done"] == 6
    assert batching.ask_sandbox("/stats")["billed"]["batch"]["requests"] == 6 * CALLS
    until("everything to be put away", lambda: _left(batching) == [], 20)


def test_workers_with_different_endpoints_take_turns(batching: Engine) -> None:
    west = {"THEMES_LLM__ENDPOINTS": f"{{west: {{base_url: {batching.llm}}}}}"}
    batching.themes("a", "worker", "--name", "a", **west, THEMES_LLM__BATCH_FORM_SECONDS="60")
    job_id = enqueue(batching, 6)
    until("its questions to wait", lambda: batching.status(job_id).get("batches", {}).get("waiting"))
    batching.end("a")
    with Redis.from_url(batching.env["REDIS_URL"]) as redis:
        until("nobody to keep them", lambda: not redis.exists(keys.BATCH_KEEPER))
        batching.themes("b", "worker", "--name", "b")
        until("a worker without their endpoint to keep them", lambda: redis.exists(keys.BATCH_KEEPER))
        batching.themes("c", "worker", "--name", "c", **west)
        assert done(batching, job_id)["done"] == 6
        assert "west" in {one.endpoint for one in read(redis.hgetall(keys.batches(job_id)))}
    assert batching.ask_sandbox("/stats")["billed"]["batch"]["requests"] == 6 * CALLS
    until("everything to be put away", lambda: _left(batching) == [], 20)


def test_without_the_cache_each_prompt_is_bought_anew_once(batching: Engine) -> None:
    batching.themes("a", "worker", "--name", "a")
    done(batching, enqueue(batching, 4))
    job_id = enqueue(batching, 4, "--no-cache")
    assert done(batching, job_id)["done"] == 4
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 2 * 4 * CALLS
    assert books(batching, job_id)[0] == 4 * CALLS


def test_a_server_without_batches_pauses_the_job(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "off")
    batching.themes("a", "worker", "--name", "a")
    job_id = enqueue(batching, 3)
    status = until("the job to pause", lambda: (one := batching.status(job_id))["paused"] and one)
    assert status["paused"] == "batch"
    assert batching.ask_sandbox("/stats")["billed"] == {}
    # The provider has learnt it meanwhile.
    port = batching.llm.rsplit(":", 1)[1].removesuffix("/v1")
    batching.sandbox("--port", port, "--latency", "0", "--batches", "delay=0.3")
    assert batching.run("resume", job_id).returncode == 0
    assert done(batching, job_id)["done"] == 3


def test_more_questions_than_may_wait_come_in_turns(batching: Engine) -> None:
    more = {"THEMES_LLM__BATCH_QUEUE_REQUESTS": "40", "THEMES_LLM__BATCH_MAX_REQUESTS": "25"}
    batching.themes("a", "worker", "--name", "a", **more)
    job_id = enqueue(batching, 12)
    assert done(batching, job_id)["done"] == 12
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 12 * CALLS
    assert stats["batches"]["batches"] >= 12 * CALLS / 25


def _stages_told(engine: Engine, job_id: str) -> list[tuple[str, str]]:
    events = [json.loads(line) for line in engine.run("watch", job_id, "--json").stdout.splitlines()]
    return [(one["destination_id"], one["stage"]) for one in events if one["type"] == "stage.done"]


def _open(engine: Engine, job_id: str) -> int:
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        found = of_job(redis, job_id)
        return found.open if found else 0


def _left(engine: Engine) -> list[str]:
    """What of batches is still in Redis, beside forms and counters."""
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        left = [key.decode() for key in redis.scan_iter("themes:batch*")]
    stays = ("themes:batch:form:", "themes:batch:answer:", keys.BATCH_KEEPER, keys.BATCHES_OPEN)
    return [key for key in left if not key.startswith(stays)]
