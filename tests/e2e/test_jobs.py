"""Whole jobs through real processes, and the books afterwards."""

import csv
import io
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until
from tests.support.forks import Forks

MANY = 160
STATUS_KEYS = [
    "job_id", "name", "state", "total", "done", "failed", "partial", "llm_calls", "cache_hits", "coalesced",
    "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_usd", "rate_per_second",
    "eta_seconds", "created_at", "started_at", "finished_at", "budget_usd", "spent_usd", "team", "paused",
    "paused_at", "paused_message", "paused_until", "waiting_for", "wait", "only_fields",
]  # fmt: skip


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name,country\n" + "".join(f"City {number},Country {number % 7}\n" for number in range(count)))
    return str(path)


def _query(engine: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _done(engine: Engine, job_id: str) -> bool:
    return engine.status(job_id)["state"] == "done"


def _books_are_right(engine: Engine, job_id: str, count: int) -> dict[str, Any]:
    """Every destination exactly once, the job's counters as the rows say, and nothing left in Redis."""
    rows = _query(engine, f"SELECT destination_id FROM profiles WHERE job_id = '{job_id}'")  # noqa: S608
    assert len(rows) == len(set(rows)) == count
    status = engine.status(job_id)
    assert (status["done"], status["failed"], status["total"]) == (count, 0, count)
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        left = {key.decode().split(":")[3] for key in redis.scan_iter(f"{keys.job(job_id)}:*")}
        assert left <= {"events", "measurements"}
        assert job_id.encode() not in redis.smembers(keys.ACTIVE)
    return status


def test_many_destinations_with_two_workers_are_as_many_rows_and_every_call_is_in_the_books(stack: Engine) -> None:
    for name in ("a", "b"):
        stack.themes(name, "worker", "--name", name)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("both workers", lambda: len(fleet.workers(redis)) == 2)
    # More than a chunk, a transaction and what both have in hand.
    said = stack.run("enqueue", _file(stack.folder, MANY), "--wait")
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.strip()
    status = _books_are_right(stack, job_id, MANY)
    called = stack.ask_sandbox("/stats")["requests"]
    ((recorded,),) = _query(stack, "SELECT SUM(llm_calls) FROM profiles")
    assert called == recorded == status["llm_calls"] == 16 * MANY
    assert list(status) == STATUS_KEYS
    workers = _query(stack, "SELECT DISTINCT worker FROM attempts")
    assert len(workers) == 2, "both workers took part"


def test_the_destinations_of_a_killed_worker_come_back_by_themselves(stack: Engine) -> None:
    stack.env |= {"THEMES_WORK__LEASE_SECONDS": "2", "THEMES_WORK__HEARTBEAT_SECONDS": "0.5"}
    stack.sandbox("--latency", "60ms")
    victim = stack.themes("victim", "worker", "--name", "victim")
    stack.end("consumer")
    stack.themes("consumer-2", "consumer", THEMES_WORK__SWEEP_INTERVAL_SECONDS="0.5")
    job_id = stack.run("enqueue", _file(stack.folder, 60)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 10)
    # The supervisor and its Celery process: a machine that lost its power.
    for child in psutil.Process(victim.pid).children(recursive=True):
        child.kill()
    victim.kill()
    assert not _done(stack, job_id)
    stack.themes("heir", "worker", "--name", "heir")
    until("the job to end", lambda: _done(stack, job_id))
    status = _books_are_right(stack, job_id, 60)
    called = stack.ask_sandbox("/stats")["requests"]
    assert status["llm_calls"] <= called <= status["llm_calls"] + 12 * 16, "only what was in flight is paid twice"


def test_the_supervisor_starts_a_dead_celery_process_again(stack: Engine) -> None:
    stack.env |= {"THEMES_WORK__LEASE_SECONDS": "2", "THEMES_WORK__HEARTBEAT_SECONDS": "0.5"}
    stack.sandbox("--latency", "60ms")
    supervisor = stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 60)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 5)
    (celery,) = psutil.Process(supervisor.pid).children()
    celery.kill()
    until("the job to end", lambda: _done(stack, job_id))
    assert supervisor.poll() is None
    assert stack.logged("w", "restart")
    stack.end("consumer")
    assert stack.status(job_id)["done"] == 60


def test_a_worker_told_to_stop_gives_back_what_it_holds_and_nothing_is_paid_twice(stack: Engine) -> None:
    stack.sandbox("--latency", "60ms")
    first = stack.themes("first", "worker", "--name", "first")
    job_id = stack.run("enqueue", _file(stack.folder, 60)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 10)
    first.terminate()
    assert first.wait(180) == 0
    assert not _done(stack, job_id)
    stack.themes("second", "worker", "--name", "second")
    until("the job to end", lambda: _done(stack, job_id))
    status = _books_are_right(stack, job_id, 60)
    assert stack.ask_sandbox("/stats")["requests"] == status["llm_calls"] == 60 * 16


def test_a_stock_celery_worker_does_the_job(stack: Engine, forks: Forks) -> None:
    stack.forks = None
    celery = stack.celery(
        "stock", "worker", "--concurrency", "3", "-n", "stock@here", "--loglevel", "INFO",
    )  # fmt: skip
    stack.forks = forks
    said = stack.run("enqueue", _file(stack.folder, 12), "--wait")
    assert said.returncode == 0, said.stderr
    assert _query(stack, "SELECT DISTINCT worker FROM attempts") == [("stock@here",)]
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert redis.hget(keys.worker("stock@here"), "lanes") == b"3"
    celery.terminate()
    assert celery.wait(180) == 0
    log = stack.log("stock")
    assert "Event loop is closed" not in log
    assert "Traceback" not in log


def test_a_dead_consumers_entries_are_written_by_the_next(stack: Engine) -> None:
    stack.env["THEMES_WORK__LEASE_SECONDS"] = "2"
    stack.env["THEMES_WORK__HEARTBEAT_SECONDS"] = "0.5"
    stack.sandbox("--latency", "60ms")
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 100)).stdout.strip()
    for number in range(3):
        until("the consumer to write", lambda n=number: stack.status(job_id)["done"] > 20 * n)
        stack.end("consumer", kill=True)
        stack.themes("consumer", "consumer")
    until("the job to end", lambda: _done(stack, job_id))
    _books_are_right(stack, job_id, 100)


def _worker(redis: Redis) -> str:
    return next(iter(redis.scan_iter("themes:worker:*"))).decode().removeprefix("themes:worker:")


def test_failed_destinations_are_named_and_make_the_job_fail(stack: Engine) -> None:
    stack.env["THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES"] = "0"
    stack.env["THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY"] = "0.01"
    stack.themes("w", "worker", "--name", "w")
    stack.ask_sandbox("/faults", ["503=1,match=City 3"])
    said = stack.run("enqueue", _file(stack.folder, 8), "--wait")
    job_id = said.stdout.strip()
    assert said.returncode == 1
    status = stack.status(job_id)
    assert (status["state"], status["done"], status["failed"]) == ("done", 7, 1)
    failures = stack.run("failures", job_id, "--json")
    assert failures.returncode == 1
    (failure,) = [json.loads(line) for line in failures.stdout.splitlines()]
    assert failure["name"] == "City 3"
    assert failure["error_class"] == "EndpointAwayError"
    assert failure["attempts"] == 2
    assert stack.ask_sandbox("/stats")["requests"] == status["llm_calls"]
    table = stack.run("failures", job_id)
    assert "City 3" in table.stdout


def test_results_are_printed_in_every_format(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    names = '[{"name": "Kyoto", "country": "Japan", "id": "=1+1"}, "Maldives"]'
    job_id = stack.run("enqueue", "-", "--wait", "--name", "two", stdin=names).stdout.strip()
    table = stack.run("results", job_id).stdout
    assert "Kyoto, Japan" in table
    lines = [json.loads(line) for line in stack.run("results", job_id, "--format", "jsonl").stdout.splitlines()]
    assert [line["name"] for line in lines] == ["Kyoto", "Maldives"]
    assert lines[0]["extra"] == {"id": "=1+1"}
    assert json.loads(stack.run("results", job_id, "--format", "json").stdout) == lines
    rows = list(csv.DictReader(io.StringIO(stack.run("results", job_id, "--format", "csv").stdout)))
    assert len(rows) == sum(len(line["themes"]) for line in lines)
    assert {row["destination"] for row in rows} == {"Kyoto", "Maldives"}
    out = stack.folder / "out.json"
    assert stack.run("results", job_id, "--format", "json", "-o", str(out)).stdout == ""
    assert json.loads(out.read_text()) == lines
    events = [json.loads(line) for line in stack.run("watch", job_id, "--json").stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("job.started", "job.done")
    assert kinds.count("destination.done") == 2
    assert kinds.count("stage.done") == 32
    assert kinds.count("job.started") == 1
    middle = events[len(events) // 2]["id"]
    rest = [json.loads(line) for line in stack.run("watch", job_id, "--json", "--from", middle).stdout.splitlines()]
    assert rest == events[len(events) // 2 + 1 :]


def test_the_python_interface_enqueues_and_follows(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    code = (
        # Where OpenTelemetry is installed (an extra), redis-py imports all of it by itself.
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from tasks.queue.producer import enqueue\n"
        "from tasks.jobs.events import follow\n"
        "heavy = {'aiohttp', 'sqlalchemy', 'aiosqlite', 'psutil', 'flower'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "job = enqueue(['Kyoto, Japan', {'name': 'Paris', 'country': 'France'}, 'KYOTO , japan'])\n"
        "assert job.total == 2\n"
        "kinds = [event.type for event in follow(job, timeout_seconds=180)]\n"
        "assert kinds.count('destination.done') == 2 and kinds[-1] == 'job.done', kinds\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=stack.env, capture_output=True, text=True, timeout=180, check=False
    )
    assert said.returncode == 0, said.stderr


def test_an_interrupted_enqueue_leaves_no_half_job_and_runs_again(stack: Engine) -> None:
    command = [sys.executable, "-m", "scripts.main", "enqueue", "-"]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, env=stack.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process,
        Redis.from_url(stack.env["REDIS_URL"]) as redis,
    ):
        assert process.stdin
        process.stdin.write("name\n" + "".join(f"City {number}\n" for number in range(5000)))
        process.stdin.flush()
        until("the job to be known", lambda: redis.zcard(keys.JOBS))
        process.send_signal(signal.SIGINT)
        # Its input goes on until it has ended: that the rest is there, and so a whole job, is not for the clock to say.
        assert process.wait(180) == 130
        assert process.stderr
        assert "Traceback" not in process.stderr.read()
        (job_id,) = redis.zrange(keys.JOBS, 0, -1)
        assert redis.hlen(keys.chunks(job_id.decode())) == 0
        until("the consumer to know of it too", lambda: not redis.smembers(keys.ACTIVE))
    assert stack.status(job_id.decode())["state"] == "cancelled"
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("enqueue", _file(stack.folder, 5), "--wait").returncode == 0


def test_a_server_without_response_formats_is_enough(engine: Engine, stack: Engine) -> None:
    stack.sandbox("--latency", "0", "--formats", "text")
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", _file(stack.folder, 4), "--wait")
    assert said.returncode == 0, said.stderr
    assert _query(stack, "SELECT DISTINCT status, model FROM profiles") == [("ok", "sandbox")]


def test_a_cancelled_job_keeps_what_is_done_and_starts_nothing_more(stack: Engine) -> None:
    # So slow that it cannot be half done before a slow machine has started `themes cancel`.
    stack.sandbox("--latency", "150ms")
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 500)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 10)
    assert stack.run("cancel", job_id).returncode == 0
    assert stack.status(job_id)["state"] == "cancelled"
    watched = stack.run("watch", job_id)
    assert watched.returncode == 1
    # What was in hand ends; then the worker is idle.
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        worker = keys.worker(_worker(redis))
        until("the worker to be idle", lambda: redis.hget(worker, "chunks_held") == b"0")
    calls = stack.ask_sandbox("/stats")["requests"]
    assert calls < 500 * 16 / 2
    kept = _query(stack, f"SELECT name, country FROM profiles WHERE job_id = '{job_id}'")  # noqa: S608
    assert len(kept) >= 10
    names = "".join(f"{name}, {country}\n" for name, country in kept)
    again = stack.run("enqueue", "-", "--wait", stdin=names)
    assert again.returncode == 0
    assert stack.status(again.stdout.strip())["llm_calls"] == 0, "answers that were paid for are in the cache"
    assert stack.run("cancel", "nope").returncode == 2


def test_the_cache_can_be_looked_at_and_emptied_without_touching_anything_else(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 3), "--wait").stdout.strip()
    again = stack.run("enqueue", _file(stack.folder, 3), "--wait").stdout.strip()
    found = until(
        "the worker to report its hits",
        lambda: (said := json.loads(stack.run("cache", "stats", "--json").stdout))["memory_hits"] >= 48 and said,
        every=0.5,
    )
    assert found["entries"] == found["stores"] == found["misses"] == 48
    assert found["memory_hits"] == 48
    assert found["bytes"] == found["bytes_stored"] > 5_000
    shown = stack.run("cache", "stats").stdout
    assert "48 completions" in shown
    assert "hits       48 (50.0% of 96): 48 in memory, 0 in Redis" in shown
    made, repeated = (json.loads(stack.run("cache", "stats", job, "--json").stdout) for job in (job_id, again))
    assert (made["misses"], made["stores"], made["memory_hits"], made["saved_prompt_tokens"]) == (48, 48, 0, 0)
    assert (repeated["misses"], repeated["stores"], repeated["memory_hits"]) == (0, 0, 48)
    spent = stack.status(job_id)
    assert repeated["saved_prompt_tokens"] == spent["prompt_tokens"] == found["saved_prompt_tokens"]
    assert repeated["saved_completion_tokens"] == spent["completion_tokens"]
    assert made["bytes_raw"] > 3 * made["bytes_stored"] == 3 * found["bytes_stored"]
    assert "saved      48 calls" in stack.run("cache", "stats", again).stdout
    assert stack.run("cache", "stats", "nope").returncode == 2
    said = stack.run("cache", "clear", "--yes")
    assert "dropped 48 completions" in said.stderr
    empty = json.loads(stack.run("cache", "stats", "--json").stdout)
    assert (empty["entries"], empty["memory_hits"]) == (0, 0)
    assert stack.status(job_id)["done"] == 3
    # The worker has forgotten them too: otherwise they would be in its memory alone, and paid for after its end.
    third = stack.run("enqueue", _file(stack.folder, 3), "--wait").stdout.strip()
    assert stack.status(third)["llm_calls"] == 48
