import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.hedge import ENOUGH, Lateness, first_of


class _Call:
    """Ends when it is told to, and remembers whether it was begun and cancelled."""

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.begun = self.cancelled = False

    async def __call__(self) -> str:
        self.begun = True
        try:
            return await self.end
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def _race() -> tuple[_Call, _Call, "asyncio.Future[None]", "asyncio.Task[str]"]:
    first, second = _Call(), _Call()
    late: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    return first, second, late, asyncio.create_task(first_of(first(), second, is_late=late))


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_in_time_is_the_only_one_asked_for() -> None:
    first, second, _, race = await _race()
    await _settle()
    first.end.set_result("in time")
    assert await race == "in time"
    assert not second.begun


@pytest.mark.parametrize("winner", [0, 1])
async def test_of_two_the_first_to_come_is_taken_and_the_other_cancelled(winner: int) -> None:
    *calls, late, race = await _race()
    late.set_result(None)
    await _settle()
    assert calls[1].begun
    calls[winner].end.set_result("here")
    assert await race == "here"
    assert calls[1 - winner].cancelled


async def test_one_failure_waits_for_the_other_and_two_are_one() -> None:
    first, second, late, race = await _race()
    late.set_result(None)
    await _settle()
    first.end.set_exception(OSError("first"))
    await _settle()
    assert not race.done()
    second.end.set_result("saved")
    assert await race == "saved"
    first, second, late, race = await _race()
    late.set_result(None)
    await _settle()
    first.end.set_exception(OSError("first"))
    second.end.set_exception(OSError("second"))
    with pytest.raises(OSError, match="first|second"):
        await race


async def test_a_failure_in_time_is_not_hedged() -> None:
    first, second, _, race = await _race()
    await _settle()
    first.end.set_exception(OSError("no"))
    with pytest.raises(OSError, match="no"):
        await race
    assert not second.begun


async def test_cancelling_the_race_ends_both() -> None:
    first, second, late, race = await _race()
    late.set_result(None)
    await _settle()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert first.cancelled
    assert second.cancelled


@given(st.lists(st.floats(0.001, 10), min_size=ENOUGH, max_size=200))
def test_late_is_what_five_in_a_hundred_are(seconds: list[float]) -> None:
    lateness = Lateness()
    for number, took in enumerate(seconds):
        assert (lateness.after_seconds("s") is None) == (number < ENOUGH)
        lateness.learn("s", took)
    after = lateness.after_seconds("s")
    assert after is not None
    assert sum(took > after * 1.06 for took in seconds) <= 0.05 * len(seconds)
    assert lateness.after_seconds("other stage") is None
