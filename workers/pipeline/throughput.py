"""How fast a job can go: by the workers that live now and what they have measured, or by the configured limits."""

from dataclasses import dataclass
from typing import Self

from redis import Redis

from config.sections import LlmSettings
from tasks import worker_reports as fleet
from tasks.texts import count
from workers.results.queries.earlier import Earlier


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """The workers with a heartbeat: how many, their LLM connections, and the mean seconds of their calls so far."""

    workers: int
    connections: int
    call_seconds: float | None

    @classmethod
    def seen(cls, redis: Redis) -> Self:
        workers, connections, made, total = 0, 0, 0, 0.0
        for report in fleet.workers(redis).values():
            workers += 1
            connections += report.connections
            if calls := report.profile.spans.get("llm.call"):
                made, total = made + calls.count, total + calls.total_seconds
        return cls(workers, connections, total / made if made else None)


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds that some calls take; None where that is unknown, with the reason. `basis` says what they come from."""

    seconds: float | None
    reason: str | None = None
    basis: str | None = None


def duration_of(
    calls: float, tokens: float, *, settings: LlmSettings, fleet: WorkerCapacity | None, earlier: Earlier
) -> Duration:
    """The time of some calls, or as long as the limits on rates make it, whichever is more.

    The calls go out as fast as the running workers (`fleet`; None: it cannot be seen) can with all connections busy,
    or, where these have measured nothing, as fast as in earlier jobs.
    """
    if calls == 0:
        return Duration(0.0)
    if fleet and fleet.connections and fleet.call_seconds is not None:
        seconds = calls * fleet.call_seconds / fleet.connections
        basis = f"measured by {count(fleet.workers, 'running worker')}"
    elif earlier.calls_per_second:
        seconds = calls / earlier.calls_per_second
        basis = f"measured in {count(earlier.jobs, 'earlier job')} ({earlier.calls_per_second:.3g} calls/s)"
    elif fleet is None:
        return Duration(None, "the time is unknown: no earlier job with this model is in the database")
    elif not fleet.workers:
        return Duration(None, "the time is unknown: no worker is running")
    else:
        return Duration(None, "the time is unknown: the running workers have not measured a call yet")
    for amount, name in ((calls, "requests_per_minute"), (tokens, "tokens_per_minute")):
        per_minute = _allowed(settings, name)
        if per_minute:
            seconds = max(seconds, amount / per_minute * 60)
    return Duration(round(seconds, 1), basis=basis)


def _allowed(settings: LlmSettings, name: str) -> float | None:
    """What all endpoints together allow a minute; None where one of them has no limit."""
    general: float | None = getattr(settings, name)
    limits = [getattr(one, name) or general for one in settings.endpoints.values()] or [general]
    known = [float(limit) for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
