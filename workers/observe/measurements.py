"""A job's measurements: what each process has measured of it, and all of them merged.

Every process that works for a job keeps `ProcessMeasurements`, cumulative since it took the job up, and replaces them
in `tasks.keys.measurements` at intervals. A killed process loses its last second. Counts that must be exact (calls,
tokens, cost) are in the database instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from workers.observe.metrics import Histogram

#: The hops of a destination, in the order in which it meets them -> what a person calls them. Names of spans.
HOPS: Final[Mapping[str, str]] = {
    "queue.wait": "waiting in the queue",
    "lane.wait": "waiting for a lane",
    "cache.get": "looking into the cache",
    "flight.claim": "claiming the prompt, for all processes",
    "flight.wait": "waiting for an equal prompt",
    "llm.rate_wait": "waiting for the rate limit",
    "llm.pool_wait": "waiting for a connection",
    "llm.connect": "connecting",
    "llm.first_byte": "LLM, to the first byte",
    "llm.body": "LLM, the rest of the answer",
    "llm.backoff": "pausing before another try",
    "llm.validate": "validating answers",
    "cache.put": "storing answers",
    "publish": "publishing the result",
    "result.wait": "result waiting for the consumer",
    "db.commit": "database, one batch",
}
#: Spans that contain others or stand beside the hops.
WHOLES: Final[Mapping[str, str]] = {
    "destination": "a destination, in its lane",
    "llm.call": "a call, from sending to the last byte",
    "loop.lag": "event loop late by",
    "redis": "a round trip to Redis",
}

#: The fact that says how many prompts of a destination can be under way together, round by round: "5 11".
PROMPT_ROUNDS: Final = "prompt_rounds"

Role = Literal["worker", "consumer", "producer", "dashboard", "provider"]


class SlowDestination(msgspec.Struct, frozen=True):
    """One of a job's slowest destinations: seconds by span, summed over its prompts (they overlap)."""

    destination_id: str
    name: str
    elapsed_ms: float
    spans: dict[str, float]
    #: Seconds since 1970, UTC.
    at: float


class ProcessMeasurements(msgspec.Struct, frozen=True):
    """What one process has measured of one job, cumulative.

    `spans` are `Histogram.as_dict`s in seconds. `sums` are integrals and counts over the time in which the process had
    work of this job: `held_seconds` that time itself, `lane_seconds` lanes x time, `lane_busy_seconds` destinations in
    lanes x time, `pool_seconds` connections allowed x time, `pool_busy_seconds` connections in use x time,
    `cpu_seconds`, `stolen`, `shared`, `yielded` (destinations), `disk_read_bytes`, `disk_written_bytes`,
    `switches_voluntary`, `switches_involuntary` (of threads). These are the
    whole process's: where two jobs are at work here, each of them has it all.

    The job's own are `executed` (destinations that a lane has ended with, whatever came of it), `llm.requests` (as the
    books count calls), `llm.errors.CLASS` (of these, those without an answer; `rate_limited` is a class),
    `connections_opened`, `connections_reused`, and of the ended destinations `bytes_raw`, `bytes_stored`,
    `cache_hits`, `memory_hits`, `cache_misses`, `coalesced`, `prompt_tokens`, `completion_tokens`. A consumer has
    `batches`, `entries` of the stream, `results` of destinations, `rows` of the database. What was bought of a provider
    is in one part for all of it (`workers.observe.batch_use`). `peaks` are maxima:
    `rss_bytes`, `uss_bytes`, `threads`, `descriptors`, and `rss_growth_bytes_per_hour` where the memory grows for sure
    (workers/observe/trend.py): a leak. `facts` are settings in force and what was learnt, by key.
    """

    process: str
    role: Role
    name: str
    host: str
    #: Seconds since 1970, UTC: the first and the last time at which it had work of this job.
    since: float
    until: float
    spans: dict[str, dict[str, Any]] = {}
    #: Seconds of spans that lay in another one: parent -> span -> seconds. Parallel ones add up to more than it.
    inside: dict[str, dict[str, float]] = {}
    sums: dict[str, float] = {}
    peaks: dict[str, float] = {}
    facts: dict[str, str | float | bool | None] = {}
    slowest: list[SlowDestination] = []


@dataclass(slots=True)
class JobMeasurements:
    parts: list[ProcessMeasurements] = field(default_factory=list)
    spans: dict[str, Histogram] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    slowest: list[SlowDestination] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[ProcessMeasurements]) -> "JobMeasurements":
        """Merge parts: histograms and sums are added up, the slowest are sorted."""
        picture = cls(parts=sorted(parts, key=lambda part: (part.role, part.name, part.since)))
        for part in picture.parts:
            for name, raw in part.spans.items():
                picture.spans.setdefault(name, Histogram()).merge(Histogram.from_dict(raw))
            for name, amount in part.sums.items():
                picture.sums[name] = picture.sums.get(name, 0.0) + amount
            picture.slowest.extend(part.slowest)
        picture.slowest.sort(key=lambda one: -one.elapsed_ms)
        return picture

    @property
    def workers(self) -> list[ProcessMeasurements]:
        return [part for part in self.parts if part.role == "worker"]
