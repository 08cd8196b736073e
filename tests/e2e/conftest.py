"""The engine as a user runs it: processes, a private Redis, the sandbox over HTTP."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from config.settings import Settings, load
from scripts.lib.connections import connected
from scripts.lib.forks import THEMES
from scripts.lib.local_redis import LocalRedis
from scripts.status import _status as job_status
from tests.support.forks import CELERY, Forked, Forks, Piped

#: Seconds that anything here may take; a hanging test is a failing one.
DEADLINE = 180.0


def until(what: str, look: Callable[[], Any], seconds: float = DEADLINE, *, every: float = 0.05) -> Any:
    """Look again and again until the answer is truthy; fail with `what` when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(every)
    return found


@dataclass
class Engine:
    """A stack of real processes."""

    folder: Path
    env: dict[str, str]
    #: Starts `themes`; None: as a user does, which takes half a second of CPU each time.
    forks: Forks | None = None
    llm: str = ""
    processes: dict[str, subprocess.Popen[bytes] | Forked] = field(default_factory=dict)
    #: What `status` has read of the environment, for as long as it stays the same.
    _seen: tuple[dict[str, str], Settings, Redis] | None = None

    def run(self, *arguments: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return self._run(THEMES, *arguments, stdin=stdin, **env)

    def run_celery(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Celery's own with our app to its end."""
        return self._run(*CELERY, *arguments, stdin=None, **env)

    def _run(self, module: str, *arguments: str, stdin: str | None, **env: str) -> subprocess.CompletedProcess[str]:
        if self.forks is not None:
            return self.forks.run(*arguments, env={**self.env, **env}, stdin=stdin, timeout=DEADLINE, module=module)
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**self.env, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                list(command), env={**self.env, **env}, stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def themes(self, name: str, *arguments: str, **env: str) -> subprocess.Popen[bytes] | Forked:
        """Start a verb."""
        return self._start(name, THEMES, *arguments, **env)

    def celery(self, name: str, *arguments: str, **env: str) -> subprocess.Popen[bytes] | Forked:
        """Start Celery's own command line with our app: a stock worker, or Flower."""
        return self._start(name, *CELERY, *arguments, **env)

    def _start(self, name: str, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes] | Forked:
        if self.forks is None:
            return self.start(name, sys.executable, "-m", module, *arguments, **env)
        with (self.folder / f"{name}.log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            process = self.forks.start(
                *arguments, env={**self.env, **env}, stdin=nothing, stdout=log, stderr=log, module=module
            )
        self.processes[name] = process
        return process

    def piped(self, *arguments: str, **env: str) -> Piped:
        """Start a verb whose streams can be read and written."""
        assert self.forks is not None
        process = self.forks.pipe(*arguments, env={**self.env, **env})
        self.processes[f"{arguments[0]} {process.pid}"] = process
        return process

    def end(self, name: str, *, kill: bool = False) -> None:
        """End one process and wait for it."""
        process = self.processes.pop(name)
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(180)

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def logged(self, name: str, action: str | None = None) -> list[dict[str, Any]]:
        """The JSON lines that a process has logged, all or those of one action."""
        lines = []
        for line in self.log(name).splitlines():
            # A process that is killed while it writes leaves half a line.
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and action in {None, line.get("action")}]

    def stop(self) -> None:
        """Kill everything that still runs, with its children."""
        for process in self.processes.values():
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()
        if self._seen is not None:
            self._seen[2].close()

    def sandbox(self, *options: str) -> None:
        """Start the sandbox LLM, in the place of one that runs, and point the environment at it."""
        if "sandbox" in self.processes:
            self.end("sandbox")
        arguments = ("sandbox-llm", *(options if "--port" in options else ("--port", "0", *options)))
        reading, writing = os.pipe()
        with os.fdopen(reading, encoding="utf-8") as out, Path(os.devnull).open("r+b") as nothing:
            if self.forks is not None:
                process: subprocess.Popen[bytes] | Forked = self.forks.start(
                    *arguments, env=self.env, stdin=nothing, stdout=writing, stderr=nothing
                )
            else:
                command = [sys.executable, "-m", "scripts.main", *arguments]
                process = subprocess.Popen(
                    command, env=self.env, stdout=writing, stderr=nothing, start_new_session=True
                )
            os.close(writing)
            self.processes["sandbox"] = process
            self.llm = out.readline().strip()
        self.env |= {"OPENAI_BASE_URL": self.llm, "OPENAI_API_KEY": "none", "THEMES_MODEL": "sandbox"}

    def ask_sandbox(self, path: str, body: Any = None) -> Any:
        """Ask the sandbox about itself, or tell it something."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.llm.removesuffix("/v1") + path, data=data)  # noqa: S310
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
            return json.load(answer)

    def status(self, job_id: str) -> dict[str, Any]:
        """What `themes status JOB --json` prints, without the start of a command."""
        if self._seen is None or self._seen[0] != self.env:
            settings = load(env=self.env)
            self._seen = dict(self.env), settings, connected(settings)
        _, settings, redis = self._seen
        found: dict[str, Any] = json.loads(job_status(redis, settings, job_id).json())
        return found


@pytest.fixture
def engine(tmp_path: Path, forks: Forks) -> Iterator[Engine]:
    """Nothing but an environment: no Redis, no worker."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_", "REDIS"))}
    env |= {
        "THEMES_STATE_DIR": str(tmp_path / "var"),
        "THEMES_REDIS__SERVER": os.environ.get("THEMES_REDIS__SERVER", "auto"),
        "THEMES_DASHBOARD__PORT": "0",
    }
    made = Engine(tmp_path, env, forks)
    yield made
    made.stop()


@pytest.fixture
def cold(engine: Engine) -> None:
    """Start every command as a user does."""
    engine.forks = None


@pytest.fixture
def stack(engine: Engine, tmp_path: Path) -> Iterator[Engine]:
    """A private Redis in the state directory, a quick sandbox and a consumer; workers are the test's."""
    with LocalRedis(tmp_path / "var", engine.env["THEMES_REDIS__SERVER"]) as server:
        engine.env["REDIS_URL"] = server.url
        engine.sandbox("--latency", "20ms")
        engine.themes("consumer", "consumer")
        yield engine
        engine.stop()
