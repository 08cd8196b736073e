"""A prompt's way through the system: how full each step is, and which one holds it up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tasks.texts import count
from workers.dashboard.llm_charts import durations
from workers.diagnosis.finding import Resource
from workers.diagnosis.system import System
from workers.observe.format import NOTHING, duration, rate
from workers.observe.reporter import SeriesPoint

#: What a verdict may name -> the step that it is about.
STEP_OF: Final[Mapping[Resource, str]] = {
    "workers": "lanes", "lanes": "lanes", "cpu": "lanes", "memory": "lanes", "rate limit": "rate",
    "connections": "connections", "llm": "llm", "endpoint": "llm", "batches": "llm", "database": "save",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    name: str
    value: str
    note: str
    #: Whether the verdict names it.
    is_limit: bool = False


def funnel(system: System, last_minute: Sequence[SeriesPoint]) -> list[Step]:
    """From the queue to the database; marked is the step that the page's sentence is about."""
    limit = STEP_OF.get(system.verdict.resource) if system.verdict.resource else None
    steps = (
        _queue(system), _lanes(system), _rate_limit(system), _connections(system), _llm(system, last_minute),
        _save(system),
    )  # fmt: skip
    return [replace(step, is_limit=step.id == limit) for step in steps]


def _queue(system: System) -> Step:
    note = f"destinations left, {count(system.queue, 'message')} in line"
    return Step("queue", "Queue", f"{system.destinations_open:,}", note)


def _lanes(system: System) -> Step:
    workers = system.workers.values()
    lanes, busy = sum(worker.lanes for worker in workers), sum(worker.lanes_busy for worker in workers)
    value = f"{busy:,} of {lanes:,}" if lanes else NOTHING
    note = f"busy in {count(len(workers), 'worker')}" if lanes else "no worker"
    return Step("lanes", "Lanes", value, note)


def _rate_limit(system: System) -> Step:
    queued = sum(route.queued for route in system.routes)
    learnt = [route.learnt_per_minute for route in system.routes if route.learnt_per_minute is not None]
    note = f"learned limit {sum(learnt):,.0f}/min" if learnt else "callers wait for it"
    return Step("rate", "Rate limit", f"{queued:,}", note)


def _connections(system: System) -> Step:
    workers = system.workers.values()
    allowed, in_use = sum(each.connections for each in workers), sum(each.connections_in_use for each in workers)
    waiting = sum(worker.connections_waiting for worker in workers)
    note = f"in use, {waiting:,} wait" if waiting else "in use, none waits"
    value = f"{in_use:,} of {allowed:,}" if allowed else NOTHING
    return Step("connections", "Connections", value, note)


def _llm(system: System, last_minute: Sequence[SeriesPoint]) -> Step:
    """The latency of the last minute's calls; of all calls where there was none."""
    known = durations(last_minute)
    if not known.count:
        known = system.metrics.spans.get("llm.call", known)
    p50, p95 = (duration(known.quantile(share)) if known.count else NOTHING for share in (0.5, 0.95))
    return Step("llm", "LLM", p50, f"median, {p95} p95")


def _save(system: System) -> Step:
    speed = sum(each.entries_per_second for each in system.consumers.values())
    note = rate(speed, " results/s") if system.consumers else "no consumer"
    return Step("save", "Save", f"{system.results:,}", f"not yet saved, {note}")
