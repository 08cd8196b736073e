"""Slots of an endpoint's rate limits: reserved in Redis for all processes, or in this process for its share.

While Redis is away, the process keeps to its share, by the number of processes last seen.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from workers.llm.limits.cooldown import CoolDown
from workers.llm.limits.gcra import CHANGE, MICROSECONDS, RESERVE, Gcra, Limits, change_arguments, reservation_arguments
from workers.process.outage import Outage

log = logging.getLogger("themes.llm")

#: Seconds that a reservation may take before the process goes on by itself.
REDIS_TIMEOUT_SECONDS: Final = 1.0


class Slot(msgspec.Struct, eq=False):
    """The right to send one request at `at` (monotonic seconds). `at_us` is the same by the clock that gave it."""

    tokens: float
    at: float = 0.0
    at_us: float = 0.0
    #: The requests' TAT after this slot, as Redis wrote it; empty where Redis did not give it.
    tat: str = ""
    is_sent: bool = False
    sent_us: float = 0.0
    #: The wave of refusals after which it was reserved: with the next one it is worth nothing.
    wave: int = 0
    #: The one call that tries, within a cool-down, whether it still holds.
    is_probe: bool = False
    used_tokens: float | None = None
    #: Its time had come when it was reserved: those before it waited for a connection, not for the rate.
    was_free: bool = False

    def settle(self, tokens: float) -> None:
        self.used_tokens = tokens


class News(msgspec.Struct):
    """What a process tells with its next reservation: tokens used beyond those reserved, unsent slots, counts."""

    correction: float = 0.0
    returned: list[str] = []
    sent: int = 0
    refused: int = 0
    #: Whether the counts are wanted at once: a wave of refusals is being measured.
    is_urgent: bool = False

    def __bool__(self) -> bool:
        return bool(self.correction or self.returned or self.is_urgent)


class Reservations:
    """One endpoint's slots. `redis` None: this process is alone."""

    def __init__(self, redis: Redis | None, endpoint: str, limits: Limits, cool_down: CoolDown) -> None:
        self._limits = limits
        self._cool_down = cool_down
        self._keys = [keys.limit(endpoint), keys.limit_users(endpoint), keys.cooldown(endpoint), keys.learnt(endpoint)]
        self._script = redis.register_script(RESERVE) if redis is not None else None
        self._change = redis.register_script(CHANGE) if redis is not None else None
        #: What Redis has still to be told of a change of the limits.
        self._untold: list[str | float] = []
        self._user = uuid.uuid4().hex[:12]
        self._alone: Gcra | None = None if redis is not None else Gcra(limits)
        self._outage = Outage(
            log,
            lost="action=rate_limit_degraded Redis does not answer, each of %d processes keeps to its share: %s",
            back="action=rate_limit_restored Redis answers, limits are shared again",
        )
        #: Processes that share the limits, as Redis said last.
        self.users = 1
        #: Reservations made in Redis.
        self.count = 0

    def __repr__(self) -> str:
        if self._limits.is_unlimited:
            return "unlimited"
        return f"{'local' if self._alone else 'shared'} users={self.users}"

    @property
    def is_alone(self) -> bool:
        return self._alone is not None

    def change(self, limits: Limits, *, max_ahead: int) -> None:
        """Reserve by other limits from now on; Redis is told with the next reservation."""
        if limits != self._limits:
            self._untold = change_arguments(self._limits, limits, max_ahead=max_ahead)
        self._limits = limits
        if self._alone is not None:
            self._go_by_ourselves()

    async def take(self, tokens: Sequence[float], news: News, *, wave: int) -> tuple[list[Slot], float | None]:
        """Reserve a slot for each of `tokens`; `wave` is noted on them.

        Returns the slots, and when the last wave of refusals began by Redis's clock (us; 0: there was none; -1: no rate
        is being learnt; None: Redis was not asked).
        """
        if self._script is not None and not self._outage.is_paused:
            arguments = reservation_arguments(
                self._user,
                self._limits,
                correction=news.correction,
                returned=news.returned,
                tokens=tokens,
                sent=news.sent,
                refused=news.refused,
            )
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    await self._tell_change()
                    answer = await self._script(keys=self._keys, args=arguments)
            except (RedisError, OSError, TimeoutError) as exc:
                self._outage.begin(exc, self.users)
                if self._alone is None:
                    self._go_by_ourselves()
            else:
                self._alone = None
                self._outage.end()
                return self._shared(answer, tokens, wave), float(answer[2])
        return self._own(tokens, news.correction, wave), None

    async def _tell_change(self) -> None:
        """Let what was reserved at other limits be forgotten, once for all processes."""
        if self._untold and self._change is not None:
            told = self._untold
            await self._change(keys=self._keys[:2], args=told)
            if self._untold is told:
                self._untold = []

    def _shared(self, answer: list[Any], tokens: Sequence[float], wave: int) -> list[Slot]:
        now, now_us = time.monotonic(), float(answer[1])
        self.users = int(answer[0])
        self.count += 1
        return [
            Slot(asked, now + (float(at) - now_us) / MICROSECONDS, float(at), tat.decode(), wave=wave)
            for asked, at, tat in zip(tokens, answer[3::2], answer[4::2], strict=True)
        ]

    def _own(self, tokens: Sequence[float], correction: float, wave: int) -> list[Slot]:
        assert self._alone  # noqa: S101  # set where Redis is away or was never there
        self._alone.correct(correction)
        now = time.monotonic()
        not_before_us = (now + self._cool_down.left_seconds) * MICROSECONDS
        slots = []
        for asked in tokens:
            at_us = self._alone.reserve(asked, now_us=now * MICROSECONDS, not_before_us=not_before_us)
            slots.append(Slot(asked, at_us / MICROSECONDS, at_us, wave=wave))
        return slots

    def _go_by_ourselves(self) -> None:
        share = self._limits.share(self.users)
        now_us = time.monotonic() * MICROSECONDS
        # What was shared may just have been used up: no new burst.
        self._alone = Gcra(
            share,
            request_tat_us=now_us + (share.request_burst - 1) * share.request_us,
            token_tat_us=now_us + share.token_burst * share.token_us,
        )
