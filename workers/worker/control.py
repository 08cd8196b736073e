"""Hears at once of jobs that are cancelled or paused.

News, not truth: the channel promises nothing, so every heartbeat looks at the registry too.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys

log = logging.getLogger("themes.control")

#: Seconds that one look at the channel waits; below every socket timeout that can be set.
LISTEN_SECONDS: Final = 0.5
#: Seconds between two attempts to listen, when Redis is away.
LISTEN_AGAIN_SECONDS: Final = 1.0


class JobControl:
    """Listens, and has the named jobs looked at."""

    def __init__(self, redis: Redis, look: Callable[[Iterable[str]], Awaitable[None]]) -> None:
        self._redis = redis
        self._look = look
        #: Set while the channel is listened to.
        self.listening = asyncio.Event()

    def __repr__(self) -> str:
        return f"<JobControl listening={self.listening.is_set()}>"

    async def run(self) -> None:
        """Listen until cancelled; Redis away is waited for."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(keys.CONTROL)
                    self.listening.set()
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
                        if message:
                            await self._look([message["data"].decode("utf-8", "replace")])
            except (RedisError, OSError) as exc:
                log.debug("action=control_unheard Redis does not answer: %s", exc)
            self.listening.clear()
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)
