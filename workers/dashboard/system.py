"""The one reader of the live system in Redis: for `themes top`, the LLM page, and Prometheus."""

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from redis import Redis, ResponseError

from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import server_info, text_of
from tasks.errors import JobNotFoundError
from tasks.jobs import registry, totals
from tasks.jobs.registry import FINAL, JobStatus
from tasks.readings import amounts, replies_of
from tasks.waits import Wait
from workers.llm.cache.stats import read as read_cache
from workers.observe.reporter import Metrics, SeriesPoint, read_metrics, read_series

#: Seconds for which what was read is good enough for every reader.
FRESH_SECONDS: Final = 2.0
#: Jobs whose state is counted, the newest first.
MAX_JOBS: Final = 1_000
#: Jobs that have not ended whose whole status is read.
MAX_ACTIVE: Final = 200
#: Ways to an LLM that are told apart; those in addition are added up as `OTHER`.
MAX_ROUTES: Final = 30
OTHER: Final = "other"
#: States of a job, `paused` apart from `stalled`.
JOB_STATES: Final = ("queued", "running", "paused", "stalled", "done", "cancelled", "unreadable")
#: Whole numbers of a worker's report that `Worker` has under the same name.
WORKER_COUNTS: Final = (
    "lanes", "lanes_busy", "lanes_waiting", "connections", "connections_in_use", "connections_waiting", "restarts",
)  # fmt: skip
#: How bad a circuit's state is: of several workers' the worst is shown.
CIRCUITS: Final = ("closed", "half-open", "open")


@dataclass(frozen=True, slots=True)
class Route:
    """One model at one endpoint, over all workers."""

    endpoint: str
    model: str
    circuit: str = "closed"
    in_use: int = 0
    queued: int = 0
    limit: int = 0
    failures: int = 0
    cool_downs: int = 0
    cooling_seconds: float = 0.0
    #: What asked for that, and how.
    cooling_for: str = ""
    #: Mean of the workers' own recent means; None before the first answer.
    latency_ms: float | None = None
    #: What refusals have taught; None where nothing was refused lately, or the rate is configured.
    learnt_per_minute: float | None = None
    #: Classes of the errors for which circuits are open.
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    lanes: int
    lanes_busy: int
    lanes_waiting: int
    connections: int
    connections_in_use: int
    connections_idle: int
    connections_waiting: int
    pool_wait_p95_ms: float | None
    restarts: int
    cpu_percent: float | None
    rss_bytes: float | None
    wait: Wait | None
    profiles: bool
    routes: Mapping[str, fleet.RouteReport]
    #: What is wrong with it; empty where nothing is.
    says: str = ""


@dataclass(frozen=True, slots=True)
class Consumer:
    name: str
    entries_per_second: float
    ms_per_batch: float
    rejected: int
    #: Entries that wait for it, and those of its last batch.
    lag: int = 0
    last_batch: int = 0


@dataclass(frozen=True, slots=True)
class System:
    """Everything at one moment (`at`, seconds since 1970)."""

    at: float
    workers: tuple[Worker, ...]
    #: Workers that have stopped giving signs of life without taking leave, within the last hour.
    lost: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    routes: tuple[Route, ...]
    #: Messages in the Celery queue, all priorities together; and those that are no messages of ours.
    queue: int
    queue_dead: int
    #: Entries of the results stream: all that are there, and those of them that no consumer has read yet.
    results: int
    results_unread: int
    #: Jobs by state; the newest `MAX_JOBS`.
    jobs: Mapping[str, int]
    #: Destinations of jobs that have not ended that have no outcome yet.
    destinations_open: int
    #: The largest part of its budget that a job which has not ended has spent; None where none has a budget.
    budget_used: float | None
    #: What the caches of all processes have counted.
    cache: Mapping[str, Any]
    #: Exact sums over all jobs, as the database has them; empty before the first result.
    totals: Mapping[str, int]
    #: Counters and durations of all processes; empty where nothing has been profiled yet.
    metrics: Metrics
    redis_bytes: int
    redis_limit_bytes: int
    #: What cannot be read, and why: a job's entry, a process's report.
    unreadable: tuple[str, ...] = ()

    @property
    def is_profiled(self) -> bool:
        """Whether any worker measures how long things take."""
        return any(worker.profiles for worker in self.workers)


class SystemReader:
    """Reads the system, at most once in `FRESH_SECONDS`. Blocks: call it in a thread; safe from several."""

    def __init__(self, redis: Redis, *, broker: Redis) -> None:
        self._redis = redis
        self._broker = broker
        self._lock = threading.Lock()
        self._known: tuple[float, System] | None = None
        self._points: tuple[float, list[SeriesPoint]] | None = None

    def read(self) -> System:
        """Everything as it stood at most `FRESH_SECONDS` ago. Errors of Redis pass through."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > FRESH_SECONDS:
                self._known = (time.monotonic(), read_system(self._redis, self._broker))
            return self._known[1]

    def points(self) -> list[SeriesPoint]:
        """The last hour, ten seconds each."""
        with self._lock:
            if self._points is None or time.monotonic() - self._points[0] > FRESH_SECONDS:
                self._points = (time.monotonic(), read_series(self._redis))
            return self._points[1]


def read_system(redis: Redis, broker: Redis) -> System:
    """Read everything now, in a handful of round trips."""
    reports = fleet.workers(redis)
    workers = workers_of(reports)
    names = [text_of(name) for name in redis.zrange(keys.WORKERS, 0, -1)]
    results, unread = _results(redis)
    queue, dead = queue_lengths(broker)
    statuses, states = _jobs(redis, workers=reports)
    shares = [one.spent_usd / one.budget_usd for one in statuses if one.budget_usd and one.spent_usd is not None]
    memory = server_info(redis)
    return System(
        at=time.time(),
        workers=workers,
        lost=tuple(name for name in names if name not in reports),
        consumers=consumers_of(redis),
        routes=_routes(redis, workers),
        queue=queue,
        queue_dead=dead,
        results=results,
        results_unread=unread,
        jobs=states,
        destinations_open=sum(max(0, one.total - one.done - one.failed) for one in statuses),
        budget_used=max(shares, default=None),
        cache=read_cache(redis),
        totals=totals.read_totals(redis),
        metrics=read_metrics(redis),
        redis_bytes=int(memory.get("used_memory", 0)),
        redis_limit_bytes=int(memory.get("maxmemory", 0)),
        unreadable=(
            *(f"job {one.job_id}: {one.unreadable}" for one in statuses if one.unreadable),
            *(f"{name}: {report.unreadable}" for name, report in reports.items() if report.unreadable),
        ),
    )


def workers_of(reports: Mapping[str, fleet.WorkerReport]) -> tuple[Worker, ...]:
    return tuple(_worker(name, report) for name, report in sorted(reports.items()))


def _worker(name: str, report: fleet.WorkerReport) -> Worker:
    usage = report.profile.process or fleet.ProcessReport()
    return Worker(
        name=name,
        connections_idle=int(report.pool.idle),
        pool_wait_p95_ms=report.pool.wait_p95_ms,
        cpu_percent=usage.cpu_percent,
        rss_bytes=usage.rss_bytes,
        wait=report.waiting_for,
        profiles=report.profile != fleet.ProfileReport(),
        routes=report.pool.routes,
        says=report.waiting_for.format() if report.waiting_for else _says(report),
        **{field: getattr(report, field) for field in WORKER_COUNTS},
    )


def _says(report: fleet.WorkerReport) -> str:
    """What is wrong with a worker that waits for nothing."""
    if report.unreadable:
        return report.unreadable
    if report.journal_off:
        return f"call journal off: {report.journal_off}"
    age = time.time() - report.at
    if age > keys.WORKER_SECONDS / 2:
        return f"silent for {age:.0f} s"
    return "" if report.lanes else "stopping"


def consumers_of(redis: Redis) -> tuple[Consumer, ...]:
    return tuple(_consumer(name, report) for name, report in sorted(fleet.consumers(redis).items()))


def _consumer(name: str, report: fleet.ConsumerReport) -> Consumer:
    return Consumer(
        name, report.entries_per_second, report.ms_per_batch, report.rejected, report.lag, report.last_batch
    )


def queue_lengths(broker: Redis) -> tuple[int, int]:
    """Messages in the Celery queue, all priorities together, and those that are no messages of ours."""
    with broker.pipeline(transaction=False) as pipeline:
        for key in (*keys.queue_keys(), keys.QUEUE_DEAD):
            pipeline.llen(key)
        *waiting, dead = pipeline.execute()
    return sum(waiting), dead


def _results(redis: Redis) -> tuple[int, int]:
    """Entries of the results stream, and those of them that no consumer has read."""
    length = int(redis.xlen(keys.RESULTS))
    try:
        groups: Any = redis.xinfo_groups(keys.RESULTS) if length else []
    except ResponseError:
        return length, length  # it has just gone
    pending = sum(int(group["pending"]) for group in groups if text_of(group["name"]) == keys.GROUP)
    return length, max(0, length - pending)


def _jobs(redis: Redis, *, workers: Mapping[str, fleet.WorkerReport]) -> tuple[list[JobStatus], dict[str, int]]:
    """The jobs that have not ended, and how many are in each state."""
    newest = [text_of(job_id) for job_id in redis.zrevrange(keys.JOBS, 0, MAX_JOBS - 1)]
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in newest:
            pipeline.hget(keys.job(job_id), "state")
        replies = pipeline.execute(raise_on_error=False)
    said = ["unreadable" if isinstance(state, ResponseError) else text_of(state or b"") for state in replies]
    states = dict.fromkeys(JOB_STATES, 0)
    for state in said:
        if state in FINAL:
            states[state] += 1
    # Those without a state last: most of them have reached the end of their life.
    others = [(not state, job_id) for job_id, state in zip(newest, said, strict=True) if state not in FINAL]
    open_ones = [job_id for _, job_id in sorted(others, key=lambda one: one[0])]
    statuses = [registry.among_workers(one, workers.values()) for one in _statuses(redis, open_ones[:MAX_ACTIVE])]
    for status in statuses:
        states["paused" if status.paused else status.state] += 1
    return statuses, states


def _statuses(redis: Redis, job_ids: list[str]) -> list[JobStatus]:
    now, found = time.time(), []
    for job_id, (raw, money) in zip(job_ids, registry.entries(redis, job_ids), strict=True):
        with contextlib.suppress(JobNotFoundError):  # its entry has just reached the end of its life
            found.append(registry.listed_status(job_id, raw, now=now, money=money))
    return found


def _routes(redis: Redis, workers: Iterable[Worker]) -> tuple[Route, ...]:
    """Every way to an LLM, what the workers say of it put together; at most `MAX_ROUTES` and one for the rest."""
    found: dict[str, Route] = {}
    latencies: dict[str, list[float]] = {}
    digests: dict[str, str] = {}
    for worker in workers:
        for name, said in worker.routes.items():
            if name not in found and len(found) >= MAX_ROUTES:
                key, endpoint, model = OTHER, OTHER, OTHER
            else:
                key, endpoint, model = name, name.removesuffix(f"/{said.model}"), str(said.model)
            found[key] = _with(found.get(key) or Route(endpoint, model), said)
            if said.latency_ms is not None:
                latencies.setdefault(key, []).append(said.latency_ms)
            if said.limit_digest and key != OTHER:
                digests[key] = said.limit_digest
    learnt = _learnt(redis, digests)
    return tuple(
        replace(
            route,
            latency_ms=sum(latencies[key]) / len(latencies[key]) if key in latencies else None,
            learnt_per_minute=learnt.get(key),
        )
        for key, route in sorted(found.items())
    )


def _with(route: Route, said: fleet.RouteReport) -> Route:
    circuit = said.circuit or "closed"
    return replace(
        route,
        circuit=max(route.circuit, circuit, key=lambda state: CIRCUITS.index(state) if state in CIRCUITS else 0),
        in_use=route.in_use + int(said.in_use),
        queued=route.queued + int(said.queued),
        limit=route.limit + int(said.limit),
        failures=route.failures + int(said.failures),
        cool_downs=max(route.cool_downs, int(said.cool_downs)),
        cooling_seconds=max(route.cooling_seconds, said.cooling_seconds),
        cooling_for=said.cooling_for or route.cooling_for,
        errors=tuple(sorted({*route.errors, said.error})) if said.error else route.errors,
    )


def _learnt(redis: Redis, digests: Mapping[str, str]) -> dict[str, float]:
    """Requests a minute that refusals have taught, by the route's key."""
    replies = replies_of(redis, map(keys.learnt, digests.values()))
    us = {key: amounts(reply, ["us"]).get("us", 0) for key, reply in zip(digests, replies, strict=True)}
    return {key: 60e6 / each for key, each in us.items() if each > 0}
