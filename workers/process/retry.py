"""Waiting for Redis, for as long as this process is not told to stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis import RedisError

log = logging.getLogger("themes.chunks")

T = TypeVar("T")

#: Seconds between two tries while Redis does not answer or the consumer is behind.
PAUSE_SECONDS: Final = 0.5


class Patience:
    """Patient until `stop`."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._is_away = False

    def __repr__(self) -> str:
        return f"<Patience is_over={self.is_over}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._stopping.set()

    async def wait_for(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer, waiting for Redis as long as it takes; once we are stopping, its error.

        Every call made this way may be repeated: a reply that was lost changes nothing the second time.
        """
        while True:
            try:
                answer = await call()
            except (RedisError, OSError) as exc:
                if self.is_over:
                    raise
                if not self._is_away:
                    self._is_away = True
                    log.warning("action=redis_wait Redis does not answer, waiting: %s", exc)
            else:
                if self._is_away:
                    self._is_away = False
                    log.info("action=redis_back Redis answers, the work goes on")
                return answer
            await self.pause()

    async def pause(self, seconds: float = PAUSE_SECONDS) -> None:
        """Wait, but not longer than until we are stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
