"""The whole stack on this machine: a private Redis, the roles as child processes, all ended together."""

import contextlib
import hashlib
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from config.container import CONTAINER
from config.settings import Settings, least_of
from scripts.lib.connections import connected
from scripts.lib.forks import DATABASE, WORKER, preload
from scripts.lib.local_redis import LocalRedis
from scripts.lib.processes import lock_with_pid, spawn, stop, themes, undisturbed
from scripts.lib.terminal import say
from tasks import logs
from tasks import worker_reports as fleet
from tasks.connection import check_enabled, connect
from tasks.errors import ConfigError, RedisUnavailableError, ThemesError
from tasks.redis_url import masked
from tasks.state_dir import UP_LOCK, writing_in
from tasks.texts import duration

#: Seconds for which a worker of an interactive stack may finish what it has in hand: Ctrl-C ends within 5 s.
GRACE_SECONDS: Final = 1.5
#: Seconds beyond the grace time that workers may take to stop before they are killed, with what they have started.
WORKERS_STOP_SECONDS: Final = 1.3
#: Seconds that the other roles may take; the consumer needs 1.5 where another program holds the database.
STOP_SECONDS: Final = 1.8
SAY_SECONDS: Final = 10.0
#: The role that may end without ending the stack: jobs do without it.
DASHBOARD: Final = "dashboard"
REDIS_URL: Final = "performance_optimization.redis_url"
#: Ports tried for the dashboard, from the one in the settings upwards.
PORTS: Final = 20
WATCH_SECONDS: Final = 0.1
#: Seconds between two looks for the reports of workers that start.
LOOK_SECONDS: Final = 0.03


@dataclass
class Stack:
    settings: Settings
    redis_url: str
    logs: Path
    env: dict[str, str]
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    others: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int | None = None

    def start(self, name: str, *command: str, worker: bool = False) -> None:
        with undisturbed():
            process = spawn(themes(*command), env=self.env, log=self.logs / f"{name}.log", fork=True)
            (self.workers if worker else self.others)[name] = process

    def start_workers(self, count: int) -> None:
        preload(WORKER)
        self.env |= shares_of_memory(self.settings, count)
        # A Redis of the user's may have other stacks' workers too.
        behind = f"-{token_of(self.settings.state_dir)}" if self.settings.is_set(REDIS_URL) else ""
        for number in range(1, count + 1):
            name = f"worker{number}{behind}"
            self.start(name, "worker", "--name", name, worker=True)

    def start_others(self, *, dashboard: bool) -> None:
        """Start consumer and dashboard; workers, started before, go on meanwhile."""
        preload(DATABASE)
        self.start("consumer", "consumer")
        if dashboard:
            self.start_dashboard()

    def start_dashboard(self) -> None:
        dashboard = self.settings.dashboard
        self.port = dashboard_port(self.settings)
        if self.port != dashboard.port and dashboard.port:
            say(f"dashboard.port {dashboard.port} is taken: the dashboard listens on {self.port}")
        self.start(DASHBOARD, "dashboard", "--port", str(self.port))

    def check(self) -> None:
        """Raise ThemesError with its last words where a role has ended; a dashboard that has ended is only reported."""
        for name, process in {**self.workers, **self.others}.items():
            if process.poll() is None:
                continue
            if name == DASHBOARD:
                del self.others[name]
                self.port = None
                say(f"no dashboard, everything else goes on: {self.last_words(name)}")
            else:
                code = process.returncode
                how = f"ended with code {code}" if code >= 0 else f"was ended by a signal ({signal.strsignal(-code)})"
                raise ThemesError(f"{name} {how}: {self.last_words(name)}")

    def last_words(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
        said = next((logs.sentence(line) for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{said.removeprefix('themes: ')} (more in {path})"

    def wait_until_ready(self) -> None:
        redis = connect(self.redis_url, socket_timeout_seconds=self.settings.redis.socket_timeout_seconds)
        began = said = time.monotonic()
        while True:
            self.check()
            known = {name.partition("@")[0] for name in fleet.workers(redis)}
            if not (starting := sorted(self.workers.keys() - known)):
                return
            if (now := time.monotonic()) - said >= SAY_SECONDS:
                said = now
                say(f"still starting after {duration(now - began)}: {', '.join(starting)} (logs in {self.logs})")
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        stop(list(self.workers.values()), seconds=_grace(self.settings) + WORKERS_STOP_SECONDS)
        stop(list(self.others.values()), seconds=STOP_SECONDS)


def token_of(state_dir: Path) -> str:
    """Four characters that tell a stack's workers from those of other folders and machines, the same at each start."""
    place = f"{uuid.getnode():x} {state_dir.absolute()}"
    return hashlib.sha256(place.encode()).hexdigest()[:4]


def shares_of_memory(settings: Settings, count: int) -> dict[str, str]:
    """The environment of worker processes that share a container's memory: a part each of what the user has not set."""
    return {
        f"THEMES_{key.upper().replace('.', '__')}": str(max(least_of(key), int(value) // count))
        for key, value in settings.items()
        if settings.origin(key) == CONTAINER
    }


@contextlib.contextmanager
def stack(settings: Settings, *, sandbox: bool, latency: str | None = None) -> Iterator[Stack]:
    """Redis and, if wanted, the sandbox; what is started on the yielded stack ends with it. Raises ThemesError."""
    logs = settings.state_dir / "logs"
    with contextlib.ExitStack() as parts:
        with writing_in(settings.state_dir):
            logs.mkdir(parents=True, exist_ok=True)
        parts.enter_context(_alone(settings.state_dir))
        url = parts.enter_context(_redis(settings))
        env = {
            "REDIS_URL": url,
            "THEMES_STATE_DIR": str(settings.state_dir.absolute()),
            "THEMES_WORK__SHUTDOWN_GRACE_SECONDS": f"{_grace(settings):g}",
        }
        made = Stack(settings, url, logs, env)
        parts.callback(made.stop)
        if sandbox:
            env |= _start_sandbox(made, latency)
        yield made


def _grace(settings: Settings) -> float:
    if settings.is_set("work.shutdown_grace_seconds"):
        return settings.work.shutdown_grace_seconds
    return GRACE_SECONDS


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    with (state_dir / UP_LOCK).open("a+") as lock:
        if not lock_with_pid(lock):
            lock.seek(0)
            raise ConfigError(
                f"`themes up` runs already in {state_dir} (process {lock.read().strip()}): enqueue there, stop it, or "
                "choose another THEMES_STATE_DIR"
            )
        yield


@contextlib.contextmanager
def _redis(settings: Settings) -> Iterator[str]:
    check_enabled(settings)
    if settings.is_set(REDIS_URL):
        try:
            connected(settings, settings.redis_url)
        except RedisUnavailableError as exc:
            mend = f"`themes up` starts one where {REDIS_URL} is not set, as it is here ({settings.origin(REDIS_URL)})"
            raise RedisUnavailableError(f"{exc}; {mend}") from exc
        yield settings.redis_url
        return
    with LocalRedis(settings.state_dir, settings.redis.server) as server:
        yield server.url


def _start_sandbox(made: Stack, latency: str | None) -> dict[str, str]:
    command = themes("sandbox-llm", "--port", "0", *(("--latency", latency) if latency else ()))
    with undisturbed():
        child = spawn(command, env=made.env, log=made.logs / "sandbox.log", stdout=subprocess.PIPE, fork=True)
        made.others["sandbox"] = child
    preload(WORKER)  # while it starts
    assert child.stdout  # noqa: S101  # asked for above
    base_url = child.stdout.readline().decode().strip()
    if not base_url:
        raise ThemesError(f"the sandbox LLM did not start: {made.last_words('sandbox')}")
    return {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sandbox", "THEMES_MODEL": "sandbox"}


def database_place(settings: Settings) -> str:
    return unquote(masked(settings.database_url).removeprefix("sqlite+aiosqlite:///"))


def dashboard_port(settings: Settings) -> int:
    host, wanted = settings.dashboard.host, settings.dashboard.port
    for port in (*range(wanted, min(wanted + PORTS, 65_536)), 0) if wanted else (0,):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return int(probe.getsockname()[1])
    return wanted
