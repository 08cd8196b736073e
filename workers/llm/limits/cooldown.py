"""How long an endpoint asked to be left alone, and the calls that probe whether it still does.

A process that gets "later" writes `themes:cooldown:DIGEST` with that lifetime and publishes it on the channel
`themes:cooldowns`. Every process listens, so sending a request needs no read of Redis. A shorter cool-down never
shortens a longer one. While Redis is away a process knows its own cool-downs.

A server may be wrong: it sends a Unix time for seconds, or an hour for a minute. So one call of the whole fleet probes
the endpoint `probe_seconds` after the cool-down began, the next one after twice that, and so on. An answer ends the
cool-down in every process; another 429 says how long it really lasts.
"""

import asyncio
import contextlib
import logging
import math
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from redis import Redis as SyncRedis
from redis import RedisError
from redis.asyncio import Redis

from config.sections import LlmSettings
from tasks import keys
from tasks.lua import lua
from tasks.texts import one_line
from tasks.waits import SAID_CHARACTERS, Wait
from workers.llm.limits.headers import MAX_WAIT_SECONDS, HeaderSeconds
from workers.process.retry import wait_at_most
from workers.process.shutdown import end_tasks
from workers.process.subscription import listen

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("themes.llm")

#: Seconds that a script call may take.
REDIS_TIMEOUT_SECONDS: Final = 1.0
#: Times that the pause between two probes doubles.
DOUBLINGS: Final = 3

#: The status and the message in an error's text, behind the server's address.
_STATUS: Final = re.compile(r": ([0-9]{3}) (.*)")

_BEGIN: Final = lua(__file__, "begin_cool_down")
_PROBE: Final = lua(__file__, "probe")
_END: Final = lua(__file__, "end_cool_down")


@dataclass(slots=True)
class _Probes:
    at: float = math.inf
    count: int = 0


class CoolDown:
    """One endpoint's cool-down, as this process knows it. `redis` None: known to this process alone."""

    def __init__(
        self,
        redis: Redis | None,
        endpoint_digest: str,
        *,
        name: str = "llm",
        probe_seconds: float = LlmSettings().probe_seconds,
    ) -> None:
        self._redis = redis
        self._digest = endpoint_digest
        self._name = name
        self._probe_seconds = probe_seconds
        self._until = 0.0
        self._wait: Wait | None = None
        self._probes = _Probes()
        #: Whether a probe was refused: what the server says now is its last word.
        self._is_last_word = False
        #: One caller of the process watches for the next probe; the others wait behind it.
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self.count = 0
        #: Called when another process has told of a new cool-down.
        self.heard: Callable[[], None] | None = None
        #: Called when the cool-down has ended before its time.
        self.ended: Callable[[], None] | None = None
        #: Set while the channel is listened to: what others say from now on is heard.
        self.listening = asyncio.Event()

    def __repr__(self) -> str:
        return f"<CoolDown left={self.left_seconds:.2f} s count={self.count} probes={self._probes.count}>"

    @property
    def left_seconds(self) -> float:
        """Seconds until the endpoint may be asked again; 0 when it may."""
        return max(0.0, self._until - time.monotonic()) if self._until else 0.0

    @property
    def next_try_seconds(self) -> float:
        """Seconds until the cool-down ends, or one call may try whether it still holds."""
        return max(0.0, min(self._until, self._probes.at) - time.monotonic())

    @property
    def last(self) -> Wait | None:
        """What was told last, also when its time has passed and the endpoint is being asked."""
        return None if self._wait is None else replace(self._wait, until=None)

    @property
    def wait(self) -> Wait | None:
        """The cool-down as it is told; None while there is none."""
        left, now = self.left_seconds, time.time()
        if not left or self._wait is None:
            return None
        next_try = now + max(0.0, self._probes.at - time.monotonic())
        return replace(self._wait, until=now + left, next_try=next_try if self._probes.at < self._until else None)

    async def over(self) -> bool:
        """Wait until the endpoint may be asked, also where that is put off meanwhile; True: this call is a probe."""
        while self.left_seconds > 0:
            async with self._turn:
                if self.left_seconds > 0:
                    self._changed.clear()
                    await wait_at_most(self.next_try_seconds, self._changed)
                    if await self.takes_probe():
                        return True
        return False

    async def takes_probe(self) -> bool:
        """Whether a probe is due and the caller has to make it: one of all processes."""
        if not self.left_seconds or time.monotonic() < self._probes.at:
            return False
        self._probes.count += 1
        pause = self._probe_seconds * 2 ** min(self._probes.count, DOUBLINGS)
        self._probes.at = time.monotonic() + pause
        if self._redis is None:
            return True
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                found: Any = await self._redis.eval(
                    _PROBE, 1, keys.cooldown(self._digest), math.ceil(self._probe_seconds * 1000), DOUBLINGS
                )
        except (RedisError, OSError, TimeoutError) as exc:
            log.debug("action=cooldowns_unheard Redis does not answer: %s", exc)
            return True
        is_ours, left_ms, pause_ms = (int(number) for number in found)
        if not left_ms:
            # Redis has lost it, or its end was not heard: this process finds out by itself.
            return True
        self._probes.at = time.monotonic() + pause_ms / 1000
        return bool(is_ours)

    def start(self) -> None:
        if self._redis is not None and self._listener is None:
            listening = listen(
                self._redis,
                keys.COOLDOWNS,
                self._hear,
                listening=self.listening,
                log=log,
                unheard="action=cooldowns_unheard Redis does not answer: %s",
            )
            self._listener = asyncio.create_task(listening, name="cooldowns")

    async def close(self) -> None:
        if self._listener:
            await end_tasks(self._listener)
        if self._ending:
            await asyncio.gather(self._ending, return_exceptions=True)

    async def begin(self, seconds: float, *, said: str = "", asked: float | None = None) -> None:
        """Leave the endpoint alone for at least `seconds`, in every process.

        `said` is the server's error, `asked` the seconds that its headers ask for.
        """
        seconds = min(seconds, MAX_WAIT_SECONDS)
        is_last_word = self._is_last_word and asked is not None
        self._is_last_word = False
        if seconds <= 0:
            return
        if seconds <= self.left_seconds and not is_last_word:
            return
        wait = self._told(seconds, said, asked)
        self._set(seconds, wait)
        self.count += 1
        if self._redis is None:
            return
        with contextlib.suppress(RedisError, OSError, TimeoutError):  # the limiter says that Redis is away
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                left = await self._redis.eval(
                    _BEGIN, 1, keys.cooldown(self._digest), math.ceil(seconds * 1000), wait.encode(),
                    math.ceil(self._probe_seconds * 1000), int(is_last_word), keys.COOLDOWNS, self._digest,
                )  # fmt: skip
                if int(left) / 1000 > seconds:
                    await self._look(self._redis)

    def _told(self, seconds: float, said: str, asked: float | None) -> Wait:
        now = time.time()
        since = self._wait.since if self._wait and self.left_seconds else now
        text = one_line(said, SAID_CHARACTERS)
        if match := _STATUS.search(text):
            text = f"{match[1]}: {match[2]!r}"
        text = text or "nothing remains of its limit"
        header = asked.source if isinstance(asked, HeaderSeconds) else ""
        return Wait("server_limit", self._name, since, now + seconds, text, header)

    def refused_probe(self) -> None:
        """A probe was refused: what the server asks for now counts, also where it is shorter."""
        self._is_last_word = True

    def end(self) -> None:
        """A probe was answered: the endpoint may be asked, in every process."""
        self._end_here()
        if self._redis is not None:
            self._ending = asyncio.create_task(self._end_everywhere(self._redis), name="end of a cool-down")

    async def _end_everywhere(self, redis: Redis) -> None:
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                place = keys.cooldown(self._digest), keys.limit(self._digest)
                await redis.eval(_END, 2, *place, keys.COOLDOWNS, self._digest)
        except (RedisError, OSError, TimeoutError) as exc:
            log.debug("action=cooldowns_unheard Redis does not answer: %s", exc)

    def _end_here(self) -> None:
        if self.left_seconds:
            log.info("action=cool_down_over endpoint=%s the server answers again before the time it named", self._name)
        self._until, self._wait, self._probes = 0.0, None, _Probes()
        self._changed.set()
        if self.ended is not None:
            self.ended()

    def _set(self, seconds: float, wait: Wait | None) -> None:
        now = time.monotonic()
        if not self.left_seconds:
            self._probes = _Probes(now + self._probe_seconds)
        self._until = now + seconds
        self._wait = wait or Wait("server_limit", self._name, time.time(), None, "as another process was told")
        self._changed.set()
        log.debug("action=cool_down seconds=%.2f", seconds)

    async def _look(self, redis: Redis) -> None:
        """Take over a cool-down that began before this process listened; its next probe may be due at once."""
        left = int(await redis.pttl(keys.cooldown(self._digest))) / 1000
        if left > self.left_seconds:
            self._set(left, Wait.decode(await redis.hget(keys.cooldown(self._digest), "wait")))
            self._probes.at = time.monotonic()

    async def _hear(self, message: str) -> None:
        if not message and self._redis is not None:
            await self._look(self._redis)
        digest, _, rest = message.partition(" ")
        milliseconds, _, wait = rest.partition(" ")
        if digest != self._digest or not (milliseconds.isascii() and milliseconds.isdecimal()):
            return
        seconds = min(int(milliseconds) / 1000, MAX_WAIT_SECONDS)
        if not seconds:
            self._end_here()
            return
        self._set(seconds, Wait.decode(wait))
        if self.heard is not None:
            self.heard()


def read_wait(redis: SyncRedis, endpoint_digest: str) -> Wait | None:
    """The cool-down that Redis holds for an endpoint, as it is told; None while there is none."""
    key = keys.cooldown(endpoint_digest)
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.pttl(key)
        pipeline.hget(key, "wait")
        pipeline.hget(key, "probe_at")
        left_ms, said, probe_at_ms = pipeline.execute()
    wait = Wait.decode(said) if left_ms > 0 else None
    if wait is None:
        return None
    until = time.time() + left_ms / 1000
    next_try = int(probe_at_ms or 0) / 1000
    return replace(wait, until=until, next_try=next_try if next_try < until else None)
