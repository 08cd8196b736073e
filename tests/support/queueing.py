"""A closed network of lanes, connections and a rate limit, simulated: what a job's processes would measure of it."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.observe.metrics import Histogram


@dataclass
class Network:
    """One worker process. Every destination asks its prompts in rounds; first come, first served by destination."""

    destinations: int = 200
    lanes: int = 12
    pool: int = 15
    rounds: tuple[int, ...] = (5, 11)
    call_seconds: float = 0.2
    #: Seconds of CPU that a call costs; one thread does them all.
    cpu_seconds: float = 0.0
    requests_per_minute: float | None = None
    #: Calls after which there is no limit any more.
    limit_ends_after: int | None = None
    spread: float = 0.0
    seed: int = 1

    def run(self) -> tuple[JobMeasurements, float]:
        """The picture of the whole job, and the seconds that it took."""
        simulation = _Simulation(self)
        simulation.run()
        return JobMeasurements.of([simulation.part()]), simulation.now


class _Simulation:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.random = random.Random(network.seed)
        self.now = self.slot = self.cpu_free = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.line: list[tuple[int, int, float]] = []
        self.in_use = self.in_lanes = self.started = self.asked = 0
        self.left: dict[int, int] = {}
        self.round: dict[int, int] = {}
        self.began: dict[int, float] = {}
        self.spans: dict[str, Histogram] = {}
        self.sums: dict[str, float] = dict.fromkeys(("lane_busy_seconds", "pool_busy_seconds", "cpu_seconds"), 0.0)

    def add(self, name: str, seconds: float) -> None:
        self.spans.setdefault(name, Histogram()).add(seconds)

    def at(self, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.order), what))

    def run(self) -> None:
        for _ in range(self.network.lanes):
            self.begin()
        while self.events:
            moment, _, what = heapq.heappop(self.events)
            passed = moment - self.now
            self.sums["lane_busy_seconds"] += passed * self.in_lanes
            self.sums["pool_busy_seconds"] += passed * self.in_use
            self.now = moment
            what()
            self.lend()

    def begin(self) -> None:
        if self.started < self.network.destinations:
            number = self.started
            self.started += 1
            self.in_lanes += 1
            self.began[number], self.round[number] = self.now, 0
            self.ask(number)

    def ask(self, number: int) -> None:
        width = self.network.rounds[self.round[number]]
        self.left[number] = width
        for _ in range(width):
            slot = self.now
            self.asked += 1
            if self.network.requests_per_minute and self.asked <= (self.network.limit_ends_after or self.asked):
                slot = self.slot = max(self.now, self.slot + 60 / self.network.requests_per_minute)
            self.add("llm.rate_wait", slot - self.now)
            self.at(slot, lambda: self.queue(number))

    def queue(self, number: int) -> None:
        heapq.heappush(self.line, (number, next(self.order), self.now))

    def lend(self) -> None:
        while self.line and self.in_use < self.network.pool:
            number, _, asked = heapq.heappop(self.line)
            self.in_use += 1
            self.add("llm.pool_wait", self.now - asked)
            began = self.now
            seconds = self.network.call_seconds * self.random.lognormvariate(0, self.network.spread)

            def answered(number: int = number, began: float = began) -> None:
                # Read by the one thread, when it has read those before.
                self.cpu_free = max(self.now, self.cpu_free) + self.network.cpu_seconds
                self.sums["cpu_seconds"] += self.network.cpu_seconds
                self.at(self.cpu_free, lambda: self.done(number, began))

            self.at(self.now + seconds, answered)

    def done(self, number: int, began: float) -> None:
        self.in_use -= 1
        self.add("llm.call", self.now - began)
        self.add("llm.first_byte", self.now - began)
        self.left[number] -= 1
        if self.left[number]:
            return
        self.round[number] += 1
        if self.round[number] < len(self.network.rounds):
            self.ask(number)
            return
        self.add("destination", self.now - self.began[number])
        self.in_lanes -= 1
        self.begin()

    def part(self) -> ProcessMeasurements:
        network, sums = self.network, dict(self.sums)
        sums |= {
            "held_seconds": self.now, "lane_seconds": network.lanes * self.now,
            "pool_seconds": network.pool * self.now, "llm.requests": self.spans["llm.call"].count,
        }  # fmt: skip
        facts: dict[str, Any] = {
            "performance_optimization.llm_connection_pool_size": network.pool,
            "performance_optimization.worker_pool_size": network.lanes,
            "prompt_rounds": " ".join(map(str, network.rounds)),
            "llm.requests_per_minute": None if network.limit_ends_after else network.requests_per_minute,
        }
        spans: dict[str, Any] = {name: histogram.as_dict() for name, histogram in self.spans.items()}
        return ProcessMeasurements(
            "p1", "worker", "w1@host", "host", since=1000.0, until=1000.0 + self.now,
            spans=spans, sums=sums, facts=facts,
        )  # fmt: skip
