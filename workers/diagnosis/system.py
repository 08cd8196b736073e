"""The one reader of the live system in Redis: for `themes top`, the LLM page, and Prometheus."""

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from redis import Redis, ResponseError

from config.teams import TeamBudgets
from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import server_info, text_of
from tasks.errors import JobNotFoundError
from tasks.jobs import registry, totals
from tasks.jobs.batches import Batches
from tasks.jobs.registry import FINAL, JobStatus
from tasks.jobs.teams import TeamState, read_teams
from workers.diagnosis.verdict import NONE, Pulse, Verdict, of_jobs, read_backlog, read_learnt, together
from workers.llm.cache.stats import read as read_cache
from workers.observe.reporter import Metrics, SeriesPoint, read_metrics, read_series

NO_TEAMS: Final[TeamBudgets] = MappingProxyType({})
#: Seconds for which what was read is good enough for every reader.
FRESH_SECONDS: Final = 2.0
#: Seconds after which no process, whose clock may be late, adds to a point of the series.
SETTLED_SECONDS: Final = 60.0
#: Jobs whose state is counted, the newest first.
MAX_JOBS: Final = 1_000
#: Jobs that have not ended whose whole status is read.
MAX_ACTIVE: Final = 200
#: Ways to an LLM that are told apart; those in addition are added up as `OTHER`.
MAX_ROUTES: Final = 30
OTHER: Final = "other"
#: States of a job, `paused` apart from `stalled`.
JOB_STATES: Final = ("queued", "running", "paused", "stalled", "done", "cancelled", "unreadable")
#: How bad a circuit's state is: of several workers' the worst is shown.
CIRCUITS: Final = ("closed", "half-open", "open")


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """One model at one endpoint, over all workers."""

    endpoint: str
    model: str
    circuit: str = "closed"
    in_use: int = 0
    queued: int = 0
    limit: int = 0
    failures: int = 0
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
class System:
    """Everything at one moment (`at`, seconds since 1970)."""

    at: float
    workers: Mapping[str, fleet.WorkerReport]
    #: Workers that have stopped giving signs of life without taking leave, within the last hour.
    lost: tuple[str, ...]
    consumers: Mapping[str, fleet.ConsumerReport]
    routes: tuple[RouteSummary, ...]
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
    #: What limits it now.
    verdict: Verdict = NONE
    #: Batches at providers of all jobs that have not ended; None where none has any.
    batches: Batches | None = None
    teams: tuple[TeamState, ...] = ()
    webhooks: int = 0
    #: What cannot be read, and why: a job's entry, a process's report.
    unreadable: tuple[str, ...] = ()

    @property
    def is_profiled(self) -> bool:
        return any(worker.profile != fleet.ProfileReport() for worker in self.workers.values())


class SystemReader:
    """Reads the system, at most once in `FRESH_SECONDS`. Blocks: call it in a thread; safe from several."""

    def __init__(self, redis: Redis, *, broker: Redis, budgets: TeamBudgets = NO_TEAMS) -> None:
        self._redis = redis
        self._budgets = budgets
        self._broker = broker
        self._lock = threading.Lock()
        self._known: tuple[float, System] | None = None
        self._points: tuple[float, list[SeriesPoint]] | None = None
        #: Points of the series that do not change any more, by their time.
        self._settled: dict[float, SeriesPoint] = {}

    def read(self) -> System:
        """Everything as it stood at most `FRESH_SECONDS` ago. Errors of Redis pass through."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > FRESH_SECONDS:
                self._known = (time.monotonic(), read_system(self._redis, self._broker, self._budgets))
            return self._known[1]

    def points(self) -> list[SeriesPoint]:
        with self._lock:
            if self._points is None or time.monotonic() - self._points[0] > FRESH_SECONDS:
                now = time.time()
                points = read_series(self._redis, now=now, known=self._settled)
                self._points = (time.monotonic(), points)
                self._settled = {point.at: point for point in points if point.at < now - SETTLED_SECONDS}
            return self._points[1]


def read_system(redis: Redis, broker: Redis, budgets: TeamBudgets = NO_TEAMS) -> System:
    workers, consumers = fleet.workers(redis), fleet.consumers(redis)
    names = [text_of(name) for name in redis.zrange(keys.WORKERS, 0, -1)]
    results, unread = _results(redis)
    queue, dead = queue_lengths(broker)
    learnt = read_learnt(redis, workers)
    statuses, states = _jobs(redis, workers)
    shares = [one.spent_usd / one.budget_usd for one in statuses if one.budget_usd and one.spent_usd is not None]
    memory = server_info(redis)
    return System(
        at=time.time(),
        workers=workers,
        lost=tuple(name for name in names if name not in workers),
        consumers=consumers,
        routes=_routes(learnt, workers.values()),
        queue=queue,
        queue_dead=dead,
        results=results,
        results_unread=unread,
        jobs=states,
        destinations_open=sum(max(0, one.total - one.done - one.failed) for one in statuses),
        budget_used=max(shares, default=None),
        batches=together(statuses),
        teams=tuple(read_teams(redis, budgets)),
        webhooks=int(redis.zcard(keys.WEBHOOKS_DUE)),
        cache=read_cache(redis),
        totals=totals.read_totals(redis),
        metrics=read_metrics(redis),
        redis_bytes=int(memory.get("used_memory", 0)),
        redis_limit_bytes=int(memory.get("maxmemory", 0)),
        verdict=of_jobs(
            statuses,
            Pulse(
                workers=workers,
                consumers=consumers,
                learnt=learnt,
                queue=queue,
                results=results,
                behind_seconds=read_backlog(redis)[1],
            ),
        ),
        unreadable=(
            *(f"job {one.job_id}: {one.unreadable}" for one in statuses if one.unreadable),
            *(f"{name}: {report.unreadable}" for name, report in workers.items() if report.unreadable),
        ),
    )


def queue_lengths(broker: Redis) -> tuple[int, int]:
    with broker.pipeline(transaction=False) as pipeline:
        for key in (*keys.queue_keys(), keys.QUEUE_DEAD):
            pipeline.llen(key)
        *waiting, dead = pipeline.execute()
    return sum(waiting), dead


def _results(redis: Redis) -> tuple[int, int]:
    length = int(redis.xlen(keys.RESULTS))
    try:
        groups: Any = redis.xinfo_groups(keys.RESULTS) if length else []
    except ResponseError:
        return length, length  # it has just gone
    pending = sum(int(group["pending"]) for group in groups if text_of(group["name"]) == keys.GROUP)
    return length, max(0, length - pending)


def _jobs(redis: Redis, workers: Mapping[str, fleet.WorkerReport]) -> tuple[list[JobStatus], dict[str, int]]:
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
    for job_id, (raw, more) in zip(job_ids, registry.entries(redis, job_ids), strict=True):
        with contextlib.suppress(JobNotFoundError):  # its entry has just reached the end of its life
            found.append(registry.listed_status(job_id, raw, now=now, **more))
    return found


def _routes(learnt: Mapping[str, float], workers: Iterable[fleet.WorkerReport]) -> tuple[RouteSummary, ...]:
    """Every way to an LLM, what the workers say of it put together; at most `MAX_ROUTES` and one for the rest."""
    found: dict[str, list[fleet.RouteReport]] = {}
    for worker in workers:
        for name, said in worker.pool.routes.items():
            key = name if name in found or len(found) < MAX_ROUTES else OTHER
            found.setdefault(key, []).append(said)
    return tuple(_route(key, said, learnt.get(key)) for key, said in sorted(found.items()))


def _route(key: str, said: Sequence[fleet.RouteReport], learnt_per_minute: float | None) -> RouteSummary:
    model = OTHER if key == OTHER else str(said[0].model)
    latencies = [one.latency_ms for one in said if one.latency_ms is not None]
    return RouteSummary(
        endpoint=key.removesuffix(f"/{model}"),
        model=model,
        circuit=max((one.circuit for one in said if one.circuit in CIRCUITS), key=CIRCUITS.index, default=CIRCUITS[0]),
        in_use=sum(int(one.in_use) for one in said),
        queued=sum(int(one.queued) for one in said),
        limit=sum(int(one.limit) for one in said),
        failures=sum(int(one.failures) for one in said),
        cooling_seconds=max(one.cooling_seconds for one in said),
        cooling_for=next((one.cooling_for for one in reversed(said) if one.cooling_for), ""),
        latency_ms=sum(latencies) / len(latencies) if latencies else None,
        learnt_per_minute=learnt_per_minute,
        errors=tuple(sorted({one.error for one in said if one.error})),
    )
