"""Chunks that have lost their workers: one destination that kills is found, those that were near it survive."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from tasks.messages import JobOptions
from tasks.queue.ledger import Ledger, Taken
from workers.process.retry import StoppableRetry

log = logging.getLogger("themes.chunks")

#: The delivery from which on a destination is handled alone among its like.
SUSPECT: Final = 3
#: Chunks that wait for that and are remembered; the sweeper finds the others.
POSTPONED: Final = 1_000

#: Sends chunks' wake-up calls: `(job id, (chunk id, label) pairs, priority)`.
Wake = Callable[[str, list[tuple[str, str]], int], Awaitable[None]]


class Quarantine:
    """Splits a chunk that has lost its worker, and admits one suspect at a time to this process.

    A destination that kills takes those near it with it, again and again; one at a time they are told apart.
    """

    def __init__(self, ledger: Ledger, retry: StoppableRetry, wake: Wake) -> None:
        self._ledger = ledger
        self._retry = retry
        self._wake = wake
        self._suspect: tuple[str, str] | None = None
        self._postponed: deque[tuple[str, str, str, int]] = deque(maxlen=POSTPONED)

    def __repr__(self) -> str:
        return f"<Quarantine suspect={self._suspect} postponed={len(self._postponed)}>"

    async def split(self, taken: Taken, options: JobOptions) -> None:
        """Send each destination of a chunk on its way alone, so that one that kills is found soon."""
        chunk = taken.chunk
        singles = await self._retry.call(lambda: self._ledger.split(taken))
        await self._wake(chunk.job_id, [(one.chunk_id, one.destinations[0].label) for one in singles], options.priority)
        log.warning(
            "action=quarantine job_id=%s chunk_id=%s lost its worker %d times: %d destinations go one by one",
            chunk.job_id, chunk.chunk_id, taken.deliveries - 1, len(singles),
        )  # fmt: skip

    async def admits(self, taken: Taken, options: JobOptions) -> bool:
        """Whether a chunk may be worked on now; else it is given back for `leave`, or the sweeper, to send again."""
        chunk = taken.chunk
        if taken.deliveries < SUSPECT:
            return True
        if self._suspect is None:
            self._suspect = (chunk.job_id, chunk.chunk_id)
            return True
        await self._retry.call(lambda: self._ledger.give_back(chunk.job_id, chunk.chunk_id))
        self._postponed.append((chunk.job_id, chunk.chunk_id, chunk.destinations[0].label, options.priority))
        return False

    async def leave(self, taken: Taken) -> None:
        """The work on a chunk has ended: where it was the suspect, the next one is sent for."""
        if self._suspect != (taken.chunk.job_id, taken.chunk.chunk_id):
            return
        self._suspect = None
        if self._postponed:
            job_id, chunk_id, text, priority = self._postponed.popleft()
            await self._wake(job_id, [(chunk_id, text)], priority)
