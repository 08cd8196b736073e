"""`themes cancel`, `pause` and `resume` on a stack of real processes, and the books afterwards."""

import json
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from tasks import keys
from tasks.messages import Event
from tasks.queue.retry import is_drained
from tests.e2e.conftest import DEADLINE, Engine, until


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _rows(engine: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _one(engine: Engine, sql: str) -> int:
    return int(_rows(engine, sql)[0][0] or 0)


def _requests(engine: Engine) -> int:
    return int(engine.ask_sandbox("/stats")["requests"])


def _is_idle(engine: Engine) -> bool:
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        workers = list(redis.scan_iter(keys.worker("*")))
        return bool(workers) and all(redis.hget(worker, "chunks_held") == b"0" for worker in workers)


@pytest.fixture
def slow(engine: Engine, tmp_path: Path, stack: Engine) -> Engine:
    """A worker that has asked what takes long: every connection is busy, and many prompts wait."""
    stack.ask_sandbox("/faults", [])
    stack.sandbox("--latency", "400ms")
    stack.themes("w", "worker", "--name", "w")
    return stack


def _answer_within(engine: Engine, latency: str) -> None:
    """Put a sandbox of another latency, that has counted nothing yet, in the place of the one that runs."""
    port = engine.llm.split(":")[2].split("/")[0]
    engine.sandbox("--latency", latency, "--port", port)


def test_cancel_stops_within_one_call_and_books_what_it_has_cost(slow: Engine) -> None:
    # So large that it cannot be half done before a slow machine has started `themes cancel`.
    job_id = slow.run("enqueue", _file(slow.folder, 600)).stdout.strip()
    until("every connection to be busy", lambda: slow.ask_sandbox("/stats")["in_flight"] >= 15)
    # Its heartbeat comes once a second: what it says next is of a busy worker.
    until("the worker to say so", lambda: not _is_idle(slow))
    assert slow.run("cancel", job_id).returncode == 0
    until("the worker to be idle", lambda: _is_idle(slow))
    asked = _requests(slow)
    assert asked < 600 * 16 / 4, "nothing more was asked"
    until("every call to be in the books", lambda: _one(slow, "SELECT llm_calls FROM jobs") == asked)
    assert _one(slow, "SELECT sum(llm_calls) FROM attempts") == asked
    assert _one(slow, "SELECT sum(llm_calls) FROM destinations") == asked
    assert slow.status(job_id)["state"] == "cancelled"
    begun = [name for (name,) in _rows(slow, "SELECT name FROM destinations WHERE llm_calls > 0")]
    (slow.folder / "begun.csv").write_text("\n".join(["name", *begun]))
    again = slow.run("enqueue", str(slow.folder / "begun.csv"), "--wait")
    assert again.returncode == 0, again.stderr
    assert _requests(slow) == 16 * len(begun), "what was under way had been kept"


def test_a_paused_job_rests_until_it_is_resumed_and_pays_for_nothing_twice(slow: Engine) -> None:
    # It cannot be over before a slow machine has started `themes pause`; once it rests, the rest may be quick.
    _answer_within(slow, "3s")
    job_id = slow.run("enqueue", _file(slow.folder, 16)).stdout.strip()
    until("every connection to be busy", lambda: slow.ask_sandbox("/stats")["in_flight"] >= 15)
    # Its heartbeat comes once a second: what it says next is of a busy worker.
    until("the worker to say so", lambda: not _is_idle(slow))
    said = slow.run("pause", job_id)
    assert said.returncode == 0, said.stderr
    assert f"go on with: themes resume {job_id}" in said.stderr
    until("the worker to be idle", lambda: _is_idle(slow))
    asked = _requests(slow)
    assert asked < 16 * 16
    _answer_within(slow, "50ms")
    status = slow.status(job_id)
    assert (status["state"], status["paused"]) == ("stalled", "user")
    until("what it has cost to be shown", lambda: slow.status(job_id)["llm_calls"] == asked)
    assert slow.run("pause", job_id).returncode == 0, "a second time changes nothing"
    watched = slow.run("watch", job_id)
    assert "themes resume" in watched.stderr
    assert slow.run("resume", job_id).returncode == 0
    watched = slow.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    status = slow.status(job_id)
    assert (status["state"], status["done"], status["paused"]) == ("done", 16, None)
    assert status["llm_calls"] == asked + _requests(slow) == 16 * 16
    refused = slow.run("pause", job_id)
    assert refused.returncode == 2
    assert "nothing to pause" in refused.stderr


def test_while_the_llm_is_away_the_job_waits_and_says_so_and_goes_on_by_itself(stack: Engine) -> None:
    stack.env |= {"THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "1"}
    # So slow that the job cannot be over before a slow machine has looked at it; once the LLM is back it is quick.
    _answer_within(stack, "1s")
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 50)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 1)
    port = stack.llm.split(":")[2].split("/")[0]
    stack.end("sandbox", kill=True)
    status = until("the job to say what it waits for", lambda: (s := stack.status(job_id))["waiting_for"] and s)
    assert status["state"] == "running"
    assert stack.llm in status["waiting_for"]
    assert "waiting: the server llm is away (" in stack.run("status", job_id).stdout
    stack.sandbox("--latency", "20ms", "--port", port)
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    status = stack.status(job_id)
    assert (status["done"], status["failed"], status["partial"], status["waiting_for"]) == (50, 0, 0, None)


def test_while_nobody_writes_results_workers_stop_at_a_bound_and_go_on_by_themselves(stack: Engine) -> None:
    stack.end("consumer", kill=True)
    bound = {"THEMES_WORK__MAX_UNWRITTEN_RESULTS": "100", "THEMES_WORK__MAX_CHUNK_SIZE": "5"}
    stack.themes("w", "worker", "--name", "w", **bound)
    job_id = stack.run("enqueue", _file(stack.folder, 400), **bound).stdout.strip()
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the results to pile up", lambda: redis.xlen(keys.RESULTS) > 100)
        until("the worker to hold nothing", lambda: _is_idle(stack))
        piled = redis.xlen(keys.RESULTS)
        assert piled <= 100 + 12 * 5, "what was begun when the bound was reached has ended, and no more"
        (worker,) = redis.scan_iter(keys.worker("*"))
        assert int(redis.hget(worker, "chunks_claimed") or 0) > 0, "it waits with messages in hand"
        assert redis.hlen(keys.chunks(job_id)) > 0
    words = "the results consumer is too far behind"
    until("it to say so", lambda: words in stack.run("status", job_id).stdout, every=0.5)
    stack.themes("consumer", "consumer")
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    assert stack.status(job_id)["done"] == 400


def _interrupted(stack: Engine, name: str, *arguments: str) -> str:
    """What a verb that watches has said after Ctrl-C; it exits with 130."""
    process = stack.themes(name, *arguments)
    watching = "job.progress" if "--json" in arguments else "  0/1 finished  "
    until("it to watch", lambda: watching in stack.log(name) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130, stack.log(name)
    return stack.log(name)


def test_ctrl_c_on_what_watches_a_job_says_that_it_goes_on(stack: Engine) -> None:
    file = _file(stack.folder, 1)
    said = _interrupted(stack, "enqueue", "enqueue", file, "--wait")
    (job,) = [json.loads(line) for line in stack.run("status", "--json").stdout.splitlines()]
    assert job["state"] == "queued"
    job_id = job["job_id"]
    words = f"themes: job {job_id} goes on: `themes watch {job_id}` shows it again, `themes cancel {job_id}` stops it"
    assert words in said
    assert words in _interrupted(stack, "watch", "watch", job_id)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        redis.xadd(keys.events(job_id), {"e": msgspec.json.encode(Event("job.progress", job_id))}, maxlen=9)
        redis.expire(keys.events(job_id), 600)
    assert words in _interrupted(stack, "events", "watch", job_id, "--json")
    assert stack.run("cancel", job_id).returncode == 0
    until("the consumer to know", lambda: stack.status(job_id)["state"] == "cancelled" and _drained(stack))
    assert words in _interrupted(stack, "retry", "retry", job_id, "--wait")
    assert stack.status(job_id)["state"] in {"queued", "running"}
    assert "Traceback" not in "".join(stack.log(name) for name in ("enqueue", "watch", "events", "retry"))


def _drained(stack: Engine) -> bool:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        return is_drained(redis)


def test_a_job_that_ended_before_it_began_shows_no_time(stack: Engine) -> None:
    job_id = stack.run("enqueue", _file(stack.folder, 1)).stdout.strip()
    assert stack.run("cancel", job_id).returncode == 0
    rows = "name,country\n" + "".join(f"City {number},x\n" for number in range(3_000)) + ",x\n"
    refused = stack.run("enqueue", "-", "--strict", stdin=rows)
    assert refused.returncode == 2
    said = stack.run("status").stdout
    assert said.count("cancelled") == 2, said
    assert not re.search(r"[0-9][hm] [0-9]", said), said
    assert stack.status(job_id)["started_at"] is None
