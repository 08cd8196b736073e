"""The record of the benchmarks: a JSON file with each case's figures and with the runs that they are of.

`scripts/bench --json FILE` writes it. Cases that ran and passed replace what the file has of them; the others stay,
each with the run that it was measured in.
"""

import ast
import datetime as dt
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
import psutil

from scripts.lib.local_redis import find_binary
from tests.benchmarks.figures import KNOB, Figure

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]
#: As the page calls them, and as they are installed.
LIBRARIES: Final = {name: name for name in ("celery", "kombu", "aiohttp", "sqlalchemy")} | {"redis-py": "redis"}
#: Made from the figures: that they differ is no change of what is measured.
_MADE: Final = (":!docs/benchmarks/numbers.json", ":!docs/benchmarks/numbers.md")


class Run(msgspec.Struct, frozen=True):
    """Where and when figures were measured. `load` is that of the last minute before."""

    date: str
    commit: str
    command: str
    load: float
    machine: dict[str, str]


class Case(msgspec.Struct, frozen=True):
    """A case's figures; without any it was not run. `run` is the date of its run.

    `others` is how many cores other processes used meanwhile; None where it was measured before that was.
    """

    run: str = ""
    figures: list[Figure] = []
    others: float | None = None


class Record(msgspec.Struct):
    """Cases by `FILE::TEST`, in the order of the files."""

    runs: list[Run] = []
    cases: dict[str, Case] = {}


class Described(msgspec.Struct, frozen=True):
    """A test as its source has it."""

    file: str
    name: str
    words: str


def described(folder: Path = FOLDER) -> list[Described]:
    """All cases that exist, in their order, with their docstrings."""
    return [
        Described(path.name, node.name, ast.get_docstring(node) or "")
        for path in sorted(folder.glob("test_*.py"))
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def test_of(case: str) -> str:
    """A case without its parameters."""
    return case.partition("[")[0]


def read(path: Path) -> Record:
    return msgspec.json.decode(path.read_bytes(), type=Record) if path.exists() else Record()


def merged(before: Record, run: Run, exist: Iterable[str], measured: Mapping[str, Case]) -> Record:
    """A record with these cases' figures, of the cases that exist, and of the runs that still have one."""
    known: dict[str, list[str]] = {f"{one.file}::{one.name}": [] for one in described()}
    for case in {**dict.fromkeys(exist), **before.cases}:
        known.get(test_of(case), []).append(case)
    collected = set(exist)
    cases = {}
    for test, names in known.items():
        # Of a test that was collected the parameters of today count; of another one, those that were known.
        today = [name for name in names if name in collected] or names or [test]
        for name in today:
            now = measured.get(name)
            cases[name] = now if now and now.figures else before.cases.get(name, Case())
    dates = {case.run for case in cases.values()}
    runs = {one.date: one for one in (*before.runs, run) if one.date in dates}
    return Record(sorted(runs.values(), key=lambda one: one.date), cases)


def write(path: Path, record: Record) -> None:
    """One line a figure, so that a difference can be read."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=1).decode()
    path.write_text(re.sub(r"\[\s+(\"[^\[\]]*?)\s+\]", lambda found: f"[{_line(found[1])}]", text) + "\n")


def _line(inner: str) -> str:
    return re.sub(r"\n\s+", " ", inner)


def this_run(arguments: Sequence[str], load: float) -> Run:
    """What this process runs on."""
    now = dt.datetime.now(dt.UTC)
    return Run(f"{now:%Y-%m-%d %H:%M:%S} UTC", _commit(), command(arguments, os.environ), round(load, 2), machine())


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """How to measure it again: `scripts/bench` with its arguments and knobs, without the places of this machine."""
    knobs = [f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith(KNOB)]
    at = next((at for at, one in enumerate(arguments) if one.rstrip("/").endswith("tests/benchmarks")), -1)
    said = [repr(one) if " " in one else one for one in arguments[at + 1 :]]
    for index, one in enumerate(said):
        if one == "--json":
            del said[index : index + 2]
            break
    said = [one for one in said if not re.search(r"(?:^|=)/", one) and not one.startswith("--json=")]
    return " ".join([*knobs, "scripts/bench", *said])


def machine() -> dict[str, str]:
    """The parts that a figure depends on."""
    server = find_binary()
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\S+)", said)
    memory = psutil.virtual_memory().total / 2**30
    parts = {
        "CPU": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "server": f"{server.name} {version[1] if version else said.strip()}",
        "SQLite": sqlite3.sqlite_version,
    }
    return parts | {name: metadata.version(package) for name, package in LIBRARIES.items()}


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    """The commit, and whether files that it does not have were measured."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit} with changes" if _git("status", "--porcelain", "--", ".", *_MADE) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
