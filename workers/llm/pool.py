"""The LLM connections of one worker process: how many may be in use, and who gets the next one."""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workers.llm.concurrency import AdaptiveConcurrency
from workers.observe.profiler import PerformanceProfiler


class LLMConnectionPool:
    """Lends at most `max_size` connections at once, first to the destination that started first.

    Serving by the age of the destination, not of the request, keeps the work in progress small: what was started is
    finished before more is begun. The sockets themselves belong to the client's session. `concurrency` may allow fewer
    for a while, where the endpoint refuses; without it `max_size` always holds.
    """

    def __init__(
        self, max_size: int, profiler: PerformanceProfiler, concurrency: AdaptiveConcurrency | None = None
    ) -> None:
        self._max_size = max_size
        self._concurrency = concurrency
        self._profiler = profiler
        self._in_use = 0
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<LLMConnectionPool in_use={self._in_use} waiting={self.waiting} max={self._max_size}>"

    @property
    def limit(self) -> int:
        """Connections that may be lent now."""
        return self._max_size if self._concurrency is None else min(self._max_size, self._concurrency.limit)

    @property
    def in_use(self) -> int:
        """Connections lent now."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """Callers in line."""
        return sum(not future.done() for _, _, future in self._waiting)

    @asynccontextmanager
    async def connection(self, *, rank: int) -> AsyncIterator[None]:
        """Borrow a connection; callers with a lower `rank` are served first, equal ones in order of arrival."""
        began = time.perf_counter()
        await self._acquire(rank)
        self._profiler.record("llm.pool_wait", time.perf_counter() - began)
        try:
            yield
        finally:
            self._release()

    def answered(self) -> None:
        """An answer came over a connection that is still lent: where all are, one more may be allowed."""
        if self._concurrency is not None:
            self._concurrency.answered(saturated=self._in_use >= self.limit)
            self._hand_over()

    def refused(self, *, sent_at: float) -> None:
        """The endpoint answered 429 to a request sent at `sent_at` (monotonic seconds): allow fewer."""
        if self._concurrency is not None:
            self._concurrency.refused(sent_at=sent_at, now=time.monotonic())

    async def _acquire(self, rank: int) -> None:
        if self._in_use < self.limit:
            self._in_use += 1
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The connection was handed over in the moment of the cancellation: pass it on.
                self._release()
            raise

    def _release(self) -> None:
        self._in_use -= 1
        self._hand_over()

    def _hand_over(self) -> None:
        """Lend what is free to those who wait."""
        while self._waiting and self._in_use < self.limit:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                self._in_use += 1
                future.set_result(None)
