"""What a piece of work in this process costs beside another: time by the clock, CPU of this process and of Redis."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from tests.benchmarks.figures import ratios, tell


class Costs:
    """Costs of ways to do the same `count` times, measured in turns. The first way is ours, the first turn warms."""

    def __init__(self, redis: Redis, count: int) -> None:
        self._redis = redis
        self._count = count
        self._walls: dict[str, list[float]] = defaultdict(list)
        self._cpus: dict[str, list[float]] = defaultdict(list)
        self._servers: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def of(self, way: str) -> Iterator[None]:
        """What is done within the body, one turn of a way."""
        server, cpu, wall = self._server(), time.process_time(), time.perf_counter()
        yield
        self._walls[way].append(time.perf_counter() - wall)
        self._cpus[way].append(time.process_time() - cpu)
        self._servers[way].append(self._server() - server)

    def tell(self, case: str, unit: str) -> None:
        """Tell each way's rate and CPU, and how many times the others' ours are."""
        ours = next(iter(self._walls))
        for way, (_, *walls) in self._walls.items():
            tell(case, f"{unit}s, {way}", [self._count / wall for wall in walls], "a second")
            tell(case, f"CPU of one {unit}, {way}", self._each(self._cpus[way][1:]), "us")
            tell(case, f"CPU of one {unit} in Redis, {way}", self._each(self._servers[way][1:]), "us")
        for way in [way for way in self._walls if way != ours]:
            tell(case, f"rate, {ours} / {way}", ratios(self._walls[way], self._walls[ours])[1:], "x")
            both = {
                one: [sum(pair) for pair in zip(self._cpus[one], self._servers[one], strict=True)]
                for one in (ours, way)
            }
            tell(case, f"CPU with Redis, {ours} / {way}", ratios(both[ours], both[way])[1:], "x")

    def _each(self, seconds: list[float]) -> list[float]:
        return [one / self._count * 1e6 for one in seconds]

    def _server(self) -> float:
        info: Any = self._redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])
