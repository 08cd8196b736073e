"""One endpoint's rate limits, shared by all workers.

A caller reserves a slot (`workers.llm.limits.gcra`), sleeps until its time and sends: callers do not poll, and none
rush when a slot comes free. Callers of one process stand in one line, first come first served; one task reserves for
all of them in one script call. At most `max_ahead` slots are reserved and not yet sent, so that requests of other
processes find their place between those of a long line.

Without limits a call costs no round trip, only a check of the cool-down (`workers.llm.limits.cooldown`).
"""

import asyncio
import hashlib
import time
from collections import deque
from typing import Final

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from config.sections import LlmSettings
from tasks import keys
from tasks.waits import Wait
from workers.llm.limits.cooldown import CoolDown
from workers.llm.limits.gcra import MICROSECONDS, Limits
from workers.llm.limits.reservations import News, Reservations, Slot
from workers.process.retry import wait_at_most

#: Seconds that a cool-down must exceed a slot by to cost it: less is the clocks' difference.
TOLERANCE_SECONDS: Final = 0.05
#: Seconds that slots of a learnt rate are reserved ahead: those reserved keep the old pace when the rate is raised.
LEARNT_AHEAD_SECONDS: Final = 1.0


class _Waiter(msgspec.Struct, eq=False):
    tokens: float
    future: asyncio.Future[Slot]


def endpoint_digest(base_url: str, model: str) -> str:
    """What an endpoint's keys are named after: providers limit each model by itself."""
    return hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]


class RateLimiter:
    """The line in front of one endpoint. Create and close it on its loop. `redis` None: this process is alone."""

    def __init__(
        self,
        redis: Redis | None,
        *,
        endpoint: str,
        limits: Limits,
        max_ahead: int,
        learn: bool = False,
        name: str = "llm",
        probe_seconds: float = LlmSettings().probe_seconds,
    ) -> None:
        #: Under which the endpoint's limits are known in Redis.
        self.digest = endpoint
        self._redis = redis
        self._limits = limits
        self._max_ahead = self._most_ahead = max_ahead
        self._waiting: deque[_Waiter] = deque()
        self._ahead = 0
        self._news = News()
        self._flusher: asyncio.Task[None] | None = None
        self.cool_down = CoolDown(redis, endpoint, name=name, probe_seconds=probe_seconds)
        self.cool_down.ended = self._new_wave
        self._reservations = Reservations(redis, endpoint, limits, self.cool_down)
        self._name = name
        #: Slots that callers wait for, and since when (both monotonic seconds).
        self._due: dict[Slot, float] = {}
        #: Whether refusals teach a rate that is not configured, and whether one is being learnt now.
        self._learns = learn and redis is not None and not limits.request_us
        self._learning = False
        #: When the last wave of refusals began, by Redis's clock.
        self._wave_us = 0.0
        self._wave = 0
        #: Replaced with each wave.
        self._wave_began = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"<RateLimiter {self._reservations!r} waiting={len(self._waiting)} ahead={self._ahead} {self.cool_down!r}>"
        )

    def tune(self, settings: LlmSettings, *, max_ahead: int) -> None:
        """Keep to other limits from now on: waiters reserve again."""
        limits = Limits.of(settings)
        self._max_ahead = max_ahead
        self._most_ahead = min(self._most_ahead, max_ahead) if self._learning else max_ahead
        learns = settings.learn_rate_limit and self._redis is not None and not limits.request_us
        if (limits, learns) == (self._limits, self._learns):
            self._wake()
            return
        self._reservations.change(limits, max_ahead=max_ahead)
        self._limits, self._learns = limits, learns
        self._learning = self._learning and learns
        self.cool_down.heard = self._tell if learns else None
        self._news.returned.clear()
        self._news.correction = 0.0
        self._new_wave()

    def _new_wave(self) -> None:
        """Invalidate all reservations; waiters reserve again."""
        self._wave += 1
        self._wave_began.set()
        self._wave_began = asyncio.Event()
        self._wake()

    @property
    def is_limited(self) -> bool:
        """Whether a slot is a reservation: false where requests may go as they come."""
        return self._learning or not self._limits.is_unlimited

    @property
    def learnt_key(self) -> str | None:
        """Where what refusals have taught of this endpoint's rate stands in Redis; None where nothing is learnt."""
        return keys.learnt(self.digest) if self._learns else None

    @property
    def is_cooling(self) -> bool:
        return self.cool_down.left_seconds > 0

    @property
    def is_binding(self) -> bool:
        """Whether callers wait for the rate or a cool-down; else those in line wait for others to find a connection."""
        return bool(self._due) or self.is_cooling

    def start(self) -> None:
        if self._learns:
            self.cool_down.heard = self._tell
        self.cool_down.start()

    async def close(self) -> None:
        """Send what is known of real token counts, and stop listening."""
        await self.cool_down.close()
        if self._flusher:
            if self.is_cooling:
                # It waits for the end of the cool-down, which may be an hour away.
                self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    @property
    def wait(self) -> Wait | None:
        """What callers wait for: the endpoint's cool-down, else the next slot of its rate; None for neither."""
        if (cooling := self.cool_down.wait) or not self._due:
            return cooling
        slot, since = min(self._due.items(), key=lambda item: item[0].at)
        now, clock = time.time(), time.monotonic()
        said = "learnt from its refusals" if self._learning else f"as configured: {self._limits.words}"
        return Wait("own_limit", self._name, now - (clock - since), now + max(0.0, slot.at - clock), said)

    def end(self, slot: Slot) -> None:
        """Give back a slot that was not sent; of one that was, count the tokens beyond those reserved."""
        if not slot.is_sent:
            self._give_back(slot)
        elif slot.used_tokens is not None:
            self._correct(slot.used_tokens - slot.tokens)

    def admits(self, slot: Slot) -> bool:
        """Whether a slot may be used now: in a cool-down a probe's alone, nor one from before there was a limit."""
        return slot.is_probe or (not self.is_cooling and (not self.is_limited or slot.at_us > 0))

    def sent(self, slot: Slot) -> None:
        slot.is_sent = True
        if self._learning:
            self._news.sent += 1
            slot.sent_us = slot.at_us + max(0.0, time.monotonic() - slot.at) * MICROSECONDS if slot.at_us else 0.0
        if slot.at_us:
            self._leave_line()

    def refused(self, slot: Slot) -> None:
        """The endpoint answered 429 to a request: where no rate was configured, this is how it is learnt."""
        if slot.is_probe:
            self.cool_down.refused_probe()
        if not self._learns or (self._learning and slot.sent_us <= self._wave_us):
            return
        self._news.refused += 1
        self._tell()

    def _tell(self) -> None:
        """Learn, and report at once what was sent and refused: a wave is being counted."""
        self._learning = self._news.is_urgent = True
        self._most_ahead = 1
        self._new_wave()

    async def slot(self, tokens: float) -> Slot:
        """Wait in line for the right to send one request of about `tokens`.

        Call `sent` when it is sent, `Slot.settle` when the tokens are known, and `end` in any case.
        """
        if not self.is_limited:
            return Slot(tokens, is_probe=await self.cool_down.over())
        slot = await self._reserved(tokens)
        slot.was_free = slot.at <= time.monotonic() and not self.is_cooling
        try:
            while not slot.is_probe:
                wait, cooling = slot.at - time.monotonic(), self.cool_down.left_seconds
                if slot.wave == self._wave and wait > 0:
                    self._due[slot] = time.monotonic()
                    await wait_at_most(wait, self._wave_began)
                    del self._due[slot]
                elif slot.wave == self._wave and cooling <= TOLERANCE_SECONDS:
                    if not cooling:
                        break
                    await asyncio.sleep(cooling)
                else:
                    # A wave of refusals or a cool-down began after it was reserved: a new slot, after its end.
                    self._leave_line()
                    slot.is_sent = True
                    slot = await self._reserved(tokens)
        except asyncio.CancelledError:
            if not slot.is_sent:
                self._give_back(slot)
            raise
        finally:
            self._due.pop(slot, None)
        return slot

    async def _reserved(self, tokens: float) -> Slot:
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._wake()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                self._give_back(waiter.future.result())
            raise

    def _leave_line(self) -> None:
        if self._ahead:
            self._ahead -= 1
            self._wake()

    def _give_back(self, slot: Slot) -> None:
        """Pass an unsent slot to the next caller without one, else back to Redis, which takes back the last one."""
        if not slot.at_us:
            return
        if waiter := self._first():
            self._correct(waiter.tokens - slot.tokens)
            waiter.future.set_result(replace(slot, tokens=waiter.tokens, is_sent=False))
            return
        if slot.tat and not self._reservations.is_alone:
            self._news.returned.append(slot.tat)
        self._correct(-slot.tokens)
        self._leave_line()
        self._wake()

    def _correct(self, tokens: float) -> None:
        if self._limits.token_us and tokens:
            self._news.correction += tokens
            self._wake()

    def _wake(self) -> None:
        if self._has_work() and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.create_task(self._serve(), name="rate limit")

    def _has_work(self) -> bool:
        return bool(self._news or (self._waiting and self._ahead < self._most_ahead))

    async def _serve(self) -> None:
        """Reserve slots for the line's head, as many as may be ahead, in one call a round."""
        while self._has_work():
            is_held_up = self.is_cooling
            if is_held_up and not self._news:
                await wait_at_most(self.cool_down.next_try_seconds, self._wave_began)
                await self._lend_probe()
                continue
            batch = [] if is_held_up else self._next_in_line()
            self._ahead += len(batch)
            slots = await self._slots([waiter.tokens for waiter in batch])
            for waiter, slot in zip(batch, slots, strict=True):
                if waiter.future.done():
                    self._give_back(slot)
                else:
                    waiter.future.set_result(slot)

    def _next_in_line(self) -> list[_Waiter]:
        batch: list[_Waiter] = []
        while self._ahead + len(batch) < self._most_ahead and (waiter := self._first()):
            batch.append(waiter)
        return batch

    def _first(self) -> _Waiter | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                return waiter
        return None

    async def _lend_probe(self) -> None:
        """Let the line's head try whether the cool-down still holds, where that is due and no other process does."""
        if self._waiting and await self.cool_down.takes_probe() and (waiter := self._first()):
            waiter.future.set_result(Slot(waiter.tokens, is_probe=True))

    async def _slots(self, tokens: list[float]) -> list[Slot]:
        news, self._news = self._news, News()
        slots, wave_us = await self._reservations.take(tokens, news, wave=self._wave)
        if wave_us is not None:
            # The word of a cool-down may come before that of the refusal: then it is asked again after it.
            self._learning = self._learns and (wave_us >= 0 or self.is_cooling)
            self._wave_us = max(0.0, wave_us)
            self._look_ahead(slots[-1].at - time.monotonic() if slots else 0.0)
        return slots

    def _look_ahead(self, seconds: float) -> None:
        """Let fewer slots be reserved where the last one is far off at a rate that may be raised, else more."""
        if not self._learning:
            self._most_ahead = self._max_ahead
        elif seconds > LEARNT_AHEAD_SECONDS:
            self._most_ahead = max(1, self._most_ahead // 2)
        else:
            self._most_ahead = min(self._max_ahead, self._most_ahead * 2)
