"""Two revisions are measured in turns, and compared turn by turn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import compare

CONFTEST = """
import json, os
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--json")

def pytest_sessionfinish(session):
    Path(session.config.getoption("--json")).write_text(json.dumps({{"cases": {{"a": {{"figures": {figures}}}}}}}))
    with open({log!r}, "a") as log:
        log.write({name!r} + os.environ["BENCH_REPEATS"] + " ")
"""
KEY = ("a case", "CPU a call", "ms")


def _tree(folder: Path, figures: str, *, passes: bool = True) -> Path:
    cases = folder / "tests" / "benchmarks"
    cases.mkdir(parents=True)
    log = str(folder.parent / "log")
    (cases / "conftest.py").write_text(CONFTEST.format(figures=figures, log=log, name=folder.name))
    (cases / "test_a.py").write_text(f"import pytest\n@pytest.mark.benchmark\ndef test_a(): assert {passes}\n")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def test_who_begins_changes_and_old_records_are_read(tmp_path: Path) -> None:
    here = _tree(tmp_path / "here", '[["a case", "CPU a call", "ms", 3.0, 1, 5, 1]]')
    old = '{"case": "a case", "title": "CPU a call", "unit": "ms", "median": 2.0, "lowest": 1, "highest": 3, "runs": 1}'
    other = _tree(tmp_path / "other", f"[{old}]")
    ours, theirs = compare.in_turns(here, other, "test_a", 2)
    assert (ours, theirs) == ({KEY: [3.0, 3.0]}, {KEY: [2.0, 2.0]})
    assert (tmp_path / "log").read_text() == "other1 here1 here1 other1 "


def test_a_revision_that_cannot_measure_is_named(tmp_path: Path) -> None:
    with pytest.raises(compare.NothingToCompareError, match="other could not measure 'test_a'"):
        compare.measured(_tree(tmp_path / "other", "[]", passes=False), "test_a")


def test_ratios_are_of_turns_and_of_cpu_unless_all_are_asked() -> None:
    ours = {KEY: [2.0, 9.0, 6.0], ("a case", "destinations", "a second"): [1.0, 1.0, 1.0], ("new", "CPU", "s"): [1.0]}
    theirs = {KEY: [1.0, 3.0, 3.0], ("a case", "destinations", "a second"): [2.0, 2.0, 2.0]}
    head, row = compare.table(ours, theirs, every=False)
    assert head.startswith("| | the other |")
    assert row == "| a case: CPU a call | 3 ms | 6 ms | 2.00 (2.00 to 3.00) |"
    assert len(list(compare.table(ours, theirs, every=True))) == 3


def test_the_last_revision_can_be_measured() -> None:
    """A clone without history has none."""
    commit = compare.revision("last")
    assert not commit or compare._git("ls-tree", commit, "--", compare.RECORD)


def test_a_revision_that_does_not_exist_is_said() -> None:
    env = os.environ | {"PYTHONPATH": str(compare.ROOT)}
    command = [sys.executable, "-m", "tests.benchmarks.compare", "no-such-revision"]
    done = subprocess.run(command, cwd=compare.ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        2,
        "no-such-revision: no such revision in this clone: there is nothing to compare with\n",
    )
