"""How time, memory and disk grow with destinations and with workers; processes as users start them.

A light destination is one call, answered at once with one theme (100 bytes); a full one is sixteen calls with 25
themes. BENCH_MANY is the largest light job, BENCH_DESTINATIONS the larger full one. Each size has a new system, whose
workers remember 16 MB of answers: what else grows would be seen.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.benchmarks.figures import knob, tell
from tests.benchmarks.paced_server import write_prompts
from tests.benchmarks.whole import ROLES, Measured, Whole, megabytes_of, whole

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
SIZES: Final = [size for size in (100, 1_000, 10_000, 100_000, 1_000_000) if size <= knob("MANY", 1_000_000)]
FULL: Final = knob("DESTINATIONS", 10_000)
WORKERS: Final = 2
#: Destinations that warm the workers.
WARM: Final = 50
#: Seconds between two looks at memory.
LOOK_SECONDS: Final = 0.5


class Memory:
    """The most MB of each role while a job runs."""

    def __init__(self, system: Whole) -> None:
        self._system = system
        self.most: dict[str, float] = dict.fromkeys(("worker", "consumer", "Redis"), 0.0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._look, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _look(self, stop: threading.Event) -> None:
        system = self._system
        while not stop.wait(LOOK_SECONDS):
            info: Any = system.redis.info("memory")
            now = {
                "worker": max(megabytes_of(psutil.Process(one.pid)) for one in system.workers),
                "consumer": megabytes_of(psutil.Process(system.consumer.pid)),
                "Redis": info["used_memory"] / 1e6,
            }
            self.most |= {role: max(self.most[role], megabytes) for role, megabytes in now.items()}


def test_scale_of_light_destinations(tmp_path: Path) -> None:
    """Whole system. One call a destination, from a hundred destinations to a million, 2 workers, one consumer."""
    paces = tmp_path / "seconds.json"
    paces.write_text(json.dumps([0.0]))
    prompts = str(write_prompts(tmp_path / "prompts"))
    for size in SIZES:
        folder = tmp_path / str(size)
        folder.mkdir()
        with whole(folder, paces, script="paced_server.py", THEMES_PIPELINE__PROMPTS_DIR=prompts) as system:
            _grow(system, f"{size:,} destinations", [f"City {number}" for number in range(size)], calls=1)


def test_scale_of_full_destinations(tmp_path: Path) -> None:
    """Whole system. Sixteen calls a destination, 2 workers: a tenth of BENCH_DESTINATIONS, and all of it."""
    for size in (FULL // 10, FULL):
        folder = tmp_path / str(size)
        folder.mkdir()
        with whole(folder) as system:
            _grow(system, f"{size:,} destinations", [f"Town {number}" for number in range(size)], calls=16)


def _grow(system: Whole, case: str, names: list[str], calls: int) -> None:
    """Run a job and tell what it took, and what is there afterwards."""
    memory = Memory(system)
    with system.working(WORKERS, max_memory_cache_mb=16):
        system.run([f"Warm {number}" for number in range(WARM)])
        before = system.redis.info("memory")["used_memory"], system.database_bytes()
        with memory.watched():
            measured = system.run(names)
        after = system.redis.info("memory")["used_memory"], system.database_bytes()
    assert measured.calls == calls * len(names)
    _tell_growth(case, measured, memory)
    tell(case, "Redis keeps, a destination", [(after[0] - before[0]) / len(names) / 1e3], "KB")
    tell(case, "the database, a destination", [(after[1] - before[1]) / len(names) / 1e3], "KB")


def _tell_growth(case: str, measured: Measured, memory: Memory) -> None:
    count = measured.destinations
    tell(case, "enqueued to durable", [measured.wall_seconds], "s")
    tell(case, "destinations", [count / measured.wall_seconds], "a second")
    for role in (*ROLES, "producer"):
        tell(case, f"CPU a destination, {role}", [measured.cpu[role] / count * 1e3], "ms")
    for role, megabytes in memory.most.items():
        if megabytes:
            tell(case, f"memory at most, {role}", [megabytes], "MB")
    tell(case, "memory at most, producer", [measured.producer_megabytes], "MB")
    tell(case, "Redis commands a destination", [sum(measured.commands.values()) / count])
