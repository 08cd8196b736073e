"""Processes as users start them; a destination is one call, answered with one theme (100 bytes), not sixteen.

The server takes exactly as long as it is told and hardly any CPU: what is measured is how work is shared out, not what
a destination costs. BENCH_DESTINATIONS sets the size of the heavy-tailed jobs.
"""

import heapq
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from scripts.lib.processes import spawn, stop, themes
from tasks import keys
from tasks import worker_reports as fleet
from tests.benchmarks.figures import knob, tell
from tests.benchmarks.paced_server import write_prompts
from tests.benchmarks.whole import cpu_of

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
LANES = 12
#: Destinations of the heavy-tailed job, of each worker.
EACH = knob("DESTINATIONS", 500)


def heavy_tailed(count: int, *, seed: int = 7) -> list[float]:
    """Seconds of each destination: lognormal around 0.2 with sigma 1.2, one in a hundred 20 times as long."""
    chance = random.Random(seed)
    return [chance.lognormvariate(-1.6, 1.2) * (20 if chance.random() < 0.01 else 1) for _ in range(count)]


def greedy_bound(seconds: Sequence[float], lanes: int) -> float:
    """When the last of some lanes ends that each take the next item as soon as they are free (Graham 1966)."""
    free = [0.0] * lanes
    for one in seconds:
        heapq.heappush(free, heapq.heappop(free) + one)
    return max(free)


class Bench:
    """A private Redis, a paced server, a consumer; workers come and go."""

    consumer: "subprocess.Popen[bytes]"

    def __init__(self, folder: Path, url: str, llm: str) -> None:
        self.folder, self.url = folder, url
        self.env = {
            "REDIS_URL": url,
            "OPENAI_BASE_URL": llm,
            "OPENAI_API_KEY": "none",
            "THEMES_MODEL": "sandbox",
            "THEMES_STATE_DIR": str(folder),
            "THEMES_PIPELINE__PROMPTS_DIR": str(write_prompts(folder / "prompts")),
        }

    @contextmanager
    def workers(self, count: int, **settings: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
        """So many workers, each with a heartbeat."""
        env = self.env | settings
        started = [
            spawn(themes("worker", "--name", f"w{number}"), env=env, log=self.folder / f"w{number}.log")
            for number in range(count)
        ]
        with Redis.from_url(self.url) as redis:
            while len(fleet.workers(redis)) < count:
                time.sleep(0.05)
        try:
            yield started
        finally:
            stop(started, seconds=15)

    def cpu(self, workers: Sequence["subprocess.Popen[bytes]"]) -> dict[str, float]:
        """Seconds of each role until now."""
        with Redis.from_url(self.url) as redis:
            info: Any = redis.info("server")
        pids = {"consumer": [self.consumer.pid], "Redis": [info["process_id"]], "worker": [one.pid for one in workers]}
        return {role: sum(cpu_of(psutil.Process(pid)) for pid in some) for role, some in pids.items()}

    def run(self, path: Path) -> dict[str, Any]:
        """Enqueue a file without looking into the cache, and wait for the job's end; its status."""
        env = os.environ | self.env
        said = subprocess.run(themes("enqueue", "--no-cache", str(path)), env=env, capture_output=True, check=True)
        job_id = said.stdout.decode().strip()
        with Redis.from_url(self.url) as redis:
            while redis.hget(f"themes:job:{job_id}", "state") != b"done":
                time.sleep(0.02)
        told = subprocess.run(themes("status", job_id, "--json"), env=env, capture_output=True, check=True)
        status: dict[str, Any] = json.loads(told.stdout)
        assert (status["failed"], status["done"]) == (0, status["total"])
        return status


def _cities(folder: Path, count: int) -> Path:
    path = folder / "cities.txt"
    path.write_text("".join(f"City {number}\n" for number in range(count)))
    return path


@contextmanager
def _bench(folder: Path, seconds: Sequence[float]) -> Iterator[Bench]:
    paces = folder / "seconds.json"
    paces.write_text(json.dumps(seconds))
    with ExitStack() as parts:
        redis = parts.enter_context(LocalRedis(folder / "redis", "auto"))
        server = Path(__file__).with_name("paced_server.py")
        llm = parts.enter_context(subprocess.Popen([sys.executable, str(server), str(paces)], stdout=subprocess.PIPE))
        parts.callback(llm.terminate)
        assert llm.stdout
        made = Bench(folder, redis.url, llm.stdout.readline().decode().strip())
        made.consumer = spawn(themes("consumer"), env=made.env, log=folder / "consumer.log")
        parts.callback(stop, [made.consumer], seconds=5)
        yield made


def _tell_cpu(
    case: str, before: Mapping[str, float], used: Mapping[str, float], destinations: int, what: str = ""
) -> None:
    for role, seconds in used.items():
        tell(case, f"CPU a destination, {role}{what}", [(seconds - before[role]) / destinations * 1e3], "ms")


def _took(status: dict[str, Any]) -> float:
    return float(status["finished_at"] - status["started_at"])


@pytest.mark.parametrize("processes", [1, 4])
def test_heavy_tailed_durations_beside_the_greedy_bound(tmp_path: Path, processes: int) -> None:
    """Whole system. Lognormal durations, one in a hundred twenty times as long; BENCH_DESTINATIONS for each process.

    The greedy bound is when the last of all lanes ends that each take the next one as soon as they are free.
    """
    seconds = heavy_tailed(EACH * processes)
    bound = greedy_bound(seconds, LANES * processes)
    path = _cities(tmp_path, len(seconds))
    with _bench(tmp_path, seconds) as bench:
        for steal in ("true", "false"):
            toggle = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_WORK_STEALING": steal}
            with bench.workers(processes, **toggle) as workers:
                before = bench.cpu(workers)
                took = _took(bench.run(path))
                used = bench.cpu(workers)
            case = f"{processes} processes, {len(seconds):,} destinations"
            what = "stealing on" if steal == "true" else "stealing off"
            tell(case, f"time / greedy bound, {what}", [took / bound], "x")
            _tell_cpu(case, before, used, len(seconds), f", {what}")
    tell(case, "greedy bound", [bound], "s")


@pytest.mark.parametrize("victim", ["its Celery process", "its supervisor too"])
def test_what_a_killed_worker_held_runs_again(tmp_path: Path, victim: str) -> None:
    """Whole system. 2 workers, destinations of 2 s, one worker is killed; leases and sweeps of the default settings."""
    with _bench(tmp_path, [2.0]) as bench, bench.workers(2) as workers, Redis.from_url(bench.url) as redis:
        said = subprocess.run(
            themes("enqueue", str(_cities(tmp_path, 400))), env=os.environ | bench.env, capture_output=True, check=True
        )
        job_id = said.stdout.decode().strip()
        (child,) = psutil.Process(workers[0].pid).children()
        while not (held := _held_by(redis, job_id, child.pid)):
            time.sleep(0.05)
        if victim != "its Celery process":
            workers[0].kill()
            workers[0].wait()
        child.kill()
        began = time.monotonic()
        while _held_by(redis, job_id, child.pid) & held:
            time.sleep(0.02)
        taken_over = time.monotonic() - began
        while not _in_other_hands(redis, job_id, child.pid) & held:
            time.sleep(0.02)
        case = f"{victim} killed"
        tell(case, "chunks that it held", [len(held)])
        tell(case, "free after", [taken_over], "s")
        tell(case, "in other hands after", [time.monotonic() - began], "s")


def _held_by(redis: Redis, job_id: str, pid: int) -> set[bytes]:
    """Chunks under a live lease of a process."""
    owners: dict[bytes, bytes] = redis.hgetall(keys.owners(job_id))
    seconds, micros = redis.time()
    alive = set(redis.zrangebyscore(keys.leases(job_id), seconds * 1000 + micros // 1000, "+inf"))
    return {chunk for chunk, owner in owners.items() if f"/{pid}/".encode() in owner} & alive


def _in_other_hands(redis: Redis, job_id: str, dead: int) -> set[bytes]:
    """Chunks that somebody else has, whole or as single destinations."""
    owners: dict[bytes, bytes] = redis.hgetall(keys.owners(job_id))
    return {chunk.partition(b".")[0] for chunk, owner in owners.items() if f"/{dead}/".encode() not in owner}
