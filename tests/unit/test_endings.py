import asyncio

from workers.process.shutdown import end_tasks


async def test_a_task_that_loses_its_first_cancellation_ends_all_the_same() -> None:
    lost = []

    async def rounds() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(1)

    task = asyncio.create_task(rounds())
    await asyncio.sleep(0)
    async with asyncio.timeout(180):
        await end_tasks(task)
    assert task.cancelled()
    assert lost == [1]


async def test_the_errors_of_ended_tasks_are_not_raised_and_none_is_fine() -> None:
    async def fails() -> None:
        raise ValueError("planted")

    async with asyncio.timeout(180):
        await end_tasks()
        await end_tasks(asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(3600)))
