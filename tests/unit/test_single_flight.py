import asyncio

import pytest

from workers.llm.flights.local import SingleFlight


async def test_equal_questions_at_the_same_time_are_asked_once() -> None:
    flights: SingleFlight[int] = SingleFlight()
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return 42

    answers = await asyncio.gather(*(flights.run("key", call) for _ in range(20)))
    assert calls == 1
    assert [value for value, _ in answers] == [42] * 20
    assert sum(joined for _, joined in answers) == 19
    await flights.run("key", call)
    assert calls == 2


async def test_an_error_reaches_everybody_who_waits() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def call() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("planted")

    answers = await asyncio.gather(*(flights.run("key", call) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError] * 3


async def test_who_started_may_leave_and_the_others_still_get_the_answer() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def call() -> int:
        await asyncio.sleep(0.02)
        return 7

    first = asyncio.create_task(flights.run("key", call))
    await asyncio.sleep(0)
    second = asyncio.create_task(flights.run("key", call))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == (7, True)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_call_nobody_waits_for_is_cancelled() -> None:
    flights: SingleFlight[int] = SingleFlight()
    ended = asyncio.Event()

    async def call() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 0

    only = asyncio.create_task(flights.run("key", call))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    only.cancel()
    async with asyncio.timeout(180):
        await ended.wait()
    assert repr(flights) == "<SingleFlight in_flight=0>"


async def test_a_call_that_nobody_waited_for_ends_without_the_one_begun_after_it() -> None:
    flights: SingleFlight[int] = SingleFlight()
    may_end = asyncio.Event()

    async def slow_to_end() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            await may_end.wait()
        return 0

    async def call() -> int:
        await may_end.wait()
        await asyncio.sleep(0.01)
        return 7

    only = asyncio.create_task(flights.run("key", slow_to_end))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.gather(only, return_exceptions=True)
    first = asyncio.create_task(flights.run("key", call))
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await asyncio.gather(flights.run("key", call), first) == [(7, True), (7, False)]


async def test_a_caller_in_the_moment_of_the_answer_is_answered() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def call() -> int:
        await asyncio.sleep(0)
        return 7

    async def at_the_end(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return (await flights.run("key", call))[0]

    async with asyncio.timeout(180):
        assert await asyncio.gather(*(at_the_end(turns) for turns in range(8))) == [7] * 8
