"""Several stacks on one machine, and the folder that a command is run in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until
from tests.support.forks import Forked

ROOT = Path(__file__).parents[2]


def _up(engine: Engine, name: str, **env: str) -> subprocess.Popen[bytes] | Forked:
    up = engine.themes(name, "up", "--sandbox", "--workers", "1", "--no-dashboard", **env)
    until("the stack to stand", lambda: "ready:" in engine.log(name) or up.poll() is not None)
    assert up.poll() is None, engine.log(name)
    return up


def test_workers_of_two_stacks_on_one_redis_have_names_of_their_own(engine: Engine, tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "shared", engine.env["THEMES_REDIS__SERVER"]) as server:
        engine.env["REDIS_URL"] = server.url
        for name in ("one", "two"):
            _up(engine, name, THEMES_STATE_DIR=str(tmp_path / name))
        with Redis.from_url(server.url) as redis:
            names = sorted(fleet.workers(redis))
            assert len(names) == 2
            assert all(re.match(r"worker1-[0-9a-f]{4}@", name) for name in names)
            consumers = until("both consumers", lambda: len(found := fleet.consumers(redis)) == 2 and found)
            assert all(re.search(r"-\d+-[0-9a-f]{4}$", name) for name in consumers), (
                "a host and process id may be equal"
            )
        said = engine.run_celery("inspect", "ping", "--json", "--timeout", "10")
        assert sorted(json.loads(said.stdout)) == names
        assert "DuplicateNodename" not in said.stderr
        # The name is the same at each start, so what was tuned for it holds.
        engine.end("one")
        _up(engine, "one again", THEMES_STATE_DIR=str(tmp_path / "one"))
        with Redis.from_url(server.url) as redis:
            assert sorted(fleet.workers(redis)) == names


def test_up_says_where_the_redis_is_set_that_it_cannot_reach(engine: Engine, tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text("performance_optimization:\n  redis_url: redis://127.0.0.1:1/1\n", "utf-8")
    engine.env.pop("REDIS_URL", None)
    said = engine.run("--config", str(settings), "up", "--sandbox")
    assert said.returncode == 2
    assert "`themes up` starts one where performance_optimization.redis_url is not set, as it is here" in said.stderr
    assert "config.yaml:2" in said.stderr
    assert "`themes up` runs in" not in said.stderr


def test_the_name_of_a_worker_that_runs_is_refused_and_that_of_a_dead_one_is_not(stack: Engine) -> None:
    stack.themes("first", "worker", "--name", "same")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker", lambda: fleet.workers(redis))
        ((name, report),) = fleet.workers(redis).items()
        said = stack.run("worker", "--name", "same")
        assert said.returncode == 2
        assert f"--name: {name} runs already (process {report.pid})" in said.stderr
        stack.end("first", kill=True)
        until("the killed one to be gone", lambda: not os.path.exists(f"/proc/{report.pid}"))  # noqa: PTH110
        stack.themes("again", "worker", "--name", "same")
        until("its successor", lambda: fleet.workers(redis).get(name, report).pid != report.pid)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own, so that nobody's stack in this one is met."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("config", "tasks", "workers", "scripts", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_a_command_in_any_folder_finds_the_stack_of_its_checkout(
    cold: None, engine: Engine, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine.env["THEMES_STATE_DIR"]
    engine.env["PYTHONPATH"] = str(checkout)
    data = tmp_path / "data"
    for folder in (tmp_path / "anywhere", data):
        folder.mkdir()
    monkeypatch.chdir(tmp_path / "anywhere")
    up = _up(engine, "up")
    assert "ready: `themes enqueue FILE`" in engine.log("up")
    monkeypatch.chdir(data)
    Path("cities.csv").write_text("name\nKyoto\n")
    said = engine.run("enqueue", "cities.csv", "--wait")
    assert said.returncode == 0, said.stderr
    assert [path.name for path in data.iterdir()] == ["cities.csv"]
    assert (checkout / "var" / "themes.db").is_file()
    again = engine.run("up", "--sandbox")
    assert again.returncode == 2
    assert f"`themes up` runs already in {checkout / 'var'} (process {up.pid})" in again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="processes show what they have open in /proc")
def test_a_command_that_finds_no_stack_names_those_that_run(engine: Engine, tmp_path: Path) -> None:
    there = tmp_path / "my stack"
    up = _up(engine, "up", THEMES_STATE_DIR=str(there))
    assert f"ready: `THEMES_STATE_DIR='{there}' themes enqueue FILE`" in engine.log("up")
    line = f"`themes up` runs in {there} (process {up.pid}): `export THEMES_STATE_DIR='{there}'` finds it"
    assert line in engine.run("results", "job").stderr
    said = engine.run("status")
    if "localhost:6379" in said.stderr:  # else this machine has a Redis of its own there
        assert line in said.stderr
        assert len(said.stderr.splitlines()) == 1
