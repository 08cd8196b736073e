"""`themes retry` and `themes enqueue --only-missing`: asked again is what lacks a profile, and nothing else."""

import json
import sqlite3
from pathlib import Path

from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _requests(stack: Engine) -> int:
    return int(stack.ask_sandbox("/stats")["requests"])


def _rows(stack: Engine, table: str) -> int:
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    return int(count)


def test_failed_destinations_are_asked_again_by_their_class_of_error(stack: Engine) -> None:
    stack.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
        "THEMES_WORK__DESTINATION_ATTEMPTS": "1",
    }
    stack.themes("w", "worker", "--name", "w")
    stack.ask_sandbox("/faults", ["500=1,match=City 3", "400=1,match=City 5"])
    said = stack.run("enqueue", _file(stack.folder, 8), "--wait")
    job_id = said.stdout.strip()
    assert said.returncode == 1
    classes = {
        json.loads(line)["name"]: json.loads(line)["error_class"]
        for line in stack.run("failures", job_id, "--json").stdout.splitlines()
    }
    assert classes == {"City 3": "EndpointDownError", "City 5": "BadRequestError"}
    stack.ask_sandbox("/faults", [])
    before = _requests(stack)
    nothing = stack.run("retry", job_id, "--only", "NoSuchError")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing to retry" in nothing.stderr
    assert "--only NoSuchError: nothing has it" in nothing.stderr
    assert "known: BadRequestError, EndpointDownError" in nothing.stderr
    said = stack.run("retry", job_id, "--only", "endpointdownerror", "--wait")
    assert said.returncode == 1, "City 5 has still failed"
    assert "asking again for 1 destination of job" in said.stderr
    assert (stack.status(job_id)["done"], stack.status(job_id)["failed"]) == (7, 1)
    assert _requests(stack) == before + 16
    said = stack.run("retry", job_id, "--wait")
    assert said.returncode == 0, said.stderr
    assert "failed: " not in said.stderr, "what failed before is over"
    status = stack.status(job_id)
    assert (status["state"], status["done"], status["failed"]) == ("done", 8, 0)
    assert _requests(stack) == before + 32 == status["llm_calls"]
    assert (_rows(stack, "profiles"), _rows(stack, "failures")) == (8, 0)
    assert "nothing to retry" in stack.run("retry", job_id).stderr
    assert stack.run("retry", "nope").returncode == 2


def test_what_a_lost_redis_took_along_is_completed_from_the_database(stack: Engine) -> None:
    stack.sandbox("--latency", "60ms")
    worker = stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 80)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 20)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        redis.flushdb()  # as a Redis without persistence comes back
        until("the worker to be idle", lambda: _idle(redis))
    assert worker.poll() is None
    forgotten = stack.run("status", job_id, "--json")
    assert json.loads(forgotten.stdout)["state"] == "stalled"
    assert f"themes retry {job_id}" in forgotten.stderr
    assert stack.run("status", "nope").returncode == 2
    said = stack.run("retry", job_id, "--wait")
    assert said.returncode == 0, said.stderr
    status = stack.status(job_id)
    assert (status["state"], status["done"], status["failed"], status["total"]) == ("done", 80, 0, 80)
    assert _rows(stack, "profiles") == 80
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert {key.decode().split(":")[3] for key in redis.scan_iter(f"{keys.job(job_id)}:*")} <= {
            "events",
            "measurements",
        }


def _idle(redis: Redis) -> bool:
    workers = list(redis.scan_iter(keys.worker("*")))
    return bool(workers) and all(redis.hget(worker, "chunks_held") == b"0" for worker in workers)


def test_what_a_cancelled_job_has_left_can_be_asked_for_after_all(stack: Engine) -> None:
    stack.sandbox("--latency", "60ms")
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", _file(stack.folder, 80)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 10)
    assert stack.run("cancel", job_id).returncode == 0
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker to be idle", lambda: _idle(redis))
    said = stack.run("retry", job_id, "--wait")
    assert said.returncode == 0, said.stderr
    assert stack.status(job_id)["done"] == 80
    until("every call to be in the books", lambda: stack.status(job_id)["llm_calls"] == _requests(stack))
    assert _requests(stack) == 80 * 16, "nothing was paid twice"


def test_only_missing_leaves_out_what_has_a_current_profile(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("enqueue", _file(stack.folder, 5), "--only-missing", "--wait").returncode == 0
    said = stack.run("enqueue", _file(stack.folder, 8), "--only-missing", "--wait")
    assert said.returncode == 0, said.stderr
    assert "enqueued 3 destinations (8 rows, 0 duplicates, 0 rejected, 5 with a current profile)" in said.stderr
    assert stack.status(said.stdout.strip())["total"] == 3
    again = stack.run("enqueue", _file(stack.folder, 8), "--only-missing")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to enqueue: all 8 have a current profile" in again.stderr
    forecast = stack.run("enqueue", _file(stack.folder, 9), "--only-missing", "--dry-run", "--json")
    assert json.loads(forecast.stdout)["destinations"] == 1
