"""The values of the LLM page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from tasks import worker_reports as fleet
from tasks.jobs.budget import NANO
from tasks.keys import SERIES_STEP_SECONDS as STEP_SECONDS
from tasks.texts import count
from workers.diagnosis.system import RouteSummary, System
from workers.observe.format import NOTHING, dollars, duration, milliseconds, percent, rate
from workers.observe.measurements import HOPS, WHOLES
from workers.observe.reporter import SeriesPoint

#: Points of the series that "now" is made of: a minute, without the one that is still growing.
NOW_POINTS: Final = 6
#: Points that a chart has at least: five minutes.
LEAST_POINTS: Final = 30
#: Size of a chart's drawing; the page stretches it.
WIDTH, HEIGHT = 720, 120
MAX_WORKERS: Final = 100


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing of the last hour. `area` and `lines` are paths in a box of `WIDTH` x `HEIGHT`."""

    id: str
    title: str
    now: str
    top: str
    ago: str
    area: str
    lines: tuple[tuple[str, str], ...]
    words: str


def page_values(system: System, points: Sequence[SeriesPoint]) -> dict[str, Any]:
    return {
        "notices": notices(system),
        "figures": figures(system, points),
        "charts": charts(points) if any(_is_busy(point) for point in points) else [],
        "steps": steps(system),
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
        note("No results consumer is running: nothing becomes durable until one does (themes consumer).", "bad")
    if system.lost:
        note(f"Lost without a word in the last hour: {', '.join(system.lost[:5])}.", "bad")
    for text in system.unreadable:
        note(f"Cannot be read: {text}", "bad")
    waits = [worker.waiting_for for worker in system.workers.values() if worker.waiting_for]
    for wait in {wait.reason: wait for wait in waits}.values():
        note(f"Waiting: {wait.format()}", "bad")
    return found


def _is_busy(point: SeriesPoint) -> bool:
    return bool(point.calls or point.hits or point.misses or point.destinations)


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
    connections = sum(worker.connections for worker in system.workers.values())
    in_use = sum(worker.connections_in_use for worker in system.workers.values())
    spans = system.metrics.spans
    call = spans.get("llm.call")
    rows = (
        ("calls", "LLM calls", rate(_per_second(measured, "calls"))),
        ("errors", "Errors", rate(_per_second(measured, "errors"))),
        ("destinations", "Destinations", rate(_per_second(measured, "destinations"))),
        ("tokens", "Tokens", rate(None if None in tokens else sum(t for t in tokens if t is not None))),
        ("hit-rate", "From the cache", percent(_hit_share(measured), NOTHING)),
        ("coalesced", "Coalesced", rate(_per_second(measured, "coalesced"))),
        ("p95", "Call, 95 of 100", milliseconds(call.quantile(0.95)) if call else NOTHING),
        ("pool", "Connections in use", f"{in_use:,} of {connections:,}" if system.workers else NOTHING),
        ("queue", "Messages queued", f"{system.queue:,}"),
        ("results", "Results not durable", f"{system.results:,}"),
    )
    return _with_ids(rows)


def _with_ids(rows: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"id": name, "title": title, "value": value} for name, title, value in rows]


def charts(points: Sequence[SeriesPoint]) -> list[Chart]:
    whole = _since_work_began(points[:-1])  # the last one is still growing

    def per_second(name: str) -> list[float | None]:
        return [float(getattr(point, name)) / STEP_SECONDS for point in whole]

    share = [point.hits / (point.hits + point.misses) if point.hits + point.misses else None for point in whole]
    tokens = [(point.prompt_tokens + point.completion_tokens) / STEP_SECONDS for point in whole]
    return [
        _chart("chart-calls", "LLM calls a second", per_second("calls"), ("errors", per_second("errors"))),
        _chart("chart-destinations", "Destinations a second", per_second("destinations")),
        _chart("chart-hits", "Part answered by the cache", share, top=1.0),
        _chart("chart-tokens", "Tokens a second", tokens),
    ]


def _since_work_began(points: Sequence[SeriesPoint]) -> Sequence[SeriesPoint]:
    """Without the idle time before the first work; at least `LEAST_POINTS`."""
    first = next((at for at, point in enumerate(points) if _is_busy(point)), len(points))
    return points[max(0, min(first - 1, len(points) - LEAST_POINTS)) :]


def _chart(
    name: str, title: str, values: Sequence[float | None], *others: tuple[str, Sequence[float | None]],
    top: float | None = None,
) -> Chart:  # fmt: skip
    known = [value for value in values if value is not None]
    most = top or max(known, default=0.0) or 1.0

    def shown(value: float) -> str:
        return percent(value) if top else rate(value)

    now = next((value for value in reversed(values) if value is not None), None)
    mean = sum(known) / len(known) if known else 0.0
    lines = (
        ("curve", _line(values, most)),
        *((f"curve {kind}", _line(other, most)) for kind, other in others if any(other)),
    )
    return Chart(
        id=name,
        title=title,
        now=NOTHING if now is None else shown(now),
        top=shown(most),
        ago=duration(len(values) * STEP_SECONDS),
        area=_area(values, most),
        lines=tuple(lines),
        words=f"{title} over the last hour: at most {shown(max(known, default=0.0))}, {shown(mean)} on average",
    )


def _places(values: Sequence[float | None], most: float) -> list[list[tuple[float, float]]]:
    """Where the values are drawn, in pieces: what is not known is a gap, not a zero."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            x = at / max(1, len(values) - 1) * WIDTH
            pieces[-1].append((x, HEIGHT - 2 - min(1.0, value / most) * (HEIGHT - 6)))
    return [piece for piece in pieces if piece]


def _line(values: Sequence[float | None], most: float) -> str:
    return " ".join("M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in piece) for piece in _places(values, most))


def _area(values: Sequence[float | None], most: float) -> str:
    return " ".join(
        f"M{piece[0][0]:.1f},{HEIGHT} L"
        + " L".join(f"{x:.1f},{y:.1f}" for x, y in piece)
        + f" L{piece[-1][0]:.1f},{HEIGHT} Z"
        for piece in _places(values, most)
    )


def steps(system: System) -> list[dict[str, str]]:
    spans = system.metrics.spans
    return [
        {
            "name": name, "words": words, "count": f"{histogram.count:,}",
            **{f"p{part}": milliseconds(histogram.quantile(part / 100)) for part in (50, 95, 99)},
            "sum": duration(histogram.total),
        }
        for name, words in {**HOPS, **WHOLES}.items()
        if (histogram := spans.get(name)) and histogram.count
    ]  # fmt: skip


def worker_row(name: str, worker: fleet.WorkerReport) -> dict[str, Any]:
    return {
        "name": name,
        "lanes": f"{worker.lanes_busy} of {worker.lanes}" if worker.lanes else "stopping",
        "waiting": f"{worker.lanes_waiting:,}",
        "in_use": worker.connections_in_use,
        "idle": int(worker.pool.idle),
        "allowed": worker.connections,
        "queued": worker.connections_waiting,
        "wait": NOTHING if worker.pool.wait_p95_ms is None else f"{worker.pool.wait_p95_ms:,.0f} ms",
        "cpu": NOTHING if worker.usage.cpu_percent is None else f"{worker.usage.cpu_percent:.0f} %",
        "memory": NOTHING if worker.usage.rss_bytes is None else f"{worker.usage.rss_bytes / 2**20:,.0f} MB",
        "restarts": worker.restarts,
    }


def route_row(route: RouteSummary, system: System) -> dict[str, Any]:
    metrics = system.metrics
    asked = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model)
    good = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model, outcome="ok")
    refused = metrics.total("llm_requests_total", endpoint=route.endpoint, model=route.model, outcome="rate_limited")
    return {
        "endpoint": route.endpoint,
        "model": route.model,
        "circuit": route.circuit,
        "tag": "ok" if route.circuit == "closed" else "failed",
        "errors": ", ".join(route.errors),
        "cooling": f"{duration(route.cooling_seconds)} left" if route.cooling_seconds else NOTHING,
        "cooling_for": route.cooling_for if route.cooling_seconds else "",
        "learnt": NOTHING if route.learnt_per_minute is None else f"{route.learnt_per_minute:,.0f}/min",
        "in_flight": f"{route.in_use} of {route.limit}",
        "queued": route.queued,
        "asked": f"{asked:,.0f}" if asked else NOTHING,
        "refused": f"{refused:,.0f}" if asked else NOTHING,
        "failed": f"{asked - good - refused:,.0f}" if asked else f"{route.failures:,}",
        "latency": NOTHING if route.latency_ms is None else f"{route.latency_ms:,.0f} ms",
    }


def cache_rows(system: System) -> list[dict[str, str]]:
    said = system.cache
    if said.get("since") is None:
        return []
    memory, shared, missed = (int(said[name]) for name in ("memory_hits", "redis_hits", "misses"))
    rows = (
        ("Memory of the worker", memory + shared + missed, memory),
        ("Redis", shared + missed, shared),
        ("Both", memory + shared + missed, memory + shared),
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
        ("Destinations that wait for a lane", f"{sum(worker.lanes_waiting for worker in workers):,}"),
        ("Callers that wait for a connection", f"{sum(worker.connections_waiting for worker in workers):,}"),
        ("Callers that wait for a rate limit", f"{sum(route.queued for route in system.routes):,}"),
        ("Wait for a rate limit, 95 of 100", milliseconds(waits.quantile(0.95)) if waits and waits.count else NOTHING),
        ("Results in the stream", f"{system.results:,}, of which {system.results_unread:,} unread"),
        ("Consumers", f"{len(consumers)}, {sum(one.entries_per_second for one in consumers):,.0f} entries/s"),
        ("Entries that could not be stored", f"{sum(one.rejected for one in consumers):,}"),
        ("Memory of Redis", _memory(system)),
    )
    return [{"title": title, "value": value} for title, value in rows]


def _memory(system: System) -> str:
    used = f"{system.redis_bytes / 2**20:,.0f} MB"
    return f"{used} of {system.redis_limit_bytes / 2**20:,.0f} MB" if system.redis_limit_bytes else f"{used}, no limit"
