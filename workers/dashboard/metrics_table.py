"""Every exported metric, named as https://prometheus.io/docs/practices/naming/ has it.

No job, destination or worker is a label; teams are those of the settings. A test holds docs/reference/metrics.md
against this table.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Literal

from tasks.jobs.budget import NANO
from tasks.jobs.teams import TeamState
from workers.diagnosis.system import CIRCUITS, RouteSummary, System
from workers.observe.counters import parsed
from workers.observe.measurements import HOPS, WHOLES
from workers.observe.metrics import Histogram

#: Labels' values and the value of one series.
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `read` gives its series; none where its value is not known, which is not the same as 0."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    read: Callable[[System], Iterator[Sample]]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Durations:
    name: str
    help: str
    read: Callable[[System], Iterator[tuple[tuple[str, ...], Histogram]]]
    labels: tuple[str, ...] = ()
    kind: Literal["histogram"] = "histogram"
    unit: str = "seconds"


def _one(get: Callable[[System], float | None]) -> Callable[[System], Iterator[Sample]]:
    def read(system: System) -> Iterator[Sample]:
        value = get(system)
        if value is not None:
            yield (), value

    return read


def _of_teams(
    get: Callable[[TeamState], tuple[float | None, float | None]],
) -> Callable[[System], Iterator[Sample]]:
    def read(system: System) -> Iterator[Sample]:
        for state in system.teams:
            for period, value in zip(("day", "month"), get(state), strict=True):
                if value is not None and not state.unreadable:
                    yield (state.team, period), value

    return read


def _totals(fields: Mapping[tuple[str, ...], str], scale: float = 1.0) -> Callable[[System], Iterator[Sample]]:
    def read(system: System) -> Iterator[Sample]:
        for labels, name in fields.items():
            if name in system.totals:
                yield labels, system.totals[name] / scale

    return read


def _cache(system: System) -> Iterator[Sample]:
    """A question that memory does not answer goes on to Redis."""
    said = system.cache
    if said.get("since") is None:
        return
    memory, shared, missed = (float(said[name]) for name in ("memory_hits", "redis_hits", "misses"))
    yield ("memory", "hit"), memory
    yield ("memory", "miss"), shared + missed
    yield ("redis", "hit"), shared
    yield ("redis", "miss"), missed


def _counted(name: str) -> Callable[[System], float | None]:
    def get(system: System) -> float | None:
        return float(system.cache[name]) if system.cache.get("since") is not None else None

    return get


def _profiled(name: str, *labels: str) -> Callable[[System], Iterator[Sample]]:
    """A counter that processes add to where profiling is on; of many series the largest `MAX_SERIES`."""

    def read(system: System) -> Iterator[Sample]:
        found: dict[tuple[str, ...], float] = {}
        for field, amount in system.metrics.counters.items():
            known, having = parsed(field)
            if known == name:
                values = tuple(having.get(label, "") for label in labels)
                found[values] = found.get(values, 0.0) + amount
        # Those beyond the bound are left out, not added up: a sum of what is left would fall when one of them grows.
        yield from sorted(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MAX_SERIES])

    return read


def _jobs(system: System) -> Iterator[Sample]:
    for state, count in system.jobs.items():
        yield (state,), count


def _lanes(system: System) -> Iterator[Sample]:
    busy = sum(worker.lanes_busy for worker in system.workers.values())
    yield ("busy",), busy
    yield ("idle",), max(0, sum(worker.lanes for worker in system.workers.values()) - busy)


def _connections(system: System) -> Iterator[Sample]:
    yield ("in_use",), sum(worker.connections_in_use for worker in system.workers.values())
    yield ("idle",), sum(int(worker.pool.idle) for worker in system.workers.values())
    yield ("allowed",), sum(worker.connections for worker in system.workers.values())


def _batch_requests(system: System) -> Iterator[Sample]:
    yield ("under_way",), system.batches.running if system.batches else 0
    yield ("waiting",), system.batches.waiting if system.batches else 0


def _by_route(get: Callable[[RouteSummary], float | None]) -> Callable[[System], Iterator[Sample]]:
    def read(system: System) -> Iterator[Sample]:
        for route in system.routes:
            value = get(route)
            if value is not None:
                yield (route.endpoint, route.model), value

    return read


def _spans(fields: Mapping[tuple[str, ...], str]) -> Callable[[System], Iterator[tuple[tuple[str, ...], Histogram]]]:
    def read(system: System) -> Iterator[tuple[tuple[str, ...], Histogram]]:
        for labels, name in fields.items():
            if name in system.metrics.spans:
                yield labels, system.metrics.spans[name]

    return read


ROUTE: Final = ("endpoint", "model")
MAX_SERIES: Final = 200
DURABLE: Final = "exact and durable: as the database has it"


def _version(_system: System) -> Iterator[Sample]:
    yield (version("smart-destination-themes"),), 1


METRICS: Final[tuple[Metric, ...]] = (
    Metric("themes_llm_calls_total", "counter", "calls",
           f"Requests to LLMs that may have been paid for ({DURABLE}).", _totals({(): "llm_calls"})),
    Metric("themes_llm_tokens_total", "counter", "tokens",
           f"Tokens of those calls, prompt and completion ({DURABLE}).",
           _totals({("prompt",): "prompt_tokens", ("completion",): "completion_tokens"}), ("kind",)),
    Metric("themes_llm_cached_tokens_total", "counter", "tokens",
           f"Of the prompt tokens, those that the provider's cache had, and those written into it ({DURABLE}).",
           _totals({("read",): "cached_tokens", ("written",): "cache_write_tokens"}), ("kind",)),
    Metric("themes_llm_reasoning_tokens_total", "counter", "tokens",
           f"Of the completion tokens, those of reasoning ({DURABLE}).", _totals({(): "reasoning_tokens"})),
    Metric("themes_llm_cost_usd_total", "counter", "US dollars",
           f"Cost of those calls as servers tell it, else by their prices; those without one are left out ({DURABLE}).",
           _totals({(): "cost_nano_usd"}, NANO)),
    Metric("themes_llm_unpriced_calls_total", "counter", "calls",
           f"Calls of models without a price ({DURABLE}).", _totals({(): "unpriced_calls"})),
    Metric("themes_destinations_total", "counter", "destinations",
           f"Destinations that came to an outcome: ok, partial or failed ({DURABLE}).",
           _totals({(o,): f"destinations_{o}" for o in ("ok", "partial", "failed")}), ("outcome",)),
    Metric("themes_cache_requests_total", "counter", "requests",
           "Looks into the cache: memory first, then Redis. `themes cache clear` starts again at 0.",
           _cache, ("tier", "result")),
    Metric("themes_llm_coalesced_total", "counter", "prompts",
           "Prompts that were answered together with an equal one in flight.", _one(_counted("coalesced"))),
    Metric("themes_cache_saved_usd_total", "counter", "US dollars",
           "What the completions out of the cache had cost when they were made.", _one(_counted("saved_usd"))),
    Metric("themes_llm_requests_total", "counter", "requests",
           "HTTP requests to LLMs by what came of them: ok, rate_limited, an error's class, cancelled; where profiling "
           "is on.", _profiled("llm_requests_total", *ROUTE, "outcome"), (*ROUTE, "outcome")),
    Metric("themes_llm_unreachable_total", "counter", "connections",
           "Connections to LLMs that could not be made; where profiling is on.",
           _profiled("llm_unreachable_total", *ROUTE), ROUTE),
    Metric("themes_cache_bytes_total", "counter", "bytes",
           "Bytes of completions that were stored, raw and as stored; where profiling is on.",
           _profiled("cache_bytes_total", "form"), ("form",)),
    Metric("themes_events_total", "counter", "events",
           "Events for watchers: sent, or dropped while Redis was away; where profiling is on.",
           _profiled("events_total", "result"), ("result",)),
    Metric("themes_redis_errors_total", "counter", "commands",
           "Reports to Redis that failed, by role; where profiling is on.",
           _profiled("redis_errors_total", "role"), ("role",)),
    Metric("themes_process_cpu_seconds_total", "counter", "seconds",
           "CPU time of all processes, by role; where profiling is on.",
           _profiled("process_cpu_seconds_total", "role"), ("role",)),
    Metric("themes_consumer_rows_total", "counter", "rows",
           "Rows that consumers have written; where profiling is on.", _profiled("consumer_rows_total")),
    Metric("themes_build_info", "gauge", "1", "Always 1; the version of this dashboard.", _version, ("version",)),
    Metric("themes_queue_messages", "gauge", "messages",
           "Messages that wait in the Celery queue, all priorities together.", _one(lambda s: s.queue)),
    Metric("themes_queue_dead_messages", "gauge", "messages",
           "What was in the queue and is no message of ours, kept for a look.", _one(lambda s: s.queue_dead)),
    Metric("themes_results_waiting", "gauge", "entries",
           "Entries of the results stream that are not durable yet.", _one(lambda s: s.results)),
    Metric("themes_consumer_lag_entries", "gauge", "entries",
           "Entries of the results stream that no consumer has read yet.", _one(lambda s: s.results_unread)),
    Metric("themes_consumers", "gauge", "processes", "Results consumers that live.", _one(lambda s: len(s.consumers))),
    Metric("themes_consumer_entries_per_second", "gauge", "entries a second",
           "Entries that the consumers make durable.",
           _one(lambda s: sum(c.entries_per_second for c in s.consumers.values()))),
    Metric("themes_workers", "gauge", "processes", "Worker processes that live.", _one(lambda s: len(s.workers))),
    Metric("themes_workers_lost", "gauge", "processes",
           "Workers that stopped giving signs of life within the last hour, without taking leave, and are not back.",
           _one(lambda s: len(s.lost))),
    Metric("themes_worker_restarts", "gauge", "restarts",
           "How often supervisors have started the living workers again.",
           _one(lambda s: sum(w.restarts for w in s.workers.values()))),
    Metric("themes_lanes", "gauge", "lanes", "Lanes of all workers: busy or idle.", _lanes, ("state",)),
    Metric("themes_lanes_waiting", "gauge", "destinations",
           "Destinations that workers hold and no lane has begun.",
           _one(lambda s: sum(w.lanes_waiting for w in s.workers.values()))),
    Metric("themes_llm_connections", "gauge", "connections",
           "Connections to LLMs of all workers: in_use, idle (open), and how many are allowed.", _connections,
           ("state",)),
    Metric("themes_llm_connections_waiting", "gauge", "callers",
           "Callers in line for a connection.", _one(lambda s: sum(w.connections_waiting for w in s.workers.values()))),
    Metric("themes_jobs", "gauge", "jobs",
           "Jobs by state, the newest 1,000; ended ones are forgotten after a week.", _jobs, ("state",)),
    Metric("themes_destinations_open", "gauge", "destinations",
           "Destinations without an outcome of jobs that have not ended.", _one(lambda s: s.destinations_open)),
    Metric("themes_budget_used_ratio", "gauge", "1",
           "The largest part of its budget that a job has spent, of those that have one and have not ended.",
           _one(lambda s: s.budget_used)),
    Metric("themes_team_spent_usd", "gauge", "usd",
           "What a team's jobs have cost in the UTC day or month.", _of_teams(lambda t: (t.day_usd, t.month_usd)),
           ("team", "period")),
    Metric("themes_team_limit_usd", "gauge", "usd",
           "What they may cost; absent without a limit.", _of_teams(lambda t: (t.usd_per_day, t.usd_per_month)),
           ("team", "period")),
    Metric("themes_batches_open", "gauge", "batches",
           "Batches that providers work on, of jobs that have not ended.",
           _one(lambda s: s.batches.under_way if s.batches else 0)),
    Metric("themes_batch_requests", "gauge", "requests",
           "Requests of these jobs: under_way in a batch, or waiting to be sent in one.", _batch_requests, ("state",)),
    Metric("themes_batch_oldest_seconds", "gauge", "seconds",
           "How long ago the oldest open batch was asked for; absent where none is open.",
           _one(lambda s: s.batches.age_seconds(s.at) if s.batches else None)),
    Metric("themes_webhooks_waiting", "gauge", "notices",
           "Notices of jobs that webhook.url has not taken yet.", _one(lambda s: s.webhooks)),
    Metric("themes_llm_endpoint_up", "gauge", "1",
           "1 where the circuit is closed at every worker, 0 where it is open or half-open at one.",
           _by_route(lambda r: float(r.circuit == CIRCUITS[0])), ROUTE),
    Metric("themes_llm_endpoint_failures", "gauge", "requests",
           "Requests of the living workers that failed by the endpoint's fault.", _by_route(lambda r: r.failures),
           ROUTE),
    Metric("themes_llm_endpoint_cooling_seconds", "gauge", "seconds",
           "Seconds for which the endpoint asked to be left alone.", _by_route(lambda r: r.cooling_seconds), ROUTE),
    Metric("themes_llm_endpoint_learnt_requests_per_minute", "gauge", "requests a minute",
           "The rate that refusals have taught; absent where nothing was refused lately.",
           _by_route(lambda r: r.learnt_per_minute), ROUTE),
    Metric("themes_redis_memory_bytes", "gauge", "bytes", "Memory that Redis uses.", _one(lambda s: s.redis_bytes)),
    Metric("themes_redis_memory_limit_bytes", "gauge", "bytes",
           "What it may use; absent without a limit.", _one(lambda s: s.redis_limit_bytes or None)),
)  # fmt: skip

HISTOGRAMS: Final[tuple[Durations, ...]] = (
    Durations("themes_llm_call_duration_seconds",
              "A call to an LLM, from sending to the last byte; where profiling is on.", _spans({(): "llm.call"})),
    Durations("themes_step_duration_seconds",
              "One step of a destination's way (docs/reference/metrics.md names them); where profiling is on.",
              _spans({(name,): name for name in (*HOPS, *WHOLES)}), ("step",)),
)  # fmt: skip
