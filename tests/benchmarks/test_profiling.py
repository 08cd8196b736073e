"""What the profiler costs: a record, a completion, and in throughput; on and off in turns, in one process.

Destinations go through the whole graph to a server with full answers; there is no Celery and no consumer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from config.settings import Settings
from tasks.connection import connect_async
from tasks.messages import Destination
from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.whole import light_server
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages
from workers.results.publisher import EventPublisher
from workers.worker.lanes import Lanes
from workers.worker.parts import Parts
from workers.worker.telemetry import Watched, profiled

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
#: Turns of each kind, destinations in each, lanes, and calls a destination.
TURNS, DESTINATIONS, LANES, CALLS = repeats(8), knob("DESTINATIONS", 150), 12, 16
#: Records measured, and in one batch: short ones, of which the fastest was disturbed by nobody.
RECORDS, BATCH = 200_000, 500


class NoRebalancing:
    """A rebalancer of a process that is alone."""

    shared = preempted = 0


@asynccontextmanager
async def _engine(
    settings: Settings, redis_url: str, *, on: bool
) -> AsyncIterator[tuple[PerformanceProfiler, FocusedPromptProcessor]]:
    """A worker's way from a destination to its profile, with everything that tells of it."""
    profiler = PerformanceProfiler(enabled=on)
    async with AsyncExitStack() as stack:
        redis = connect_async(redis_url, socket_timeout_seconds=10)
        stack.push_async_callback(redis.aclose)
        cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
        stack.push_async_callback(cache.close)
        pool = await stack.enter_async_context(LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis))
        shared = SharedFlights(redis, lease_seconds=10, ttl_ms=cache.ttl_ms)
        stack.push_async_callback(shared.close)
        shared.start()
        lanes: Lanes[Destination] = await stack.enter_async_context(Lanes(LANES, steal=True))
        publisher = await stack.enter_async_context(EventPublisher(redis, settings.streaming, enabled=False))
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)
        processor = FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
        parts = Parts(profiler, cache, None, pool, processor, lanes)
        watched = Watched(parts, publisher, NoRebalancing())  # type: ignore[arg-type]
        await stack.enter_async_context(profiled(redis, settings, watched))
        yield profiler, processor


async def _turn(
    settings: Settings, redis_url: str, *, on: bool, number: int, recorded: list[float]
) -> tuple[float, float]:
    """CPU and wall seconds of a completion; `recorded` gets the durations that were recorded for each."""
    async with _engine(settings, redis_url, on=on) as (profiler, processor):
        todo = iter([Destination.of(f"City {number}-{i}") for i in range(DESTINATIONS)])
        await processor.process(Destination.of(f"Warm {number}"))

        async def lane() -> None:
            for destination in todo:
                with (
                    profiler.job("job") as records,
                    profiler.destination(records, destination.id, destination.label, waited={"lane.wait": 0.0}),
                ):
                    await processor.process(destination)

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(LANES)))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if on:
            totals = profiler.totals()
            assert totals["llm.call"].count >= DESTINATIONS * CALLS
            recorded.append(sum(span.count for span in totals.values()) / totals["llm.call"].count)
    return cpu / (DESTINATIONS * CALLS), wall / (DESTINATIONS * CALLS)


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("latency_ms", [0, 100])
async def test_a_completion_with_and_without(redis_url: str, settings_for: MakeSettings, latency_ms: int) -> None:
    """Layer: LLM layer and graph, answers of 0.1 to 4.6 KB. At 0 ms our CPU is what bounds, at 100 ms the server."""
    with light_server(latency_ms / 1000) as (_, url):
        await _compare(
            f"{latency_ms} ms a call",
            redis_url,
            settings_for(
                OPENAI_BASE_URL=url,
                THEMES_MODEL="sandbox",
                THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE="64",
            ),
        )


async def _compare(case: str, redis_url: str, settings: Settings) -> None:
    calm_collector()
    cpu: dict[bool, list[float]] = {True: [], False: []}
    wall: dict[bool, list[float]] = {True: [], False: []}
    recorded: list[float] = []
    for number in range(2 * TURNS + 2):
        # Off, on, on, off: what drifts meets both alike.
        on = number % 4 in {1, 2}
        of_cpu, of_wall = await _turn(settings, redis_url, on=on, number=number, recorded=recorded)
        if number > 1:
            cpu[on].append(of_cpu)
            wall[on].append(of_wall)
    tell(case, "durations recorded a completion", recorded)
    for name, seconds in (("CPU", cpu), ("time", wall)):
        for on in (False, True):
            each = [one * 1e6 for one in seconds[on]]
            tell(case, f"{name} a completion, profiler {'on' if on else 'off'}", each, "us")
        tell(case, f"{name}, on / off", ratios(seconds[True], seconds[False]), "x")


def test_what_a_record_costs() -> None:
    """Layer: the profiler alone, no answers. The fastest of 400 batches of 500."""
    for on in (False, True):
        profiler = PerformanceProfiler(enabled=on)
        with profiler.job("job") as records, profiler.destination(records, "id", "name", waited={}):
            costs = {
                "record": _nanoseconds(lambda profiler=profiler: profiler.record("llm.pool_wait", 0.0123)),
                "count": _nanoseconds(lambda profiler=profiler: profiler.count("llm.requests")),
                "span": _nanoseconds(lambda profiler=profiler: _span(profiler)),
            }
        floor = _nanoseconds(lambda: None)
        for name, cost in costs.items():
            tell(f"profiler {'on' if on else 'off'}", f"a {name}", [cost - floor], "ns")


def _span(profiler: PerformanceProfiler) -> None:
    with profiler.span("cache.get"):
        pass


def _nanoseconds(call: Callable[[], None]) -> float:
    took = []
    for _ in range(RECORDS // BATCH):
        began = time.perf_counter()
        for _ in range(BATCH):
            call()
        took.append((time.perf_counter() - began) / BATCH * 1e9)
    return min(took)
