"""A job in a storm of faults, and its books afterwards. Off by default; `scripts/soak` runs it, as long as you like.

Every seed is one storm: kill -9 of Celery processes and of the consumer, cut connections, kill -9 of Redis (with its
append-only file), processes frozen for longer than a lease. Then every destination has exactly one row, the database
counts no more calls than the LLM has seen, and no more are missing than those of the destinations in work where it hit.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis, RedisError

from scripts.local_redis import find_binary
from scripts.processes import spawn, stop, themes

pytestmark = pytest.mark.soak
SEEDS = [int(seed) for seed in os.environ.get("SOAK_SEEDS", "1 2").split()]
STORM_SECONDS = float(os.environ.get("SOAK_SECONDS", "25"))
DESTINATIONS = int(os.environ.get("SOAK_DESTINATIONS", "1500"))
WORKERS = 2
#: Calls that the destinations in one process's lanes can have made before it is killed.
IN_WORK = 12 * 16
#: Seconds that the job may take when the storm is over.
DEADLINE = 300.0


class Stack:
    """Redis, sandbox, workers and consumer, each of which can be hurt."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        (folder / "logs").mkdir(parents=True)
        self.port = _free_port()
        self.redis = self._start_redis()
        self.env = {
            "REDIS_URL": f"redis://127.0.0.1:{self.port}/1",
            "THEMES_STATE_DIR": str(folder),
            "THEMES_WORK__LEASE_SECONDS": "4",
            "THEMES_WORK__HEARTBEAT_SECONDS": "1",
            "THEMES_LLM__FLIGHT_LEASE_SECONDS": "3",
            "OPENAI_API_KEY": "none",
            "THEMES_MODEL": "sandbox",
        }
        self.sandbox = spawn(
            themes("sandbox-llm", "--port", "0", "--latency", "20ms"), env=self.env, stdout=subprocess.PIPE
        )
        assert self.sandbox.stdout
        with self.sandbox.stdout as out:
            self.llm = out.readline().decode().strip()
        self.env["OPENAI_BASE_URL"] = self.llm
        self.workers = [self._start(f"w{number}", "worker", "--name", f"w{number}") for number in range(WORKERS)]
        self.consumer = self._start("consumer", "consumer")

    def _start(self, name: str, *verb: str) -> Any:
        return spawn(themes(*verb), env=self.env, log=self.folder / "logs" / f"{name}.log")

    def _start_redis(self) -> "subprocess.Popen[bytes]":
        options = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--dir", str(self.folder)]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--maxmemory-policy", "volatile-lru"]
        server = subprocess.Popen([str(find_binary("auto")), *place, *options], stdout=subprocess.DEVNULL)
        with Redis(port=self.port, db=1) as client:
            while True:
                try:
                    client.ping()
                    return server
                except RedisError:
                    time.sleep(0.02)

    def _celery(self) -> psutil.Process:
        children = psutil.Process(self.random.choice(self.workers).pid).children()
        if not children:
            raise psutil.NoSuchProcess(0)
        return children[0]

    def kill_a_worker(self) -> None:
        self._celery().kill()

    def kill_the_consumer(self) -> None:
        self.consumer.kill()
        self.consumer.wait()
        self.consumer = self._start("consumer", "consumer")

    def cut_all_connections(self) -> None:
        with Redis(port=self.port, db=1) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def kill_redis(self) -> None:
        self.redis.kill()
        self.redis.wait()
        time.sleep(self.random.uniform(0, 1))
        self.redis = self._start_redis()

    def freeze_a_worker(self) -> None:
        process = self._celery()
        process.suspend()
        time.sleep(self.random.uniform(0.5, 6))
        process.resume()

    def storm(self, seconds: float) -> Counter[str]:
        """One fault after the other."""
        faults = [
            self.kill_a_worker, self.kill_the_consumer, self.cut_all_connections, self.kill_redis, self.freeze_a_worker,
        ]  # fmt: skip
        done: Counter[str] = Counter()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self.random.uniform(0.5, 2.0))
            fault = self.random.choice(faults)
            try:
                fault()
                done[fault.__name__] += 1
            except psutil.NoSuchProcess:
                done["nobody there"] += 1
        return done

    def asked(self) -> int:
        """Requests that the LLM has seen."""
        with urllib.request.urlopen(self.llm.removesuffix("/v1") + "/stats", timeout=10) as answer:  # noqa: S310
            return int(json.load(answer)["requests"])

    def stop(self) -> None:
        """End everything."""
        stop(self.workers, seconds=14)
        stop([self.consumer, self.sandbox], seconds=4)
        self.redis.terminate()
        self.redis.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(params=SEEDS)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "state", request.param)
    yield made
    made.stop()


@pytest.mark.timeout(0)
def test_the_books_are_right_after_a_storm(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(DESTINATIONS)))
    said = subprocess.run(
        themes("enqueue", str(path)), env={**os.environ, **stack.env}, capture_output=True, text=True, check=True
    )
    job_id = said.stdout.strip()
    faults = stack.storm(STORM_SECONDS)
    with Redis(port=stack.port, db=1) as redis:
        _books_are_right(stack, redis, job_id, faults)


def _books_are_right(stack: Stack, redis: Redis, job_id: str, faults: Counter[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while redis.hget(f"themes:job:{job_id}", "state") != b"done":
        assert time.monotonic() < deadline, f"the job did not end after {dict(faults)}"
        time.sleep(0.2)
    with closing(sqlite3.connect(stack.folder / "themes.db")) as database:
        rows, different = database.execute("SELECT count(*), count(DISTINCT destination_id) FROM profiles").fetchone()
        (failures,) = database.execute("SELECT count(*) FROM failures").fetchone()
        (calls,) = database.execute("SELECT llm_calls FROM jobs").fetchone()
        (summed,) = database.execute("SELECT sum(llm_calls) FROM destinations").fetchone()
    asked = stack.asked()
    lost = IN_WORK * (faults["kill_a_worker"] + WORKERS * faults["kill_redis"] + faults["freeze_a_worker"])
    sys.stdout.write(
        f"\n{dict(faults)}: {rows} rows, {failures} failures, {asked} calls, {asked - calls} not in the books\n"
    )
    assert (rows, different, failures) == (DESTINATIONS, DESTINATIONS, 0)
    assert calls == summed
    assert 0 <= asked - calls <= lost
    left = {key.decode() for key in redis.scan_iter(f"themes:job:{job_id}:*")} - {f"themes:job:{job_id}:events"}
    assert not left
    assert redis.xpending("themes:results", "consumer")["pending"] == 0
