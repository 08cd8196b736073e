"""Workers come and go during a job, as a scaler has it; each has a state directory of its own, as a pod has."""

import re
import sqlite3
import urllib.request
from itertools import count
from pathlib import Path

import psutil
import pytest
import yaml

from config.settings import load
from tests.e2e.conftest import Engine, until

DEPLOY = Path(__file__).parents[2] / "deploy/kubernetes"
COUNT = 60
_NUMBERS = count()
#: How many workers there are, one after the other; each stays until another sixth of the job is done.
SCHEDULE = (1, 3, 1, 3, 1)
KILLED = 4


def _enqueued(stack: Engine, destinations: int) -> str:
    rows = "name\n" + "".join(f"City {number}\n" for number in range(destinations))
    said = stack.run("enqueue", "-", "--force", stdin=rows)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def _scale(stack: Engine, pods: list[str], wanted: int, seconds: int) -> None:
    """Start pods, or stop the oldest ones as a kubelet does: SIGTERM, and `seconds` to go; 0: their machine is gone."""
    while len(pods) < wanted:
        name = f"pod{next(_NUMBERS)}"
        volume = stack.folder / name
        volume.mkdir()
        # As an emptyDir of a pod with a group of its own is.
        volume.chmod(0o2777)
        stack.themes(name, "worker", "--name", name, THEMES_STATE_DIR=str(volume / "themes"))
        pods.append(name)
    for name in [pods.pop(0) for _ in range(len(pods) - wanted)]:
        process = stack.processes.pop(name)
        if seconds:
            process.terminate()
            assert process.wait(seconds) == 0, stack.log(name)
        else:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.kill()
            process.wait(180)


@pytest.mark.parametrize("is_killed", [False, True], ids=["told to stop", "killed"])
def test_nothing_is_lost_double_or_paid_twice_while_workers_come_and_go(is_killed: bool, stack: Engine) -> None:
    stack.sandbox("--latency", "100ms")
    worker = yaml.safe_load((DEPLOY / "base/worker.yaml").read_text())["spec"]["template"]["spec"]
    settings = (DEPLOY / "base/settings.env").read_text()
    grace = re.search(r"^THEMES_WORK__SHUTDOWN_GRACE_SECONDS=(\d+)$", settings, re.MULTILINE)
    assert grace
    stack.env |= {
        "THEMES_WORK__SHUTDOWN_GRACE_SECONDS": grace[1],
        # Leases that run out would hide a worker that gives nothing back; a killed one cannot.
        "THEMES_WORK__LEASE_SECONDS": "3" if is_killed else "3600",
        "THEMES_WORK__HEARTBEAT_SECONDS": "1", "THEMES_WORK__MAX_CHUNK_SIZE": "4",
        "THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "4",
    }  # fmt: skip
    job_id = _enqueued(stack, COUNT)
    pods: list[str] = []
    for step, wanted in enumerate(SCHEDULE):
        _scale(stack, pods, wanted, 0 if is_killed else worker["terminationGracePeriodSeconds"])
        least = COUNT * (step + 1) // (len(SCHEDULE) + 1)
        until(f"{least} destinations to be done", lambda least=least: stack.status(job_id)["done"] >= least)
    watched = stack.run("watch", job_id)
    assert watched.returncode == 0, watched.stderr
    status = stack.status(job_id)
    assert (status["done"], status["failed"]) == (COUNT, 0)
    asked = stack.ask_sandbox("/stats")["requests"]
    if is_killed:
        # What their connections were asking is asked again, and nothing else; the books of it went with their machines.
        assert (
            COUNT * 16 <= asked <= COUNT * 16 + KILLED * load(env={}).performance_optimization.llm_connection_pool_size
        )
    else:
        assert status["llm_calls"] == asked == COUNT * 16
    with sqlite3.connect(Path(stack.env["THEMES_STATE_DIR"]) / "themes.db") as database:
        (rows,) = database.execute("SELECT COUNT(*), COUNT(DISTINCT destination_id) FROM profiles").fetchall()
    assert rows == (COUNT, COUNT)


def test_the_formula_of_the_scaler_follows_the_work(stack: Engine) -> None:
    scaled = next(yaml.safe_load_all((DEPLOY / "keda/scaledobject.yaml").read_text()))["spec"]
    stack.sandbox("--latency", "600s")
    stack.env["THEMES_WORK__MAX_CHUNK_SIZE"] = "2"
    stack.themes("dashboard", "dashboard", "--port", "0", THEMES_LOGGING__FORMAT="json")
    port = until("the dashboard", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", stack.log("dashboard")))[1]

    def wanted() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=180) as answer:
            text = answer.read().decode()
        values = {}
        for trigger in scaled["triggers"]:
            found = re.search(rf"^{re.escape(trigger['metadata']['valueLocation'])} (\S+)$", text, re.MULTILINE)
            values[trigger["name"]] = float(found[1]) if found else 0.0
        return float(eval(scaled["advanced"]["scalingModifiers"]["formula"], {}, values))  # noqa: S307  # our own file

    assert wanted() == 0
    job_id = _enqueued(stack, 8)
    until("each chunk that waits to want a worker", lambda: wanted() >= 4)
    stack.themes("w", "worker", "--name", "w")
    until("the calls under way to want their worker alone", lambda: 0 < wanted() <= 1)
    address = stack.llm.split(":")[2].split("/")[0]
    stack.end("sandbox", kill=True)
    stack.sandbox("--latency", "0", "--port", address)
    assert stack.run("watch", job_id).returncode == 0
    until("none to be wanted", lambda: wanted() == 0)
