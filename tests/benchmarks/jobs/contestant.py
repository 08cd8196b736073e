"""Starts a contestant as its users do, gives it names, and sees from the outside what it does and costs.

Its queue is a database of its own in the system's Redis; its rows are in a file of its own.
"""

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from scripts.lib.processes import spawn
from tests.benchmarks.environments import ROOT, environment
from tests.benchmarks.full_answers import THEMES
from tests.benchmarks.full_prompts import body_of, prompt_about, stages
from tests.benchmarks.jobs.destination import PLACE
from tests.benchmarks.whole import QUIET_SECONDS, Whole, cpu_of, kill, megabytes_of, posts

#: Calls in flight of every contestant, where answers take their time: ours has as many connections.
IN_FLIGHT: Final = 15
#: Seconds without a new row after which a contestant has stopped.
STOPPED_SECONDS: Final = 120.0
_CORES: Final = len(os.sched_getaffinity(0))
_MODULE: Final = "tests.benchmarks.jobs"
Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Peer:
    """How its worker is started, after `python -m`; without a worker, the command that takes the names works itself.

    Where answers come at once a process a core is best; where they take 200 ms, `IN_FLIGHT` of whatever waits.
    """

    name: str
    title: str
    at_once: Sequence[str] = ()
    waiting: Sequence[str] = ()

    def worker(self, latency_seconds: float) -> Sequence[str]:
        return self.waiting if latency_seconds else self.at_once

    def python(self) -> str:
        return str(environment(Path(__file__).with_name(f"{self.name}.txt")))


def _peers() -> Iterator[Peer]:
    celery = ["celery", "-A", f"{_MODULE}.celery_job", "worker", "--loglevel", "WARNING", "--concurrency"]
    yield Peer("celery", "Celery", [*celery, f"{_CORES}"], [*celery, f"{IN_FLIGHT}"])
    dramatiq = ["dramatiq", f"{_MODULE}.dramatiq_job", "--processes"]
    each = [*dramatiq, f"{_CORES}", "--threads", "8"]
    yield Peer("dramatiq", "dramatiq", each, [*dramatiq, "1", "--threads", f"{IN_FLIGHT}"])
    taskiq = ["taskiq", "worker", f"{_MODULE}.taskiq_job:broker", "--log-level", "WARNING", "--max-async-tasks"]
    each = [*taskiq, "8", "--workers", f"{_CORES}"]
    yield Peer("taskiq", "taskiq", each, [*taskiq, f"{IN_FLIGHT}", "--workers", "1"])
    yield Peer("asyncio", "an asyncio script")


PEERS: Final = tuple(_peers())


@dataclass
class JobRun:
    """One job of any contestant. `destinations` counts the names that it was given, repeated ones too."""

    destinations: int
    seconds: float
    first_seconds: float
    calls: int
    megabytes: float
    cpu: dict[str, float]

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a destination, all but the command that enqueues."""
        return sum(self.cpu.values()) / self.destinations * 1e3


@dataclass
class Contestant:
    peer: Peer
    system: Whole
    folder: Path
    python: str
    env: dict[str, str]
    worker_command: Sequence[str]
    running: list[Process] = field(default_factory=list)

    def start(self) -> None:
        """Start its worker, if it has one."""
        if self.worker_command:
            self._spawn(*self.worker_command)

    def take(self, names: list[str]) -> Process:
        """Start the command that takes the names."""
        path = self.folder / "names.txt"
        path.write_text("".join(f"{name}\n" for name in names))
        return self._spawn(f"{_MODULE}.{self.peer.name}_job", str(path))

    def _spawn(self, *arguments: str) -> Process:
        log = self.folder / "contestant.log"
        self.running.append(spawn([self.python, "-m", *arguments], env=self.env, log=log))
        return self.running[-1]

    def kill(self) -> None:
        """Kill -9 all its processes."""
        kill(self.running)
        self.running.clear()

    def rows(self, columns: str = "name") -> list[tuple[Any, ...]]:
        path = Path(self.env["JOB_DATABASE"])
        with closing(sqlite3.connect(path, timeout=60)) as database, suppress(sqlite3.OperationalError):
            return database.execute(f"SELECT {columns} FROM profiles ORDER BY ended").fetchall()  # noqa: S608 - ours
        return []  # no destination has made the table yet

    def posts(self) -> int:
        return posts(self.env["OPENAI_BASE_URL"])

    def run(self, names: list[str]) -> JobRun:
        """Give it these names, and wait for the last row."""
        # What is measured of the others begins when their workers have started.
        start = 0.0 if self.worker_command else _ended(self.take([]))[1]
        worker, redis, calls, known = self._cpu(), self.system.cpu()["Redis"], self.posts(), len(self.rows())
        began = time.time()
        command = self.take(names)
        script = None if self.worker_command else psutil.Process(command.pid)
        used, megabytes = self._watched(known + len(names), command, script)
        code, resources = _ended(command)
        assert code == 0, self._words()
        rows = self.rows("began, ended, payload")[known:]
        for _, _, payload in rows:
            profile = json.loads(payload)
            assert len(profile["themes"]) == THEMES
            assert "recommendations" in profile
        return JobRun(
            len(names),
            max(ended for _, ended, _ in rows) - min(begun for begun, _, _ in rows),
            rows[0][1] - began,
            self.posts() - calls,
            megabytes,
            {"worker": resources - start if script else used - worker, "Redis": self.system.cpu()["Redis"] - redis},
        )

    def _watched(self, wanted: int, command: Process, script: psutil.Process | None) -> tuple[float, float]:
        """Wait for so many rows; the CPU of the worker until then, and the memory of what works."""
        found, since, megabytes = -1, time.monotonic(), 0.0
        while (now := len(self.rows())) < wanted:
            if now != found:
                found, since = now, time.monotonic()
            assert time.monotonic() - since < STOPPED_SECONDS, f"no row for {STOPPED_SECONDS:.0f} s: {self._words()}"
            assert not self.worker_command or self.running[0].poll() is None, self._words()
            ended = os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert not (ended and ended.si_status), self._words()
            with suppress(psutil.NoSuchProcess):
                megabytes = max(megabytes, megabytes_of(script) if script else 0.0)
            time.sleep(0.1)
        if script:
            return 0.0, megabytes
        time.sleep(QUIET_SECONDS)
        return self._cpu(), megabytes_of(psutil.Process(self.running[0].pid))

    def _cpu(self) -> float:
        """Of the worker until now."""
        return cpu_of(psutil.Process(self.running[0].pid)) if self.worker_command else 0.0

    def _words(self) -> str:
        return (self.folder / "contestant.log").read_text()[-1_000:]


def _ended(process: Process) -> tuple[int, float]:
    """Wait for a process; its code and its CPU seconds."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _bodies(folder: Path) -> Path:
    """The requests about `PLACE`, those that find themes first."""
    path = folder / "bodies.json"
    in_order = sorted(stages(), key=lambda stage: stage.asks != "new themes")
    path.write_text(json.dumps([body_of(prompt_about(PLACE, stage)).decode() for stage in in_order]))
    return path


@contextmanager
def contestant(peer: Peer, system: Whole, llm_url: str, latency_seconds: float) -> Iterator[Contestant]:
    """A contestant on a database of Redis and a server; its worker is not started."""
    folder = system.folder / peer.name
    folder.mkdir(exist_ok=True)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OPENAI_BASE_URL": llm_url,
        "JOB_REDIS": f"{system.url.rpartition('/')[0]}/{2 + PEERS.index(peer)}",
        "JOB_BODIES": str(_bodies(folder)),
        "JOB_DATABASE": str(folder / "rows.db"),
        "JOB_IN_FLIGHT": str(IN_FLIGHT),
    }
    made = Contestant(peer, system, folder, peer.python(), env, peer.worker(latency_seconds))
    try:
        yield made
    finally:
        made.kill()


@contextmanager
def forgiven(title: str, forget: Callable[[], object]) -> Iterator[None]:
    """A peer that fails has a reason and no figure: it fails no test of ours."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  # whatever a peer does
        forget()
        print(f"{title}: no figure: {exc}")
