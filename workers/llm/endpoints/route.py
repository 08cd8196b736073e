"""One model at one endpoint: its client, its limits, its health, and how long its answers take."""

import random
import re
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Final

from redis.asyncio import Redis

from config.sections import LlmSettings
from config.settings import Settings
from tasks.errors import EndpointAwayError
from tasks.texts import one_line
from tasks.waits import SAID_CHARACTERS, Wait, WaitKind
from workers.llm.endpoints.circuit import Circuit, CircuitState
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.registry import Endpoint, limits_of
from workers.llm.limits.concurrency import AdaptiveConcurrency
from workers.llm.limits.gcra import Limits
from workers.llm.limits.limiter import RateLimiter, endpoint_digest
from workers.llm.limits.reservations import Slot
from workers.observe.counters import Counters, field
from workers.observe.profiler import PerformanceProfiler

#: Weight of the newest answer in the mean latency: the last ten or so decide.
NEWEST: Final = 0.1
#: Answers whose time is kept.
ANSWERS_KEPT: Final = 1_000
#: Part of the time for a call after which a failure is a time-out, and that answers take behind a long line.
LATE_SHARE: Final = 0.9
LINE_SHARE: Final = 0.5
#: Seconds of a wait for a limit below which it is the course of things, and not told.
TOLD_SECONDS: Final = 5.0
_OVERLOADED: Final = re.compile(r"overload|at capacity|too busy|\b529\b", re.IGNORECASE)


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
        timeout_seconds: float = LlmSettings().request_timeout_seconds,
    ) -> None:
        self.name = name
        self.model = model
        self.weight = weight
        self.client = client
        self.limiter = limiter
        self.concurrency = concurrency
        self.circuit = circuit
        self._timeout_seconds = timeout_seconds
        self._prompt_tokens, self._completion_tokens = (
            field("llm_tokens_total", endpoint=name, model=model, kind=kind) for kind in ("prompt", "completion")
        )
        #: Requests that are on their way now, and callers that wait for this route alone.
        self.in_use = 0
        self.queued = 0
        #: Mean seconds of an answer; None before the first one.
        self.latency_seconds: float | None = None
        #: When the last answers came (monotonic seconds), and how long the last one took.
        self._answered_at: deque[float] = deque(maxlen=ANSWERS_KEPT)
        self._last_seconds = 0.0
        #: When it began to refuse everything (monotonic seconds); None while it answers.
        self._refused_since: float | None = None

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
        performance = settings.performance_optimization
        most = performance.llm_connection_pool_size
        limits, name_there = endpoint.limits, endpoint.name_of(model)
        return cls(
            name=endpoint.name,
            model=model,
            weight=endpoint.weight,
            timeout_seconds=settings.llm.request_timeout_seconds,
            client=ChatClient(
                limits,
                base_url=endpoint.base_url,
                model=name_there,
                connections=connections,
                profiler=profiler,
                labels={"endpoint": endpoint.name, "model": model},
            ),
            limiter=RateLimiter(
                redis,
                endpoint=endpoint_digest(endpoint.base_url, name_there),
                limits=Limits.of(limits),
                max_ahead=most,
                learn=limits.learn_rate_limit,
                name=endpoint.name,
                probe_seconds=limits.probe_seconds,
            ),
            concurrency=AdaptiveConcurrency(
                least=settings.llm.adaptive_concurrency_min, most=most, enabled=settings.llm.adaptive_concurrency
            ),
            circuit=Circuit(base_seconds=performance.retry_base_delay, most_seconds=performance.retry_max_delay),
        )

    def tune(self, settings: Settings) -> None:
        most = settings.performance_optimization.llm_connection_pool_size
        llm = settings.llm
        self.concurrency.change(least=llm.adaptive_concurrency_min, most=most, enabled=llm.adaptive_concurrency)
        self.limiter.tune(limits_of(llm, self.name), max_ahead=most)

    async def slot(self, tokens: int, *, is_probe: bool = False) -> Slot:
        """The right to send one request of about `tokens` under the endpoint's rate limits; a probe does not wait."""
        if is_probe:
            return Slot(tokens, is_probe=True)
        self.queued += 1
        try:
            return await self.limiter.slot(tokens)
        finally:
            self.queued -= 1

    @property
    def rate_waiting(self) -> int:
        """Callers that wait for the endpoint's rate limit."""
        return self.queued if self.limiter.is_binding else 0

    def answered(self, *, sent_at: float) -> None:
        now = time.monotonic()
        self._refused_since = None
        self._last_seconds = seconds = now - sent_at
        self._answered_at.append(now)
        known = self.latency_seconds
        self.latency_seconds = seconds if known is None else known + NEWEST * (seconds - known)
        self.circuit.succeeded()

    def refused(self, slot: Slot, *, sent_at: float) -> None:
        """A request was answered 429: the endpoint lives, and fewer requests at once are allowed."""
        now = time.monotonic()
        self._refused_since = now if self._refused_since is None else self._refused_since
        self.circuit.succeeded()
        self.limiter.refused(slot)
        self.concurrency.refused(sent_at=sent_at, now=now)

    def failed(self, error: Exception, *, sent_at: float, witness: Hashable) -> None:
        """A request failed by the endpoint's fault: it is ill, or overloaded.

        It is overloaded where it answers others meanwhile, and says so or answers so slowly that the rest of the line
        times out. A request that never ends beside quick answers is no sign of that.
        """
        now = time.monotonic()
        answers = sum(at > sent_at for at in self._answered_at)
        is_alive = answers > 0 and self.in_use > 1 and self.circuit.state is CircuitState.CLOSED
        is_late = now - sent_at >= LATE_SHARE * self._timeout_seconds
        if is_alive and isinstance(error, EndpointAwayError) and _OVERLOADED.search(str(error)):
            self.concurrency.refused(sent_at=sent_at, now=now)
        elif is_alive and is_late and self._last_seconds >= LINE_SHARE * self._timeout_seconds:
            self.concurrency.timed_out(sent_at=sent_at, now=now, answered=answers)
        else:
            self.circuit.failed(error, sent_at=sent_at, witness=witness)

    @property
    def wait(self) -> Wait | None:
        """Why nothing can be asked here now, where it is more than a moment; else None."""
        error, down_seconds = self.circuit.error, self.circuit.down_seconds
        now, clock = time.time(), time.monotonic()
        if error is not None and down_seconds is not None:
            left = self.circuit.left_seconds
            kind: WaitKind = "away" if isinstance(error, EndpointAwayError) else "errors"
            until = None if left is None else now + left
            return Wait(kind, self.name, now - down_seconds, until, one_line(str(error), SAID_CHARACTERS))
        wait = self.limiter.wait
        is_asked = self.in_use or self.queued
        if self._refused_since is not None and is_asked and (said := wait or self.limiter.cool_down.last):
            wait = replace(said, since=min(said.since, now - (clock - self._refused_since)))
        if wait is None or (wait.kind == "own_limit" and self.in_use):
            return None
        return wait if (wait.until or now) - wait.since >= TOLD_SECONDS else None

    def count_tokens(self, counters: Counters, prompt: int, completion: int) -> None:
        counters.add(self._prompt_tokens, prompt)
        counters.add(self._completion_tokens, completion)

    def score(self, typical_seconds: float) -> float:
        """Seconds until it would have served one more, for its weight; lower is better."""
        latency = typical_seconds if self.latency_seconds is None else self.latency_seconds
        return (self.in_use + self.queued + 1) * latency / self.weight

    def statistics(self) -> dict[str, Any]:
        wait = self.limiter.cool_down.wait
        return {
            "model": self.model,
            "circuit": self.circuit.state.value,
            "in_use": self.in_use,
            "limit": self.concurrency.limit,
            "cuts": self.concurrency.cuts,
            "failures": self.circuit.failures,
            "error": type(self.circuit.error).__name__ if self.circuit.error else None,
            "cooling_seconds": round(self.limiter.cool_down.left_seconds, 1),
            "cooling_for": ", ".join(filter(None, (wait.said, wait.header))) if wait else "",
            "cool_downs": self.limiter.cool_down.count,
            "queued": self.rate_waiting,
            "limit_digest": self.limiter.digest,
            "latency_ms": None if self.latency_seconds is None else round(self.latency_seconds * 1000, 1),
        }


def better_of_two(routes: Sequence[Route], draw: Callable[[], float] = random.random) -> Route:
    """The less loaded of two routes taken by chance.

    Two keep the load nearly as even as all, and avoid a rush to the best one: Mitzenmacher, "The Power of Two Choices
    in Randomized Load Balancing", 2001.
    """
    if len(routes) == 1:
        return routes[0]
    first = int(draw() * len(routes))
    second = (first + 1 + int(draw() * (len(routes) - 1))) % len(routes)
    pair = (routes[first], routes[second])
    known = [route.latency_seconds for route in pair if route.latency_seconds is not None]
    typical = min(known, default=1.0)
    return min(pair, key=lambda route: route.score(typical))
