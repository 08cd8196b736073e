"""Single flight over all processes and machines: a prompt that one caller is asking is not asked again.

The first caller holds a lease in Redis, renewed while its process lives; later callers wait. When the answer is stored,
or has failed for good, the lease ends and a channel wakes the waiting processes; they also look once a second, because
a channel promises nothing. The next process to look takes a lease that ran out: a killed owner costs its waiters
one lease, or a second where its supervisor reports its death.

Claims, ends and renewals are batched, each batch one script call. While Redis is away every process goes on with its
own single flight.

Source of the idea: Go's golang.org/x/sync/singleflight; the lease is that of Gray & Cheriton, "Leases: An Efficient
Fault-Tolerant Mechanism for Distributed File Cache Consistency", 1989.
"""

import asyncio
import logging
import time
import uuid
from typing import Any, Final, Literal

import msgspec
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.lua import lua
from workers.process.outage import Outage
from workers.process.retry import wait_at_most
from workers.process.shutdown import end_tasks
from workers.process.subscription import listen

log = logging.getLogger("themes.llm")

#: Seconds that one script call may take before the process goes on by itself.
REDIS_TIMEOUT_SECONDS: Final = 5.0
#: Seconds between two looks at a prompt that another process asks.
POLL_SECONDS: Final = 1.0
#: Seconds between two batches of claims, at least.
TOGETHER_SECONDS: Final = 0.002
#: Claims in one batch, at most: larger batches would send callers to the endpoint in waves.
AT_ONCE: Final = 16
#: Seconds that an answer waits to be stored with others; only callers in other processes wait for that.
STORE_SECONDS: Final = 0.02
#: Renewals in the time of one lease.
RENEWALS: Final = 3

ClaimEnd = Literal["own", "value", "outcome", "alone"]


class Claimed(msgspec.Struct, frozen=True):
    """How a claim ended.

    `own`: the caller asks. `value`: the cache has the answer (`payload`). `outcome`: what the owner left for its
    waiters. `alone`: Redis is away; the caller asks. `waited`: another caller was asking.
    """

    end: ClaimEnd
    payload: bytes = b""
    waited: bool = False


class Flight(msgspec.Struct):
    """A prompt that is ours to ask. Set before it ends: what is stored, and what waiters get that the cache lacks."""

    stored: bytes | None = None
    outcome: bytes | None = None


class _Claim(msgspec.Struct, eq=False):
    """A caller that waits for a flight, for the time of a `with`. `seen` is the token of the owner found last."""

    flights: "SharedFlights"
    flight: str
    cache_key: str
    fresh: bool
    token: str
    future: asyncio.Future[Claimed]
    due: float = 0.0
    seen: str = ""
    ours: Flight = msgspec.field(default_factory=Flight)
    is_owned: bool = False

    async def __aenter__(self) -> tuple[Claimed, Flight]:
        claimed = await self.flights.claimed(self)
        self.is_owned = claimed.end == "own"
        return claimed, self.ours

    async def __aexit__(self, *_: object) -> None:
        if self.is_owned:
            self.flights.end_soon(self)


class SharedFlights:
    """One process's part in the single flight of all. Start and close it on the loop that uses it."""

    def __init__(self, redis: Redis, *, lease_seconds: float, ttl_ms: int, process: str = "") -> None:
        self._redis = redis
        self._lease_ms = int(lease_seconds * 1000)
        self._ttl_ms = ttl_ms
        #: Unlike that of any other process, also of those before it.
        self._process = process or uuid.uuid4().hex[:12]
        self._count = 0
        self._claim = redis.register_script(lua(__file__, "claim"))
        self._end = redis.register_script(lua(__file__, "end_flight"))
        self._renew = redis.register_script(lua(__file__, "renew_flights"))
        self._waiting: dict[str, _Claim] = {}
        self._held: dict[str, _Claim] = {}
        self._ending: list[_Claim] = []
        self._changed = asyncio.Event()
        self._claimer: asyncio.Task[None] | None = None
        self._ender: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._outage = Outage(
            log,
            lost="action=flights_degraded Redis does not answer, equal prompts are joined in this process alone: %s",
            back="action=flights_restored Redis answers, equal prompts of all processes are joined again",
        )
        self._looked_at = 0.0
        #: Set while the channel is listened to.
        self.listening = asyncio.Event()
        self.waited = self.taken_over = 0

    def __repr__(self) -> str:
        state = "alone" if self._outage.is_paused else "shared"
        return f"<SharedFlights {state} held={len(self._held)} waiting={len(self._waiting)} waited={self.waited}>"

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(
                listen(
                    self._redis,
                    keys.FLIGHTS,
                    self._hear,
                    listening=self.listening,
                    log=log,
                    unheard="action=flights_unheard Redis does not answer: %s",
                ),
                name="flights",
            ),
            asyncio.create_task(self._keep(), name="flight leases"),
        ]

    async def close(self) -> None:
        """Store what is on its way, and listen no more. Callers cancel what waits."""
        await self.flush()
        await end_tasks(*(task for task in [*self._tasks, self._claimer] if task))

    async def flush(self) -> None:
        """Wait until every answer so far is stored, or Redis found away."""
        while self._ender and not self._ender.done():
            await asyncio.wait({self._ender})

    def flight(self, flight: str, cache_key: str, *, fresh: bool = False) -> _Claim:
        """Take the prompt `flight`, or wait until its owner is done.

        The answer is stored under `cache_key`; with `fresh` one that the cache has already is not wanted.
        """
        self._count += 1
        token = f"{self._process}:{self._count}"
        return _Claim(self, flight, cache_key, fresh, token, asyncio.get_running_loop().create_future())

    async def claimed(self, claim: _Claim) -> Claimed:
        if self._outage.is_paused:
            return Claimed("alone")
        self._waiting[claim.flight] = claim
        self._changed.set()
        if self._claimer is None or self._claimer.done():
            self._claimer = asyncio.create_task(self._serve_claims(), name="flight claims")
        try:
            return await claim.future
        except asyncio.CancelledError:
            if claim.token in self._held:
                self.end_soon(claim)
            raise
        finally:
            if self._waiting.get(claim.flight) is claim:
                del self._waiting[claim.flight]

    async def _serve_claims(self) -> None:
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
                await wait_at_most(max(0.0, soonest - time.monotonic()), self._changed)

    async def _look(self, due: list[_Claim]) -> None:
        script_keys = [key for claim in due for key in keys.flight(claim.flight, claim.cache_key)]
        arguments: list[Any] = [self._lease_ms]
        for claim in due:
            arguments += [claim.token, claim.seen, int(claim.fresh)]
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                answers = await self._claim(keys=script_keys, args=arguments)
            self._outage.end()
        except (RedisError, OSError, TimeoutError) as exc:
            self._outage.begin(exc)
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
            # Its caller has gone meanwhile.
            self.end_soon(claim)

    def end_soon(self, claim: _Claim) -> None:
        """Store the answer, end the lease and wake the waiters, without keeping the caller waiting."""
        self._held.pop(claim.token, None)
        self._ending.append(claim)
        if self._ender is None or self._ender.done():
            self._ender = asyncio.create_task(self._serve_ends(), name="flight ends")

    async def _serve_ends(self) -> None:
        while self._ending:
            await asyncio.sleep(STORE_SECONDS)
            ends, self._ending = self._ending, []
            script_keys = [key for claim in ends for key in keys.flight(claim.flight, claim.cache_key)]
            arguments: list[Any] = [self._lease_ms, self._ttl_ms, keys.FLIGHTS]
            for claim in ends:
                arguments += [claim.token, claim.ours.stored or b"", claim.ours.outcome or b"", claim.flight]
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    await self._end(keys=script_keys, args=arguments)
                self._outage.end()
            except (RedisError, OSError, TimeoutError) as exc:
                # The answers are in the memory of this process; the leases run out by themselves.
                self._outage.begin(exc)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 1000 / RENEWALS)
            held = list(self._held.values())
            if not held or self._outage.is_paused:
                continue
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    await self._renew(
                        keys=[keys.flight(claim.flight, claim.cache_key)[1] for claim in held],
                        args=[self._lease_ms, *(claim.token for claim in held)],
                    )
            except (RedisError, OSError, TimeoutError) as exc:
                self._outage.begin(exc)

    async def _hear(self, flight: str) -> None:
        claim = self._waiting.get(flight)
        if claim is not None:
            claim.due = 0.0
            self._changed.set()
