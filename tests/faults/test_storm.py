"""A large job in a storm of all faults, one after the other and without a pause between them.

SOAK_SECONDS (60) of storm; the job is cut so that it lasts about as long: SOAK_DESTINATIONS (50 a second).
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
from redis import RedisError

from tests.faults.books import Trial
from tests.faults.stack import Stack
from tests.support.forks import Forks

STORM_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
DESTINATIONS = int(os.environ.get("SOAK_DESTINATIONS", str(round(50 * STORM_SECONDS))))
#: Seconds that the job may take when the storm is over.
DEADLINE = 400.0


class Storm:
    """The faults, each a method."""

    def __init__(self, stack: Stack, job: Trial) -> None:
        self._stack, self._random = stack, job.random
        self.done: Counter[str] = Counter()
        #: Connections to the LLM that were cut.
        self.cut = 0
        self._faults = [
            self.worker_killed, self.consumer_killed, self.redis_killed, self.connections_cut, self.worker_frozen,
            self.network_cut, self.database_locked, self.disk_full, self.memory_full, self.llm_cut,
        ]  # fmt: skip

    def blow(self, seconds: float) -> None:
        """One fault after the other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self._random.uniform(0.3, 2.0))
            fault = self._random.choice(self._faults)
            try:
                fault()
                self.done[fault.__name__] += 1
            except (psutil.NoSuchProcess, RedisError, ProcessLookupError):
                self.done["nobody there"] += 1
            self.done["started again"] += self._stack.start_again()

    def _worker(self) -> str:
        return str(self._random.choice(self._stack.worker_names))

    def worker_killed(self) -> None:
        self._stack.celery(self._worker()).kill()

    def consumer_killed(self) -> None:
        self._stack.kill("consumer")

    def redis_killed(self) -> None:
        self._stack.redis.kill()
        time.sleep(self._random.uniform(0, 1))
        self._stack.redis.start()

    def connections_cut(self) -> None:
        with self._stack.redis.client() as redis:
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def worker_frozen(self) -> None:
        with self._stack.frozen(self._worker()):
            time.sleep(self._random.uniform(0.5, 6))

    def network_cut(self) -> None:
        worker = self._worker()
        self._stack.proxy.freeze(worker, on=True)
        time.sleep(self._random.uniform(0.5, 6))
        self._stack.proxy.freeze(worker, on=False)
        self._stack.proxy.cut(worker)

    def database_locked(self) -> None:
        with self._stack.database() as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self._random.uniform(0.5, 3))
            connection.rollback()

    def disk_full(self) -> None:
        consumer = self._stack.processes["consumer"].pid
        limits = resource.prlimit(consumer, resource.RLIMIT_FSIZE)
        resource.prlimit(consumer, resource.RLIMIT_FSIZE, (4096, limits[1]))
        time.sleep(self._random.uniform(0.5, 3))
        resource.prlimit(consumer, resource.RLIMIT_FSIZE, limits)

    def memory_full(self) -> None:
        self._stack.redis.config("maxmemory", 1_000_000)
        time.sleep(self._random.uniform(0.5, 2))
        self._stack.redis.config("maxmemory", 0)

    def llm_cut(self) -> None:
        self.cut += self._stack.proxy.cut("llm")


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_books_are_right_after_a_storm(storm_stack: Stack, seed: int) -> None:
    job = Trial(storm_stack, "storm of all", seed, count=DESTINATIONS)
    job.enqueue()
    storm = Storm(storm_stack, job)
    storm.blow(STORM_SECONDS)
    job.over()
    print(f"\nseed {seed}: {dict(storm.done)}")
    # A worker that stood still has lost its leases: what it had in work was done twice, and is booked once. Without
    # its supervisor's word a death is not counted.
    standstills = storm.done["worker_frozen"] + storm.done["network_cut"] + storm.done["started again"]
    job.judge(more_lost=standstills * storm_stack.in_work, unheard=storm.cut, seconds=DEADLINE)


@pytest.fixture
def storm_stack(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Stack]:
    """Workers as large as by default, and all sixteen prompts."""
    settings = {"THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "12"}
    folder = tmp_path_factory.mktemp("storm") / "state"
    with Stack(folder, forks, small_prompts=False, latency="20ms", settings=settings) as made:
        yield made
