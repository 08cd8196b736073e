"""Leaks of memory, looked for in workers that run."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until
from workers.observe.trend import FEWEST

#: Python imports this at its start: it keeps 50 KB of every destination.
PLANTED = """
    import importlib.abc
    import importlib.util
    import sys

    KEPT = []


    def keep() -> None:
        KEPT.append(bytearray(50_000))


    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "workers.worker.destination":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                run = module.DestinationRunner.run

                async def leaking(self, *args):
                    keep()
                    return await run(self, *args)

                module.DestinationRunner.run = leaking

            spec.loader.exec_module = exec_module
            return spec


    sys.meta_path.insert(0, Finder())
"""
LINE = next(n for n, line in enumerate(textwrap.dedent(PLANTED).splitlines(), start=1) if "bytearray" in line)


def _compared(stack: Engine) -> dict[str, Any]:
    said = stack.run("worker-memory", "compare", "--json")
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout).values()
    return answer


def _work_while_traced(stack: Engine, **env: str) -> dict[str, Any]:
    """What a worker's memory looks like after many looks, work in hand all the time."""
    stack.sandbox("--latency", "100ms")
    forks = stack.forks
    if env:
        stack.forks = None  # Python starts anew, and imports what is planted
    stack.themes("w", "worker", "--name", "w", "--concurrency", "4", **env)
    stack.forks = forks
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker", lambda: fleet.workers(redis))
        source = stack.folder / "many.csv"
        source.write_text("name\n" + "".join(f"Place {number}\n" for number in range(3000)))
        job_id = stack.run("enqueue", str(source)).stdout.strip()
        until("the work to have begun", lambda: _executed(redis) > 20)
        assert stack.run("worker-memory", "start", "--every", "0.25").returncode == 0
        begun = _executed(redis)
        until("work under the eyes of the tracer", lambda: _executed(redis) > begun + 20, 180)
        until("enough looks", lambda: _compared(stack)["looks"] >= FEWEST + 4, every=0.5)
        found = _compared(stack)
        assert stack.run("cancel", job_id).returncode == 0
    said = stack.run("worker-memory", "stop")
    assert said.returncode == 0
    assert "not tracing" in said.stdout
    return found


def _executed(redis: Redis) -> int:
    return sum(report.executed for report in fleet.workers(redis).values())


@pytest.mark.timeout(400)
def test_a_planted_leak_is_named_by_file_and_line(stack: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(PLANTED))
    path = ":".join(filter(None, (str(folder), stack.env.get("PYTHONPATH"))))
    found = _work_while_traced(stack, PYTHONPATH=path)
    worst = found["suspects"][0]
    assert (Path(worst["file"]).name, worst["line"]) == ("sitecustomize.py", LINE)
    assert worst["bytes_per_hour"] > 1_000_000
    shown = stack.run("worker-memory", "compare")
    assert shown.returncode == 1
    assert "start first" in shown.stdout


@pytest.mark.timeout(400)
def test_a_steady_worker_is_not_accused(stack: Engine) -> None:
    found = _work_while_traced(stack)
    assert found["suspects"] == [], json.dumps(found["lines"], indent=1)


def test_without_a_worker_it_is_said(stack: Engine) -> None:
    said = stack.run("worker-memory", "start", "--worker", "nobody@nowhere")
    assert said.returncode == 1
    assert "no worker nobody@nowhere lives" in said.stderr
