"""A real worker under real memory pressure: what it gives up, and that it comes back."""

import json
import signal
import sys
from pathlib import Path

from redis import Redis

from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until

THRESHOLD = "THEMES_PERFORMANCE_OPTIMIZATION__MEMORY_PRESSURE_THRESHOLD_MB"


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _report(stack: Engine) -> fleet.WorkerReport:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        return next(iter(fleet.workers(redis).values()), fleet.WorkerReport())


def test_under_ballast_lanes_are_retired_and_chunks_wait_and_all_of_it_comes_back(stack: Engine) -> None:
    # A worker needs some 200 MiB: the threshold is far above that, and the ballast far above the threshold.
    worker = stack.celery(
        "w", "worker", "-P", "threads", "--hostname", "w@h", "-I", "tests.e2e.ballast", "--loglevel", "INFO",
        BALLAST_MB="600", **{THRESHOLD: "500"},
    )  # fmt: skip
    until("the worker to be there", lambda: _report(stack).lanes == 12)
    assert _report(stack).memory_pressure == "none"
    worker.send_signal(signal.SIGUSR2)
    until("chunks to wait", lambda: _report(stack).memory_pressure == "wait")
    report = _report(stack)
    assert (report.lanes, report.lanes_wanted) == (1, 12)
    assert (report.memory_mb or 0) >= 500
    doctor = json.loads(stack.run("doctor", "--json").stdout)
    (check,) = [check for check in doctor["checks"] if check["name"] == "worker memory"]
    assert "w@h (wait)" in check["found"]
    assert "themes tune memory_pressure_threshold_mb=1000" in check["fix"]
    said = stack.run("enqueue", _file(stack.folder, 6), "--wait")
    assert said.returncode == 0, "one at a time always goes on"
    steps = [line["step"] for line in stack.logged("w", "memory_pressure")]
    assert steps == ["lanes"] * 4 + ["wait"], "each step is said once"
    worker.send_signal(signal.SIGUSR2)
    until("all lanes to be back", lambda: (r := _report(stack)).lanes == 12 and r.memory_pressure == "none")
    assert stack.logged("w", "memory_relief")


def test_a_threshold_below_what_a_worker_needs_slows_it_down_and_stops_nothing(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w", **{THRESHOLD: "64"})
    until("the worker to be there", lambda: _report(stack).pid)
    said = stack.run("enqueue", _file(stack.folder, 10), "--wait")
    assert said.returncode == 0, said.stderr
    until("the worker to say so", lambda: _report(stack).memory_pressure == "wait")
    answer = stack.run("tune", "memory_pressure_threshold_mb=2048")
    assert answer.returncode == 0, answer.stderr
    until("all of it to be back", lambda: (r := _report(stack)).memory_pressure == "none" and r.lanes == 12)


def test_roles_refuse_to_start_without_the_file_descriptors_that_they_need(stack: Engine) -> None:
    for role, needed in (("worker", 139), ("consumer", 160)):
        command = f"ulimit -n 128; exec {sys.executable} -m scripts.main {role}"
        process = stack.start(f"few-{role}", "bash", "-c", command)
        assert process.wait(180) == 2
        assert f"ulimit -n {needed}" in stack.log(f"few-{role}")
    soft = f"ulimit -Sn 128; exec {sys.executable} -m scripts.main worker --name soft"
    stack.start("soft", "bash", "-c", soft)
    until("the limit to be raised and the worker to start", lambda: _report(stack).pid)
