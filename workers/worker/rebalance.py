"""Gives work away that this process holds and has not started, when somebody else should have it.

* Nobody queues and others are idle: half of what is unstarted here goes to them, in as many parts as they have idle
  lanes (lazy splitting: Mohr, Kranz & Halstead, "Lazy task creation", 1990; here a whole process steals from another).
* Something more urgent queues: what is less urgent goes back to the queue, so that its threads and lanes come free
  within the time of one destination.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from redis import RedisError

from workers.worker.chunks import ChunkRunner, Unstarted

log = logging.getLogger("themes.sharing")

#: Seconds between two looks while something unstarted waits here.
LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Gift:
    """So many of a chunk's unstarted destinations, in so many parts."""

    of: Unstarted
    count: int
    parts: int


class WorkSharing:
    """Looks now and then, and gives away.

    Args:
        chunks: who holds the work.
        queued: messages in the queue by priority.
        idle_lanes: lanes of other workers that have nothing to do.
        steal: whether idle workers are given work at all; what is more urgent goes first in any case.
    """

    def __init__(
        self,
        chunks: ChunkRunner,
        *,
        queued: Callable[[], Awaitable[dict[int, int]]],
        idle_lanes: Callable[[], Awaitable[int]],
        steal: bool,
    ) -> None:
        self._chunks = chunks
        self._queued = queued
        self._idle_lanes = idle_lanes
        self._steal = steal
        #: Destinations given to idle workers, and given back for something more urgent.
        self.shared = self.yielded = 0

    def __repr__(self) -> str:
        return f"<WorkSharing shared={self.shared} yielded={self.yielded}>"

    async def run(self) -> None:
        """Look until cancelled; Redis away is waited for."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (RedisError, OSError) as exc:
                log.debug("action=sharing_missed Redis does not answer: %s", exc)

    async def look(self) -> None:
        """One look at what is unstarted here, what queues, and who is idle."""
        unstarted = self._chunks.unstarted()
        if not unstarted:
            return
        queued = await self._queued()
        if urgent := less_urgent(unstarted, queued):
            for gift in urgent:
                self.yielded += await self._chunks.give_away(gift.of, gift.count, gift.parts)
        elif self._steal and not any(queued.values()):
            gifts = for_idle(unstarted, await self._idle_lanes())
            for gift in gifts:
                self.shared += await self._chunks.give_away(gift.of, gift.count, gift.parts)


def less_urgent(unstarted: list[Unstarted], queued: dict[int, int]) -> list[Gift]:
    """Everything unstarted of as many less urgent chunks as more urgent messages queue, the least urgent first."""
    gifts: list[Gift] = []
    for one in sorted(unstarted, key=lambda one: (one.priority, -one.count)):
        more_urgent = sum(count for priority, count in queued.items() if priority > one.priority)
        if more_urgent > len(gifts):
            gifts.append(Gift(one, one.count, parts=1))
    return gifts


def for_idle(unstarted: list[Unstarted], idle: int) -> list[Gift]:
    """Half of what is unstarted, the most urgent of it first, cut for so many idle lanes of others."""
    left = (sum(one.count for one in unstarted) + 1) // 2
    gifts: list[Gift] = []
    for one in sorted(unstarted, key=lambda one: (-one.priority, -one.count)):
        count, parts = min(one.count, left), min(one.count, left, idle)
        if parts <= 0:
            break
        gifts.append(Gift(one, count, parts))
        left, idle = left - count, idle - parts
    return gifts
