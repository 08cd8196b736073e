"""Work stealing inside one process: lanes, and what they take next.

A lane serves its own queue from the head, so that a chunk is finished, and acknowledged, as soon as it can be. A lane
whose own queue is empty takes from the tail of the fullest other one (Blumofe & Leiserson, "Scheduling multithreaded
computations by work stealing", JACM 1999). With stealing off, every batch is dealt out in fixed shares instead.

Batches have a priority: nothing is started while something more urgent waits in reach. What is not started can be
withdrawn, for other workers.

This module knows nothing of destinations, chunks or Redis.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Self, TypeVar

T = TypeVar("T")

#: Part of the lanes that must find something waiting, or more is fetched: the way from the queue takes a while.
RESERVE: Final = 0.25


@dataclass(slots=True)
class LaneStatistics:
    """What one lane has done. `busy_seconds` is time spent on items, `idle_seconds` time without one."""

    executed: int = 0
    stolen: int = 0
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0

    @property
    def busy_share(self) -> float:
        """Part of its life that it was busy, 0-1; 0 before it has lived."""
        life = self.busy_seconds + self.idle_seconds
        return self.busy_seconds / life if life else 0.0


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    work: Callable[[T], Awaitable[None]]
    open: int
    priority: int
    key: Hashable
    done: asyncio.Event = field(default_factory=asyncio.Event)
    unstarted: list[T] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def close(self, count: int = 1) -> None:
        self.open -= count
        if self.open <= 0:
            self.done.set()


_Queue = deque[tuple[_Batch[T], T]]


def _nothing() -> None:
    """Nobody listens."""


class Lanes(Generic[T]):
    """`size` lanes that work on batches of items until stopped. Use as an async context manager."""

    def __init__(self, size: int, *, steal: bool, steal_threshold: int = 1) -> None:
        self.size = size
        #: Called when they have become hungry.
        self.on_hungry: Callable[[], None] = _nothing
        self.steal = steal
        #: Items, the one in hand included, that a lane must have before another takes one away from it.
        self._steal_threshold = steal_threshold
        self._statistics = [LaneStatistics() for _ in range(size)]
        #: Since when each lane is in the state that it is in now, and which lanes have an item in hand.
        self._since = [0.0] * size
        self._busy: set[int] = set()
        #: What waits for each lane, the most urgent first.
        self._queues: list[_Queue[T]] = [deque() for _ in range(size)]
        #: How many items of each priority wait.
        self._priorities: Counter[int] = Counter()
        #: How many wait in all.
        self.waiting = 0
        self._available = asyncio.Event()
        self._stopping = False
        #: Each lane's task, the retired ones' too, which may have an item in hand.
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Lanes size={self.size} busy={self.busy} waiting={self.waiting} steal={self.steal}>"

    async def __aenter__(self) -> Self:
        self._since = [time.perf_counter()] * self.size
        self._tasks = [self._task(lane) for lane in range(self.size)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def busy(self) -> int:
        return len(self._busy)

    @property
    def is_hungry(self) -> bool:
        """Whether some are idle or will soon be, because less waits than `RESERVE` of them. Any thread may ask."""
        return len(self._busy) < self.size or self.waiting < self._reserve

    @property
    def _reserve(self) -> int:
        return max(1, int(self.size * RESERVE))

    @property
    def statistics(self) -> list[LaneStatistics]:
        """What each lane has done until now; those that were retired come last."""
        for lane in range(len(self._statistics)):
            if lane < self.size or lane in self._busy:
                self._count_time(lane)
        return self._statistics

    @property
    def busy_share(self) -> float:
        """Part of their lives that all lanes together were busy, 0-1."""
        return sum(lane.busy_share for lane in self.statistics[: self.size]) / self.size

    def resize(self, size: int) -> None:
        """Have `size` lanes, at least one. A retired lane ends its item in hand; what waits in it goes to others."""
        if self._stopping or size == self.size:
            return
        left = [entry for queue in self._queues[size:] for entry in queue]
        for queue in self._queues[size:]:
            queue.clear()
        before, self.size = self.size, size
        now = time.perf_counter()
        for lane in range(before, size):
            self._open(lane, now)
        for number, (batch, item) in enumerate(left):
            self._insert(self._queues[number % size], batch, item)
        # Idle lanes look: those that are retired end.
        self._available.set()
        self._look_hungry()

    def _open(self, lane: int, now: float) -> None:
        """Add a lane, or call back one that was retired."""
        if lane == len(self._statistics):
            self._statistics.append(LaneStatistics())
            self._since.append(now)
            self._queues.append(deque())
            self._tasks.append(self._task(lane))
            return
        if lane not in self._busy:
            self._since[lane] = now
        if self._tasks[lane].done():
            self._tasks[lane] = self._task(lane)

    def _task(self, lane: int) -> asyncio.Task[None]:
        return asyncio.create_task(self._serve(lane), name=f"lane {lane}")

    async def run(
        self, items: Sequence[T], work: Callable[[T], Awaitable[None]], *, priority: int = 0, key: Hashable = None
    ) -> list[T]:
        """Work on every item; returns, when all have ended, those that were never started because of `stop`.

        Higher priorities are started first; unstarted items can be withdrawn by `key`. Raises the first error that
        `work` raised, after the other items have ended.
        """
        if not items:
            return []
        if self._stopping:
            return list(items)
        batch = _Batch(work, open=len(items), priority=priority, key=key)
        self._place(batch, items)
        try:
            await batch.done.wait()
        except asyncio.CancelledError:
            self._remove(lambda entry: entry[0] is batch)
            raise
        if batch.errors:
            raise batch.errors[0]
        return batch.unstarted

    def stop(self) -> None:
        """Start nothing any more: `run` returns what waits; what is in hand goes on."""
        self._stopping = True
        for batch, item in self._remove(lambda _: True):
            batch.unstarted.append(item)
            batch.close()

    def unstarted(self) -> Counter[Hashable]:
        """How many items of each batch's key wait."""
        return Counter(batch.key for queue in self._queues for batch, _ in queue)

    def withdraw(self, key: Hashable, count: int) -> list[T]:
        """Take at most `count` unstarted items of a batch away, the last ones; for `run` they have ended."""
        items: list[T] = []
        for queue in self._queues:
            mine = [entry for entry in queue if entry[0].key == key]
            for entry in mine[max(0, len(mine) - (count - len(items))) :]:
                queue.remove(entry)
                self._leaves(entry[0])
                items.append(entry[1])
                entry[0].close()
        return items

    def _place(self, batch: _Batch[T], items: Sequence[T]) -> None:
        order = sorted(range(self.size), key=lambda lane: (len(self._queues[lane]), lane in self._busy))
        for number, item in enumerate(items):
            self._insert(self._queues[order[0 if self.steal else number % self.size]], batch, item)
        self._priorities[batch.priority] += len(items)
        self.waiting += len(items)
        self._available.set()
        # After the lanes have taken theirs.
        asyncio.get_running_loop().call_soon(self._look_hungry)

    def _look_hungry(self) -> None:
        if self.is_hungry:
            self.on_hungry()

    @staticmethod
    def _insert(queue: _Queue[T], batch: _Batch[T], item: T) -> None:
        """Behind everything that is as urgent or more."""
        place = len(queue)
        while place and queue[place - 1][0].priority < batch.priority:
            place -= 1
        queue.insert(place, (batch, item))

    def _remove(self, which: Callable[[tuple[_Batch[T], T]], bool]) -> list[tuple[_Batch[T], T]]:
        removed: list[tuple[_Batch[T], T]] = []
        for queue in self._queues:
            kept: list[tuple[_Batch[T], T]] = []
            for entry in queue:
                (removed if which(entry) else kept).append(entry)
            queue.clear()
            queue.extend(kept)
        for batch, _ in removed:
            self._leaves(batch)
        return removed

    def _leaves(self, batch: _Batch[T]) -> None:
        self.waiting -= 1
        if self.waiting == self._reserve - 1:
            self.on_hungry()
        self._priorities[batch.priority] -= 1
        if not self._priorities[batch.priority]:
            del self._priorities[batch.priority]

    def _next(self, lane: int) -> tuple[tuple[_Batch[T], T] | None, bool]:
        """What this lane takes next, and whether that is stolen."""
        own = self._queues[lane]
        if not self.steal:
            return (own.popleft() if own else None), False
        if not self._priorities:
            return None, False
        if len(self._priorities) == 1:
            # The usual case: everything is as urgent.
            if own:
                return own.popleft(), False
            fullest = max(self._in_reach(lane), key=len, default=None)
            return (fullest.pop(), True) if fullest else (None, False)
        in_reach = [own, *self._in_reach(lane)] if own else self._in_reach(lane)
        most = max((queue[0][0].priority for queue in in_reach), default=0)
        if own and own[0][0].priority == most:
            return own.popleft(), False
        urgent = (queue for queue in in_reach if queue[0][0].priority == most)
        chosen = max(urgent, key=len, default=None)
        return (chosen.popleft(), True) if chosen else (None, False)

    def _in_reach(self, lane: int) -> list[_Queue[T]]:
        """The queues of other lanes that have enough to be stolen from."""
        return [
            queue
            for other, queue in enumerate(self._queues)
            if queue and other != lane and len(queue) + (other in self._busy) >= self._steal_threshold
        ]

    async def _serve(self, lane: int) -> None:
        while lane < self.size:
            taken, stolen = self._next(lane)
            if taken is None:
                if self.waiting >= self._reserve:
                    # What waits is out of this lane's reach.
                    self.on_hungry()
                self._available.clear()
                await self._available.wait()
                continue
            self._leaves(taken[0])
            await self._execute(lane, *taken, stolen=stolen)

    async def _execute(self, lane: int, batch: _Batch[T], item: T, *, stolen: bool) -> None:
        statistics = self._statistics[lane]
        self._count_time(lane)
        self._busy.add(lane)
        try:
            await batch.work(item)
        except asyncio.CancelledError:
            # The lanes are closing: `run` must not wait for ever.
            batch.errors.append(asyncio.CancelledError())
            raise
        except Exception as exc:  # noqa: BLE001  # handed to the caller of `run`
            batch.errors.append(exc)
        finally:
            self._count_time(lane)
            self._busy.discard(lane)
            statistics.executed += 1
            statistics.stolen += stolen
            batch.close()

    def _count_time(self, lane: int) -> None:
        """Book the time since the last look on the state that the lane is in."""
        now = time.perf_counter()
        statistics, seconds = self._statistics[lane], now - self._since[lane]
        self._since[lane] = now
        if lane in self._busy:
            statistics.busy_seconds += seconds
        else:
            statistics.idle_seconds += seconds
