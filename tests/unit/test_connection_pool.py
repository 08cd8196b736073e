import asyncio

from workers.llm.pool import LLMConnectionPool
from workers.observe.profiler import PerformanceProfiler


def _pool(size: int) -> LLMConnectionPool:
    return LLMConnectionPool(size, PerformanceProfiler(enabled=True))


async def test_never_more_than_its_size_is_in_use_and_everybody_is_served() -> None:
    pool = _pool(3)
    most = served = 0

    async def borrow(rank: int) -> None:
        nonlocal most, served
        async with pool.connection(rank=rank):
            most = max(most, pool.in_use)
            await asyncio.sleep(0)
            served += 1

    await asyncio.gather(*(borrow(number % 4) for number in range(40)))
    assert (most, served, pool.in_use, pool.waiting) == (3, 40, 0, 0)


async def test_the_destination_that_started_first_is_served_first() -> None:
    pool = _pool(1)
    order = []

    async def borrow(rank: int) -> None:
        async with pool.connection(rank=rank):
            order.append(rank)
            await asyncio.sleep(0)

    async with pool.connection(rank=0):
        waiting = [asyncio.create_task(borrow(rank)) for rank in (5, 2, 9, 2)]
        await asyncio.sleep(0)
        assert repr(pool) == "<LLMConnectionPool in_use=1 waiting=4 max=1>"
    await asyncio.gather(*waiting)
    assert order == [2, 2, 5, 9]


async def test_a_cancelled_waiter_takes_no_connection_with_it() -> None:
    pool = _pool(1)

    async def borrow() -> None:
        async with pool.connection(rank=1):
            await asyncio.sleep(60)

    async with pool.connection(rank=0):
        waiters = [asyncio.create_task(borrow()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Handed over in the same moment as cancelled: it must be passed on.
    waiters[1].cancel()
    waiters[2].cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    async with asyncio.timeout(5), pool.connection(rank=0):
        assert pool.in_use == 1
    assert pool.in_use == 0
