"""What one process has measured of one job: a tree of spans, sums, and the slowest destinations.

Spans lie in each other, so they are kept as a calling context tree (Ammons, Ball & Larus, "Exploiting hardware
performance counters with flow and context sensitive profiling", PLDI 1997): a node for each span under each parent,
with a histogram in it. It is bounded: `MAX_NODES` a job, whatever the names.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from workers.observe.measurements import SlowDestination
from workers.observe.metrics import Histogram

#: Nodes of one job's tree; what comes in addition is counted as `OTHER`.
MAX_NODES: Final = 200
OTHER: Final = "other"
#: Names that a job's sums may have.
MAX_SUMS: Final = 200

#: Cumulative amounts of the whole process, by name.
Amounts = Callable[[], Mapping[str, float]]


class Node(Histogram):
    """A span under its parent: how often, how long, and what lies in it."""

    __slots__ = ("children", "name", "records", "told")

    def __init__(self, name: str, records: "Records") -> None:
        super().__init__()
        self.name = name
        self.records = records
        self.children: dict[str, Node] = {}
        #: What of it has been collected.
        self.told = Histogram()

    def child(self, name: str) -> "Node":
        """The node of a span that lies in this one."""
        known = self.children.get(name)
        if known is None:
            if self.records.nodes >= MAX_NODES:
                name = OTHER
                if (known := self.children.get(name)) is not None:
                    return known
            known = self.children[name] = Node(name, self.records)
            self.records.nodes += 1
        return known

    def news(self) -> Histogram | None:
        """What was added since the last call; None when nothing was."""
        told = self.told
        if self.count == told.count:
            return None
        added = Histogram()
        for index, count in self.buckets.items():
            if more := count - told.buckets.get(index, 0):
                added.buckets[index] = more
        added.count, added.total, added.largest = self.count - told.count, self.total - told.total, self.largest
        told.buckets, told.count, told.total = dict(self.buckets), self.count, self.total
        return added

    def walk(self) -> Iterator["Node"]:
        for child in self.children.values():
            yield child
            yield from child.walk()


class Records:
    """Spans and sums of one job in this process, or of what belongs to no job (`job_id` empty)."""

    __slots__ = (
        "_base", "_held_since", "_order", "_process", "_slowest", "_slowest_kept", "changed", "holds", "job_id",
        "nodes", "part", "peaks", "root", "since", "sums", "until",
    )  # fmt: skip

    def __init__(self, job_id: str, part: str, *, process: Amounts, slowest_kept: int) -> None:
        self.job_id = job_id
        #: Name of this part of the job's profile, unlike that of any other.
        self.part = part
        self.nodes = 0
        self.root = Node("", self)
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.since = self.until = time.time()
        #: Whether there is something to report.
        self.changed = False
        #: How many things of this job are under way.
        self.holds = 0
        self._process = process
        self._base: Mapping[str, float] = {}
        self._held_since = 0.0
        self._slowest_kept = slowest_kept
        self._slowest: list[tuple[float, int, SlowDestination]] = []
        self._order = 0

    def hold(self) -> None:
        """Something of this job begins here: from now on the process's amounts are booked on it."""
        if not self.holds:
            self._base, self._held_since = self._process(), time.perf_counter()
        self.holds += 1
        self.changed = True

    def release(self) -> bool:
        """The end of what `hold` began; True when nothing of the job is left here."""
        self.holds -= 1
        if self.holds:
            return False
        self.book()
        return True

    def book(self) -> None:
        """Bring the sums up to date with what the process has used since the last time."""
        now, amounts = time.perf_counter(), self._process()
        for name, amount in amounts.items():
            self.add(name, amount - self._base.get(name, 0.0))
        self.add("held_seconds", now - self._held_since)
        self._base, self._held_since = amounts, now
        self.until = time.time()

    def add(self, name: str, amount: float) -> None:
        sums = self.sums
        if name in sums:
            sums[name] += amount
        elif len(sums) < MAX_SUMS:
            sums[name] = amount
        self.changed = True

    def peak(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if value > self.peaks.get(name, 0.0):
                self.peaks[name] = value

    def ended(self, destination_id: str, name: str, seconds: float, spans: dict[str, float]) -> None:
        """A destination has ended: it is kept when it is one of the slowest."""
        slowest = self._slowest
        if len(slowest) >= self._slowest_kept:
            if not slowest or seconds <= slowest[0][0]:
                return
            heapq.heappop(slowest)
        self._order += 1
        rounded = {key: round(value, 6) for key, value in spans.items()}
        slow = SlowDestination(destination_id, name, round(seconds * 1000, 1), rounded, time.time())
        heapq.heappush(slowest, (seconds, self._order, slow))

    @property
    def slowest(self) -> list[SlowDestination]:
        return [slow for *_, slow in sorted(self._slowest, key=lambda item: -item[0])]

    def spans(self) -> dict[str, Histogram]:
        """A histogram for each name, whatever it lay in."""
        merged: dict[str, Histogram] = {}
        for node in self.root.walk():
            if node.count:
                merged.setdefault(node.name, Histogram()).merge(node)
        return merged

    def inside(self) -> dict[str, dict[str, float]]:
        """Seconds of each span that lies in another: parent -> span -> seconds."""
        nested: dict[str, dict[str, float]] = {}
        for node in self.root.walk():
            for child in node.children.values():
                below = nested.setdefault(node.name, {})
                below[child.name] = below.get(child.name, 0.0) + child.total
        return nested
