import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ConfigError
from tasks.messages import Destination
from workers.llm.cost import TokenEstimate, prompt_tokens
from workers.llm.limits.concurrency import AdaptiveConcurrency
from workers.llm.limits.cooldown import CoolDown
from workers.llm.limits.gcra import Gcra, Limits
from workers.llm.limits.headers import MAX_WAIT_SECONDS
from workers.llm.limits.limiter import RateLimiter
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.limit import parse_limit

PROMPT = load_stages()[0].prompt(Input.of(Destination.of("Kyoto", "Japan")))


@given(
    st.floats(0.001, 10),
    st.integers(1, 50),
    st.lists(st.floats(0, 60_000_000), min_size=1, max_size=60).map(sorted),
)
def test_no_window_ever_has_more_than_the_burst_and_the_rate(
    per_second: float, burst: int, arrivals: list[float]
) -> None:
    limits = Limits.per_minute(per_second * 60, None, burst)
    gcra = Gcra(limits)
    slots = [gcra.reserve(1, now_us=at) for at in arrivals]
    assert slots == sorted(slots), "in order of arrival"
    assert all(slot >= at for slot, at in zip(slots, arrivals, strict=True))
    for first in range(len(slots)):
        for last in range(first, len(slots)):
            allowed = burst + (slots[last] - slots[first]) / limits.request_us
            assert last - first + 1 <= allowed + 1e-6


@given(st.lists(st.tuples(st.floats(0, 1_000_000), st.integers(1, 3_000)), min_size=1, max_size=40))
def test_tokens_keep_to_their_rate_and_one_larger_than_the_burst_still_goes(
    asked: list[tuple[float, int]],
) -> None:
    limits = Limits(token_us=1000.0, token_burst=1_000)
    gcra, now, spent = Gcra(limits), 0.0, []
    for pause, tokens in asked:
        now += pause
        spent.append((gcra.reserve(tokens, now_us=now), tokens))
    for first in range(len(spent)):
        total = 0
        for at, tokens in spent[first:]:
            # A prompt beyond the burst waits for a full bucket and leaves a debt.
            before, total = total, total + tokens
            room = 1_000 + (at - spent[first][0]) / limits.token_us
            assert before + min(tokens, 1_000) <= room + max(0, spent[first][1] - 1_000) + 1e-6


def test_what_was_reserved_too_much_comes_back_and_too_little_is_charged() -> None:
    gcra = Gcra(Limits(token_us=1000.0, token_burst=1_000))
    assert gcra.reserve(1_000, now_us=0) == 0
    gcra.correct(-400)
    assert gcra.reserve(400, now_us=0) == 0
    gcra.correct(100)
    assert gcra.reserve(1, now_us=0) == pytest.approx(101_000)


def test_no_slot_lies_within_a_cool_down_and_none_is_saved_up_for_its_end() -> None:
    gcra = Gcra(Limits(request_us=100.0, request_burst=2))
    slots = [gcra.reserve(1, now_us=0, not_before_us=10_000) for _ in range(4)]
    assert slots == [10_000, 10_000, 10_100, 10_200]


@given(st.integers(-5, 100))
def test_a_share_is_a_part_and_never_nothing(users: int) -> None:
    whole = Limits.per_minute(600, 60_000, 20)
    share = whole.share(users)
    assert share.request_us == whole.request_us * max(1, users)
    assert share.request_burst >= 1
    assert share.token_burst >= 1


def test_no_limit_is_unlimited() -> None:
    assert Limits.per_minute(None, None).is_unlimited
    assert not Limits.per_minute(1, None).is_unlimited
    assert not Limits.per_minute(None, 1).is_unlimited


def test_concurrency_is_cut_once_for_one_congestion_and_grows_only_when_saturated() -> None:
    adaptive = AdaptiveConcurrency(least=1, most=20)
    assert adaptive.limit == 20
    for _ in range(20):
        adaptive.refused(sent_at=1.0, now=2.0)
    assert (adaptive.limit, adaptive.cuts) == (14, 1), "all of them were sent before the cut"
    adaptive.refused(sent_at=3.0, now=3.1)
    assert (adaptive.limit, adaptive.cuts) == (9, 2)
    for _ in range(100):
        adaptive.answered(saturated=False)
    assert adaptive.limit == 9
    for _ in range(11):
        adaptive.answered(saturated=True)
    assert adaptive.limit == 10, "one more a round"


@given(st.integers(1, 30), st.integers(1, 30), st.lists(st.booleans(), max_size=200))
def test_concurrency_stays_within_its_bounds(least: int, most: int, refusals: list[bool]) -> None:
    adaptive = AdaptiveConcurrency(least=least, most=most)
    for at, is_refused in enumerate(refusals):
        if is_refused:
            adaptive.refused(sent_at=at, now=at)
        else:
            adaptive.answered(saturated=True)
        assert min(least, most) <= adaptive.limit <= most


def test_concurrency_that_is_switched_off_never_moves() -> None:
    adaptive = AdaptiveConcurrency(least=1, most=20, enabled=False)
    adaptive.refused(sent_at=1, now=2)
    assert adaptive.limit == 20


def test_completions_are_estimated_by_what_the_stage_really_needed() -> None:
    estimate = TokenEstimate()
    first = prompt_tokens(PROMPT) + estimate.completion(PROMPT, 2_000)
    for _ in range(50):
        estimate.learn(PROMPT.stage, 300)
    learnt = prompt_tokens(PROMPT) + estimate.completion(PROMPT, 2_000)
    assert first - learnt == 700
    assert prompt_tokens(PROMPT) + estimate.completion(PROMPT, 100) == learnt - 200, "never more than may come"


async def test_a_shorter_cool_down_never_shortens_a_longer_one_and_none_lasts_for_ever() -> None:
    cool_down = CoolDown(None, "e")
    await cool_down.begin(100)
    await cool_down.begin(1)
    assert cool_down.left_seconds > 50
    await cool_down.begin(10**9)
    assert cool_down.left_seconds <= MAX_WAIT_SECONDS
    await CoolDown(None, "e").begin(-1)


async def test_a_process_alone_serves_in_order_and_a_cancelled_waiter_gives_its_slot_away() -> None:
    limits = Limits(request_us=200_000.0, request_burst=1)
    limiter = RateLimiter(None, endpoint="e", limits=limits, max_ahead=1)
    order: list[int] = []
    slots: dict[int, float] = {}

    async def send(number: int) -> None:
        slot = await limiter.slot(1)
        limiter.sent(slot)
        order.append(number)
        slots[number] = slot.at_us

    tasks = [asyncio.create_task(send(number)) for number in range(4)]
    while not order:
        await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert slots[3] - slots[0] == pytest.approx(400_000), "the cancelled one's slot was used"


@pytest.mark.parametrize(
    "text", ["50", "50/h", "0/s", "50/s,burst=0", "50/s,burst=x", "50/s,retry_after=never", "5/s,x=1"]
)
def test_a_limit_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rate-limit"):
        parse_limit(text)


def test_the_sandbox_lets_its_burst_through_and_then_its_rate() -> None:
    limit = parse_limit("60/m,burst=2,retry_after=exact")
    now = limit._at
    assert [limit.wait_seconds(now), limit.wait_seconds(now)] == [0, 0]
    wait = limit.wait_seconds(now + 0.25)
    assert limit.headers(wait) == {"Retry-After": "0.750"}
    assert limit.wait_seconds(now + 1.01) == 0
    assert limit.refused == 1
    assert parse_limit("1/s").headers(0.2) == {"Retry-After": "1"}
