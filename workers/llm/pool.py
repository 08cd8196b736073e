"""The LLM connections of one worker process: how many may be in use, and who gets the next one."""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workers.observe.profiler import PerformanceProfiler


class LLMConnectionPool:
    """Lends at most `max_size` connections at once, first to the destination that started first.

    Serving by the age of the destination, not of the request, keeps the work in progress small: what was started is
    finished before more is begun. The sockets themselves belong to the client's session.
    """

    def __init__(self, max_size: int, profiler: PerformanceProfiler) -> None:
        self._max_size = max_size
        self._profiler = profiler
        self._in_use = 0
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<LLMConnectionPool in_use={self._in_use} waiting={self.waiting} max={self._max_size}>"

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

    async def _acquire(self, rank: int) -> None:
        if self._in_use < self._max_size:
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
        while self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
                return
        self._in_use -= 1
