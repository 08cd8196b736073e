"""Who does what, when somebody is idle or something is urgent."""

import sqlite3
import time
from pathlib import Path

from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until

#: Few lanes and large chunks: one process holds much that it has not started.
FEW = {"THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "2", "THEMES_WORK__MAX_CHUNK_SIZE": "20"}


def _file(folder: Path, prefix: str, count: int) -> str:
    path = folder / f"{prefix}.csv"
    path.write_text("name\n" + "".join(f"{prefix} {number}\n" for number in range(count)))
    return str(path)


def _slow(stack: Engine, latency: str) -> None:
    stack.sandbox("--latency", latency)


def _held(stack: Engine) -> int:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        return sum(one.lanes_waiting for one in fleet.workers(redis).values())


def _executed(redis: Redis) -> int:
    return sum(report.executed for report in fleet.workers(redis).values())


def test_a_worker_that_comes_late_is_given_what_another_holds_and_has_not_started(stack: Engine) -> None:
    _slow(stack, "150ms")
    one = {"SIZE": "1", "MIN_SIZE": "1"}
    few = FEW | {f"THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_{name}": size for name, size in one.items()}
    stack.themes("busy", "worker", "--name", "busy", **few)
    job_id = stack.run("enqueue", _file(stack.folder, "City", 60), **FEW).stdout.strip()
    until("the worker to hold more than it works on", lambda: _held(stack) > 10)
    many = {"THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "200"}
    stack.themes("late", "worker", "--name", "late", **many)
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    assert stack.logged("busy", "give_away")
    status = stack.status(job_id)
    assert (status["done"], status["llm_calls"]) == (60, 60 * 16)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("every destination to be reported", lambda: _executed(redis) >= 60)
        for report in fleet.workers(redis).values():
            lanes = report.lane_statistics
            assert len(lanes) == report.lanes
            assert sum(lane["executed"] for lane in lanes) == report.executed
            assert all(lane["busy_seconds"] > 0 and lane["idle_seconds"] > 0 for lane in lanes)
            assert 0 < report.busy_share < 1
        assert sum(report.shared for report in fleet.workers(redis).values()) > 0
    assert stack.ask_sandbox("/stats")["requests"] == 60 * 16, "nothing was done twice"
    assert "% busy so far" in stack.run("doctor").stdout


def test_a_small_urgent_job_overtakes_a_large_one(stack: Engine) -> None:
    _slow(stack, "150ms")
    stack.themes("w", "worker", "--name", "w", **FEW)
    large = stack.run("enqueue", _file(stack.folder, "City", 200), **FEW).stdout.strip()
    until("the worker to hold more than it works on", lambda: _held(stack) > 10)
    urgent = stack.run("enqueue", _file(stack.folder, "Town", 4), "--priority", "9", "--wait", **FEW)
    assert urgent.returncode == 0, urgent.stderr
    status = stack.status(urgent.stdout.strip())
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        (meanwhile,) = database.execute(
            "SELECT count(*) FROM attempts WHERE job_id = ? AND at BETWEEN ? AND ?",
            (large, status["created_at"], status["finished_at"]),
        ).fetchone()
    assert meanwhile < 20, f"{meanwhile} others were done first: that is more than a whole chunk of each lane"
    assert stack.logged("w", "give_away")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert redis.hlen(keys.chunks(large)) > 0
    assert stack.run("cancel", large).returncode == 0


def test_a_worker_leaves_in_the_queue_what_its_lanes_have_no_use_for(stack: Engine) -> None:
    _slow(stack, "60s")
    settings = {"THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "8", "THEMES_WORK__MAX_CHUNK_SIZE": "10"}
    stack.themes("w", "worker", "--name", "w", **settings)
    job_id = stack.run("enqueue", _file(stack.folder, "City", 300), **settings).stdout.strip()
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:

        def is_busy_after(at: float) -> bool:
            return any(one.lanes_busy == 8 and one.at > at for one in fleet.workers(redis).values())

        until("all lanes to work", lambda: is_busy_after(0))
        began = time.time()
        until("it to have had time for more", lambda: is_busy_after(began + 2))
        queued = sum(redis.llen(queue) for queue in keys.queue_keys())
        # With a chunk for each lane it would be eight.
        assert redis.hlen(keys.chunks(job_id)) - queued < 8
    assert stack.run("cancel", job_id).returncode == 0
