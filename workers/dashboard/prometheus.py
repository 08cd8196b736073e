"""`/metrics`: one scrape for all processes and machines, beside Flower's own metrics of this process.

All processes report to Redis, so that no worker needs a port and counters outlive processes.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import prometheus_client
from flower.views.monitor import Metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError

from workers.dashboard.metrics_table import HISTOGRAMS, METRICS
from workers.diagnosis.system import System, SystemReader
from workers.observe.metrics import GROWTH, SMALLEST, Histogram

#: Buckets of our histograms that are edges of Prometheus's: about 1 ms to 5 min, each twice as wide as the one before.
#: Edges of our own, so that every count is exact.
EDGES: Final = tuple(range(math.ceil(math.log(1e-3 / SMALLEST) / math.log(GROWTH)), 208, 7))
#: Seconds for which an answer is good enough for every scraper.
FRESH_SECONDS: Final = 2.0


class SystemCollector(Collector):
    def __init__(self, reader: SystemReader) -> None:
        self._reader = reader

    def describe(self) -> list[Any]:
        """Nothing: a registry need not read Redis to know our names."""
        return []

    def collect(self) -> Iterator[Any]:
        """All families. While Redis is away there is only `themes_up`, which says so."""
        up = GaugeMetricFamily("themes_up", UP_HELP)
        try:
            system = self._reader.read()
        except (RedisError, OSError):
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from families(system)


UP_HELP: Final = "1 where Redis answers; 0: nothing else is known."


def families(system: System) -> Iterator[Any]:
    for metric in METRICS:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=metric.labels)
        for labels, value in metric.read(system):
            family.add_metric(labels, value)
        yield family
    for durations in HISTOGRAMS:
        spread = HistogramMetricFamily(durations.name, durations.help, labels=durations.labels)
        for labels, histogram in durations.read(system):
            spread.add_metric(labels, buckets=list(_buckets(histogram, EDGES)), sum_value=histogram.total)
        yield spread


def _buckets(histogram: Histogram, edges: Iterable[int]) -> Iterator[tuple[str, float]]:
    indexes = sorted(histogram.buckets)
    at, count = 0, 0
    for edge in edges:
        while at < len(indexes) and indexes[at] <= edge:
            count += histogram.buckets[indexes[at]]
            at += 1
        yield f"{SMALLEST * GROWTH**edge:.4g}", count
    yield "+Inf", histogram.count


class Scrape:
    """The whole text, made in a thread: a slow Redis delays no other page."""

    def __init__(self, reader: SystemReader) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(SystemCollector(reader))
        self._lock = asyncio.Lock()
        self._made: tuple[float, bytes] = (float("-inf"), b"")

    async def text(self) -> bytes:
        """Flower's metrics and ours, as they were at most `FRESH_SECONDS` ago."""
        async with self._lock:
            if time.monotonic() - self._made[0] > FRESH_SECONDS:
                made = await asyncio.to_thread(self._make)
                self._made = (time.monotonic(), made)
        return self._made[1]

    def _make(self) -> bytes:
        return prometheus_client.generate_latest() + prometheus_client.generate_latest(self._registry)


class AllMetrics(Metrics):
    def initialize(self, scrape: Scrape) -> None:
        self._scrape = scrape

    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        self.set_header("Content-Type", prometheus_client.exposition.CONTENT_TYPE_PLAIN_0_0_4)
        self.finish(await self._scrape.text())
