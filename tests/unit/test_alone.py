"""A second try tells the truth: what ran, what passed only alone, and when that is green."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alone import LISTED, listed, verdict

ROOT = Path(__file__).resolve().parents[2]
#: A pytest within a test starts without what the project's own needs.
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize(
    ("code", "alone", "reasons", "is_ci", "becomes"),
    [
        (0, ["a"], {}, False, 0),
        (0, ["a"], {}, True, 1),
        (0, ["a"], {"a": "waits for a browser"}, True, 0),
        (0, ["a", "b"], {"a": "waits for a browser"}, True, 1),
        (1, ["a"], {"a": "waits for a browser"}, True, 1),
        (2, [], {}, False, 2),
    ],
)
def test_a_pass_that_came_only_alone_is_green_in_ci_with_a_reason_only(
    code: int, alone: list[str], reasons: dict[str, str], becomes: int, *, is_ci: bool
) -> None:
    ended, said = verdict(code, alone, reasons, is_ci=is_ci)
    assert ended == becomes
    assert [name for name in alone if not any(name in line for line in said)] == []


def test_every_listed_test_has_a_reason() -> None:
    assert all(reason.strip() for reason in listed(LISTED.read_text()).values())


@pytest.mark.parametrize("code", [2, 3, 4, 5, 130, 137])
def test_an_aborted_run_is_red_and_nothing_is_tried_again(code: int, tmp_path: Path) -> None:
    for name in ("scripts", "bin", ".venv/bin", "tests"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "scripts/test").write_text((ROOT / "scripts/test").read_text())
    (tmp_path / "scripts/setup").write_text("#!/bin/sh\n")
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\necho "$@" >> asked\nexit {code}\n')
    for path in (tmp_path / "scripts/setup", python):
        path.chmod(0o755)
    said = subprocess.run(["bash", "scripts/test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == code
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    assert "of CPU" in said.stderr


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_what_passes_only_alone_is_named(ci: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_flaky.py").write_text(
        "from pathlib import Path\n"
        "def test_a():\n"
        "    seen = Path('ran').exists()\n"
        "    Path('ran').touch()\n"
        "    assert seen\n"
    )
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), **BARE}
    first = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert first.returncode == 1
    assert json.loads((tmp_path / ".pytest_cache/v/cache/lastfailed").read_text())
    again = subprocess.run(
        [sys.executable, "-m", "tests.alone"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert again.returncode == code, again.stdout + again.stderr
    assert "passed only alone: test_flaky.py::test_a" in again.stderr


@pytest.mark.parametrize("failed", [None, {}, {"gw1": True}, {"gw1": True, "test_a.py::test_a": True}])
def test_a_failure_outside_of_tests_is_red_and_nothing_is_tried(failed: dict[str, bool] | None, tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_a(): open('ran', 'w')\n")
    if failed is not None:
        (tmp_path / ".pytest_cache/v/cache").mkdir(parents=True)
        (tmp_path / ".pytest_cache/v/cache/lastfailed").write_text(json.dumps(failed))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **BARE}
    said = subprocess.run(
        [sys.executable, "-m", "tests.alone"], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert said.returncode == 1
    assert not (tmp_path / "ran").exists()
