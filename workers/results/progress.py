"""What is said about a job while its results become durable: hash fields, events, and how fast it goes.

Plain functions and one small memory; nothing here talks to Redis.
"""

import time
from collections import deque
from typing import Any, Final

from tasks.messages import Event, Result
from workers.results.database.rows import JobRow, StoredResult
from workers.results.database.tables import USAGE_COLUMNS

#: Seconds that a rate looks back.
WINDOW_SECONDS: Final = 10.0


class RateWindow:
    """Destinations per second of every running job over the last `WINDOW_SECONDS`.

    Reads the job's own durable counters, so that of several consumers each one knows the rate of all.
    """

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = {}

    def rate(self, job: JobRow, now: float) -> float:
        """The rate after this report; 0 before anything can be said."""
        samples = self._samples.setdefault(job.job_id, deque())
        if not samples and job.started_at is not None and job.started_at < now:
            samples.append((job.started_at, 0))
        samples.append((now, job.finished))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW_SECONDS:  # noqa: PLR2004 - a rate needs two
            samples.popleft()
        (first_at, first), (last_at, last) = samples[0], samples[-1]
        return max(0.0, (last - first) / (last_at - first_at)) if last_at > first_at else 0.0

    def forget(self, job_id: str) -> None:
        self._samples.pop(job_id, None)


def counters(job: JobRow, rate_per_second: float) -> dict[str, Any]:
    """The data of `job.progress`. `eta_seconds` is None while the total or the rate is not known."""
    left = None if job.total is None else max(0, job.total - job.finished)
    eta = 0.0 if left == 0 else left / rate_per_second if left is not None and rate_per_second else None
    return {
        "total": job.total,
        "done": job.done,
        "failed": job.failed,
        "partial": job.partial,
        "rate_per_second": round(rate_per_second, 3),
        "eta_seconds": None if eta is None else round(eta, 1),
        **{name: getattr(job.usage, name) for name in USAGE_COLUMNS},
    }


def hash_fields(job: JobRow, rate_per_second: float, now: float) -> dict[str, str]:
    """The fields of the job's hash that the consumer owns; the others are the producer's."""
    values: dict[str, Any] = {
        "state": job.state,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "done": job.done,
        "failed": job.failed,
        "partial": job.partial,
        **{name: getattr(job.usage, name) for name in USAGE_COLUMNS},
        "rate_per_second": round(rate_per_second, 3),
        "rate_at": now,
        "revision": job.revision,
    }
    if job.sealed:
        values |= {"sealed": 1, "total": job.total}
    return {name: "" if value is None else str(value) for name, value in values.items()}


def job_event(kind: Any, job: JobRow, data: dict[str, Any]) -> Event:
    return Event(type=kind, job_id=job.job_id, at=time.time(), data=data)


def destination_event(outcome: StoredResult) -> Event:
    """`destination.done` or `destination.failed`. `at` is when it became durable, not when it was made."""
    result = outcome.result
    data = {
        "name": outcome.name,
        "country": outcome.country,
        "llm_calls": result.usage.llm_calls,
        "cache_hits": result.usage.cache_hits,
        "elapsed_ms": result.elapsed_ms,
        **_outcome_data(result),
    }
    return Event(
        type="destination.done" if result.profile else "destination.failed",
        job_id=result.job_id,
        destination_id=result.destination_id,
        at=time.time(),
        data=data,
    )


def _outcome_data(result: Result) -> dict[str, Any]:
    if result.profile is not None:
        profile = result.profile
        return {
            "status": profile.status,
            "themes": profile.theme_count,
            "top_themes": profile.best,
            "quality": profile.quality,
        }
    if result.failure is not None:
        failure = result.failure
        return {
            "stage": failure.stage,
            "error_class": failure.error_class,
            "message": failure.message,
            "attempts": failure.attempts,
        }
    return {}
