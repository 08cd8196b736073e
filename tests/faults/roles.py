"""Roles that start within a tenth of a second: forked from a process that has imported everything and started nothing.

`Roles` starts that process and talks to it, one line of JSON each way. It is the supervisor too: a role that dies is
started again, until it is ended; a producer until it has succeeded.
"""

import asyncio
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.faults.proxy import Mode
from tests.faults.statements import Statements
from tests.support.forks import import_everything

#: Seconds between two looks at the children.
LOOK_SECONDS = 0.01


def _worker(name: str) -> None:
    # Reads the settings when it is imported.
    from workers.app import app

    concurrency = os.environ["THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE"]
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO")
    app.worker_main(["worker", "--pool", "threads", "--concurrency", concurrency, "--hostname", f"{name}@host", *quiet])


def _consumer(_: str) -> None:
    from config.settings import load
    from scripts.consumer import consume
    from tasks.connection import locate

    if path := os.environ.get("FAULT_STATEMENTS"):
        mode = os.environ.get("FAULT_MODE")
        Statements(Path(path), int(os.environ["FAULT_NTH"]), Mode(mode) if mode else None).install()
    settings = load()
    asyncio.run(consume(settings, locate(settings)))


def _producer(_: str) -> None:
    from tasks.queue.producer import enqueue

    # A job that is bought in batches is paid from a budget, and its team's.
    team = os.environ.get("FAULT_TEAM", "")
    names = Path(os.environ["FAULT_DESTINATIONS"]).read_text().splitlines()
    job = enqueue(names, team=team, budget_usd=BUDGET_USD if team else None)
    Path(os.environ["FAULT_JOB"]).write_text(str(job))


#: US dollars, far more than such a job costs.
BUDGET_USD = 5.0
_ROLES = {"worker": _worker, "consumer": _consumer, "producer": _producer}


class Zygote:
    """The process that forks."""

    def __init__(self) -> None:
        self._wanted: dict[str, dict[str, Any]] = {}
        self._living: dict[int, str] = {}
        self._deaths: dict[str, int] = {}

    def serve(self) -> None:
        """Take orders and look after the children until the input ends."""
        buffer = b""
        while True:
            if select.select([0], [], [], LOOK_SECONDS)[0]:
                data = os.read(0, 1 << 16)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    order, options = json.loads(line)
                    os.write(1, json.dumps(getattr(self, order)(**options)).encode() + b"\n")
            self._look()
        self.end_all()

    def start(self, **role: Any) -> None:
        """Start a role: name, kind, env, log."""
        self._wanted[role["name"]] = role
        self._deaths[role["name"]] = 0
        self._fork(role)

    def deaths(self, name: str) -> int:
        """How often a role has ended against our will."""
        return self._deaths[name]

    def end_all(self) -> None:
        """Kill everybody."""
        self._wanted.clear()
        for pid in self._living:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._living):
            os.waitpid(pid, 0)
        self._living.clear()

    def _look(self) -> None:
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            name = self._living.pop(pid)
            role = self._wanted.get(name)
            if role is None or (role["kind"] == "producer" and status == 0):
                continue
            self._deaths[name] += 1
            self._fork(role)

    def _fork(self, role: dict[str, Any]) -> None:
        if pid := os.fork():
            self._living[pid] = role["name"]
            return
        code = 1
        try:
            _become(role)
            code = 0
        except BaseException:  # noqa: BLE001  # a child must never return into the loop above
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _become(role: dict[str, Any]) -> None:
    """In the child: its own session, log, environment and randomness; then its role."""
    os.setsid()
    log = os.open(role["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((null, log, log)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(role["env"])
    random.seed()
    _ROLES[role["kind"]](role["name"])


class Roles:
    """The zygote as tests use it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.roles"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(180)
        self._process.stdout.close()

    def _ask(self, order: str, **options: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([order, options]).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, kind: str, name: str, env: Mapping[str, str], log: Path) -> None:
        """Start a worker, consumer or producer, again and again when it dies."""
        self._ask("start", kind=kind, name=name, env=dict(env), log=str(log))

    def deaths(self, name: str) -> int:
        """How often a role has died."""
        return int(self._ask("deaths", name=name))

    def end_all(self) -> None:
        """Kill all roles."""
        self._ask("end_all")


if __name__ == "__main__":
    import_everything()
    assert threading.active_count() == 1, threading.enumerate()
    Zygote().serve()
