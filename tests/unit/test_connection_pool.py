import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest

from config.settings import load
from tasks.errors import ConfigError, EndpointDownError
from workers.llm.endpoints.circuit import FAILURES, Circuit
from workers.llm.endpoints.pool import CircuitOpenError, LLMConnectionPool
from workers.llm.endpoints.route import Route, better_of_two
from workers.llm.limits.concurrency import AdaptiveConcurrency
from workers.llm.limits.gcra import Limits
from workers.llm.limits.limiter import RateLimiter
from workers.observe.profiler import PerformanceProfiler


def _route(
    name: str = "a", *, model: str = "m", most: int = 100, weight: float = 1.0, per_minute: int | None = None
) -> Route:
    limits = Limits.per_minute(per_minute, None, 1)
    return Route(
        name=name,
        model=model,
        weight=weight,
        client=None,  # type: ignore[arg-type]  # the pool lends; it does not ask
        limiter=RateLimiter(None, endpoint=name, limits=limits, max_ahead=100),
        concurrency=AdaptiveConcurrency(least=1, most=most),
        circuit=Circuit(base_seconds=0.02, most_seconds=0.05),
    )


def _pool(size: int, *routes: Route) -> LLMConnectionPool:
    return LLMConnectionPool(routes or [_route()], max_size=size, profiler=PerformanceProfiler(enabled=True))


@pytest.fixture(autouse=True)
async def _no_forgotten_task() -> AsyncIterator[None]:
    yield
    assert len(asyncio.all_tasks()) == 1


async def test_never_more_than_its_size_is_in_use_and_everybody_is_served() -> None:
    pool = _pool(3, _route("a"), _route("b"))
    most = served = 0

    async def borrow(rank: int) -> None:
        nonlocal most, served
        async with pool.connection("m", request_priority=rank):
            most = max(most, pool.in_use)
            await asyncio.sleep(0)
            served += 1

    await asyncio.gather(*(borrow(number % 4) for number in range(40)))
    assert (most, served, pool.in_use, pool.waiting) == (3, 40, 0, 0)
    assert [route.in_use + route.queued for route in pool.routes] == [0, 0]


async def test_the_destination_that_started_first_is_served_first_whatever_it_waits_for() -> None:
    pool = _pool(1, _route("a", model="m"), _route("b", model="n"))
    order = []

    async def borrow(rank: int, model: str) -> None:
        async with pool.connection(model, request_priority=rank):
            order.append(rank)
            await asyncio.sleep(0)

    async with pool.connection("m", request_priority=0):
        waiting = [asyncio.create_task(borrow(rank, "mn"[rank % 2])) for rank in (5, 2, 9, 2, 4)]
        await asyncio.sleep(0)
        assert repr(pool).startswith(
            "<LLMConnectionPool in_use=1 idle=0 waiting=5 max=1 routes=[<Route a model=m in_use=1"
        )
    await asyncio.gather(*waiting)
    assert order == [2, 2, 4, 5, 9]


async def test_a_cancelled_waiter_takes_no_connection_with_it() -> None:
    pool = _pool(1)

    async def borrow() -> None:
        async with pool.connection("m", request_priority=1):
            await asyncio.sleep(60)

    async with pool.connection("m", request_priority=0):
        waiters = [asyncio.create_task(borrow()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Handed over in the same moment as cancelled: it must be passed on.
    waiters[1].cancel()
    waiters[2].cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    async with asyncio.timeout(180), pool.connection("m", request_priority=0):
        assert pool.in_use == 1
    assert pool.in_use == 0


async def test_a_smaller_limit_takes_connections_back_as_they_are_released_and_a_larger_one_wakes_the_line() -> None:
    pool = _pool(4, _route(most=4))
    (route,) = pool.routes
    most = 0

    async def borrow() -> None:
        nonlocal most
        async with pool.connection("m", request_priority=0):
            most = max(most, pool.in_use)
            await asyncio.sleep(0)

    await asyncio.gather(*(borrow() for _ in range(20)))
    assert most == 4
    most = 0
    async with pool.connection("m", request_priority=0) as lent:
        pool.refused(lent)
    assert route.concurrency.limit == 2
    await asyncio.gather(*(borrow() for _ in range(20)))
    assert (most, pool.in_use, pool.waiting) == (2, 0, 0)
    async with pool.connection("m", request_priority=0), pool.connection("m", request_priority=0) as lent:
        third = asyncio.create_task(borrow())
        await asyncio.sleep(0)
        assert pool.waiting == 1
        for _ in range(10):
            pool.answered(lent)
        async with asyncio.timeout(180):
            await third


async def test_the_load_follows_weight_and_latency() -> None:
    fast, slow = _route("fast"), _route("slow")
    fast.latency_seconds, slow.latency_seconds = 0.1, 0.4
    pool = _pool(50, fast, slow)

    async def hold() -> None:
        async with pool.connection("m", request_priority=0):
            await asyncio.sleep(60)

    held = [asyncio.create_task(hold()) for _ in range(50)]
    await asyncio.sleep(0)
    assert (fast.in_use, slow.in_use) == (40, 10)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    slow.weight, slow.latency_seconds = 3.0, 0.1
    held = [asyncio.create_task(hold()) for _ in range(40)]
    await asyncio.sleep(0)
    assert (fast.in_use, slow.in_use) == (10, 30)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


def test_of_two_by_chance_the_better_one_is_taken() -> None:
    routes = [_route(str(number)) for number in range(5)]
    for number, route in enumerate(routes):
        route.in_use = number
    taken = {better_of_two(routes, random.Random(seed).random).in_use for seed in range(200)}
    assert taken == {0, 1, 2, 3}, "any pair, never the worst of one"
    assert better_of_two(routes[:1]) is routes[0]


async def test_a_full_endpoint_leaves_the_line_to_the_others() -> None:
    pool = _pool(10, _route("small", most=1), _route("large"))
    small, large = pool.routes
    large.latency_seconds = 100.0  # so that the small one is preferred
    small.latency_seconds = 0.001
    async with pool.connection("m", request_priority=0) as one, pool.connection("m", request_priority=0) as two:
        assert {one.route, two.route} == {small, large}


async def test_a_slot_of_one_endpoint_s_limit_is_used_at_that_endpoint() -> None:
    pool = _pool(10, _route("limited", per_minute=60_000), _route("free"))
    seen = set()
    for _ in range(20):
        async with pool.connection("m", request_priority=0) as lent:
            seen.add(lent.route.name)
            assert bool(lent.slot.at_us) == (lent.route.name == "limited")
            pool.answered(lent)
    assert seen == {"limited", "free"}


async def test_an_endpoint_that_fails_is_left_alone_and_comes_back_with_one_probe() -> None:
    later, (ill, well) = 0.0, (_route("ill"), _route("well"))
    ill.circuit = Circuit(base_seconds=120, most_seconds=120, clock=lambda: time.monotonic() + later)
    pool = _pool(10, ill, well)
    while ill.circuit.allows:
        async with pool.connection("m", request_priority=0, avoid={well}) as lent:
            pool.failed(lent, EndpointDownError("no"))
    assert ill.circuit.failures == FAILURES
    assert ill.statistics()["circuit"] == "open"
    for _ in range(10):
        async with pool.connection("m", request_priority=0) as lent:
            assert lent.route is well
    later = 120.0
    async with pool.connection("m", request_priority=0, avoid={well}) as probe:
        assert probe.route is ill
        async with pool.connection("m", request_priority=0, avoid={well}) as lent:
            assert lent.route is well, "one probe at a time"
        pool.answered(probe)
    assert ill.statistics()["circuit"] == "closed"


async def test_while_everything_is_down_a_probe_s_failure_is_everybody_s_failure() -> None:
    pool = _pool(10, _route())
    (route,) = pool.routes
    for _ in range(FAILURES):
        async with pool.connection("m", request_priority=0) as lent:
            pool.failed(lent, EndpointDownError("down"))
    asked = 0

    async def ask() -> None:
        nonlocal asked
        async with pool.connection("m", request_priority=0) as lent:
            asked += 1
            error = EndpointDownError("still down")
            pool.failed(lent, error)
            raise error

    async with asyncio.timeout(180):
        ends = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
    assert asked == 1
    assert sum(isinstance(end, CircuitOpenError) for end in ends) == 19
    assert {str(end) for end in ends} == {"still down"}
    assert pool.in_use == route.queued == 0


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    pool = _pool(10, _route())
    (route,) = pool.routes
    route.circuit.refused(EndpointDownError("key"))
    assert route.circuit.left_seconds == pytest.approx(60, abs=1)
    route.circuit._closed_until = 0.0

    async def probe() -> None:
        async with pool.connection("m", request_priority=0):
            await asyncio.sleep(60)

    first = asyncio.create_task(probe())
    await asyncio.sleep(0)
    second = asyncio.create_task(probe())
    await asyncio.sleep(0)
    assert pool.in_use == 1
    first.cancel()
    async with asyncio.timeout(180):
        while not (first.done() and pool.in_use):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
    assert pool.in_use == 0


async def test_a_model_that_nobody_serves_is_named() -> None:
    with pytest.raises(ConfigError, match="'other'"):
        async with _pool(1).connection("other", request_priority=0):
            pass


async def test_statistics_tell_how_long_the_line_was() -> None:
    pool = _pool(1)
    for _ in range(5):
        async with pool.connection("m", request_priority=0) as lent:
            pool.answered(lent)
    found = pool.statistics()
    assert (found["in_use"], found["waiting"], found["max"], found["failures"]) == (0, 0, 1, 0)
    assert 0 < found["wait_p50_ms"] <= found["wait_p95_ms"] <= found["wait_p99_ms"]
    assert found["routes"]["a/m"]["latency_ms"] is not None


async def test_a_pool_that_grows_serves_who_waits_and_one_that_shrinks_drops_nobody() -> None:
    pool = _pool(2)
    size = "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE"
    gate = asyncio.Event()
    most = 0

    async def borrow(number: int) -> None:
        nonlocal most
        async with pool.connection("m", request_priority=number):
            most = max(most, pool.in_use)
            await gate.wait()

    async def settled(in_use: int) -> None:
        async with asyncio.timeout(180):
            while pool.in_use != in_use:
                await asyncio.sleep(0)

    borrowing = [asyncio.create_task(borrow(number)) for number in range(30)]
    await settled(2)
    pool.tune(load(env={size: "7"}))
    await settled(7)
    pool.tune(load(env={size: "5"}))
    assert (pool.in_use, pool.max_size, pool.routes[0].concurrency.limit) == (7, 5, 5), "nobody is dropped"
    gate.set()
    await asyncio.gather(*borrowing)
    assert (most, pool.in_use) == (7, 0)


@pytest.mark.parametrize(("per_minute", "waits_for"), [(6_000_000, "llm.pool_wait"), (3_000, "llm.rate_wait")])
async def test_a_wait_is_counted_for_the_line_that_makes_it(per_minute: int, waits_for: str) -> None:
    """Where a limit is set, callers stand in its line too while it is connections that they wait for."""
    route = _route(per_minute=per_minute)
    route.limiter.tune(load(env={"THEMES_LLM__REQUESTS_PER_MINUTE": str(per_minute)}).llm, max_ahead=2)
    pool = _pool(2 if waits_for == "llm.pool_wait" else 50, route)
    seen: list[tuple[int, int]] = []

    async def borrow(rank: int) -> None:
        async with pool.connection("m", request_priority=rank):
            seen.append((route.rate_waiting, pool.waiting))
            await asyncio.sleep(0.01)

    await asyncio.gather(*(borrow(number) for number in range(30)))
    rates, connections = (sum(each) for each in zip(*seen, strict=True))
    spans = {name: span.total for name, span in pool._profiler.totals().items()}
    other = "llm.rate_wait" if waits_for == "llm.pool_wait" else "llm.pool_wait"
    assert spans[waits_for] > 5 * spans[other], spans
    assert (rates > connections) == (waits_for == "llm.rate_wait"), seen
