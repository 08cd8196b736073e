"""When an endpoint asked to be left alone, and by whom this was heard: one cool-down shared by all processes.

Whoever is told "later" writes `themes:cooldown:DIGEST` with that lifetime and says so on the channel
`themes:cooldowns`. Every process listens, so sending a request costs no look into Redis: the end of the cool-down is a
local number. A shorter cool-down never shortens a longer one. Redis away: a process knows its own cool-downs.
"""

import asyncio
import contextlib
import email.utils
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from workers.endings import end_tasks

log = logging.getLogger("themes.llm")

#: Seconds that an endpoint is left alone at most, whatever it asks for.
LONGEST_SECONDS: Final = 3600.0
#: Seconds between two attempts to listen, when Redis is away.
LISTEN_AGAIN_SECONDS: Final = 1.0
#: Seconds that one look at the channel waits; below every socket timeout that can be set.
LISTEN_SECONDS: Final = 0.5

#: KEYS cooldown; ARGV milliseconds channel digest; returns the milliseconds that are left.
_EXTEND: Final = """
local left = redis.call('PTTL', KEYS[1])
if left >= tonumber(ARGV[1]) then return left end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3] .. ' ' .. ARGV[1])
return tonumber(ARGV[1])
"""

class CoolDown:
    """One endpoint's cool-down, as this process knows it. `redis` None: known to this process alone."""

    def __init__(self, redis: Redis | None, endpoint_digest: str) -> None:
        self._redis = redis
        self._digest = endpoint_digest
        self._until = 0.0
        self._listener: asyncio.Task[None] | None = None
        self.count = 0
        #: Called when another process has told of a new cool-down.
        self.heard: Callable[[], None] | None = None
        #: Set while the channel is listened to: what others say from now on is heard.
        self.listening = asyncio.Event()

    def __repr__(self) -> str:
        return f"<CoolDown left={self.left_seconds:.2f} s count={self.count}>"

    @property
    def left_seconds(self) -> float:
        """Seconds until the endpoint may be asked again; 0 when it may."""
        return max(0.0, self._until - time.monotonic())

    async def over(self) -> None:
        """Wait until the endpoint may be asked, also where that is put off meanwhile."""
        while (left := self.left_seconds) > 0:  # noqa: ASYNC110  # until a time, which may move
            await asyncio.sleep(left)

    def start(self) -> None:
        """Listen to what the other processes are told."""
        if self._redis is not None and self._listener is None:
            self._listener = asyncio.create_task(self._listen(self._redis), name="cooldowns")

    async def close(self) -> None:
        """Listen no more."""
        if self._listener:
            await end_tasks(self._listener)

    async def begin(self, seconds: float) -> None:
        """Leave the endpoint alone for at least so long, in every process."""
        seconds = min(seconds, LONGEST_SECONDS)
        if seconds <= 0:
            return
        is_news = seconds > self.left_seconds
        self._extend(seconds)
        if not is_news:
            return
        self.count += 1
        if self._redis is None:
            return
        with contextlib.suppress(RedisError, OSError, TimeoutError):  # the limiter says that Redis is away
            milliseconds = math.ceil(seconds * 1000)
            async with asyncio.timeout(LISTEN_AGAIN_SECONDS):
                left = await self._redis.eval(
                    _EXTEND, 1, keys.cooldown(self._digest), milliseconds, keys.COOLDOWNS, self._digest
                )
            self._extend(int(left) / 1000)

    def _extend(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        if until > self._until:
            self._until = until
            log.debug("action=cool_down seconds=%.2f", seconds)

    async def _listen(self, redis: Redis) -> None:
        """Hear what others were told, for as long as the process lives; also what was said before it came."""
        while True:
            try:
                async with redis.pubsub() as channel:
                    await channel.subscribe(keys.COOLDOWNS)
                    self._extend(max(0, int(await redis.pttl(keys.cooldown(self._digest)))) / 1000)
                    self.listening.set()
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
                        if message:
                            self._hear(message["data"])
            except (RedisError, OSError) as exc:
                log.debug("action=cooldowns_unheard Redis does not answer: %s", exc)
            self.listening.clear()
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def _hear(self, data: bytes) -> None:
        digest, _, milliseconds = data.decode("utf-8", "replace").partition(" ")
        if digest == self._digest and milliseconds.isdecimal():
            self._extend(min(int(milliseconds) / 1000, LONGEST_SECONDS))
            if self.heard is not None:
                self.heard()
