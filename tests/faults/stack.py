"""A stack of real processes, each of which can be hurt: Redis, the sandbox LLM, supervised workers, the consumer.

Every role reaches Redis through a door of its own in the proxy, named as the role; the LLM stands behind `llm`. Leases
and sweeps are short, so that a job recovers within seconds.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
from redis import Redis, RedisError

from scripts.lib.local_redis import find_binary
from scripts.lib.processes import spawn, stop
from tests.faults import prompts
from tests.faults.proxy import Proxy
from tests.support.forks import Forked, Forks

#: Seconds that anything here may take.
DEADLINE = 120.0
#: Destinations that a worker process works on at once.
LANES = 8
#: Settings that make faults and recoveries quick.
QUICK = {
    "THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": str(LANES),
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.1",
    "THEMES_WORK__LEASE_SECONDS": "2",
    "THEMES_WORK__HEARTBEAT_SECONDS": "0.5",
    "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.3",
    "THEMES_WORK__SHUTDOWN_GRACE_SECONDS": "1",
    "THEMES_WORK__WEDGED_AFTER_SECONDS": "8",
    "THEMES_LLM__FLIGHT_LEASE_SECONDS": "1",
    "THEMES_REDIS__SOCKET_TIMEOUT_SECONDS": "3",
    "THEMES_DATABASE__FLUSH_INTERVAL_SECONDS": "0.1",
}


def until(what: str, look: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Look again and again until the answer is truthy; fail with `what` when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.03)
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def is_up(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A redis-server that can be killed and comes back on its port, with its append-only file or empty."""

    def __init__(self, folder: Path, *, aof: bool) -> None:
        self.port = free_port()
        self._folder = folder
        self._aof = aof
        self.start()

    def start(self) -> None:
        """Start it, and wait until it has loaded its data."""
        options = ["--appendonly", "yes" if self._aof else "no", "--appendfsync", "everysec", "--save", ""]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        binary = find_binary(os.environ.get("THEMES_REDIS__SERVER", "auto"))
        self._process = spawn(
            [str(binary), *place, *options, "--maxmemory-policy", "volatile-lru"], log=self._folder / "redis.log"
        )
        with self.client() as client:
            until("Redis to answer", lambda: _answers(client))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def client(self) -> Redis:
        """A client that goes past the proxy."""
        return Redis(port=self.port, db=1)

    def config(self, name: str, value: str | int) -> None:
        """CONFIG SET."""
        with self.client() as client:
            client.config_set(name, value)


def _answers(client: Redis) -> bool:
    with contextlib.suppress(RedisError):
        return bool(client.ping())
    return False


class Stack:
    """The processes of one stack; a context manager."""

    def __init__(
        self,
        folder: Path,
        forks: Forks,
        *,
        aof: bool = True,
        workers: int = 2,
        latency: str = "90ms",
        small_prompts: bool = True,
        llm_options: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._forks = forks
        folder.mkdir(parents=True, exist_ok=True)
        self._exit = contextlib.ExitStack()
        self.proxy = self._exit.enter_context(Proxy())
        self.redis = Server(folder, aof=aof)
        self._llm_options = ("--latency", latency, *llm_options)
        self._llm_port = free_port()
        self.calls_each = prompts.CALLS if small_prompts else 16
        self.lanes = int((QUICK | dict(settings or {}))["THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE"])
        self.processes: dict[str, Forked] = {}
        self.worker_names = [f"w{number}" for number in range(workers)]
        self.doors = {
            name: self.proxy.listen(name, self.redis.port)
            for name in (*self.worker_names, "consumer", "producer", "watcher")
        }
        self.settings = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_", "REDIS"))},
            **QUICK,
            "THEMES_STATE_DIR": str(folder),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.proxy.listen('llm', self._llm_port, 'http')}/v1",
            "OPENAI_API_KEY": "none",
            "THEMES_MODEL": "sandbox",
            **(settings or {}),
        }
        if small_prompts:
            self.settings["THEMES_PIPELINE__PROMPTS_DIR"] = str(prompts.write(folder / "prompts"))

    def __enter__(self) -> Self:
        self.start_llm()
        self.start("consumer")
        for name in self.worker_names:
            self.start(name)
        until("the workers", self.are_workers_alive)
        return self

    def __exit__(self, *_: object) -> None:
        everyone: list[Any] = list(self.processes.values())
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children():
                    child.resume()
        stop(everyone, seconds=5)
        self.redis.kill()
        self._exit.close()

    def are_workers_alive(self) -> bool:
        """Whether every worker has a heartbeat."""
        with self.redis.client() as redis:
            return len(list(redis.scan_iter("themes:worker:*", count=1000))) >= len(self.worker_names)

    # --- processes ----------------------------------------------------------------------------------------

    def env(self, role: str) -> dict[str, str]:
        """The environment of a role, whose Redis is behind its own door."""
        return self.settings | {"REDIS_URL": f"redis://127.0.0.1:{self.doors[role]}/1"}

    def start(self, role: str, *verb: str) -> Forked:
        """Start a worker, the consumer, or another verb that uses the door `watcher`."""
        known = {name: ("worker", "--name", name) for name in self.worker_names} | {"consumer": ("consumer",)}
        return self._start(role, *(verb or known[role]), env=self.env(role if role in self.doors else "watcher"))

    def _start(self, name: str, *verb: str, env: Mapping[str, str]) -> Forked:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            process = self._forks.start(*verb, env=env, stdin=nothing, stdout=log, stderr=log)
        self.processes[name] = process
        return process

    def run(self, *verb: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of a producer to its end."""
        return self._forks.run(*verb, env=self.env("producer"), stdin=None, timeout=DEADLINE)

    def start_llm(self) -> None:
        """Start the sandbox LLM on its port, and wait until it answers."""
        self._start("llm", "sandbox-llm", "--port", str(self._llm_port), *self._llm_options, env=self.settings)
        until("the sandbox", lambda: is_up(self._llm_port))

    def kill(self, role: str) -> None:
        """SIGKILL one process and all that it has started; it stays dead until `start`."""
        process = self.processes[role]
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()

    def celery(self, worker: str) -> psutil.Process:
        """The Celery process under a worker's supervisor, waited for while it is being started again."""

        def look() -> psutil.Process | None:
            children = psutil.Process(self.processes[worker].pid).children()
            return children[0] if children else None

        found: psutil.Process = until(f"a Celery process of {worker}", look)
        return found

    @contextlib.contextmanager
    def frozen(self, worker: str) -> Iterator[None]:
        """Within the body, a worker's Celery process stands still."""
        process = self.celery(worker)
        process.suspend()
        try:
            yield
        finally:
            process.resume()

    @property
    def in_work(self) -> int:
        """Calls that one worker process may have made for destinations that it has not finished."""
        return self.lanes * self.calls_each

    def heal(self) -> None:
        """Start what has died, and forget all traps."""
        for role in self.doors:
            self.proxy.arm(role)
        self.proxy.arm("llm")
        self.start_again()

    def start_again(self) -> int:
        """Start what has ended, as an init system does; how many processes that were."""
        gone = [role for role in ("consumer", *self.worker_names) if self.processes[role].poll() is not None]
        for role in gone:
            self.start(role)
        return len(gone)

    def deaths(self) -> int:
        """Times that supervisors have seen their Celery process die."""
        logs = [self.folder / "logs" / f"{name}.log" for name in self.worker_names]
        return sum(log.read_bytes().count(b'"action":"restart"') for log in logs if log.exists())

    # --- jobs ---------------------------------------------------------------------------------------------

    def destinations(self, label: str, count: int) -> Path:
        """A file of that many new destinations."""
        path = self.folder / "destinations.csv"
        path.write_text("name\n" + "".join(f"{label} {number}\n" for number in range(count)))
        return path

    def enqueue(self, path: Path, *options: str) -> str:
        """`themes enqueue`; returns the job's id."""
        said = self.run("enqueue", str(path), *options)
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    def end_jobs(self) -> None:
        """Cancel what a test that failed has left running."""
        with self.redis.client() as redis:
            for job_id in redis.smembers("themes:active"):
                self.run("cancel", job_id.decode())

    def state(self, job_id: str) -> str:
        """A job's state in Redis; "" when there is none, or no Redis."""
        with contextlib.suppress(RedisError), self.redis.client() as redis:
            return (redis.hget(f"themes:job:{job_id}", "state") or b"").decode()
        return ""

    def wait_done(self, job_id: str, seconds: float = DEADLINE) -> None:
        """Wait until a job is done."""
        until(f"job {job_id} to be done", lambda: self.state(job_id) == "done", seconds)

    # --- the LLM and the database -------------------------------------------------------------------------

    def ask_llm(self, path: str, body: Any = None) -> Any:
        """Ask the sandbox about itself, or tell it something; past the proxy."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._llm_port}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
            return json.load(answer)

    def asked(self) -> int:
        """Requests that the sandbox has seen since it started."""
        return int(self.ask_llm("/stats")["requests"])

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The results database, for reading, or for standing in the consumer's way."""
        with contextlib.closing(sqlite3.connect(self.folder / "themes.db", timeout=180)) as connection:
            yield connection

    def rows(self) -> int:
        """Profiles in the database."""
        return int(self.query("SELECT count(*) FROM profiles")[0][0])

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Rows of the database."""
        with self.database() as connection:
            return connection.execute(sql, values).fetchall()


def ended(process: Forked, seconds: float = DEADLINE) -> int:
    """A process's exit code, waited for."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        raise
