"""Counters and histograms of all processes, in Redis: what Prometheus scrapes, and the series of the last hour.

Each process adds what is new once a second (workers/observe/numbered.py). Counters have Prometheus's names without a
prefix: docs/reference/metrics.md lists them. The histogram `span_seconds` has every span of
workers/observe/measurements.py in the buckets of `Histogram`: `span_seconds|b=57|span=llm.call` counts bucket 57;
`span_seconds_sum|span=…` has the sum.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

import msgspec
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import CountedRetry
from tasks.readings import amounts, replies_of
from workers.observe import counters
from workers.observe.metrics import Histogram
from workers.observe.numbered import NumberedReports
from workers.observe.profiler import PerformanceProfiler
from workers.process.periodic import report_periodically

log = logging.getLogger("themes.metrics")

#: Seconds between two reports.
INTERVAL_SECONDS: Final = 1.0
#: The histogram of spans.
SPANS: Final = "span_seconds"
#: Spans whose sum is in the series, and the one whose durations are.
WAITS: Final = {
    "llm.rate_wait": "rate_wait_seconds", "llm.pool_wait": "pool_wait_seconds", "flight.wait": "flight_wait_seconds",
    "llm.backoff": "backoff_seconds",
}  # fmt: skip
CALL: Final = "llm.call"
CALL_BUCKET: Final = "call_b"

#: Cumulative counts of the process, by field.
Source = Callable[[], Mapping[str, float]]


class SeriesPoint(msgspec.Struct, frozen=True):
    """What all processes together have done in ten seconds. `at` is their beginning, in seconds since 1970."""

    at: float
    calls: float = 0.0
    #: Calls that gave no answer; of these, the refusals for a rate limit.
    errors: float = 0.0
    rate_limited: float = 0.0
    memory_hits: float = 0.0
    redis_hits: float = 0.0
    misses: float = 0.0
    coalesced: float = 0.0
    destinations: float = 0.0
    failures: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    rows: float = 0.0
    #: Seconds that callers have waited, by what for.
    rate_wait_seconds: float = 0.0
    pool_wait_seconds: float = 0.0
    flight_wait_seconds: float = 0.0
    backoff_seconds: float = 0.0
    #: How long calls took: buckets of a `Histogram`.
    call_buckets: dict[int, int] = {}

    @property
    def hits(self) -> float:
        """Prompts that the cache answered."""
        return self.memory_hits + self.redis_hits


@dataclass(frozen=True, slots=True)
class Metrics:
    """All processes' counters. `since` is when the first was counted, in seconds since 1970; None before that."""

    since: float | None = None
    #: Field (name and labels, see `counters.parsed`) -> amount.
    counters: dict[str, float] = field(default_factory=dict)
    #: Span -> durations.
    spans: dict[str, Histogram] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a counter over all labels that are not given."""
        amount = 0.0
        for text, value in self.counters.items():
            known, having = counters.parsed(text)
            if known == name and all(having.get(key) == wanted for key, wanted in labels.items()):
                amount += value
        return amount


class MetricsReporter:
    """Reports what one process counts. `sources` are cumulative counts of others, by field."""

    def __init__(self, redis: Redis, profiler: PerformanceProfiler, *sources: Source) -> None:
        self._profiler = profiler
        self._sources = (*sources, self._of_process)
        self._seen: dict[str, float] = {}
        self._reports = NumberedReports(redis, total=keys.METRICS, mark_of=keys.metrics_reports)

    async def run(self) -> None:
        """Report until cancelled, and a last time then."""
        if self._profiler.enabled:
            pause, missed = partial(asyncio.sleep, INTERVAL_SECONDS), "action=report_missed Redis does not answer: %s"
            await report_periodically(self.report, pause, log, missed)

    async def report(self) -> None:
        """Report what is new. Raises what Redis raises; the same is reported again next time."""
        if self._profiler.enabled:
            await self._reports.add(
                self._news,
                point=keys.series(time.time()),
                point_of=of_point,
                point_seconds=keys.SERIES_SECONDS,
            )

    def _news(self) -> dict[str, float]:
        news = dict(self._profiler.counters.taken())
        for source in self._sources:
            for name, amount in source().items():
                if more := amount - self._seen.get(name, 0.0):
                    news[name] = news.get(name, 0.0) + more
                self._seen[name] = amount
        for span, histogram in self._profiler.take_news().items():
            for index, count in histogram.buckets.items():
                news[f"{SPANS}|b={index}|span={span}"] = count
            news[f"{SPANS}_sum|span={span}"] = round(histogram.total, 6)
        return news

    def _of_process(self) -> dict[str, float]:
        role = self._profiler.role
        return {
            counters.field("process_cpu_seconds_total", role=role): round(time.process_time(), 3),
            counters.field("redis_errors_total", role=role): CountedRetry.failures,
        }


def of_point(news: Mapping[str, float]) -> dict[str, float]:
    """What of a report goes into the series."""
    point: dict[str, float] = {}
    for text, amount in news.items():
        name, labels = counters.parsed(text)
        for known in _series_of(name, labels):
            point[known] = point.get(known, 0.0) + amount
    return point


def _series_of(name: str, labels: Mapping[str, str]) -> tuple[str, ...]:  # noqa: PLR0911  # one line a counter
    match name:
        case "llm_requests_total":
            outcome = labels.get("outcome")
            return {"ok": ("calls",), "rate_limited": ("calls", "errors", "rate_limited")}.get(
                outcome or "", ("calls", "errors")
            )
        case "cache_gets_total":
            tier = labels.get("tier", "")
            return {"hit": (f"{tier}_hits",), "miss": ("misses",)}.get(labels.get("result", ""), ())
        case "cache_coalesced_total":
            return ("coalesced",)
        case "destinations_total":
            return ("destinations", "failures") if labels.get("outcome") == "failed" else ("destinations",)
        case "llm_tokens_total":
            return (f"{labels.get('kind')}_tokens",)
        case "consumer_rows_total":
            return ("rows",)
        case "span_seconds_sum":
            return (WAITS[labels["span"]],) if labels.get("span") in WAITS else ()
        case "span_seconds":
            return (f"{CALL_BUCKET}{labels.get('b')}",) if labels.get("span") == CALL else ()
    return ()


def read_metrics(redis: SyncRedis) -> Metrics:
    """The counters of all processes, as last told."""
    (reply,) = replies_of(redis, [keys.METRICS])
    raw = amounts(reply)
    metrics = Metrics(since=raw.pop("since", None))
    for text, amount in raw.items():
        name, labels = counters.parsed(text)
        if name == SPANS and "span" in labels and labels.get("b", "").isdecimal():
            histogram = metrics.spans.setdefault(labels["span"], Histogram())
            histogram.buckets[int(labels["b"])] = round(amount)
            histogram.count += round(amount)
        elif name == f"{SPANS}_sum" and "span" in labels:
            metrics.spans.setdefault(labels["span"], Histogram()).total = amount
        else:
            metrics.counters[text] = amount
    for histogram in metrics.spans.values():
        histogram.bound()
    return metrics


def read_series(
    redis: SyncRedis,
    seconds: float = 3600,
    *,
    now: float | None = None,
    known: Mapping[float, SeriesPoint] = MappingProxyType({}),
) -> list[SeriesPoint]:
    """The points of the last `seconds`, the oldest first, with one for every ten seconds; the last is still growing.

    Those in `known`, by their time, are not read.
    """
    now = time.time() if now is None else now
    step = keys.SERIES_STEP_SECONDS
    first, last = int((now - seconds) // step) + 1, int(now // step)
    starts = [float(number * step) for number in range(first, last + 1)]
    unknown = [at for at in starts if at not in known]
    replies = replies_of(redis, [keys.series(at) for at in unknown])
    read = {at: _point(at, amounts(reply)) for at, reply in zip(unknown, replies, strict=True)}
    return [read.get(at) or known[at] for at in starts]


def _point(at: float, fields: Mapping[str, float]) -> SeriesPoint:
    names = SeriesPoint.__struct_fields__[1:-1]
    buckets = {
        int(name.removeprefix(CALL_BUCKET)): round(amount)
        for name, amount in fields.items()
        if name.startswith(CALL_BUCKET) and name.removeprefix(CALL_BUCKET).isdecimal() and amount > 0
    }
    return SeriesPoint(at, **{name: fields[name] for name in names if name in fields}, call_buckets=buckets)
