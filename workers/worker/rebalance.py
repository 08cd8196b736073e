"""Hands work that this process holds and has not started to the workers that should have it.

* Nothing queues and other workers are idle: half of what is unstarted here goes to them, in as many parts as they have
  idle lanes (lazy splitting: Mohr, Kranz & Halstead, "Lazy task creation", 1990; here a whole process steals from
  another).
* Something more urgent queues: what is less urgent goes back to the queue, so that threads and lanes of this process
  come free within the time of one destination.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from redis import RedisError

from tasks.messages import Chunk, Destination
from tasks.queue.ledger import Ledger
from tasks.queue.producer import label
from workers.worker.chunks import ChunkRunner, HeldChunk
from workers.worker.quarantine import Wake

log = logging.getLogger("themes.sharing")

#: Seconds between two looks while something unstarted waits here.
LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Unstarted:
    """A chunk of which `count` destinations wait for a lane."""

    job_id: str
    chunk_id: str
    priority: int
    count: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """`count` unstarted destinations of a chunk, to be handed off in `parts` new chunks."""

    of: Unstarted
    count: int
    parts: int


class Rebalancer:
    """Looks twice a second, and hands off.

    Args:
        chunks: holds the work.
        ledger: of this worker.
        wake: sends messages for new chunks.
        queued: messages in the queue by priority.
        idle_lanes: lanes of other workers that have nothing to do.
        steal: whether idle workers get work at all; what is more urgent goes first in any case.
    """

    def __init__(
        self,
        chunks: ChunkRunner,
        ledger: Ledger,
        *,
        wake: Wake,
        queued: Callable[[], Awaitable[dict[int, int]]],
        idle_lanes: Callable[[], Awaitable[int]],
        steal: bool,
    ) -> None:
        self._chunks = chunks
        self._ledger = ledger
        self._wake = wake
        self._queued = queued
        self._idle_lanes = idle_lanes
        self._steal = steal
        #: Destinations handed to idle workers, and given back for something more urgent.
        self.shared = self.preempted = 0

    def __repr__(self) -> str:
        return f"<Rebalancer shared={self.shared} preempted={self.preempted}>"

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (RedisError, OSError) as exc:
                log.debug("action=sharing_missed Redis does not answer: %s", exc)

    async def look(self) -> None:
        """Look once at what is unstarted here, what queues, and which lanes of other workers are idle."""
        unstarted = self._unstarted()
        if not unstarted:
            return
        queued = await self._queued()
        if urgent := less_urgent(unstarted, queued):
            for transfer in urgent:
                self.preempted += await self._hand_off(transfer)
        elif self._steal and not any(queued.values()):
            for transfer in for_idle(unstarted, await self._idle_lanes()):
                self.shared += await self._hand_off(transfer)

    def _unstarted(self) -> list[Unstarted]:
        waiting = self._chunks.lanes.unstarted()
        return [
            Unstarted(*key, held.options.priority, waiting[key])
            for key, held in self._chunks.held.items()
            if waiting[key] and held.is_ours
        ]

    async def _hand_off(self, transfer: Transfer) -> int:
        """Hand unstarted destinations to other workers as new chunks; return how many moved.

        If this process dies in between they are still in the old chunk; if a message is lost, the sweeper finds it.
        """
        of = transfer.of
        held = self._chunks.held.get((of.job_id, of.chunk_id))
        if held is None:
            return 0
        items = self._chunks.lanes.withdraw((of.job_id, of.chunk_id), transfer.count)
        parts = min(transfer.parts, len(items))
        moved, labelled = 0, []
        async with held.handing_off:
            for part in range(parts):
                new = _part(held, items[part::parts])
                if await self._chunks.retry.call(
                    lambda new=new: self._ledger.hand_off(held.taken.chunk, new, label(new.destinations))  # type: ignore[misc]
                ):
                    moved += len(new.destinations)
                    labelled.append((new.chunk_id, label(new.destinations)))
        if labelled:
            await self._wake(of.job_id, labelled, of.priority)
            log.info("action=give_away job_id=%s chunk_id=%s destinations=%d", of.job_id, of.chunk_id, moved)
        return moved


def _part(held: HeldChunk, share: list[Destination]) -> Chunk:
    """A new chunk out of some destinations of one: its first delivery is the one that they had here."""
    held.parts += 1
    chunk, deliveries = held.taken.chunk, held.taken.deliveries
    name = f"{chunk.chunk_id}-{deliveries}.{held.parts}"
    attempt = chunk.attempt + deliveries - 1
    return Chunk(chunk.job_id, name, tuple(share), attempt=attempt, queued_at=time.time())


def less_urgent(unstarted: list[Unstarted], queued: dict[int, int]) -> list[Transfer]:
    """Everything unstarted of as many less urgent chunks as more urgent messages queue, the least urgent first."""
    transfers: list[Transfer] = []
    for one in sorted(unstarted, key=lambda one: (one.priority, -one.count)):
        more_urgent = sum(count for priority, count in queued.items() if priority > one.priority)
        if more_urgent > len(transfers):
            transfers.append(Transfer(one, one.count, parts=1))
    return transfers


def for_idle(unstarted: list[Unstarted], idle: int) -> list[Transfer]:
    """Half of what is unstarted, the most urgent of it first, cut for `idle` lanes of other workers."""
    left = (sum(one.count for one in unstarted) + 1) // 2
    transfers: list[Transfer] = []
    for one in sorted(unstarted, key=lambda one: (-one.priority, -one.count)):
        count, parts = min(one.count, left), min(one.count, left, idle)
        if parts <= 0:
            break
        transfers.append(Transfer(one, count, parts))
        left, idle = left - count, idle - parts
    return transfers
