"""Retrying a call to Redis until it is answered, or this process stops."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis import RedisError

from workers.process.outage import Outage

log = logging.getLogger("themes.chunks")

T = TypeVar("T")

#: Seconds between two tries while Redis does not answer or the consumer is behind.
PAUSE_SECONDS: Final = 0.5


class StoppableRetry:
    """Retries until `stop`."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._outage = Outage(
            log,
            lost="action=redis_wait Redis does not answer, waiting: %s",
            back="action=redis_back Redis answers, the work goes on",
        )

    def __repr__(self) -> str:
        return f"<StoppableRetry is_stopped={self.is_stopped}>"

    @property
    def is_stopped(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        self._stopping.set()

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The operation's answer, however long Redis is away; after `stop`, its error.

        The operation must be idempotent: it is repeated where only its reply was lost.
        """
        while True:
            try:
                answer = await operation()
            except (RedisError, OSError) as exc:
                if self.is_stopped:
                    raise
                self._outage.begin(exc)
            else:
                self._outage.end()
                return answer
            await self.pause()

    async def pause(self, seconds: float = PAUSE_SECONDS) -> None:
        """Sleep, at most until `stop`."""
        await wait_at_most(seconds, self._stopping)


async def wait_at_most(seconds: float, event: asyncio.Event) -> None:
    """Return when the event is set, or after `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
