import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.sections import PerformanceSettings
from workers.worker.lanes import Lanes


async def _nothing(_: int) -> None:
    await asyncio.sleep(0)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 6),
    steal=st.booleans(),
    batches=st.lists(st.integers(0, 12), max_size=8),
    fails=st.integers(1, 7),
)
def test_every_item_runs_exactly_once_whatever_fails(size: int, steal: bool, batches: list[int], fails: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()

    async def work(item: tuple[int, int]) -> None:
        await asyncio.sleep(0)
        seen[item] += 1
        if item[1] % fails == fails - 1:
            raise RuntimeError("planted")

    async def run() -> None:
        async with Lanes[tuple[int, int]](size, steal=steal) as lanes:
            runs = [lanes.run([(b, n) for n in range(count)], work) for b, count in enumerate(batches)]
            async with asyncio.timeout(180):
                await asyncio.gather(*runs, return_exceptions=True)
            assert sum(lane.executed for lane in lanes.statistics) == sum(batches)

    asyncio.run(run())
    assert seen == Counter((b, n) for b, count in enumerate(batches) for n in range(count))


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 5), steal=st.booleans(), count=st.integers(0, 20), after=st.integers(0, 20))
def test_what_a_stop_leaves_unstarted_is_returned_and_never_run(size: int, steal: bool, count: int, after: int) -> None:
    ran: list[int] = []

    async def run() -> list[int]:
        async with Lanes[int](size, steal=steal) as lanes:

            async def work(item: int) -> None:
                ran.append(item)
                if len(ran) == after:
                    lanes.stop()
                await asyncio.sleep(0)

            return await lanes.run(list(range(count)), work)

    left = asyncio.run(run())
    assert sorted(ran + left) == list(range(count))


@settings(deadline=None, max_examples=80)
@given(
    size=st.integers(1, 5),
    steal=st.booleans(),
    batches=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=8),
    takes=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), max_size=6),
    cancelled=st.sets(st.integers(0, 7), max_size=2),
    late=st.integers(0, 5),
)
def test_every_item_has_exactly_one_end_whatever_is_withdrawn_cancelled_or_added(
    *,
    size: int,
    steal: bool,
    batches: list[tuple[int, int]],
    takes: list[tuple[int, int]],
    cancelled: set[int],
    late: int,
) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    withdrawn: Counter[tuple[int, int]] = Counter()

    async def work(item: tuple[int, int]) -> None:
        seen[item] += 1
        await asyncio.sleep(0)

    async def run() -> None:
        async with Lanes[tuple[int, int]](size, steal=steal) as lanes:

            def start(number: int) -> asyncio.Task[list[tuple[int, int]]]:
                count, priority = batches[number]
                items = [(number, n) for n in range(count)]
                return asyncio.create_task(lanes.run(items, work, priority=priority, key=number))

            runs = [start(number) for number in range(len(batches) - min(late, len(batches)))]
            await asyncio.sleep(0)
            for key, count in takes:
                withdrawn.update(lanes.withdraw(key, count))
                await asyncio.sleep(0)
            for number in cancelled & set(range(len(runs))):
                runs[number].cancel()
            runs += [start(number) for number in range(len(runs), len(batches))]
            async with asyncio.timeout(180):
                await asyncio.gather(*runs, return_exceptions=True)
            assert lanes.waiting == 0

    asyncio.run(run())
    ended = seen + withdrawn
    assert set(ended.values()) <= {1}
    for number, (count, _) in enumerate(batches):
        got = sum(ended[number, n] for n in range(count))
        assert got == count or (number in cancelled and got <= count)


async def test_what_is_more_urgent_is_started_first_whoever_has_it() -> None:
    order: list[int] = []
    gate = asyncio.Event()

    async def work(item: int) -> None:
        if item < 0:
            await gate.wait()
        else:
            order.append(item)
            await asyncio.sleep(0)

    async with Lanes[int](2, steal=True) as lanes:
        held = asyncio.create_task(lanes.run([-1, -2], work))
        await asyncio.sleep(0)
        runs = [
            asyncio.create_task(lanes.run([priority * 10 + n for n in range(3)], work, priority=priority))
            for priority in (3, 1, 9, 5)
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(held, *runs)
    assert [item // 10 for item in order] == sorted((item // 10 for item in order), reverse=True)


async def test_the_time_of_a_lane_is_either_busy_or_idle() -> None:
    async with Lanes[int](2, steal=False) as lanes:
        await lanes.run([1], lambda _: asyncio.sleep(0.05))
        await asyncio.sleep(0.05)
        busy, idle = lanes.statistics
        assert busy.busy_seconds >= 0.05
        assert busy.idle_seconds >= 0.05
        assert (idle.busy_seconds, idle.executed, idle.busy_share) == (0.0, 0, 0.0)
        assert 0 < busy.busy_share < 1
        assert 0 < lanes.busy_share < busy.busy_share


async def test_an_idle_lane_steals_from_the_tail_of_the_fullest_other() -> None:
    order: list[int] = []
    gate = asyncio.Event()

    async def work(item: int) -> None:
        order.append(item)
        if item == 0:
            await gate.wait()
        elif len(order) == 4:
            gate.set()

    async with Lanes[int](2, steal=True) as lanes:
        await lanes.run([0, 1, 2, 3], work)
        assert order[0] == 0
        assert order[1:] == [3, 2, 1]
        assert sum(lane.stolen for lane in lanes.statistics) >= 2


async def test_without_stealing_each_lane_keeps_its_share() -> None:
    running = 0
    most = 0

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 if item % 2 else 0)
        running -= 1

    async with Lanes[int](2, steal=False) as lanes:
        await lanes.run(list(range(10)), work)
        assert [lane.executed for lane in lanes.statistics] == [5, 5]
        assert not any(lane.stolen for lane in lanes.statistics)
    assert most == 2


async def test_the_first_error_reaches_the_caller_after_the_others_have_ended() -> None:
    ended = []

    async def work(item: int) -> None:
        if item == 0:
            raise ValueError("planted")
        await asyncio.sleep(0.01)
        ended.append(item)

    async with Lanes[int](3, steal=True) as lanes:
        with pytest.raises(ValueError, match="planted"):
            await lanes.run([0, 1, 2], work)
    assert sorted(ended) == [1, 2]


async def test_a_cancelled_run_withdraws_what_it_had_not_started() -> None:
    started = asyncio.Event()
    ran = []

    async def work(item: int) -> None:
        ran.append(item)
        started.set()
        await asyncio.sleep(0.02)

    async with Lanes[int](1, steal=True) as lanes:
        run = asyncio.create_task(lanes.run([1, 2, 3], work))
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert lanes.waiting == 0
        assert await lanes.run([9], work) == []
    assert ran == [1, 9]


async def test_the_representation_shows_the_state() -> None:
    async with Lanes[int](3, steal=False) as lanes:
        assert repr(lanes) == "<Lanes size=3 busy=0 waiting=0 steal=False>"
        assert await lanes.run([], _nothing) == []


@pytest.mark.parametrize(("threshold", "stolen"), [(1, 3), (2, 3), (3, 2), (5, 0)])
async def test_a_lane_with_fewer_than_work_steal_threshold_is_left_alone(threshold: int, stolen: int) -> None:
    gate = asyncio.Event()
    order: list[int] = []

    async def work(item: int) -> None:
        order.append(item)
        if item == 0:
            await gate.wait()

    limits = PerformanceSettings(work_steal_threshold=threshold)
    async with Lanes[int](2, steal=True, steal_threshold=limits.work_steal_threshold) as lanes:
        # The first lane has four, one of them in hand until the other one has taken what it may.
        running = asyncio.create_task(lanes.run([0, 1, 2, 3], work))
        async with asyncio.timeout(180):
            while len(order) < 1 + stolen:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(lane.stolen for lane in lanes.statistics) == stolen
        gate.set()
        await running
        assert sorted(order) == [0, 1, 2, 3]
        assert sum(lane.stolen for lane in lanes.statistics) == stolen


@pytest.mark.parametrize(("size", "reserve"), [(1, 1), (4, 1), (8, 2)])
async def test_lanes_become_hungry_when_less_waits_than_a_part_of_them(size: int, reserve: int) -> None:
    told: list[int] = []
    places = asyncio.Semaphore(0)

    async with Lanes[int](size, steal=True) as lanes:
        lanes.on_hungry = lambda: told.append(lanes.waiting)
        assert lanes.is_hungry
        run = asyncio.create_task(lanes.run(list(range(size + reserve + 1)), lambda _: places.acquire()))  # type: ignore[arg-type]
        async with asyncio.timeout(180):
            while lanes.busy < size:
                await asyncio.sleep(0)
        assert (lanes.waiting, lanes.is_hungry, told) == (reserve + 1, False, [])
        places.release()
        async with asyncio.timeout(180):
            while lanes.waiting > reserve:
                await asyncio.sleep(0)
        assert (lanes.is_hungry, told) == (False, [])
        places.release()
        async with asyncio.timeout(180):
            while not told:
                await asyncio.sleep(0)
        assert (lanes.is_hungry, told) == (True, [reserve - 1])
        for _ in range(size + reserve):
            places.release()
        await run


async def test_too_small_a_batch_leaves_lanes_hungry() -> None:
    told: list[int] = []
    gate = asyncio.Event()
    async with Lanes[int](3, steal=True) as lanes:
        lanes.on_hungry = lambda: told.append(lanes.busy)
        run = asyncio.create_task(lanes.run([1, 2], lambda _: gate.wait()))  # type: ignore[arg-type]
        async with asyncio.timeout(180):
            while 2 not in told:
                await asyncio.sleep(0)
        gate.set()
        await run


async def test_a_lane_that_may_not_take_what_waits_is_hungry() -> None:
    told = asyncio.Event()
    gate = asyncio.Event()

    async def work(item: int) -> None:
        if item % 2 == 0:
            await gate.wait()

    async with Lanes[int](2, steal=False) as lanes:
        lanes.on_hungry = told.set
        run = asyncio.create_task(lanes.run(list(range(6)), work))
        async with asyncio.timeout(180):
            await told.wait()
        assert (lanes.waiting, lanes.busy, lanes.is_hungry) == (2, 1, True)
        gate.set()
        await run


async def test_more_lanes_are_hungry_at_once() -> None:
    told: list[int] = []
    gate = asyncio.Event()
    async with Lanes[int](2, steal=True) as lanes:
        lanes.on_hungry = lambda: told.append(lanes.size)
        run = asyncio.create_task(lanes.run([1, 2, 3], lambda _: gate.wait()))  # type: ignore[arg-type]
        async with asyncio.timeout(180):
            while lanes.busy < 2:
                await asyncio.sleep(0)
        assert (lanes.waiting, lanes.is_hungry, told) == (1, False, [])
        lanes.resize(12)
        assert told == [12]
        gate.set()
        await run
