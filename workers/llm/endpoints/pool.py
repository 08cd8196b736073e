"""The LLM connections of one worker process: their number, their order, and to which endpoint.

    choose a route -> its rate limit's line -> the pool's line -> a connection

At most `max_size` connections are lent at once, over all endpoints together. They go first to the destination that
started first: what was started is finished before more is begun, so the work in progress stays small. A caller is bound
to a route as late as can be: in the pool's line any equivalent route will do, unless one was reserved under a limit.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from redis.asyncio import Redis

from config.settings import Settings
from tasks.errors import ConfigError, EndpointDownError
from tasks.waits import Wait
from workers.llm.endpoints.circuit import until_one_allows
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.registry import Endpoint, endpoints
from workers.llm.endpoints.route import Route, better_of_two
from workers.llm.limits.limiter import RateLimiter
from workers.llm.limits.reservations import Slot
from workers.observe.metrics import Histogram
from workers.observe.profiler import PerformanceProfiler


class CircuitOpenError(EndpointDownError):
    """Nothing was sent: the endpoint is known to be down, and its last probe has failed."""


class Lease(msgspec.Struct, eq=False):
    """A connection that is lent: to which route, with which slot of its rate limit, since when (monotonic seconds)."""

    route: Route
    slot: Slot
    sent_at: float
    #: Whose slot it is: that of the route, or of one that does as well.
    limiter: RateLimiter
    #: Of the destination.
    request_priority: int = 0
    #: Sent, and its end not yet reported.
    is_open: bool = False


_Waiter = tuple[int, int, asyncio.Future[Route]]


class LLMConnectionPool:
    """Lends connections. Create and close it on the loop that uses it."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        max_size: int,
        profiler: PerformanceProfiler,
        connections: Sequence[Connections] = (),
        outage_seconds: float = 0.0,
    ) -> None:
        #: Connections that may be lent at once.
        self.max_size = max_size
        self._outage_seconds = outage_seconds
        self._profiler = profiler
        self._connections = connections
        self._models: dict[str, tuple[Route, ...]] = {}
        for route in routes:
            self._models[route.model] = (*self._models.get(route.model, ()), route)
        self.routes = [*itertools.chain(*self._models.values())]
        self.in_use = 0
        self._order = itertools.count()
        #: Waiting callers by the routes that would do, the most urgent first.
        self._waiting: dict[tuple[Route, ...], list[_Waiter]] = {}
        self._waits = Histogram()
        #: Connections in use, and callers in line, x time, and until when (monotonic seconds).
        self._busy_seconds = 0.0
        self._counted_at = self._began_at = time.perf_counter()

    @classmethod
    @asynccontextmanager
    async def of(
        cls, settings: Settings, models: Collection[str], profiler: PerformanceProfiler, redis: Redis | None
    ) -> AsyncIterator["LLMConnectionPool"]:
        """The pool that the settings ask for, to ask these models; closed at the end.

        Raises `ConfigError`: no endpoint is set, a key cannot be read, or no endpoint serves one of the models.
        """
        size = settings.performance_optimization.llm_connection_pool_size
        async with AsyncExitStack() as stack:
            routes: list[Route] = []
            opened: list[Connections] = []
            known = endpoints(settings.llm)
            for endpoint in known:
                connections = Connections(
                    settings.llm,
                    base_url=endpoint.base_url,
                    api_key=endpoint.api_key,
                    max_connections=size,
                    max_requests=settings.performance_optimization.max_requests_per_connection,
                    query=endpoint.query,
                    more_headers=endpoint.headers,
                    profiler=profiler,
                )
                stack.push_async_callback(connections.close)
                opened.append(connections)
                routes += [
                    Route.of(endpoint, model, connections, settings, redis, profiler=profiler)
                    for model in sorted(models)
                    if endpoint.serves(model)
                ]
            _refuse_unserved(models, routes, known)
            for route in routes:
                stack.push_async_callback(route.limiter.close)
                route.limiter.start()
            yield cls(
                routes,
                max_size=size,
                profiler=profiler,
                connections=opened,
                outage_seconds=settings.llm.wait_for_endpoint_seconds,
            )

    def __repr__(self) -> str:
        return (
            f"<LLMConnectionPool in_use={self.in_use} idle={self.idle} waiting={self.waiting} max={self.max_size} "
            f"routes={self.routes}>"
        )

    @property
    def idle(self) -> int:
        return sum(one.connector.idle for one in self._connections)

    @property
    def waiting(self) -> int:
        """Callers in line for a connection, and behind them those that a free rate limit lets in one after another."""
        behind = sum(route.queued - route.rate_waiting for route in self.routes)
        return behind + sum(not future.done() for line in self._waiting.values() for _, _, future in line)

    def tune(self, settings: Settings) -> None:
        """Keep to other sizes and limits from now on; calls that are under way go on, also beyond a smaller size."""
        size = settings.performance_optimization.llm_connection_pool_size
        self.max_size = size
        for connections in self._connections:
            connections.connector.resize(size)
        for route in self.routes:
            route.tune(settings)
        self._hand_over()

    def statistics(self) -> dict[str, Any]:
        """What the pool is doing, and what it has done since the process started. Waits are in milliseconds."""
        waits = {f"wait_p{share}_ms": round(self._waits.quantile(share / 100) * 1000, 3) for share in (50, 95, 99)}
        return {
            "in_use": self.in_use,
            "idle": self.idle,
            "waiting": self.waiting,
            "max": self.max_size,
            **waits,
            "opened": sum(one.connector.opened for one in self._connections),
            "recycled": sum(one.connector.recycled for one in self._connections),
            "failures": sum(route.circuit.failures for route in self.routes),
            "routes": {f"{route.name}/{route.model}": route.statistics() for route in self.routes},
        }

    def amounts(self) -> dict[str, float]:
        """Exact integrals over time since the pool was made, for the profile of a job."""
        self._count_time()
        return {
            "pool_seconds": (self._counted_at - self._began_at) * self.max_size,
            "pool_busy_seconds": self._busy_seconds,
        }

    async def warm(self, count: int) -> int:
        """Open `count` connections, shared out over the endpoints, before prompts need them; returns how many stand."""
        first = {route.client.base_url: route for route in reversed(self.routes)}
        shares = [len(range(number, count, len(first))) for number in range(len(first))]
        opened = await asyncio.gather(
            *(route.client.warm(share) for route, share in zip(first.values(), shares, strict=True))
        )
        return sum(opened)

    def connection(
        self, model: str, *, request_priority: int, tokens: int = 0, avoid: Collection[Route] = ()
    ) -> "_Lending":
        """Borrow a connection to an endpoint that serves `model`, when its limits and health allow it.

        A lower `request_priority` is served first, equal ones in order of arrival. The call will use about `tokens`.
        Routes to `avoid` are taken only where no other is healthy. Report its end with `answered`, `refused`, `failed`.

        Raises:
            CircuitOpenError: every endpoint of the model is down, and one of them has just been tried in vain.
        """
        return _Lending(self, self._lend(model, request_priority, tokens, avoid))

    async def _lend(self, model: str, request_priority: int, tokens: int, avoid: Collection[Route]) -> Lease:
        while True:
            healthy = await self._healthy(model, avoid)
            cooling = [route for route in healthy if route.limiter.is_cooling]
            probed = await _probed(cooling) if cooling else None
            routes = [probed] if probed else _ready(healthy, cooling)
            chosen = better_of_two(routes)
            began = time.perf_counter()
            slot = await chosen.slot(tokens, is_probe=probed is not None)
            asked = began if slot.was_free else time.perf_counter()
            self._profiler.record("llm.rate_wait", asked - began)
            try:
                taken = await self._acquire(_equivalent(chosen, routes), request_priority)
            except BaseException:
                chosen.limiter.end(slot)
                raise
            waited = time.perf_counter() - asked
            self._waits.add(waited)
            self._profiler.record("llm.pool_wait", waited)
            lease = Lease(taken, slot, time.monotonic(), chosen.limiter, request_priority)
            # In line a cool-down may have begun or the endpoint gone: then back, and give the slot away.
            if taken.limiter.admits(slot) and taken.circuit.admit():
                lease.is_open = True
                taken.limiter.sent(slot)
                return lease
            self._take_back(lease)

    def _take_back(self, lease: Lease) -> None:
        if lease.is_open:
            lease.route.circuit.withdrawn()
        self._release(lease.route)
        lease.limiter.end(lease.slot)

    def answered(self, lease: Lease) -> None:
        """An answer came over a connection that is still lent: where all are, one more may be allowed."""
        route = lease.route
        lease.is_open = False
        route.answered(sent_at=lease.sent_at)
        if lease.slot.is_probe:
            route.limiter.cool_down.end()
        route.concurrency.answered(saturated=route.in_use >= route.concurrency.limit)
        self._hand_over()

    def refused(self, lease: Lease) -> None:
        lease.is_open = False
        lease.route.refused(lease.slot, sent_at=lease.sent_at)

    def failed(self, lease: Lease, error: Exception, *, for_good: bool = False) -> None:
        """The endpoint is at fault; `for_good`: it will go on like this until its settings are mended."""
        lease.is_open = False
        if for_good:
            lease.route.circuit.refused(error)
        else:
            lease.route.failed(error, sent_at=lease.sent_at, witness=lease.request_priority)

    def others(self, model: str, avoid: Collection[Route]) -> bool:
        return any(route.circuit.allows for route in self._models.get(model, ()) if route not in avoid)

    def outage(self, model: str | None = None) -> str:
        """Why no endpoint can answer for a model, or for any; empty when one can or the time to wait has passed."""
        for name, routes in self._models.items():
            if model in {None, name} and all(route.circuit.down_seconds is not None for route in routes):
                away = [route.circuit for route in routes if route.circuit.is_outage]
                if any((circuit.down_seconds or 0.0) < self._outage_seconds for circuit in away):
                    return str(away[0].error)
        return ""

    def wait(self) -> Wait | None:
        """What this whole worker waits for: each endpoint of a model is down or limited; None while one can answer."""
        for routes in self._models.values():
            waits = [route.wait for route in routes]
            if all(waits):
                return min((each for each in waits if each), key=lambda each: each.next_try or each.until or 0.0)
        return None

    async def _healthy(self, model: str, avoid: Collection[Route]) -> list[Route]:
        """The routes whose circuits let something through, also those in a cool-down."""
        routes = self._models.get(model)
        if not routes:
            raise ConfigError(f"no endpoint serves the model {model!r}; add it to `models` of one in llm.endpoints")
        while True:
            allowed = [route for route in routes if route.circuit.allows]
            found = [route for route in allowed if route not in avoid] or allowed
            if found:
                return found
            error = await until_one_allows([route.circuit for route in routes])
            if error and not self.outage(model) and not any(route.circuit.allows for route in routes):
                raise CircuitOpenError(str(error)) from error

    async def _acquire(self, routes: tuple[Route, ...], request_priority: int) -> Route:
        if self.in_use < self.max_size and (seats := _with_seats(routes)):
            return self._take(better_of_two(seats))
        future: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting.setdefault(routes, []), (request_priority, next(self._order), future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The connection was handed over in the moment of the cancellation: pass it on.
                self._release(future.result())
            raise

    def _take(self, route: Route) -> Route:
        self._count_time()
        self.in_use += 1
        route.in_use += 1
        return route

    def _release(self, route: Route) -> None:
        self._count_time()
        self.in_use -= 1
        route.in_use -= 1
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self.in_use < self.max_size:
            heads = [(line[0], routes) for routes, line in self._waiting.items() if _with_seats(routes)]
            if not heads:
                return
            (_, _, future), routes = min(heads, key=lambda head: head[0][:2])
            heapq.heappop(self._waiting[routes])
            if not self._waiting[routes]:
                del self._waiting[routes]
            if not future.done():
                future.set_result(self._take(better_of_two(_with_seats(routes))))

    def _count_time(self) -> None:
        """Book the time since the last change on the state that ends now."""
        now = time.perf_counter()
        passed = now - self._counted_at
        self._counted_at = now
        self._busy_seconds += self.in_use * passed


class _Lending:
    """A connection that is lent for the time of a `with`; written out, because every call has one."""

    __slots__ = ("_lease", "_lending", "_pool")

    _lease: Lease

    def __init__(self, pool: LLMConnectionPool, lending: Coroutine[Any, Any, Lease]) -> None:
        self._pool = pool
        self._lending = lending

    async def __aenter__(self) -> Lease:
        self._lease = await self._lending
        return self._lease

    async def __aexit__(self, *_: object) -> None:
        self._pool._take_back(self._lease)  # noqa: SLF001  # the two are one machine


def _ready(routes: list[Route], cooling: Collection[Route]) -> list[Route]:
    """The routes that are in no cool-down; where all are, the one whose cool-down ends first."""
    ready = [route for route in routes if route not in cooling] if cooling else routes
    return ready or [min(routes, key=lambda route: route.limiter.cool_down.left_seconds)]


async def _probed(routes: Sequence[Route]) -> Route | None:
    """A route in a long cool-down that the caller has to try now, alone of all processes; also where others answer."""
    for route in routes:
        if await route.limiter.cool_down.takes_probe():
            return route
    return None


def _equivalent(chosen: Route, routes: Sequence[Route]) -> tuple[Route, ...]:
    """The routes that will do instead of the chosen one: none where a slot of its own limit was reserved."""
    if chosen.limiter.is_limited:
        return (chosen,)
    return tuple(route for route in routes if not route.limiter.is_limited)


def _with_seats(routes: Sequence[Route]) -> list[Route]:
    """The routes that may have one more request in flight; those that are asked to wait come last."""
    seats = [route for route in routes if route.in_use < route.concurrency.limit]
    return [route for route in seats if not route.limiter.is_cooling and route.circuit.allows] or seats


def _refuse_unserved(models: Collection[str], routes: Sequence[Route], known: Sequence[Endpoint]) -> None:
    missing = sorted(set(models) - {route.model for route in routes})
    if missing:
        names = ", ".join(endpoint.name for endpoint in known)
        raise ConfigError(
            f"no endpoint serves the model {missing[0]!r} (endpoints: {names}); "
            "add it to `models` of one in llm.endpoints"
        )
