"""Single flight over all processes and machines: a prompt that somebody is asking is waited for, not asked again.

Who asks holds a lease in Redis and renews it while it lives; who comes meanwhile waits. When the answer is stored, or
has failed for good, the lease ends and the waiting processes are woken over a channel; they look by themselves once a
second too, because a channel promises nothing. A lease that runs out goes to whoever looks next: an owner that was
killed costs its waiters one lease, or a second where its supervisor says that it is dead.

Claims, ends and renewals that come together travel together, each as one script call. Redis away: every process goes on
with its own single flight, and comes back by itself.

Source of the idea: Go's golang.org/x/sync/singleflight; the lease is that of Gray & Cheriton, "Leases: An Efficient
Fault-Tolerant Mechanism for Distributed File Cache Consistency", 1989.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from workers.llm.flights import scripts as flight_scripts
from workers.process.shutdown import end_tasks

log = logging.getLogger("themes.llm")

#: Seconds for which Redis is left alone after an error.
REDIS_PAUSE_SECONDS: Final = 2.0
#: Seconds that one script call may take before the process goes on by itself.
REDIS_TIMEOUT_SECONDS: Final = 5.0
#: Seconds between two looks at a prompt that somebody else asks.
POLL_SECONDS: Final = 1.0
#: Seconds between two claims, at least: those that come meanwhile travel together.
TOGETHER_SECONDS: Final = 0.002
#: Claims that travel together, at most. With more, a crowd that comes at once would leave at once and come back so:
#: in small parts it spreads over time, and neither this process nor the endpoint waits in between.
AT_ONCE: Final = 16
#: Seconds that an answer waits before it is stored, so that several travel together: nobody here waits for that.
STORE_SECONDS: Final = 0.005
#: Renewals in the time of one lease.
RENEWALS: Final = 3
#: Seconds between two attempts to listen, when Redis is away.
LISTEN_AGAIN_SECONDS: Final = 1.0
#: Seconds that one look at the channel waits; below every socket timeout that can be set.
LISTEN_SECONDS: Final = 0.5

ClaimEnd = Literal["own", "value", "outcome", "alone"]


@dataclass(frozen=True, slots=True)
class Claimed:
    """What came of asking for a flight.

    `own`: ask, and say how it ended. `value`: the cache has it (`payload`). `outcome`: what its owner told those who
    waited. `alone`: Redis is away; ask. `waited` says that somebody else was asking.
    """

    end: ClaimEnd
    payload: bytes = b""
    waited: bool = False


@dataclass(slots=True, eq=False)
class _Claim:
    """Somebody waits for a flight. `seen` is the token of the owner that was found last."""

    flight: str
    cache_key: str
    fresh: bool
    token: str
    future: asyncio.Future[Claimed]
    due: float = 0.0
    seen: str = ""


@dataclass(slots=True)
class Flight:
    """A prompt that is ours to ask. Set what shall be stored, or told to those who wait, before it ends."""

    #: What goes into the cache, and for how long.
    stored: bytes | None = None
    #: What those who wait are told, where the cache will not tell them.
    outcome: bytes | None = None


@dataclass(slots=True, eq=False)
class _End:
    claim: _Claim
    flight: Flight


class SharedFlights:
    """One process's part in the single flight of all. Start and close it on the loop that uses it."""

    def __init__(self, redis: Redis, *, lease_seconds: float, ttl_ms: int, process: str = "") -> None:
        self._redis = redis
        self._lease_ms = int(lease_seconds * 1000)
        self._ttl_ms = ttl_ms
        #: Unlike that of any other process, also of those before it.
        self._process = process or uuid.uuid4().hex[:12]
        self._count = 0
        self._claim = redis.register_script(flight_scripts.CLAIM)
        self._end = redis.register_script(flight_scripts.END)
        self._renew = redis.register_script(flight_scripts.RENEW)
        self._waiting: dict[str, _Claim] = {}
        self._held: dict[str, _Claim] = {}
        self._ending: list[_End] = []
        self._changed = asyncio.Event()
        self._claimer: asyncio.Task[None] | None = None
        self._ender: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._paused_until = 0.0
        self._is_away = False
        self._looked_at = 0.0
        #: Set while the channel is listened to.
        self.listening = asyncio.Event()
        self.waited = self.taken_over = 0

    def __repr__(self) -> str:
        state = "alone" if self.is_paused else "shared"
        return f"<SharedFlights {state} held={len(self._held)} waiting={len(self._waiting)} waited={self.waited}>"

    @property
    def is_paused(self) -> bool:
        """Whether Redis is left alone for the moment."""
        return time.monotonic() < self._paused_until

    def start(self) -> None:
        """Begin to listen, and to renew what is held."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="flights"),
            asyncio.create_task(self._keep(), name="flight leases"),
        ]

    async def close(self) -> None:
        """Store what is on its way, and listen no more. What waits is cancelled by who waits."""
        await self.flush()
        await end_tasks(*(task for task in [*self._tasks, self._claimer] if task))

    async def flush(self) -> None:
        """Wait until every answer so far is stored, or Redis found away."""
        while self._ender and not self._ender.done():
            await asyncio.wait({self._ender})

    @asynccontextmanager
    async def flight(
        self, flight: str, cache_key: str, *, fresh: bool = False
    ) -> AsyncIterator[tuple[Claimed, Flight]]:
        """Take a prompt, or wait until whoever has it is done.

        Args:
            flight: what is asked; equal ones are asked once.
            cache_key: where its answer is stored.
            fresh: an answer that the cache has already is not wanted.
        """
        claim = _Claim(flight, cache_key, fresh, self._token(), asyncio.get_running_loop().create_future())
        claimed = await self._claimed(claim)
        ours = Flight()
        try:
            yield claimed, ours
        finally:
            if claimed.end == "own":
                self._end_soon(claim, ours)

    def _token(self) -> str:
        self._count += 1
        return f"{self._process}:{self._count}"

    async def _claimed(self, claim: _Claim) -> Claimed:
        if self.is_paused:
            return Claimed("alone")
        self._waiting[claim.flight] = claim
        self._changed.set()
        if self._claimer is None or self._claimer.done():
            self._claimer = asyncio.create_task(self._serve_claims(), name="flight claims")
        try:
            return await claim.future
        except asyncio.CancelledError:
            if claim.token in self._held:
                self._end_soon(claim, Flight())
            raise
        finally:
            if self._waiting.get(claim.flight) is claim:
                del self._waiting[claim.flight]

    async def _serve_claims(self) -> None:
        """Look at what is due, all in one call, until nobody waits."""
        while self._waiting:
            self._changed.clear()
            now = time.monotonic()
            if len(self._waiting) < AT_ONCE and self._looked_at + TOGETHER_SECONDS > now:
                await asyncio.sleep(self._looked_at + TOGETHER_SECONDS - now)
                now = time.monotonic()
            due = [claim for claim in self._waiting.values() if claim.due <= now][:AT_ONCE]
            if due:
                self._looked_at = now
                await self._look(due)
            if self._waiting:
                soonest = min(claim.due for claim in self._waiting.values())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, soonest - time.monotonic())):
                        await self._changed.wait()

    async def _look(self, due: list[_Claim]) -> None:
        script_keys = [key for claim in due for key in keys.flight(claim.flight, claim.cache_key)]
        arguments: list[Any] = [self._lease_ms]
        for claim in due:
            arguments += [claim.token, claim.seen, int(claim.fresh)]
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                answers = await self._claim(keys=script_keys, args=arguments)
            self._answered()
        except (RedisError, OSError, TimeoutError) as exc:
            self._pause(exc)
            answers = [(b"alone", b"")] * len(self._waiting)
            due = list(self._waiting.values())
        now = time.monotonic()
        for claim, (end, payload, *left) in zip(due, answers, strict=True):
            self._learn(claim, end.decode(), payload, left, now)

    def _learn(self, claim: _Claim, end: str, payload: bytes, left: list[bytes], now: float) -> None:
        if end == "held":
            self.waited += not claim.seen
            claim.seen = payload.decode()
            # A lease that is not renewed is looked at when it has run out.
            claim.due = now + min(POLL_SECONDS, int(left[0]) / 1000 + 0.001)
            return
        if self._waiting.get(claim.flight) is claim:
            del self._waiting[claim.flight]
        if end == "own":
            self._held[claim.token] = claim
            self.taken_over += bool(claim.seen)
        if not claim.future.done():
            claim.future.set_result(Claimed(end, payload, waited=bool(claim.seen)))  # type: ignore[arg-type]
        elif end == "own":
            # Who asked for it has gone meanwhile.
            self._end_soon(claim, Flight())

    def _end_soon(self, claim: _Claim, flight: Flight) -> None:
        """Store what there is to store, end the lease, and wake who waits; ends that come together travel together.

        Who asked does not wait for it: the answer is at hand, and in memory for the others of this process.
        """
        self._held.pop(claim.token, None)
        self._ending.append(_End(claim, flight))
        if self._ender is None or self._ender.done():
            self._ender = asyncio.create_task(self._serve_ends(), name="flight ends")

    async def _serve_ends(self) -> None:
        while self._ending:
            await asyncio.sleep(STORE_SECONDS)
            ends, self._ending = self._ending, []
            script_keys = [key for end in ends for key in keys.flight(end.claim.flight, end.claim.cache_key)]
            arguments: list[Any] = [self._lease_ms, self._ttl_ms, keys.FLIGHTS]
            for end in ends:
                arguments += [end.claim.token, end.flight.stored or b"", end.flight.outcome or b"", end.claim.flight]
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    await self._end(keys=script_keys, args=arguments)
                self._answered()
            except (RedisError, OSError, TimeoutError) as exc:
                # The answers are in the memory of this process; the leases run out by themselves.
                self._pause(exc)

    async def _keep(self) -> None:
        """Renew the leases of what is asked, for as long as this process lives."""
        while True:
            await asyncio.sleep(self._lease_ms / 1000 / RENEWALS)
            held = list(self._held.values())
            if not held or self.is_paused:
                continue
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    await self._renew(
                        keys=[keys.flight(claim.flight, claim.cache_key)[1] for claim in held],
                        args=[self._lease_ms, *(claim.token for claim in held)],
                    )
            except (RedisError, OSError, TimeoutError) as exc:
                self._pause(exc)

    async def _listen(self) -> None:
        """Hear which flights of others have ended."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(keys.FLIGHTS)
                    self.listening.set()
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
                        if message:
                            self._hear(message["data"].decode("utf-8", "replace"))
            except (RedisError, OSError) as exc:
                log.debug("action=flights_unheard Redis does not answer: %s", exc)
            self.listening.clear()
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def _hear(self, flight: str) -> None:
        claim = self._waiting.get(flight)
        if claim is not None:
            claim.due = 0.0
            self._changed.set()

    def _answered(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("action=flights_restored Redis answers, equal prompts of all processes are joined again")

    def _pause(self, exc: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning(
                "action=flights_degraded Redis does not answer, equal prompts are joined in this process alone: %s",
                str(exc) or type(exc).__name__,
            )
        self._paused_until = time.monotonic() + REDIS_PAUSE_SECONDS
