"""`themes tune` on real worker processes: what the sandbox sees before and after."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until

POOL = "performance_optimization.llm_connection_pool_size"
LANES = "performance_optimization.worker_pool_size"


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _workers(stack: Engine) -> dict[str, fleet.WorkerReport]:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        return fleet.workers(redis)


def _report(stack: Engine, name: str = "w") -> fleet.WorkerReport:
    return next(
        (report for known, report in _workers(stack).items() if known.startswith(f"{name}@")), fleet.WorkerReport()
    )


def _tune(stack: Engine, *arguments: str) -> dict[str, Any]:
    said = stack.run("tune", *arguments, "--json")
    assert said.returncode == 0, said.stderr
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


def _in_flight(stack: Engine) -> int:
    return int(stack.ask_sandbox("/stats")["in_flight"])


def _celery(stack: Engine, name: str) -> psutil.Process:
    (child,) = psutil.Process(stack.processes[name].pid).children()
    return child


@pytest.fixture
def slow(stack: Engine) -> Engine:
    """One worker of 4 connections and 4 lanes, in the middle of a job of calls of a second."""
    stack.sandbox("--latency", "1s")
    stack.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "4",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_MIN_SIZE": "2",
        "THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "4",
    }
    stack.themes("w", "worker", "--name", "w")
    until("the worker to be there", lambda: _workers(stack))
    return stack


def test_a_larger_pool_has_more_calls_in_flight_and_a_smaller_one_drops_none(slow: Engine) -> None:
    job_id = slow.run("enqueue", _file(slow.folder, 80)).stdout.strip()
    until("every connection to be busy", lambda: _in_flight(slow) == 4)
    (answer,) = _tune(slow, "llm_connection_pool_size=16")["workers"].values()
    assert answer["ok"] == {POOL: [4, 16]}
    until("sixteen calls at once", lambda: _in_flight(slow) == 16)
    slow.ask_sandbox("/stats/reset", {})
    _tune(slow, "llm_connection_pool_size=3")
    until("three calls at once", lambda: _in_flight(slow) <= 3)
    slow.ask_sandbox("/stats/reset", {})
    until("more calls to be made", lambda: slow.ask_sandbox("/stats")["requests"] >= 6)
    assert slow.ask_sandbox("/stats")["max_in_flight"] == 3
    report = until("the heartbeat to say so", lambda: (r := _report(slow)).connections == 3 and r)
    assert report.settings[POOL] == fleet.SettingReport("tuned", 3)
    assert "llm_connection_pool_size=3 (tuned)" in slow.run("doctor").stdout
    _tune(slow, "llm_connection_pool_size=64", "worker_pool_size=24")
    watched = slow.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    status = slow.status(job_id)
    assert (status["done"], status["failed"], status["partial"], status["llm_calls"]) == (80, 0, 0, 80 * 16)


def test_more_lanes_take_more_chunks_in_hand_and_fewer_take_fewer(slow: Engine) -> None:
    # More than are done before the test has ended, however slow the machine is; what is left ends with the stack.
    slow.run("enqueue", _file(slow.folder, 2_000), THEMES_WORK__MAX_CHUNK_SIZE="1")
    _tune(slow, "llm_connection_pool_size=64")
    until("four destinations in work", lambda: _report(slow).chunks_held == 4)
    _tune(slow, "worker_pool_size=12")
    until("twelve in work", lambda: (r := _report(slow)).lanes_busy == r.chunks_held == 12)
    _tune(slow, "worker_pool_size=2")
    until("two in work", lambda: (r := _report(slow)).lanes_busy == r.chunks_claimed == 2)
    said = slow.run_celery("control", "pool_grow", "3")
    assert said.returncode == 0, said.stderr
    until("five in work", lambda: (r := _report(slow)).lanes_busy == r.chunks_claimed == 5)
    said = slow.run_celery("inspect", "themes_settings")
    assert LANES in said.stdout, said.stderr


def test_a_limit_holds_for_all_workers_at_once_and_is_lifted_at_once(stack: Engine) -> None:
    stack.themes("a", "worker", "--name", "a")
    stack.themes("b", "worker", "--name", "b")
    until("both to be there", lambda: len(_workers(stack)) == 2)
    _tune(stack, "llm.requests_per_minute=60", "llm.request_burst=1")
    job_id = stack.run("enqueue", _file(stack.folder, 60)).stdout.strip()
    until("some calls", lambda: stack.ask_sandbox("/stats")["requests"] >= 2)
    assert stack.ask_sandbox("/stats")["requests"] < 100
    refused = stack.run("tune", "requests_per_minute=5", "--worker", "a")
    assert refused.returncode == 2
    assert "leave out --worker" in refused.stderr
    assert set(_tune(stack, "requests_per_minute=", "request_burst=")["workers"]) == set(_workers(stack))
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    assert stack.ask_sandbox("/stats")["requests"] == 60 * 16


def test_a_bad_value_is_refused_and_nothing_is_half_applied(slow: Engine) -> None:
    for change, said in (
        ("llm_connection_pool_size=many", "expected a whole number"),
        ("llm_connection_pool_size=0", "expected a number from 1"),
        ("llm_connection_pool_size=1", "llm_connection_pool_min_size"),
        ("log_level=LOUD", "expected one of DEBUG"),
        ("cache_ttl_days=3", "cannot be changed while workers run"),
        ("worker_pool_sise=3", "did you mean worker_pool_size?"),
    ):
        _is_refused(slow, change, said)


def test_more_connections_than_file_descriptors_are_refused(slow: Engine) -> None:
    slow.end("w")
    slow.start("w", "bash", "-c", f"ulimit -n 1024; exec {sys.executable} -m scripts.main worker --name w")
    until("the worker to answer", lambda: json.loads(slow.run("tune", "--show", "--json").stdout)["workers"])
    _is_refused(slow, "llm_connection_pool_size=9999", "ulimit -n")


def _is_refused(slow: Engine, change: str, said: str) -> None:
    answer = slow.run("tune", "max_memory_cache_mb=7", change)
    assert answer.returncode == 2, (change, answer.stdout)
    assert said in answer.stderr, change
    (shown,) = _tune(slow, "--show")["workers"].values()
    values = {key: one["value"] for key, one in shown["ok"].items()}
    assert (values["performance_optimization.max_memory_cache_mb"], values[POOL]) == (512, 4), change
    with Redis.from_url(slow.env["REDIS_URL"]) as redis:
        assert not redis.exists(keys.TUNED), change


def test_a_process_that_is_started_again_keeps_what_was_changed_until_it_is_taken_back(slow: Engine) -> None:
    _tune(slow, "worker_pool_size=7", "log_level=DEBUG")
    child = _celery(slow, "w")
    child.kill()
    until("another process", lambda: _report(slow).pid not in {0, child.pid})
    until("its lanes", lambda: _report(slow).lanes == 7)
    (shown,) = _tune(slow, "--show")["workers"].values()
    assert shown["ok"]["logging.level"] == {"value": "DEBUG", "origin": "tuned"}
    slow.ask_sandbox("/faults", ["429=1,retry_after=0.1,times=1"])
    slow.run("enqueue", _file(slow.folder, 1))
    until("what is said at DEBUG", lambda: slow.logged("w", "cool_down"))
    (answer,) = _tune(slow, "--reset")["workers"].values()
    assert answer["ok"] == {LANES: [7, 4], "logging.level": ["DEBUG", "INFO"]}
    until("the old lanes", lambda: _report(slow).lanes == 4)


def test_a_worker_that_does_not_answer_is_named(slow: Engine) -> None:
    slow.themes("other", "worker", "--name", "other")
    until("both to be there", lambda: len(_workers(slow)) == 2)
    child = _celery(slow, "w")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        said = slow.run("tune", "max_memory_cache_mb=9", "--json")
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert said.returncode == 1
    assert "no answer within" in said.stderr
    assert [name.partition("@")[0] for name in json.loads(said.stdout)["no_answer"]] == ["w"]
    (answer,) = json.loads(said.stdout)["workers"].values()
    assert answer["ok"] == {"performance_optimization.max_memory_cache_mb": [512, 9]}


def test_a_reload_signal_reads_the_file_again_and_a_bad_file_changes_nothing(stack: Engine) -> None:
    path = stack.folder / "themes.yaml"
    path.write_text("performance_optimization:\n  worker_pool_size: 3\n")
    stack.env |= {"THEMES_CONFIG": str(path)}
    worker = stack.themes("w", "worker", "--name", "w")
    until("the worker to be there", lambda: _report(stack).lanes == 3)
    pid = _report(stack).pid
    path.write_text("performance_optimization:\n  worker_pool_size: 5\n  cache_ttl_days: 2\n")
    worker.send_signal(signal.SIGHUP)
    until("the new lanes", lambda: _report(stack).lanes == 5)
    said = until("what waits to be said", lambda: [line for line in stack.logged("w", "reload") if "wait" in str(line)])
    assert "performance_optimization.cache_ttl_days" in said[0]["message"]
    path.write_text("performance_optimization:\n  worker_pool_size: none of your business\n")
    worker.send_signal(signal.SIGHUP)
    until("the refusal", lambda: any("refused" in line["message"] for line in stack.logged("w", "reload")))
    report = _report(stack)
    assert (report.lanes, report.pid) == (5, pid), "the same process, as it was"


def test_a_worker_whose_terminal_is_closed_ends(stack: Engine) -> None:
    ours, theirs = os.openpty()
    worker = subprocess.Popen(
        [sys.executable, "-c", _IN_TERMINAL, os.ttyname(theirs)],
        env=stack.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.processes["w"] = worker
    os.close(theirs)
    until("the worker to be there", lambda: _workers(stack))
    family = psutil.Process(worker.pid).children(recursive=True)
    os.close(ours)
    worker.wait(180)
    gone, alive = psutil.wait_procs(family, timeout=180)
    assert not alive
    assert gone
    until("it to have taken leave", lambda: not _workers(stack))


#: A session leader gets the first terminal that it opens.
_IN_TERMINAL = """
import os, sys
os.open(sys.argv[1], os.O_RDWR)
os.execv(sys.executable, [sys.executable, "-m", "scripts.main", "worker", "--name", "w"])
"""
