"""One model at one endpoint: its client, its limits, its health, and how long its answers take."""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis

from config.settings import Settings
from workers.llm.circuit import Circuit
from workers.llm.client import ChatClient
from workers.llm.concurrency import AdaptiveConcurrency
from workers.llm.connections import Connections
from workers.llm.endpoints import Endpoint, limits_of
from workers.llm.rate_limit import RateLimiter, Slot
from workers.observe.counters import Counters, field
from workers.observe.profiler import PerformanceProfiler

#: Weight of the newest answer in the mean latency: the last ten or so decide.
NEWEST: Final = 0.1


class Route:
    """One way to get a prompt answered. Several that serve the same model are equivalent: any may answer."""

    def __init__(
        self,
        *,
        model: str,
        client: ChatClient,
        limiter: RateLimiter,
        concurrency: AdaptiveConcurrency,
        circuit: Circuit,
        name: str = "llm",
        weight: float = 1.0,
    ) -> None:
        self.name = name
        self.model = model
        self.weight = weight
        self.client = client
        self.limiter = limiter
        self.concurrency = concurrency
        self.circuit = circuit
        self._prompt_tokens, self._completion_tokens = (
            field("llm_tokens_total", endpoint=name, model=model, kind=kind) for kind in ("prompt", "completion")
        )
        #: Requests that are on their way now, and callers that wait for this route alone.
        self.in_use = 0
        self.queued = 0
        #: Mean seconds of an answer; None before the first one.
        self.latency_seconds: float | None = None

    def __repr__(self) -> str:
        return (
            f"<Route {self.name} model={self.model} in_use={self.in_use} limit={self.concurrency.limit} "
            f"{self.circuit!r}>"
        )

    @classmethod
    def of(
        cls,
        endpoint: Endpoint,
        model: str,
        connections: Connections,
        settings: Settings,
        redis: Redis | None,
        *,
        profiler: PerformanceProfiler,
    ) -> "Route":
        """The route that the settings ask for."""
        performance = settings.performance_optimization
        most = performance.llm_connection_pool_size
        name_there = endpoint.name_of(model)
        return cls(
            name=endpoint.name,
            model=model,
            weight=endpoint.weight,
            client=ChatClient(
                settings.llm,
                base_url=endpoint.base_url,
                model=name_there,
                connections=connections,
                profiler=profiler,
                labels={"endpoint": endpoint.name, "model": model},
            ),
            limiter=RateLimiter.of(
                endpoint.limits, redis, base_url=endpoint.base_url, model=name_there, max_ahead=most
            ),
            concurrency=AdaptiveConcurrency(
                least=settings.llm.adaptive_concurrency_min, most=most, enabled=settings.llm.adaptive_concurrency
            ),
            circuit=Circuit(base_seconds=performance.retry_base_delay, most_seconds=performance.retry_max_delay),
        )

    def tune(self, settings: Settings) -> None:
        """Keep to other limits from now on."""
        most = settings.performance_optimization.llm_connection_pool_size
        llm = settings.llm
        self.concurrency.change(least=llm.adaptive_concurrency_min, most=most, enabled=llm.adaptive_concurrency)
        self.limiter.tune(limits_of(llm, self.name), max_ahead=most)

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[Slot]:
        """The right to send one request of about so many tokens under the endpoint's rate limits."""
        self.queued += 1
        is_waiting = True
        try:
            async with self.limiter.slot(tokens) as slot:
                self.queued -= 1
                is_waiting = False
                yield slot
        finally:
            self.queued -= is_waiting

    def answered(self, *, sent_at: float) -> None:
        """A request sent at `sent_at` (monotonic seconds) was answered."""
        seconds = time.monotonic() - sent_at
        known = self.latency_seconds
        self.latency_seconds = seconds if known is None else known + NEWEST * (seconds - known)
        self.circuit.succeeded()

    def count_tokens(self, counters: Counters, prompt: int, completion: int) -> None:
        """Count what an answer of this route has used."""
        counters.add(self._prompt_tokens, prompt)
        counters.add(self._completion_tokens, completion)

    def score(self, typical_seconds: float) -> float:
        """Seconds until it would have served one more, for its weight; lower is better."""
        latency = typical_seconds if self.latency_seconds is None else self.latency_seconds
        return (self.in_use + self.queued + 1) * latency / self.weight

    def statistics(self) -> dict[str, Any]:
        """What it is doing and how it fares."""
        return {
            "model": self.model,
            "circuit": self.circuit.state.value,
            "in_use": self.in_use,
            "limit": self.concurrency.limit,
            "cuts": self.concurrency.cuts,
            "failures": self.circuit.failures,
            "error": type(self.circuit.error).__name__ if self.circuit.error else None,
            "cooling_seconds": round(self.limiter.cool_down.left_seconds, 1),
            "cool_downs": self.limiter.cool_down.count,
            "queued": self.queued,
            "limit_digest": self.limiter.digest,
            "latency_ms": None if self.latency_seconds is None else round(self.latency_seconds * 1000, 1),
        }


def better_of_two(routes: Sequence[Route], draw: Callable[[], float] = random.random) -> Route:
    """The less loaded of two routes taken by chance.

    Looking at two keeps the load nearly as even as looking at all, and does not send everybody to the one that looks
    best at the moment: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    if len(routes) == 1:
        return routes[0]
    first = int(draw() * len(routes))
    second = (first + 1 + int(draw() * (len(routes) - 1))) % len(routes)
    pair = (routes[first], routes[second])
    known = [route.latency_seconds for route in pair if route.latency_seconds is not None]
    typical = min(known, default=1.0)
    return min(pair, key=lambda route: route.score(typical))
