"""The live system for `themes top`: what `system` reads, the newest jobs, and the rates between two reads."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple

import msgspec
from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tasks.jobs import registry as jobs
from tasks.jobs.registry import JobStatus
from workers.diagnosis.verdict import of_jobs, read_pulse
from workers.observe.reporter import Metrics, SeriesPoint, read_metrics, read_series

#: Jobs shown: those that run, and the newest of the others.
JOBS: Final = 12
#: Seconds before a first read that its rates are of: the whole tens of seconds within them.
LATELY_SECONDS: Final = 30.0
#: Seconds over which rates are taken: workers report once a second, so less would flicker.
RATE_SECONDS: Final = 5.0
#: Fields of jobs, workers and consumers in `themes top --json`, and those of workers that are added up.
JOB_FIELDS: Final = (
    "job_id", "name", "state", "is_final", "total", "ended", "failed", "rate_per_second", "eta_seconds", "llm_calls",
    "cache_hits", "paused", "waiting_for", "unreadable",
)  # fmt: skip
SUMS: Final = ("lanes", "lanes_busy", "connections", "connections_in_use", "connections_waiting")
WORKER_FIELDS: Final = (
    "lanes", "lanes_busy", "lanes_waiting", "connections", "connections_in_use", "connections_waiting", "restarts",
)  # fmt: skip
CONSUMER_FIELDS: Final = ("lag", "entries_per_second", "ms_per_batch", "last_batch", "rejected")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The system at one moment. Rates are None where nothing was counted lately, or processes do not measure."""

    at: float
    jobs: Sequence[JobStatus] = ()
    workers: Mapping[str, fleet.WorkerReport] = field(default_factory=dict)
    consumers: Mapping[str, fleet.ConsumerReport] = field(default_factory=dict)
    queued: int = 0
    results_lag: int = 0
    lanes: int = 0
    lanes_busy: int = 0
    connections: int = 0
    connections_in_use: int = 0
    connections_waiting: int = 0
    calls_per_second: float | None = None
    errors_per_second: float | None = None
    refusals_per_second: float | None = None
    #: Of the prompts of the last seconds, those that needed no call.
    hit_rate: float | None = None
    #: What everything waits for, each reason once.
    waits: Sequence[str] = ()
    #: What limits it, in a sentence or two.
    verdict: str = ""
    #: Why what is shown is old; empty when it is not.
    trouble: str = ""

    def as_dict(self) -> dict[str, Any]:
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        found["jobs"] = [
            {name: job.done + job.failed if name == "ended" else getattr(job, name) for name in JOB_FIELDS}
            | ({"batches": msgspec.to_builtins(job.batches)} if job.batches else {})
            for job in self.jobs
        ]
        found["workers"] = [
            {"name": name}
            | {key: getattr(worker, key) for key in WORKER_FIELDS}
            | {"cpu_percent": worker.usage.cpu_percent, "rss_bytes": worker.usage.rss_bytes, "says": worker.says}
            for name, worker in self.workers.items()
        ]
        found["consumers"] = [
            {"name": name} | {key: getattr(each, key) for key in CONSUMER_FIELDS}
            for name, each in self.consumers.items()
        ]
        return found


class Counted(NamedTuple):
    """Counts of all processes at one time (monotonic seconds), or between two."""

    at: float
    calls: float
    errors: float
    refusals: float
    saved: float

    @classmethod
    def of(cls, metrics: Metrics, at: float) -> "Counted":
        calls = metrics.total("llm_requests_total")
        refusals = metrics.total("llm_requests_total", outcome="rate_limited")
        answered = metrics.total("llm_requests_total", outcome="ok")
        saved = metrics.total("cache_gets_total", result="hit") + metrics.total("cache_coalesced_total")
        return cls(at, calls, calls - answered - refusals, refusals, saved)

    @classmethod
    def lately(cls, series: list[SeriesPoint]) -> "Counted":
        whole = series[:-1]
        refusals = sum(point.rate_limited for point in whole)
        return cls(
            len(whole) * keys.SERIES_STEP_SECONDS, sum(point.calls for point in whole),
            sum(point.errors for point in whole) - refusals, refusals,
            sum(point.hits + point.coalesced for point in whole),
        )  # fmt: skip

    def rates(self) -> dict[str, Any]:
        asked = self.calls + self.saved
        return {
            "calls_per_second": round(self.calls / self.at, 3),
            "errors_per_second": round(self.errors / self.at, 3),
            "refusals_per_second": round(self.refusals / self.at, 3),
            "hit_rate": round(self.saved / asked, 4) if asked else None,
        }


class LiveReader:
    def __init__(self, redis: Redis, broker: Redis | None = None) -> None:
        self._redis = redis
        self._broker = broker or redis
        self._counts: deque[Counted] = deque()
        self._last = Snapshot(time.time())

    def read(self) -> Snapshot:
        """The system now. Errors of Redis pass through."""
        redis, now = self._redis, time.monotonic()
        pulse = read_pulse(redis, self._broker)
        workers, known = pulse.workers, list(jobs.list_jobs(redis))
        waits = {each.waiting_for.reason: each.waiting_for for each in workers.values() if each.waiting_for}
        self._count(Counted.of(read_metrics(redis), now))
        self._last = Snapshot(
            at=time.time(),
            jobs=sorted(known, key=lambda job: job.is_final)[:JOBS],
            workers=workers,
            consumers=pulse.consumers,
            verdict=of_jobs(known, pulse).words,
            waits=[wait.format() for wait in waits.values()],
            queued=pulse.queue,
            results_lag=pulse.results,
            **{name: sum(getattr(worker, name) for worker in workers.values()) for name in SUMS},
            **self._rates(),
        )
        return self._last

    def stale(self, trouble: str) -> Snapshot:
        """What was read last, and why it is old."""
        self._counts.clear()
        return replace(self._last, trouble=trouble)

    def _count(self, counted: Counted) -> None:
        if self._counts and counted.calls < self._counts[-1].calls:
            self._counts.clear()
        self._counts.append(counted)
        while len(self._counts) > 2 and counted.at - self._counts[1].at >= RATE_SECONDS:  # noqa: PLR2004  # two ends
            self._counts.popleft()

    def _rates(self) -> dict[str, Any]:
        first, last = self._counts[0], self._counts[-1]
        if last.at > first.at:
            return Counted(*(after - before for before, after in zip(first, last, strict=True))).rates()
        lately = Counted.lately(read_series(self._redis, LATELY_SECONDS))
        return lately.rates() if lately.at and lately.calls + lately.saved else {}
