"""From nothing to the first stored profile in an environment whose files are warm: seconds, and CPU by role."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.lib.processes import themes
from tests.benchmarks.figures import repeats, tell
from tests.benchmarks.whole import megabytes_of

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]
ROUNDS = repeats(5)
DEADLINE_SECONDS = 120.0
#: A word of a command line -> its role.
ROLES = {
    "scripts.celery_worker": "worker",
    "worker": "supervisor",
    "consumer": "consumer",
    "dashboard": "dashboard",
    "sandbox-llm": "sandbox",
}


def _first_profile(database: Path) -> bool:
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.1)) as reader,
    ):
        return bool(reader.execute("SELECT count(*) FROM profiles").fetchone()[0])
    return False


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    if "server" in words[0]:
        return "Redis"
    return next((role for word, role in ROLES.items() if word in words), "command")


def _cpu_by_role(pid: int) -> Counter[str]:
    used: Counter[str] = Counter()
    top = psutil.Process(pid)
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used[_role(process)] += sum(process.cpu_times()[:2])
    return used


def _measure(
    folder: Path, command: list[str], then: Callable[[dict[str, str], Path], None]
) -> tuple[float, Counter[str], float]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("THEMES_", "OPENAI_", "REDIS"))}
    env |= {"THEMES_STATE_DIR": str(folder / "var"), "THEMES_DASHBOARD__PORT": "0"}
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        then(env, folder / "log")
        while not _first_profile(folder / "var" / "themes.db"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < began + DEADLINE_SECONDS, (folder / "log").read_text()
            time.sleep(0.02)
        return time.monotonic() - began, _cpu_by_role(process.pid), megabytes_of(psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def _enqueue(env: dict[str, str], log: Path) -> None:
    """What a user does in another terminal as soon as `up` says that it is ready."""
    while "ready:" not in log.read_text():
        time.sleep(0.02)
    subprocess.run(themes("enqueue", "-"), input=b"Kyoto, Japan\n", env=env, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("name", "command", "then"),
    [
        ("demo", ["demo"], lambda *_: None),
        ("up, then enqueue", ["up", "--sandbox", "--workers", "2"], _enqueue),
    ],
    ids=["demo", "up"],
)
def test_start_to_first_profile(
    name: str, command: list[str], then: Callable[[dict[str, str], Path], None], tmp_path: Path
) -> None:
    """Whole system. An empty folder, the sandbox with its shorter answers, 2 workers, the dashboard."""
    seconds, used, memory = [], [], []
    executable = str(Path(sys.executable).with_name("themes"))
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        took, cpu, megabytes = _measure(folder, [executable, *command], then)
        seconds.append(took)
        used.append(cpu)
        memory.append(megabytes)
    tell(name, "first profile stored after", seconds, "s")
    tell(name, "memory, all roles, shared pages once", memory, "MB")
    tell(name, "CPU, all roles", [cpu.total() for cpu in used], "s")
    for role in sorted(set().union(*used)):
        tell(name, f"CPU, {role}", [cpu[role] for cpu in used], "s")
