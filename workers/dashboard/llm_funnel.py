"""A prompt's way through the system: how full each step is, and which one holds it up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.texts import count
from workers.dashboard.llm_charts import durations
from workers.diagnosis.system import System
from workers.observe.format import NOTHING, milliseconds, rate
from workers.observe.reporter import SeriesPoint

#: Part of the lanes from which on they are all busy: one is always between two destinations.
BUSY_SHARE = 0.9
#: Seconds of results in the stream from which on saving is behind.
BEHIND_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    name: str
    value: str
    note: str
    #: Whether more wants to go through than can.
    is_full: bool = False


def funnel(system: System, last_minute: Sequence[SeriesPoint]) -> list[Step]:
    """From the queue to the database; of the full steps the last one holds up what is before it."""
    steps = [
        _queue(system), _lanes(system), _rate_limit(system), _connections(system), _llm(system, last_minute),
        _save(system),
    ]  # fmt: skip
    full = next((at for at in reversed(range(len(steps))) if steps[at].is_full), None)
    return [replace(step, is_full=at == full) for at, step in enumerate(steps)]


def _queue(system: System) -> Step:
    note = f"destinations left, {count(system.queue, 'message')} in line"
    return Step("queue", "Queue", f"{system.destinations_open:,}", note)


def _lanes(system: System) -> Step:
    workers = system.workers.values()
    lanes, busy = sum(worker.lanes for worker in workers), sum(worker.lanes_busy for worker in workers)
    waiting = sum(worker.lanes_waiting for worker in workers) + system.queue
    value = f"{busy:,} of {lanes:,}" if lanes else NOTHING
    note = f"busy in {count(len(workers), 'worker')}" if lanes else "no worker"
    return Step("lanes", "Lanes", value, note, is_full=bool(waiting) and busy >= BUSY_SHARE * lanes)


def _rate_limit(system: System) -> Step:
    queued = sum(route.queued for route in system.routes)
    learnt = [route.learnt_per_minute for route in system.routes if route.learnt_per_minute is not None]
    note = f"learned limit {sum(learnt):,.0f}/min" if learnt else "callers wait for it"
    return Step("rate", "Rate limit", f"{queued:,}", note, is_full=queued > 0)


def _connections(system: System) -> Step:
    workers = system.workers.values()
    allowed, in_use = sum(each.connections for each in workers), sum(each.connections_in_use for each in workers)
    waiting = sum(worker.connections_waiting for worker in workers)
    note = f"in use, {waiting:,} wait" if waiting else "in use, none waits"
    value = f"{in_use:,} of {allowed:,}" if allowed else NOTHING
    return Step("connections", "Connections", value, note, is_full=waiting > 0 and in_use >= allowed)


def _llm(system: System, last_minute: Sequence[SeriesPoint]) -> Step:
    """The latency of the last minute's calls; of all calls where there was none."""
    known = durations(last_minute)
    if not known.count:
        known = system.metrics.spans.get("llm.call", known)
    p50, p95 = (milliseconds(known.quantile(share)) if known.count else NOTHING for share in (0.5, 0.95))
    return Step("llm", "LLM", p50, f"median, {p95} p95")


def _save(system: System) -> Step:
    speed = sum(each.entries_per_second for each in system.consumers.values())
    note = rate(speed, " results/s") if system.consumers else "no consumer"
    is_behind = system.results_unread > BEHIND_SECONDS * max(speed, 10.0)
    return Step("save", "Save", f"{system.results:,}", f"not yet saved, {note}", is_full=is_behind)
