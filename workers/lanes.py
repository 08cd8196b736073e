"""Work stealing inside one process: lanes, and what they take next.

A lane serves its own queue from the head, so that a chunk is finished, and acknowledged, as soon as it can be. A lane
whose own queue is empty takes from the tail of the fullest other one (Blumofe & Leiserson, "Scheduling multithreaded
computations by work stealing", JACM 1999). With stealing off, every batch is dealt out in fixed shares instead.

This module knows nothing of destinations, chunks or Redis.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class LaneStatistics:
    """What one lane has done. `busy_seconds` is time spent on items."""

    executed: int = 0
    stolen: int = 0
    busy_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    """Items that were handed over together."""

    work: Callable[[T], Awaitable[None]]
    open: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    unstarted: list[T] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def close(self, count: int = 1) -> None:
        """Count items as ended."""
        self.open -= count
        if self.open <= 0:
            self.done.set()


class Lanes(Generic[T]):
    """`size` lanes that work on batches of items until stopped. Use as an async context manager."""

    def __init__(self, size: int, *, steal: bool) -> None:
        self.size = size
        self.steal = steal
        self.statistics = [LaneStatistics() for _ in range(size)]
        self._queues: list[deque[tuple[_Batch[T], T]]] = [deque() for _ in range(size)]
        self._available = asyncio.Event()
        self._busy: set[int] = set()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Lanes size={self.size} busy={self.busy} waiting={self.waiting} steal={self.steal}>"

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._serve(lane), name=f"lane {lane}") for lane in range(self.size)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def busy(self) -> int:
        """Lanes with an item in hand."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """Items that no lane has started."""
        return sum(len(queue) for queue in self._queues)

    async def run(self, items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> list[T]:
        """Work on every item; returns, when all have ended, those that were never started because of `stop`.

        Raises:
            BaseException: the first error that `work` raised, after the other items have ended.
        """
        if not items:
            return []
        if self._stopping:
            return list(items)
        batch = _Batch(work, open=len(items))
        self._place(batch, items)
        try:
            await batch.done.wait()
        except asyncio.CancelledError:
            self._withdraw(batch)
            raise
        if batch.errors:
            raise batch.errors[0]
        return batch.unstarted

    def stop(self) -> None:
        """Start nothing any more: what waits goes back to whoever runs it; what is in hand goes on."""
        self._stopping = True
        for queue in self._queues:
            while queue:
                batch, item = queue.popleft()
                batch.unstarted.append(item)
                batch.close()

    def _place(self, batch: _Batch[T], items: Sequence[T]) -> None:
        if self.steal:
            home = min(range(self.size), key=lambda lane: (len(self._queues[lane]), lane in self._busy))
            self._queues[home].extend((batch, item) for item in items)
        else:
            order = sorted(range(self.size), key=lambda lane: (len(self._queues[lane]), lane in self._busy))
            for number, item in enumerate(items):
                self._queues[order[number % self.size]].append((batch, item))
        self._available.set()

    def _withdraw(self, batch: _Batch[T]) -> None:
        for queue in self._queues:
            kept = [entry for entry in queue if entry[0] is not batch]
            queue.clear()
            queue.extend(kept)

    def _next(self, lane: int) -> tuple[tuple[_Batch[T], T] | None, bool]:
        """What this lane takes next, and whether that is stolen."""
        own = self._queues[lane]
        if own:
            return own.popleft(), False
        if self.steal:
            fullest = max(self._queues, key=len)
            if fullest:
                return fullest.pop(), True
        return None, False

    async def _serve(self, lane: int) -> None:
        while True:
            taken, stolen = self._next(lane)
            if taken is None:
                self._available.clear()
                await self._available.wait()
                continue
            await self._execute(lane, *taken, stolen=stolen)

    async def _execute(self, lane: int, batch: _Batch[T], item: T, *, stolen: bool) -> None:
        statistics = self.statistics[lane]
        self._busy.add(lane)
        began = time.perf_counter()
        try:
            await batch.work(item)
        except asyncio.CancelledError:
            # The lanes are closing: whoever waits for the batch must not wait for ever.
            batch.errors.append(asyncio.CancelledError())
            raise
        except Exception as exc:  # noqa: BLE001  # handed to the caller of `run`
            batch.errors.append(exc)
        finally:
            self._busy.discard(lane)
            statistics.executed += 1
            statistics.stolen += stolen
            statistics.busy_seconds += time.perf_counter() - began
            batch.close()
