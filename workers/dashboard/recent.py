"""What a job's events say of its past: its rate over time, what was made last, what failed last."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from tasks import keys
from tasks.jobs.events import decode
from tasks.messages import Event

LATEST: Final = 50
POINTS: Final = 400
PAGE: Final = 1_000
#: Seconds for which what was read is good enough; the page goes on from there by itself.
FRESH_SECONDS: Final = 2.0
JOBS: Final = 100


@dataclass
class Recent:
    """A job's past as its page shows it; `last_id` is the event up to which it goes."""

    last_id: str = "0-0"
    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))
    failures: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))
    points: list[tuple[float, float]] = field(default_factory=list)
    read_at: float = float("-inf")

    def take(self, event: Event) -> None:
        self.last_id = event.id
        data = event.data
        if event.type in {"destination.done", "destination.failed"}:
            kept = self.latest if event.type == "destination.done" else self.failures
            kept.append({"destination_id": event.destination_id or "", **data})
        elif event.type == "job.progress":
            self.points.append((event.at, float(data.get("rate_per_second") or 0)))
            if len(self.points) > 2 * POINTS:
                self.points = self.points[::2]


class RecentJobs:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._jobs: dict[str, Recent] = {}

    async def of(self, job_id: str) -> Recent:
        recent = self._jobs.pop(job_id, None) or Recent()
        while len(self._jobs) >= JOBS:
            del self._jobs[next(iter(self._jobs))]
        self._jobs[job_id] = recent
        if time.monotonic() - recent.read_at > FRESH_SECONDS:
            await self._read(job_id, recent)
        return recent

    async def _read(self, job_id: str, recent: Recent) -> None:
        while True:
            page: Any = await self._redis.xrange(keys.events(job_id), min=f"({recent.last_id}", count=PAGE)
            for entry_id, fields in page:
                try:
                    recent.take(decode(entry_id, fields))
                except (KeyError, msgspec.MsgspecError, UnicodeDecodeError):
                    # Not an event of ours: passed over, as the feed does, which also says so.
                    recent.last_id = entry_id.decode()
            if len(page) < PAGE:
                recent.read_at = time.monotonic()
                return
