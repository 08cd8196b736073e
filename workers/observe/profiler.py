"""What each step takes, and what the process uses, by job and destination.

    with profiler.job(job_id) as records:                     # what follows belongs to this job …
        with profiler.destination(records, id, name):         # … and to this destination
            with profiler.span("cache.get"):                  # a step; steps lie in each other
                …
            profiler.record("llm.rate_wait", seconds)         # a step that was measured already
            profiler.count("llm.requests")                    # something that happened

Whose a step is follows the task that makes it (`contextvars`): tasks that a task starts work for the same destination.
One profiler serves one process, from one thread.

Off (`enable_performance_profiling: false`) nothing is recorded: a span is one shared object that does nothing.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, Final, Self

from workers.observe.counters import Counters
from workers.observe.measurements import ProcessMeasurements, Role
from workers.observe.metrics import Histogram
from workers.observe.records import Node, Records
from workers.observe.samples import Sampler

#: Jobs that are kept; those that rest longest are forgotten, after they were reported.
MAX_JOBS: Final = 200
#: Seconds between two looks at how late the event loop wakes.
LAG_SECONDS: Final = 0.1
#: Part of `WHOLES` that belong to the process: they are told to every job that has work here at the time.
OF_PROCESS: Final = frozenset({"loop.lag", "redis"})
#: Of a sample, what a job's part has the largest of, and what it books as sums (as of the last sample).
PEAKS: Final = ("rss_bytes", "uss_bytes", "threads", "descriptors", "rss_growth_bytes_per_hour")
SAMPLED: Final = ("disk_read_bytes", "disk_written_bytes", "switches_voluntary", "switches_involuntary")

_clock = time.perf_counter
#: The span that encloses the code that runs, and the seconds by span of the destination that it works for.
_node: ContextVar[Node | None] = ContextVar("themes_span", default=None)
_sums: ContextVar[dict[str, float] | None] = ContextVar("themes_destination", default=None)


class Span:
    """One step, measured whether it succeeds or raises."""

    __slots__ = ("_began", "_name", "_node", "_profiler", "_token")

    _began: float
    _node: Node
    _token: Token[Node | None]

    def __init__(self, profiler: "PerformanceProfiler", name: str) -> None:
        self._profiler = profiler
        self._name = name

    def __enter__(self) -> Self:
        parent = _node.get() or self._profiler.rest
        try:
            node = parent.children[self._name]
        except KeyError:
            node = parent.child(self._name)
        self._node = node
        self._token = _node.set(node)
        self._began = _clock()
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        seconds = _clock() - self._began
        _node.reset(self._token)
        self._node.add(seconds)
        sums = _sums.get()
        if sums is not None:
            name = self._name
            sums[name] = sums.get(name, 0.0) + seconds


class _Nothing(Span):
    """The span of a profiler that is off."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        pass


_NOTHING: Final = _Nothing()


class PerformanceProfiler:
    """Spans, sums and samples of one process.

    Args:
        enabled: off, nothing is recorded.
        role: what the process is.
        name: what people call it.
        slowest_kept: destinations whose course is kept, for each job.
    """

    def __init__(self, *, enabled: bool, role: Role = "worker", name: str = "", slowest_kept: int = 10) -> None:
        self.enabled = enabled
        self.role = role
        self.name = name or f"{role}-{os.getpid()}"
        #: Unlike that of any other process, also of those before it.
        self.process = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._slowest_kept = slowest_kept
        self._jobs: dict[str, Records] = {}
        self._parts = 0
        self._sources: list[Callable[[], Mapping[str, float]]] = []
        self._holds: list[Callable[[], float]] = []
        self._facts: dict[str, Callable[[], str | float | bool | None]] = {}
        self._rest = Records("", self.process, process=self._amounts, slowest_kept=0)
        #: Steps that belong to no job.
        self.rest = self._rest.root
        self._whole = Records("", self.process, process=self._amounts, slowest_kept=0)
        self._totals: dict[str, Histogram] = {}
        self._news: dict[str, Histogram] = {}
        self._sampler = Sampler(lambda: sum(held() for held in self._holds)) if enabled else None
        #: What all processes count together (workers/observe/reporter.py).
        self.counters = Counters(enabled=enabled)
        #: Set when the last of a job's work here has ended.
        self.released = asyncio.Event()
        self.sample()

    def __repr__(self) -> str:
        return f"<PerformanceProfiler {self.role} enabled={self.enabled} jobs={len(self._jobs)}>"

    def span(self, name: str) -> Span:
        """Measure the body's wall time under `name`, whether it succeeds or raises."""
        return Span(self, name) if self.enabled else _NOTHING

    def record(self, name: str, seconds: float) -> None:
        """Count one duration under `name`, for the job and destination at hand."""
        if not self.enabled:
            return
        parent = _node.get() or self.rest
        try:
            parent.children[name].add(seconds)
        except KeyError:
            parent.child(name).add(seconds)
        sums = _sums.get()
        if sums is not None:
            sums[name] = sums.get(name, 0.0) + seconds

    def count(self, name: str, amount: float = 1.0) -> None:
        """Add to one of the sums of the job at hand."""
        if self.enabled:
            (_node.get() or self.rest).records.add(name, amount)

    def whole(self, name: str, seconds: float) -> None:
        """Count one duration that concerns the whole process: for every job that has work here now."""
        if not self.enabled:
            return
        self._whole.root.child(name).add(seconds)
        for records in self._jobs.values():
            if records.holds:
                records.root.child(name).add(seconds)

    @contextmanager
    def job(self, job_id: str) -> Iterator[Records | None]:
        """What the body does is for this job; None when the profiler is off."""
        if not self.enabled:
            yield None
            return
        records = self.records(job_id)
        token = _node.set(records.root)
        records.hold()
        try:
            yield records
        finally:
            _node.reset(token)
            if records.release():
                self.released.set()

    @contextmanager
    def destination(
        self, records: Records | None, destination_id: str, name: str, *, waited: Mapping[str, float | None]
    ) -> Iterator[None]:
        """What the body does is for this destination of a job; its whole time is the span `destination`.

        Before that it has `waited`: seconds by span, None where that is not known.
        """
        if records is None:
            yield
            return
        node = records.root.child("destination")
        sums: dict[str, float] = {}
        for span, seconds in waited.items():
            if seconds is not None:
                sums[span] = seconds
                records.root.child(span).add(seconds)
        tokens = _node.set(node), _sums.set(sums)
        records.hold()
        began = _clock()
        try:
            yield
        finally:
            seconds = _clock() - began
            _node.reset(tokens[0])
            _sums.reset(tokens[1])
            node.add(seconds)
            records.add("executed", 1)
            records.ended(destination_id, name, seconds, sums)
            if records.release():
                self.released.set()

    def records(self, job_id: str) -> Records:
        """What is recorded of a job; nothing yet when it is new here."""
        known = self._jobs.get(job_id)
        if known is None:
            if len(self._jobs) >= MAX_JOBS:
                self._forget()
            self._parts += 1
            known = Records(
                job_id, f"{self.process}-{self._parts}", process=self._amounts, slowest_kept=self._slowest_kept
            )
            self._jobs[job_id] = known
        return known

    def _forget(self) -> None:
        """Make room: the jobs that have rested longest go, a quarter of all."""
        self._collect()
        resting = sorted((one for one in self._jobs.values() if not one.holds), key=lambda one: one.until)
        for records in resting[: MAX_JOBS // 4]:
            del self._jobs[records.job_id]

    def amounts_from(self, source: Callable[[], Mapping[str, float]]) -> None:
        """Book what `source` counts (cumulative, of the whole process) on the jobs that have work here meanwhile."""
        self._sources.append(source)

    def holds_on_purpose(self, size_bytes: Callable[[], float]) -> None:
        """Memory that may grow within bounds of its own, and is no leak."""
        self._holds.append(size_bytes)

    def fact(self, name: str, value: Callable[[], str | float | bool | None]) -> None:
        """A setting in force, looked up whenever a job's part is told."""
        self._facts[name] = value

    def _amounts(self) -> dict[str, float]:
        amounts = {"cpu_seconds": time.process_time()}
        if self._sampler is not None:
            amounts.update((name, self._sampler.usage.get(name, 0.0)) for name in SAMPLED)
        for source in self._sources:
            amounts.update(source())
        return amounts

    def sample(self) -> None:
        """Read what the process uses now, from the operating system."""
        if self._sampler is None:
            return
        usage = self._sampler.read()
        for records in self._jobs.values():
            if records.holds:
                records.peak({name: usage[name] for name in PEAKS if name in usage})

    async def watch_loop(self) -> None:
        """Measure how late the loop wakes, until cancelled."""
        while self.enabled:
            began = _clock()
            await asyncio.sleep(LAG_SECONDS)
            self.whole("loop.lag", max(0.0, _clock() - began - LAG_SECONDS))

    def parts(self) -> list[tuple[Records, ProcessMeasurements]]:
        """The parts of the jobs that have changed since the last call; say `changed` again of those that were lost."""
        changed = [records for records in self._jobs.values() if records.changed]
        return [(records, self._part(records)) for records in changed]

    def _part(self, records: Records) -> ProcessMeasurements:
        if records.holds:
            records.book()
        records.changed = records.holds > 0
        return ProcessMeasurements(
            process=records.part,
            role=self.role,
            name=self.name,
            host=socket.gethostname(),
            since=records.since,
            until=records.until,
            spans={name: histogram.as_dict() for name, histogram in records.spans().items()},
            inside=records.inside(),
            sums={name: round(amount, 6) for name, amount in records.sums.items()},
            peaks=dict(records.peaks),
            facts={name: value() for name, value in self._facts.items()},
            slowest=records.slowest,
        )

    def _collect(self) -> None:
        """Add what is new in the jobs' trees to the totals of the process."""
        whole = (node for node in self._whole.root.walk())
        trees = (node for one in (self._rest, *self._jobs.values()) for node in one.root.walk())
        for node in (*whole, *(node for node in trees if node.name not in OF_PROCESS)):
            if (added := node.news()) is not None:
                for kept in (self._totals, self._news):
                    kept.setdefault(node.name, Histogram()).merge(added)

    def take_news(self) -> dict[str, Histogram]:
        """The spans of the whole process that came since the last call."""
        self._collect()
        news, self._news = self._news, {}
        return news

    def totals(self) -> dict[str, Histogram]:
        """The spans of the whole process, of all jobs and of none."""
        self._collect()
        return self._totals

    @property
    def usage(self) -> dict[str, float]:
        return {} if self._sampler is None else dict(self._sampler.usage)

    def snapshot(self) -> dict[str, Any]:
        """A summary of everything measured so far: `spans` by name, milliseconds, and `process`, the last sample."""
        if not self.enabled:
            return {}
        return {
            "spans": {name: histogram.summary() for name, histogram in self.totals().items()},
            "process": self.usage,
        }


#: Records nothing: for what is used outside of a process that is profiled.
SILENT: Final = PerformanceProfiler(enabled=False)
