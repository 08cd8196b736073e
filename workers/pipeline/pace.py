"""How fast a job can go: by the workers that live now and what they have measured, or by the configured limits."""

import json
from dataclasses import dataclass
from typing import Self

from redis import Redis

from config.settings import LlmSettings
from tasks import keys
from workers.observe.metrics import Histogram


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers with a heartbeat: how many, their LLM connections, and the mean seconds of their calls so far."""

    workers: int
    connections: int
    call_seconds: float | None

    @classmethod
    def seen(cls, redis: Redis) -> Self:
        """Read the heartbeats."""
        workers, connections, count, total = 0, 0, 0, 0.0
        for key in redis.scan_iter(keys.worker("*"), count=1000):
            allowed, profile = redis.hmget(key, "connections", "profile")
            workers += 1
            connections += int(allowed or 0)
            spans = json.loads(profile or b"{}").get("spans", {})
            if "llm.call" in spans:
                calls = Histogram.from_dict(spans["llm.call"])
                count, total = count + calls.count, total + calls.total
        return cls(workers, connections, total / count if count else None)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that some calls take; None where nobody can know, with the reason."""

    seconds: float | None
    reason: str | None = None


def pace_of(calls: float, tokens: float, *, settings: LlmSettings, fleet: Fleet) -> Pace:
    """The time of some calls: all connections busy, or as fast as the limits allow, whichever is slower."""
    if not fleet.workers:
        return Pace(None, "the time is unknown: no worker is running")
    if calls == 0:
        return Pace(0.0)
    if not fleet.connections or fleet.call_seconds is None:
        return Pace(None, "the time is unknown: the running workers have not measured a call yet")
    seconds = calls * fleet.call_seconds / fleet.connections
    if settings.requests_per_minute:
        seconds = max(seconds, calls / settings.requests_per_minute * 60)
    if settings.tokens_per_minute:
        seconds = max(seconds, tokens / settings.tokens_per_minute * 60)
    return Pace(round(seconds, 1))
