"""The whole system, as a user has it, seen from the outside: its processes, their CPU, what Redis was asked.

Redis, a light LLM server, a consumer and workers, each by its own command. CPU is user and system time of a role's
processes with all their children, out of /proc, so that other work on the machine matters little.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from scripts.lib.processes import spawn, stop, themes
from tasks import worker_reports as fleet
from tasks.identity import normalise
from tests.benchmarks.figures import tell

#: Seconds over which an idle system may use no more CPU than this many seconds.
QUIET_SECONDS, QUIET_CPU = 0.5, 0.04
#: Seconds of waiting for that, at most: a busy machine makes a figure worse, and no benchmark fail.
QUIET_DEADLINE: Final = 5.0


@dataclass
class Measured:
    """One job: what each role paid for it."""

    destinations: int
    calls: int
    cached: int
    #: From the first destination's start to the last one's end, and from the command's start until all was durable.
    seconds: float
    wall_seconds: float
    cpu: dict[str, float]
    commands: dict[str, float]
    #: Times that Redis read from a client: a pipeline is one.
    redis_reads: int
    messages: int
    job_id: str
    #: Of the command that enqueued, and when it started.
    producer_megabytes: float
    began_at: float

    def cpu_of(self, *roles: str) -> float:
        return sum(self.cpu[role] for role in roles)


def cpu_of(process: psutil.Process) -> float:
    """User and system seconds of a process and its children, the ended ones too."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def megabytes_of(process: psutil.Process) -> float:
    """Memory of a process and its children; what some of them share counts once."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += one.memory_full_info().pss / 1e6
    return total


@dataclass
class Whole:
    """A private Redis, a light server and a consumer; workers come and go."""

    folder: Path
    url: str
    llm: "subprocess.Popen[bytes]"
    env: dict[str, str]
    redis: Redis
    consumer: "subprocess.Popen[bytes]" = field(init=False)
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    _names: int = 0

    def start_consumer(self) -> None:
        self.consumer = spawn(themes("consumer"), env=self.env, log=self.folder / "consumer.log")

    @contextmanager
    def working(self, count: int, **settings: object) -> Iterator[None]:
        """So many workers, each with a heartbeat; `settings` are keys of performance_optimization."""
        env = self.env | {f"THEMES_PERFORMANCE_OPTIMIZATION__{key.upper()}": str(v) for key, v in settings.items()}
        names = []
        for _ in range(count):
            self._names += 1
            names.append(f"w{self._names}")
            self.workers.append(spawn(themes("worker", "--name", names[-1]), env=env, log=self.folder / "workers.log"))
        while not set(names) <= {name.partition("@")[0] for name in fleet.workers(self.redis)}:
            assert all(one.poll() is None for one in self.workers), (self.folder / "workers.log").read_text()[-2_000:]
            time.sleep(0.05)
        try:
            yield
        finally:
            stop(self.workers, seconds=15)
            self.workers.clear()

    def cpu(self) -> dict[str, float]:
        """Seconds of each role until now."""
        roles = {"worker": self.workers, "consumer": [self.consumer], "LLM server": [self.llm]}
        used = {role: sum(cpu_of(psutil.Process(one.pid)) for one in some) for role, some in roles.items()}
        info: Any = self.redis.info("server")
        return used | {"Redis": cpu_of(psutil.Process(info["process_id"]))}

    def settle(self) -> None:
        """Wait until what was started stands and what was done is written."""
        deadline = time.monotonic() + QUIET_DEADLINE
        before = sum(self.cpu().values())
        while time.monotonic() < deadline:
            time.sleep(QUIET_SECONDS)
            if (now := sum(self.cpu().values())) - before <= QUIET_CPU * (2 + len(self.workers)):
                return
            before = now

    def run(self, names: list[str], *options: str, on_enqueued: Callable[[str], object] = lambda _: None) -> Measured:
        """Enqueue these destinations by the command of users, and wait until the last one is durable."""
        self.settle()
        commands, reads, cpu = self._commands(), self._reads(), self.cpu()
        began, began_at = time.monotonic(), time.time()
        job_id, producer, producer_megabytes = self.enqueue(names, *options)
        on_enqueued(job_id)
        while self.redis.hget(f"themes:job:{job_id}", "state") != b"done":
            time.sleep(0.05)
        wall = time.monotonic() - began
        self.settle()
        used = {role: seconds - cpu[role] for role, seconds in self.cpu().items()} | {"producer": producer}
        sent = {name: calls - commands.get(name, 0) for name, calls in self._commands().items()}
        status = self.status(job_id)
        assert (status["failed"], status["partial"], status["done"]) == (0, 0, len({*map(normalise, names)})), status
        return Measured(
            destinations=len(names),
            calls=status["llm_calls"],
            cached=status["cache_hits"],
            seconds=status["finished_at"] - status["started_at"],
            wall_seconds=wall,
            cpu=used,
            commands={name: calls for name, calls in sent.items() if calls},
            redis_reads=self._reads() - reads,
            # Each is one look at the lease of its chunk; one command sends many.
            messages=int(sent.get("zscore", 0)),
            job_id=job_id,
            producer_megabytes=producer_megabytes,
            began_at=began_at,
        )

    def enqueue(self, names: list[str], *options: str) -> tuple[str, float, float]:
        """The job's id, and the command's seconds of CPU and most MB."""
        path = self.folder / "destinations.txt"
        path.write_text("".join(f"{name}\n" for name in names))
        env = os.environ | self.env
        command, log = themes("enqueue", *options, str(path)), self.folder / "enqueue.log"
        with (
            log.open("ab") as words,
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=words) as process,
        ):
            assert process.stdout
            most, ended = 0.0, 0
            while not ended:
                with suppress(psutil.Error):
                    most = max(most, psutil.Process(process.pid).memory_info().rss / 1e6)
                time.sleep(0.01)
                ended, code, used = os.wait4(process.pid, os.WNOHANG)
            process.returncode = os.waitstatus_to_exitcode(code)
            job_id = process.stdout.read().decode().strip()
        assert process.returncode == 0, log.read_text()[-2_000:]
        return job_id, used.ru_utime + used.ru_stime, most

    def status(self, job_id: str) -> dict[str, Any]:
        """What `themes status` says of a job."""
        status: dict[str, Any] = json.loads(self.said("status", job_id, "--json"))
        return status

    def _commands(self) -> dict[str, float]:
        """Calls of each Redis command until now, those inside scripts too; our own questions are left out."""
        found: dict[str, dict[str, float]] = self.redis.info("commandstats")
        names = {name.removeprefix("cmdstat_"): of["calls"] for name, of in found.items()}
        return {name: calls for name, calls in names.items() if name != "info"}

    def _reads(self) -> int:
        info: Any = self.redis.info("stats")
        return int(info.get("total_reads_processed", 0))

    def profile_bytes(self) -> tuple[float, float]:
        """Bytes of a profile as exported JSON, and of the database, each by profile."""
        job_id = json.loads(self.said("status", "--json").splitlines()[0])["job_id"]
        lines = self.said("results", job_id, "--format", "jsonl").splitlines()
        with closing(sqlite3.connect(self.folder / "themes.db")) as db:
            (profiles,) = db.execute("SELECT count(*) FROM destinations").fetchone()
        return sum(map(len, lines)) / len(lines), self.database_bytes() / profiles

    def database_bytes(self) -> int:
        """Of the results, with nothing left in the write-ahead log."""
        path = self.folder / "themes.db"
        with closing(sqlite3.connect(path, timeout=30)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    def said(self, *arguments: str) -> bytes:
        return subprocess.run(themes(*arguments), env=os.environ | self.env, capture_output=True, check=True).stdout


@contextmanager
def light_server(*how: object, script: str = "light_server.py") -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server with full answers and its address; `how` are the script's arguments."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.terminate()


def kill(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Kill -9 processes and all that they have started."""
    for process in processes:
        if process.poll() is None:
            one = psutil.Process(process.pid)
            for each in (*one.children(recursive=True), one):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()


def posts(url: str) -> int:
    """Requests that the light server at this base URL has had."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/count") as answer:  # noqa: S310 - our own server
        return int(answer.read())


@contextmanager
def whole(folder: Path, *how: object, script: str = "light_server.py", **settings: str) -> Iterator[Whole]:
    """The system without workers. `how` and `script` say how the server answers; at once, unless they are given."""
    with ExitStack() as parts:
        llm, llm_url = parts.enter_context(light_server(*(how or (0.0,)), script=script))
        server_of_redis = parts.enter_context(LocalRedis(folder / "redis", "auto"))
        redis = parts.enter_context(Redis.from_url(server_of_redis.url))
        env = {
            "REDIS_URL": server_of_redis.url,
            "OPENAI_BASE_URL": llm_url,
            "OPENAI_API_KEY": "none",
            "THEMES_MODEL": "sandbox",
            "THEMES_STATE_DIR": str(folder),
            **settings,
        }
        made = Whole(folder, server_of_redis.url, llm, env, redis)
        made.start_consumer()
        parts.callback(lambda: stop([made.consumer], seconds=5))
        yield made


#: Whose CPU a destination's speed depends on.
ROLES: Final = ("worker", "consumer", "Redis")


def tell_whole(case: str, measured: list[Measured]) -> None:
    """CPU by role, speed, and what travelled, of jobs that were measured in turns."""

    def each(what: str, figure: Callable[[Measured], float], unit: str = "") -> None:
        tell(case, what, [figure(one) for one in measured], unit)

    for role in (*ROLES, "producer"):
        each(f"CPU a destination, {role}", lambda one, role=role: one.cpu[role] / one.destinations * 1e3, "ms")
    each("CPU a destination, all but the producer", lambda one: one.cpu_of(*ROLES) / one.destinations * 1e3, "ms")
    if all(one.calls for one in measured):
        for role in (*ROLES, "LLM server"):
            each(f"CPU a call, {role}", lambda one, role=role: one.cpu[role] / one.calls * 1e3, "ms")
        each("calls", lambda one: one.calls / one.seconds, "a second")
    each("destinations", lambda one: one.destinations / one.seconds, "a second")
    each("enqueued to durable", lambda one: one.wall_seconds, "s")
    each("calls a destination", lambda one: one.calls / one.destinations)
    each("answers from the cache a destination", lambda one: one.cached / one.destinations)
    each("Redis commands a destination", lambda one: sum(one.commands.values()) / one.destinations)
    each("Redis reads a destination", lambda one: one.redis_reads / one.destinations)
    each("Celery messages a destination", lambda one: one.messages / one.destinations)
    last = measured[-1]
    most = sorted(last.commands.items(), key=lambda item: -item[1])[:12]
    print(f"{case}: of the commands: " + ", ".join(f"{n / last.destinations:.2f} {name}" for name, n in most))
