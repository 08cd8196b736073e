"""Several stacks on one machine, and the folder that a command is run in."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine, until

ROOT = Path(__file__).parents[2]


def _up(engine: Engine, name: str, **env: str) -> subprocess.Popen[bytes]:
    up = engine.themes(name, "up", "--sandbox", "--workers", "1", "--no-dashboard", **env)
    until("the stack to stand", lambda: "ready:" in engine.log(name) or up.poll() is not None)
    assert up.poll() is None, engine.log(name)
    return up


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own, so that nobody's stack in this one is met."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("config", "tasks", "workers", "scripts", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_a_command_in_any_folder_finds_the_stack_of_its_checkout(
    engine: Engine, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
