"""A worker process's sign of life: that it is there, what it is doing, and what it waits for."""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tasks.messages import Event
from tasks.waits import Wait
from tasks.worker_reports import WorkerReport
from workers.observe.call_journal import CallJournal
from workers.results.publisher import EventPublisher
from workers.worker.chunks import ChunkRunner
from workers.worker.parts import Parts
from workers.worker.rebalance import Rebalancer

log = logging.getLogger("themes.worker")

#: What is told when `work.max_unwritten_results` holds the worker back.
UNWRITTEN: Final = "the results consumer is too far behind for more (is one running? themes consumer)"
#: Seconds that means are of: what begins or ends shows within them, and one moment alone says little.
LATELY_SECONDS: Final = 3.5


class Heartbeat:
    """Reports every `seconds`, at least three times in the life of a report; keeps the call journal in its place."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        parts: Parts,
        *,
        chunks: ChunkRunner,
        journal: CallJournal,
        publisher: EventPublisher,
        rebalancer: Rebalancer,
        memory: Callable[[], dict[str, Any]],
        settings: Callable[[], dict[str, Any]],
        seconds: float,
    ) -> None:
        self._redis = redis
        self._name = name
        self._parts = parts
        self._chunks = chunks
        self._journal = journal
        self._publisher = publisher
        self._rebalancer = rebalancer
        self._memory = memory
        #: Those that can be changed while the worker runs.
        self._settings = settings
        self._seconds = min(seconds, keys.WORKER_SECONDS / 3)
        self._began = time.time()
        self._wait: Wait | None = None
        #: What was seen in the last seconds: when, and the fields of `LatelyReport`.
        self._lately: deque[tuple[float, tuple[int, ...]]] = deque()

    def __repr__(self) -> str:
        return f"<Heartbeat {self._name} every {self._seconds:g} s>"

    async def run(self) -> None:
        while True:
            self._parts.profiler.sample()
            self._tell_wait()
            await self._journal.keep()
            try:
                report, began = self._report(), time.perf_counter()
                await fleet.write_report(self._redis, fleet.WORKER, self._name, report)
                self._parts.profiler.whole("redis", time.perf_counter() - began)
                if self._parts.cache_reporter is not None:
                    await self._parts.cache_reporter.report()
                self._parts.cache.outage.end()
            except (RedisError, OSError) as exc:
                log.debug("action=report_missed Redis does not answer: %s", exc)
            await asyncio.sleep(self._seconds)

    async def leave(self) -> None:
        await fleet.remove_report(self._redis, fleet.WORKER, self._name)

    def _report(self) -> dict[Any, Any]:
        lanes = self._parts.lanes
        statistics = lanes.statistics
        report = WorkerReport(
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._began,
            at=time.time(),
            lanes=0 if self._chunks.is_stopping else lanes.size,
            lanes_busy=lanes.busy,
            lanes_waiting=lanes.waiting,
            chunks_held=len(self._chunks.held),
            chunks_claimed=self._chunks.claimed,
            restarts=int(os.environ.get("THEMES_RESTARTS", "0")),
            wedged=int(os.environ.get("THEMES_WEDGED", "0")),
            waiting_for=self._wait,
            connections=self._parts.pool.max_size,
            connections_in_use=self._parts.pool.in_use,
            connections_waiting=self._parts.pool.waiting,
            journal_off=self._journal.off,
            cache=self._parts.cache.state,
            cache_outages=self._parts.cache.outage.count,
            cache_away_seconds=round(self._parts.cache.outage.seconds, 1),
            executed=sum(lane.executed for lane in statistics),
            stolen=sum(lane.stolen for lane in statistics),
            shared=self._rebalancer.shared,
            yielded=self._rebalancer.preempted,
            busy_share=round(lanes.busy_share, 4),
            idle_seconds=round(sum(lane.idle_seconds for lane in statistics), 3),
            **self._memory(),
        )
        nested = {
            "lane_statistics": statistics,
            "lately": self._lately_means(),
            "pool": self._parts.pool.statistics(),
            "profile": self._parts.profiler.snapshot(),
            "settings": self._settings(),
        }
        return report.encode() | {name: msgspec.json.encode(value) for name, value in nested.items()}

    def _lately_means(self) -> fleet.LatelyReport:
        pool, now = self._parts.pool, time.monotonic()
        seen = (self._parts.lanes.busy, pool.in_use, pool.waiting, sum(route.rate_waiting for route in pool.routes))
        self._lately.append((now, seen))
        while now - self._lately[0][0] > LATELY_SECONDS:
            self._lately.popleft()
        columns = zip(*(each for _, each in self._lately), strict=True)
        return fleet.LatelyReport(*(round(sum(column) / len(self._lately), 3) for column in columns))

    def _tell_wait(self) -> None:
        """Tell the watchers of our jobs what all calls wait for, where that has changed; no message: they go on."""
        before, self._wait = self._wait, self._parts.pool.wait()
        if self._wait is None and self._chunks.is_full and self._chunks.claimed and not self._chunks.held:
            self._wait = Wait("other", "", time.time(), None, UNWRITTEN)
        if (before and before.reason) == (self._wait and self._wait.reason):
            return
        words = self._wait.format() if self._wait else ""
        if words:
            log.warning("action=endpoint_away the work waits: %s", words)
        else:
            log.info("action=endpoint_back the work goes on")
        for job_id in self._chunks.cancellations.jobs:
            self._publisher.publish(Event("job.waiting", job_id, data={"message": words}))
