"""The values of the LLM page."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from tasks import worker_reports as fleet
from tasks.jobs.budget import NANO
from tasks.keys import SERIES_STEP_SECONDS as STEP_SECONDS
from tasks.texts import count
from workers.dashboard.llm_charts import charts
from workers.dashboard.llm_funnel import funnel
from workers.diagnosis.system import RouteSummary, System
from workers.observe.format import NOTHING, dollars, duration, percent, rate, size
from workers.observe.measurements import HOPS, WHOLES
from workers.observe.reporter import SeriesPoint

#: Points of the series that "now" is made of: a minute, without the one that is still growing.
NOW_POINTS: Final = 6
MAX_WORKERS: Final = 100
#: Steps that are shown at once: those in which the most time went.
OPEN_STEPS: Final = 6


def page_values(system: System, points: Sequence[SeriesPoint]) -> dict[str, Any]:
    all_steps = steps(system)
    return {
        "verdict": system.verdict.words,
        "notices": notices(system),
        "figures": figures(system, points),
        "funnel": funnel(system, points[-NOW_POINTS - 1 : -1]),
        "charts": charts(points, system.at),
        "steps": all_steps[:OPEN_STEPS],
        "more_steps": all_steps[OPEN_STEPS:],
        "workers": [worker_row(*named) for named in islice(system.workers.items(), MAX_WORKERS)],
        "more_workers": max(0, len(system.workers) - MAX_WORKERS),
        "routes": [route_row(route, system) for route in system.routes],
        "cache": cache_rows(system),
        "saved": saved(system),
        "totals": totals(system),
        "flow": flow(system),
    }


def notices(system: System) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    def note(text: str, kind: str = "") -> None:
        found.append({"text": text, "kind": kind})

    if not system.workers:
        waiting = system.destinations_open
        left = f" {count(waiting, 'destination')} waiting for one." if waiting else ""
        note(f"No worker is running, so nothing is measured now: themes worker starts one.{left}", "bad")
    elif not system.is_profiled:
        note(
            "Profiling is off (performance_optimization.enable_performance_profiling): rates, charts and durations are "
            "not measured. What is shown beside them is counted all the same."
        )
    if not system.consumers:
        note("No results consumer is running: no result is saved until one does (themes consumer).", "bad")
    if system.lost:
        note(f"Lost contact in the last hour: {', '.join(system.lost[:5])}.", "bad")
    for text in system.unreadable:
        note(f"Cannot be read: {text}", "bad")
    waits = [worker.waiting_for for worker in system.workers.values() if worker.waiting_for]
    for wait in {wait.reason: wait for wait in waits}.values():
        note(f"Waiting: {wait.format()}", "bad")
    return found


def _per_second(points: Sequence[SeriesPoint], name: str) -> float | None:
    """A rate over the last minute; None before there is one whole point."""
    last = points[-NOW_POINTS - 1 : -1]
    return sum(float(getattr(point, name)) for point in last) / (len(last) * STEP_SECONDS) if last else None


def _hit_share(points: Sequence[SeriesPoint]) -> float | None:
    last = points[-NOW_POINTS - 1 : -1]
    asked = sum(point.hits + point.misses for point in last)
    return sum(point.hits for point in last) / asked if asked else None


def figures(system: System, points: Sequence[SeriesPoint]) -> list[dict[str, str]]:
    measured = points if system.is_profiled else ()
    tokens = [_per_second(measured, f"{kind}_tokens") for kind in ("prompt", "completion")]
    rows = (
        ("calls", "LLM calls", rate(_per_second(measured, "calls"))),
        ("errors", "Errors", rate(_per_second(measured, "errors"))),
        ("destinations", "Destinations", rate(_per_second(measured, "destinations"))),
        ("tokens", "Tokens", rate(None if None in tokens else sum(t for t in tokens if t is not None))),
        ("hit-rate", "Cache hit rate", percent(_hit_share(measured), NOTHING)),
        ("coalesced", "Coalesced", rate(_per_second(measured, "coalesced"))),
    )
    return _with_ids(rows)


def _with_ids(rows: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"id": name, "title": title, "value": value} for name, title, value in rows]


def steps(system: System) -> list[dict[str, str]]:
    """How long each step took, those in which the most time went first; then those that contain others."""
    spans = system.metrics.spans
    hops = sorted((name for name in HOPS if name in spans), key=lambda name: -spans[name].total)
    return [
        {
            "name": name, "words": {**HOPS, **WHOLES}[name], "count": f"{histogram.count:,}",
            **{f"p{part}": duration(histogram.quantile(part / 100)) for part in (50, 95, 99)},
            "sum": duration(histogram.total),
        }
        for name in (*hops, *WHOLES)
        if (histogram := spans.get(name)) and histogram.count
    ]  # fmt: skip


def worker_row(name: str, worker: fleet.WorkerReport) -> dict[str, Any]:
    usage, pool = worker.usage, worker.pool
    return {
        "name": name,
        "lanes": f"{worker.lanes_busy} of {worker.lanes}" if worker.lanes else "stopping",
        "in_use": f"{worker.connections_in_use} of {worker.connections}",
        "wait": duration(None if pool.wait_p95_ms is None else pool.wait_p95_ms / 1000),
        "queued": f"{worker.connections_waiting:,} in line" if worker.connections_waiting else "",
        "cpu": NOTHING if usage.cpu_percent is None else f"{usage.cpu_percent:.0f}%",
        "memory": NOTHING if usage.rss_bytes is None else size(usage.rss_bytes),
        "restarts": count(worker.restarts, "restart") if worker.restarts else "",
    }


def route_row(route: RouteSummary, system: System) -> dict[str, Any]:
    metrics = system.metrics
    asked = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model)
    good = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model, outcome="ok")
    refused = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model, outcome="rate_limited")
    failed = asked - good - refused if asked else route.failures
    cooling = f"cools down, {duration(route.cooling_seconds)} left" if route.cooling_seconds else ""
    learnt = "" if route.learnt_per_minute is None else f"learned limit {route.learnt_per_minute:,.0f}/min"
    return {
        "endpoint": route.endpoint,
        "model": route.model,
        "circuit": route.circuit,
        "tag": "ok" if route.circuit == "closed" else "failed",
        "said": [*route.errors, *filter(None, (cooling, route.cooling_for if cooling else ""))],
        "queued": f"{route.queued:,}",
        "learnt": learnt,
        "in_flight": f"{route.in_use} of {route.limit}",
        "asked": f"{asked:,.0f}" if asked else NOTHING,
        "not_ok": ", ".join(f"{n:,.0f} {word}" for n, word in ((refused, "rate limited"), (failed, "failed")) if n),
        "latency": duration(None if route.latency_ms is None else route.latency_ms / 1000),
    }


def cache_rows(system: System) -> list[dict[str, str]]:
    said = system.cache
    if said.get("since") is None:
        return []
    memory, shared, missed = (int(said[name]) for name in ("memory_hits", "redis_hits", "misses"))
    rows = (
        ("Memory of the worker", memory + shared + missed, memory),
        ("Redis", shared + missed, shared),
        ("Total", memory + shared + missed, memory + shared),
    )
    return [
        {
            "tier": tier,
            "asked": f"{asked:,}",
            "hits": f"{hits:,}",
            "share": percent(hits / asked if asked else None, NOTHING),
        }
        for tier, asked, hits in rows
    ]


def saved(system: System) -> str:
    said = system.cache
    if said.get("since") is None:
        return ""
    tokens = int(said["saved_prompt_tokens"]) + int(said["saved_completion_tokens"])
    stored, raw = int(said["bytes_stored"]), int(said["bytes_raw"])
    smaller = f" Stored answers are {raw / stored:.1f} times smaller than they were." if stored else ""
    unpriced = " (some hits are of models without a price)" if said["unpriced_hits"] else ""
    return (
        f"Saved so far: {count(tokens, 'token')} and {dollars(float(said['saved_usd']))}{unpriced}; "
        f"{count(int(said['coalesced']), 'prompt')} answered together with an equal one.{smaller}"
    )


def totals(system: System) -> list[dict[str, str]]:
    said = system.totals
    if not said:
        return []
    tokens = said.get("prompt_tokens", 0) + said.get("completion_tokens", 0)
    rows = (
        ("total-calls", "LLM calls", f"{said.get('llm_calls', 0):,}"),
        ("total-hits", "From cache", f"{said.get('cache_hits', 0):,}"),
        ("total-tokens", "Tokens", f"{tokens:,}"),
        ("total-cost", "Cost", _cost(said)),
        ("total-ok", "Whole profiles", f"{said.get('destinations_ok', 0):,}"),
        ("total-partial", "Partial", f"{said.get('destinations_partial', 0):,}"),
        ("total-failed", "Failed", f"{said.get('destinations_failed', 0):,}"),
    )
    return _with_ids(rows)


def _cost(said: Mapping[str, int]) -> str:
    """What was spent; calls whose model has no price are not taken for free ones."""
    cost, unpriced = said.get("cost_nano_usd", 0), said.get("unpriced_calls", 0)
    if not unpriced:
        return dollars(cost / NANO)
    return f"{dollars(cost / NANO) if cost else 'unknown'} ({count(unpriced, 'call')} without a price)"


def flow(system: System) -> list[dict[str, str]]:
    by_state = ", ".join(f"{number:,} {state}" for state, number in system.jobs.items() if number)
    workers, consumers = system.workers.values(), system.consumers.values()
    waits = system.metrics.spans.get("llm.rate_wait")
    rows = (
        ("Jobs", by_state or "none"),
        ("Destinations without an outcome", f"{system.destinations_open:,}"),
        ("Messages in the queue", f"{system.queue:,}"),
        ("Destinations in line for a lane", f"{sum(worker.lanes_waiting for worker in workers):,}"),
        ("Wait for the rate limit, p95", duration(waits.quantile(0.95)) if waits and waits.count else NOTHING),
        ("Results in the stream", f"{system.results:,}, of which {system.results_unread:,} unread"),
        ("Consumers", f"{len(consumers)}, {sum(one.entries_per_second for one in consumers):,.0f} entries/s"),
        ("Entries that could not be stored", f"{sum(one.rejected for one in consumers):,}"),
        ("Memory of Redis", _memory(system)),
    )
    return [{"title": title, "value": value} for title, value in rows]


def _memory(system: System) -> str:
    used = size(system.redis_bytes)
    return f"{used} of {size(system.redis_limit_bytes)}" if system.redis_limit_bytes else f"{used}, no limit"
