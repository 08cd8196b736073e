"""Workers that die, freeze up or are told to stop, and who sees to it."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from redis import Redis

from config.settings import load
from tasks import worker_reports as fleet
from tasks.queue.app import configure
from tests.e2e.conftest import Engine, until
from workers.worker.liveness import EX_WEDGED

#: Nobody waits for a lease to run out here.
LONG_LEASE = {"THEMES_WORK__LEASE_SECONDS": "3600", "THEMES_WORK__HEARTBEAT_SECONDS": "1"}


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _workers(stack: Engine) -> dict[str, fleet.WorkerReport]:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        return fleet.workers(redis)


def _stop_consuming(stack: Engine) -> None:
    """Leave every worker alive without a consumer, as kombu does after some lost connections."""
    app = configure(load(env={}), stack.env["REDIS_URL"])
    until("the consumer to be cancelled", lambda: app.control.cancel_consumer("themes", reply=True, timeout=1, limit=1))


def test_a_worker_that_consumes_nothing_is_replaced_and_that_is_counted(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w", THEMES_WORK__WEDGED_AFTER_SECONDS="2")
    until("the worker to be there", lambda: _workers(stack))
    _stop_consuming(stack)
    said = stack.run("enqueue", _file(stack.folder, 10), "--wait")
    assert said.returncode == 0, said.stderr
    assert stack.logged("w", "wedged")
    (report,) = until("the new process to report", lambda: list(_workers(stack).values()))
    assert (report.restarts, report.wedged) == (1, 1)
    assert "started again 1 time, 1 of them because it consumed nothing" in stack.run("doctor").stdout


def test_a_stock_celery_worker_that_consumes_nothing_ends_for_its_own_supervisor(stack: Engine) -> None:
    worker = ("worker", "-P", "threads", "--hostname", "stock@h")
    process = stack.celery("w", *worker, THEMES_WORK__WEDGED_AFTER_SECONDS="2")
    until("the worker to be there", lambda: _workers(stack))
    _stop_consuming(stack)
    stack.run("enqueue", _file(stack.folder, 10))
    assert process.wait(180) == EX_WEDGED
    assert stack.logged("w", "wedged")


def test_what_a_killed_process_held_is_free_long_before_its_leases_end(stack: Engine) -> None:
    stack.sandbox("--latency", "150ms")
    worker = stack.themes("w", "worker", "--name", "w", **LONG_LEASE)
    job_id = stack.run("enqueue", _file(stack.folder, 60)).stdout.strip()
    until("some destinations to be done", lambda: stack.status(job_id)["done"] >= 5)
    (child,) = psutil.Process(worker.pid).children()
    child.kill()
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    assert stack.logged("w", "release")
    assert stack.status(job_id)["done"] == 60


def test_a_worker_that_is_told_to_stop_gives_back_at_once_and_nothing_is_paid_twice(stack: Engine) -> None:
    stack.sandbox("--latency", "400ms")
    first = stack.themes("first", "worker", "--name", "first", **LONG_LEASE)
    job_id = stack.run("enqueue", _file(stack.folder, 24)).stdout.strip()
    until("every connection to be busy", lambda: stack.ask_sandbox("/stats")["in_flight"] >= 15)
    first.terminate()
    assert first.wait(180) == 0
    assert stack.status(job_id)["done"] < 24
    stack.themes("second", "worker", "--name", "second", **LONG_LEASE)
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    status = stack.status(job_id)
    assert status["done"] == 24
    assert status["llm_calls"] == stack.ask_sandbox("/stats")["requests"] == 24 * 16


def test_calls_that_take_longer_than_the_grace_time_do_not_keep_a_worker(stack: Engine) -> None:
    stack.sandbox("--latency", "600s")
    worker = stack.themes("w", "worker", "--name", "w", THEMES_WORK__SHUTDOWN_GRACE_SECONDS="1", **LONG_LEASE)
    job_id = stack.run("enqueue", _file(stack.folder, 4)).stdout.strip()
    until("every connection to be busy", lambda: stack.ask_sandbox("/stats")["in_flight"] >= 15)
    worker.terminate()
    assert worker.wait(180) == 0
    until("what was cut short to be in the books", lambda: stack.status(job_id)["llm_calls"] == 15)
    port = stack.llm.split(":")[2].split("/")[0]
    stack.end("sandbox", kill=True)
    stack.sandbox("--latency", "0", "--port", port)
    stack.themes("second", "worker", "--name", "second", **LONG_LEASE)
    assert stack.run("watch", job_id).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_whole_stack_at_once(engine: Engine, number: signal.Signals) -> None:
    engine.env |= {"THEMES_WORK__SHUTDOWN_GRACE_SECONDS": "600", "THEMES_STATE_DIR": str(engine.folder / "var")}
    engine.sandbox("--latency", "600s")
    up = engine.themes("up", "up", "--workers", "2", "--no-dashboard")
    until("the stack to stand", lambda: "ready" in engine.log("up"))
    assert engine.run("enqueue", _file(engine.folder, 20)).returncode == 0
    until("every connection to be busy", lambda: engine.ask_sandbox("/stats")["in_flight"] >= 30)
    family = psutil.Process(up.pid).children(recursive=True)
    assert len(family) >= 6
    up.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        up.wait(2)
    up.send_signal(number)
    up.wait(180)
    gone, alive = psutil.wait_procs(family, timeout=180)
    assert not alive
    assert len(gone) == len(family)
