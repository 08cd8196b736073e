"""What a job's events say of its past: its rate over time, what ended last, and what is under way."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from tasks import keys
from tasks.jobs.events import decode
from tasks.messages import Event

LATEST: Final = 50
#: Destinations under way that are known by their answers.
MAX_RUNNING: Final = 500
POINTS: Final = 400
PAGE: Final = 1_000
#: Seconds after a job's start within which a rate is of a moment, and would dwarf all others.
FIRST_SECONDS: Final = 2.0
#: Seconds for which what was read is good enough; the page goes on from there by itself.
FRESH_SECONDS: Final = 2.0
JOBS: Final = 100
#: What a row of a page has of an event.
_OF_EVENT: Final = (
    "name", "country", "quality", "themes", "top_themes", "elapsed_ms", "stage", "error_class", "message",
)  # fmt: skip


@dataclass
class Recent:
    """A job's past as its page shows it; `last_id` is the event up to which it goes."""

    last_id: str = "0-0"
    #: By what they have come to (all, partial, failed): destination -> its row, the newest last.
    ended: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {name: {} for name in ("all", "partial", "failed")}
    )
    #: Destination -> its name, how many answers it has, and what they found.
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    read_at: float = float("-inf")

    def take(self, event: Event) -> None:
        self.last_id = event.id
        data, place = event.data, event.destination_id or ""
        if event.type in {"destination.done", "destination.failed"}:
            self.running.pop(place, None)
            state = "failed" if event.type == "destination.failed" else "partial" if is_partial(data) else "complete"
            self._keep(place, {"destination_id": place, "state": state, **{name: data.get(name) for name in _OF_EVENT}})
        elif event.type == "stage.done" and place not in self.ended["all"]:
            self._answer(place, data)
        elif event.type == "job.started" and not self.points:
            self.points.append((event.at, 0.0))
        elif event.type == "job.progress" and (not self.points or event.at - self.points[0][0] >= FIRST_SECONDS):
            self.points.append((event.at, float(data.get("rate_per_second") or 0)))
            if len(self.points) > 2 * POINTS:
                self.points = self.points[::2]
        elif event.type in {"job.done", "job.paused"}:
            self.running.clear()

    def _keep(self, place: str, row: dict[str, Any]) -> None:
        for name, rows in self.ended.items():
            # One that is asked again has ended before.
            rows.pop(place, None)
            if name in {"all", row["state"]}:
                rows[place] = row
                if len(rows) > LATEST:
                    del rows[next(iter(rows))]

    def _answer(self, place: str, data: dict[str, Any]) -> None:
        known = self.running.pop(place, None) or {"name": data.get("name", ""), "answers": 0, "found": []}
        known["answers"] += 1
        known["found"] = [*(data.get("found") or ())[:2], *known["found"]][:4]
        self.running[place] = known
        if len(self.running) > MAX_RUNNING:
            del self.running[next(iter(self.running))]

    def rows(self) -> list[dict[str, Any]]:
        """The newest first: the last ones of all, then older partial and failed ones, each once."""
        found: dict[str, dict[str, Any]] = {}
        for rows in self.ended.values():
            found |= {place: row for place, row in reversed(rows.items()) if place not in found}
        return list(found.values())


def is_partial(data: Any) -> bool:
    return bool(data.get("status") == "partial")


class RecentJobs:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
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
            page: Any = await self.redis.xrange(keys.events(job_id), min=f"({recent.last_id}", count=PAGE)
            for entry_id, fields in page:
                try:
                    recent.take(decode(entry_id, fields))
                except (KeyError, msgspec.MsgspecError, UnicodeDecodeError):
                    # Not an event of ours: passed over, as the feed does, which also says so.
                    recent.last_id = entry_id.decode()
            if len(page) < PAGE:
                recent.read_at = time.monotonic()
                return
