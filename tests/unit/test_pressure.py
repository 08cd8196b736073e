"""What a process that is too large does, step by step: the policy alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.llm.cache.memory import MIB
from workers.worker.memory_guard import Allowed, Bounds, decide

BOUNDS = Bounds(threshold_bytes=1000 * MIB, cache_bytes=512 * MIB, lanes=12)
WHOLE = Allowed(BOUNDS.cache_bytes, BOUNDS.lanes)
HIGH, BETWEEN, LOW = 1000 * MIB, 900 * MIB, 800 * MIB


def _after(now: Allowed, resident_bytes: int, cached_bytes: int, looks: int) -> list[Allowed]:
    seen = []
    for _ in range(looks):
        now = decide(now, BOUNDS, resident_bytes=resident_bytes, cached_bytes=min(cached_bytes, now.cache_bytes))
        seen.append(now)
    return seen


def test_first_the_cache_shrinks_then_lanes_then_new_chunks_wait() -> None:
    seen = _after(WHOLE, HIGH, 400 * MIB, 20)
    steps = [one.step(BOUNDS) for one in seen]
    assert steps == sorted(steps, key=["none", "cache", "lanes", "wait"].index)
    assert [one.cache_bytes // MIB for one in seen[:3]] == [200, 100, 50]
    lanes = [one.lanes for one in seen if one.step(BOUNDS) == "lanes"]
    assert lanes == [9, 6, 3, 1]
    assert seen[-1] == Allowed(seen[-1].cache_bytes, 1, holds=True)


def test_it_comes_back_in_the_other_order_well_below_the_threshold_only() -> None:
    worst = _after(WHOLE, HIGH, 400 * MIB, 20)[-1]
    assert _after(worst, BETWEEN, 0, 5)[-1] == worst, "between the two marks nothing changes"
    seen = _after(worst, LOW, 0, 30)
    assert seen[0] == Allowed(worst.cache_bytes, 1, holds=False)
    assert [one.lanes for one in seen[1:5]] == [4, 7, 10, 12]
    assert seen[-1] == WHOLE


def test_a_process_of_a_usual_size_is_left_alone() -> None:
    assert decide(WHOLE, BOUNDS, resident_bytes=LOW, cached_bytes=100 * MIB) == WHOLE


def test_without_a_cache_the_lanes_are_first() -> None:
    bounds = Bounds(1000 * MIB, 0, 3)
    assert decide(Allowed(0, 3), bounds, resident_bytes=HIGH, cached_bytes=0) == Allowed(0, 2)


@settings(deadline=None)
@given(
    resident=st.lists(st.integers(0, 2000), max_size=60),
    cached=st.integers(0, 512),
    lanes=st.integers(1, 100),
    cache=st.integers(0, 512),
)
def test_whatever_memory_does_there_is_a_lane_and_never_more_than_was_asked_for(
    resident: list[int], cached: int, lanes: int, cache: int
) -> None:
    bounds = Bounds(1000 * MIB, cache * MIB, lanes)
    now = Allowed(bounds.cache_bytes, lanes)
    for size in resident:
        before = now
        now = decide(now, bounds, resident_bytes=size * MIB, cached_bytes=min(cached * MIB, now.cache_bytes))
        assert 1 <= now.lanes <= bounds.lanes
        assert 0 <= now.cache_bytes <= bounds.cache_bytes
        if size >= 1000:
            assert now.lanes <= before.lanes
            assert now.cache_bytes <= before.cache_bytes
            assert now.holds >= before.holds
    for _ in range(200):
        now = decide(now, bounds, resident_bytes=0, cached_bytes=0)
    assert now == Allowed(bounds.cache_bytes, lanes), "all of it comes back"
