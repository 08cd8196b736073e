"""Runs `plain_celery` beside the whole system: the same server and Redis, its CPU by role."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from scripts.lib.processes import spawn, stop
from tests.benchmarks.full_prompts import body_of, prompt_about, stages
from tests.benchmarks.plain_celery import PLACE
from tests.benchmarks.whole import Whole, cpu_of

_ENQUEUE: Final = """
import sys
from tests.benchmarks.plain_celery import destination
for line in sys.stdin:
    destination.delay(line.strip())
"""


@dataclass
class PlainRun:
    """One job: seconds from the first destination's start to the last one's end, and CPU seconds of each role."""

    seconds: float
    cpu: dict[str, float]


@dataclass
class Plain:
    system: Whole
    env: dict[str, str]
    worker: "subprocess.Popen[bytes]"

    def rows(self) -> list[tuple[str, str, float, float]]:
        """Name, payload, start and end of what is stored."""
        path = Path(self.env["PLAIN_DATABASE"])
        with closing(sqlite3.connect(path, timeout=60)) as db, suppress(sqlite3.OperationalError):
            return db.execute("SELECT name, payload, began, ended FROM profiles").fetchall()
        return []  # no task has made the table yet

    def cpu(self) -> dict[str, float]:
        return {"worker": cpu_of(psutil.Process(self.worker.pid)), "Redis": self.system.cpu()["Redis"]}

    def run(self, names: list[str]) -> PlainRun:
        """A message a destination; wait for the last row."""
        self.system.settle()
        before, known = self.cpu(), len(self.rows())
        said = "".join(f"{name}\n" for name in names)
        subprocess.run([sys.executable, "-c", _ENQUEUE], env=self.env, input=said, text=True, check=True)
        while len(self.rows()) < known + len(names):
            words = (self.system.folder / "plain.log").read_text()
            assert self.worker.poll() is None, words[-2_000:]
            assert "ERROR" not in words, words[-2_000:]
            time.sleep(0.2)
        cpu = {role: used - before[role] for role, used in self.cpu().items()}
        of_job = [row for row in self.rows() if row[0] in set(names)]
        return PlainRun(max(row[3] for row in of_job) - min(row[2] for row in of_job), cpu)


@contextmanager
def plain(system: Whole, processes: int) -> Iterator[Plain]:
    """A worker of so many processes; its queue is in database 2 of the system's Redis."""
    folder = system.folder
    in_order = sorted(stages(), key=lambda stage: stage.asks != "new themes")
    requests = [body_of(prompt_about(PLACE, stage)).decode() for stage in in_order]
    (folder / "plain.json").write_text(json.dumps(requests))
    env = (
        os.environ
        | system.env
        | {
            "PLAIN_BROKER": f"{system.url.rpartition('/')[0]}/2",
            "PLAIN_BODIES": str(folder / "plain.json"),
            "PLAIN_DATABASE": str(folder / "plain.db"),
        }
    )
    command = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.plain_celery", "worker"]
    worker = spawn(
        [*command, "--concurrency", str(processes), "--loglevel", "WARNING"], env=env, log=folder / "plain.log"
    )
    try:
        yield Plain(system, env, worker)
    finally:
        stop([worker], seconds=15)
