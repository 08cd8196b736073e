"""The system as it is now, out of Redis: jobs, workers, queue, consumers, and the rates between two looks."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tasks.jobs import registry as jobs
from workers.observe.reporter import Metrics, SeriesPoint, read_metrics, read_series

#: Jobs shown: those that run, and the newest of the others.
JOBS: Final = 12
#: Seconds before a first look that its rates are of: the whole tens of seconds within them.
LATELY_SECONDS: Final = 30.0
#: Seconds over which rates are taken: workers tell once a second, so less would flicker.
RATE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job."""

    job_id: str
    name: str
    state: str
    is_final: bool
    total: int
    ended: int
    failed: int
    rate_per_second: float
    eta_seconds: float | None
    llm_calls: int
    cache_hits: int
    paused: str | None
    waiting_for: str | None
    #: Why its entry in Redis cannot be read.
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker process; `says` is what is wrong with it, where something is."""

    name: str
    lanes: int
    lanes_busy: int
    lanes_waiting: int
    connections: int
    connections_in_use: int
    connections_waiting: int
    restarts: int
    cpu_percent: float | None
    rss_bytes: float | None
    says: str


@dataclass(frozen=True, slots=True)
class ConsumerLine:
    """A consumer."""

    name: str
    lag: int
    entries_per_second: float
    ms_per_batch: float
    last_batch: int
    rejected: int


@dataclass(frozen=True, slots=True)
class System:
    """One look. Rates are None where nothing was counted lately, or processes do not measure."""

    at: float
    jobs: list[JobLine] = field(default_factory=list)
    workers: list[WorkerLine] = field(default_factory=list)
    consumers: list[ConsumerLine] = field(default_factory=list)
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
    waits: list[str] = field(default_factory=list)
    #: Why what is shown is old; empty when it is not.
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Counted:
    """All processes' counts at one time (monotonic seconds)."""

    at: float
    calls: float
    errors: float
    refusals: float
    saved: float

    @classmethod
    def of(cls, metrics: Metrics, at: float) -> "Counted":
        """What the counters say."""
        calls = metrics.total("llm_requests_total")
        refusals = metrics.total("llm_requests_total", outcome="rate_limited")
        answered = metrics.total("llm_requests_total", outcome="ok")
        saved = metrics.total("cache_gets_total", result="hit") + metrics.total("cache_coalesced_total")
        return cls(at, calls, calls - answered - refusals, refusals, saved)


class Watcher:
    """Looks again and again, and remembers what it counted for the rates."""

    def __init__(self, redis: Redis, broker: Redis | None = None) -> None:
        self._redis = redis
        self._broker = broker or redis
        self._counts: deque[Counted] = deque()
        self._last = System(time.time())

    def __repr__(self) -> str:
        return f"<Watcher looks={len(self._counts)}>"

    def look(self) -> System:
        """The system now. Errors of Redis pass through."""
        redis, now = self._redis, time.monotonic()
        reports = fleet.workers(redis)
        workers = [_worker(name, report) for name, report in sorted(reports.items())]
        waits = [report.waiting_for for report in reports.values() if report.waiting_for]
        self._count(Counted.of(read_metrics(redis), now))
        self._last = System(
            at=time.time(),
            jobs=_jobs(redis),
            workers=workers,
            consumers=[_consumer(name, report) for name, report in sorted(fleet.consumers(redis).items())],
            waits=[wait.format() for wait in {wait.reason: wait for wait in waits}.values()],
            queued=_queued(self._broker),
            results_lag=int(redis.xlen(keys.RESULTS)),
            lanes=sum(worker.lanes for worker in workers),
            lanes_busy=sum(worker.lanes_busy for worker in workers),
            connections=sum(worker.connections for worker in workers),
            connections_in_use=sum(worker.connections_in_use for worker in workers),
            connections_waiting=sum(worker.connections_waiting for worker in workers),
            **self._rates(),
        )
        return self._last

    def without(self, trouble: str) -> System:
        """What was seen last, and why it is old."""
        self._counts.clear()
        return replace(self._last, trouble=trouble)

    def _count(self, counted: Counted) -> None:
        if self._counts and counted.calls < self._counts[-1].calls:
            # Redis has begun anew.
            self._counts.clear()
        self._counts.append(counted)
        while len(self._counts) > 2 and counted.at - self._counts[1].at >= RATE_SECONDS:  # noqa: PLR2004  # two ends
            self._counts.popleft()

    def _rates(self) -> dict[str, Any]:
        first, last = self._counts[0], self._counts[-1]
        seconds = last.at - first.at
        if seconds <= 0:
            return _rates_of(read_series(self._redis, LATELY_SECONDS))
        calls, saved = last.calls - first.calls, last.saved - first.saved
        return {
            "calls_per_second": round(calls / seconds, 3),
            "errors_per_second": round((last.errors - first.errors) / seconds, 3),
            "refusals_per_second": round((last.refusals - first.refusals) / seconds, 3),
            "hit_rate": round(saved / (calls + saved), 4) if calls + saved else None,
        }


def _rates_of(series: list[SeriesPoint]) -> dict[str, Any]:
    """Rates by the last points that are whole; none where nothing was counted lately."""
    whole = series[:-1]
    seconds = len(whole) * keys.SERIES_STEP_SECONDS
    calls = sum(point.calls for point in whole)
    saved = sum(point.hits + point.coalesced for point in whole)
    if not seconds or not calls + saved:
        return {}
    refusals = sum(point.rate_limited for point in whole)
    return {
        "calls_per_second": round(calls / seconds, 3),
        "errors_per_second": round((sum(point.errors for point in whole) - refusals) / seconds, 3),
        "refusals_per_second": round(refusals / seconds, 3),
        "hit_rate": round(saved / (calls + saved), 4),
    }


def _queued(broker: Redis) -> int:
    """Messages in the queue."""
    with broker.pipeline(transaction=False) as pipeline:
        for key in keys.queue_keys():
            pipeline.llen(key)
        return sum(int(found) for found in pipeline.execute())


def _jobs(redis: Redis) -> list[JobLine]:
    """Those that are not finished first, then the newest."""
    known = [_job(status) for status in jobs.list_jobs(redis)]
    return sorted(known, key=lambda job: job.is_final)[:JOBS]


def _job(status: jobs.JobStatus) -> JobLine:
    return JobLine(
        status.job_id, status.name, status.state, status.is_final, status.total, status.done + status.failed,
        status.failed, status.rate_per_second, status.eta_seconds, status.llm_calls, status.cache_hits, status.paused,
        status.waiting_for, status.unreadable,
    )  # fmt: skip


def _worker(name: str, report: fleet.WorkerReport) -> WorkerLine:
    usage = report.profile.process or fleet.ProcessReport()
    age = time.time() - report.at
    says = report.waiting_for.format() if report.waiting_for else report.unreadable
    if not says and report.journal_off:
        says = f"call journal off: {report.journal_off}"
    if not says and age > keys.WORKER_SECONDS / 2:
        says = f"silent for {age:.0f} s"
    if not says and not report.lanes:
        says = "stopping"
    return WorkerLine(
        name, report.lanes, report.lanes_busy, report.lanes_waiting, report.connections, report.connections_in_use,
        report.connections_waiting, report.restarts, usage.cpu_percent, usage.rss_bytes, says,
    )  # fmt: skip


def _consumer(name: str, report: fleet.ConsumerReport) -> ConsumerLine:
    return ConsumerLine(
        name, report.lag, report.entries_per_second, report.ms_per_batch, report.last_batch, report.rejected
    )
