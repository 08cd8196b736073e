"""What is given away, by what is unstarted here, what queues, and who is idle."""

from hypothesis import given
from hypothesis import strategies as st

from workers.worker.chunks import Unstarted
from workers.worker.rebalance import Gift, for_idle, less_urgent

SMALL, LARGE, URGENT = Unstarted("j", "a", 5, 3), Unstarted("j", "b", 5, 20), Unstarted("u", "c", 9, 4)
CHUNKS = st.lists(
    st.builds(Unstarted, st.just("j"), st.uuids().map(str), st.integers(0, 9), st.integers(1, 50)), max_size=8
)


def test_half_goes_to_idle_lanes_the_most_urgent_and_fullest_first() -> None:
    assert for_idle([SMALL, LARGE], 4) == [Gift(LARGE, 12, parts=4)]
    assert for_idle([SMALL, LARGE, URGENT], 6) == [Gift(URGENT, 4, parts=4), Gift(LARGE, 10, parts=2)]
    assert for_idle([Unstarted("j", "a", 5, 1)], 12) == [Gift(Unstarted("j", "a", 5, 1), 1, parts=1)]
    assert for_idle([SMALL], 0) == []


def test_as_many_chunks_make_way_as_more_urgent_messages_queue() -> None:
    assert less_urgent([SMALL, LARGE, URGENT], {9: 1, 5: 70}) == [Gift(LARGE, 20, parts=1)]
    assert less_urgent([SMALL, LARGE, URGENT], {9: 8}) == [Gift(LARGE, 20, parts=1), Gift(SMALL, 3, parts=1)]
    assert less_urgent([SMALL, LARGE], {5: 3, 0: 4}) == []


@given(CHUNKS, st.integers(0, 40))
def test_never_more_is_given_than_half_and_never_in_more_parts_than_lanes_are_idle(
    chunks: list[Unstarted], idle: int
) -> None:
    gifts = for_idle(chunks, idle)
    assert sum(gift.parts for gift in gifts) <= idle
    assert sum(gift.count for gift in gifts) <= (sum(one.count for one in chunks) + 1) // 2
    assert all(0 < gift.parts <= gift.count <= gift.of.count for gift in gifts)
    assert len({gift.of.chunk_id for gift in gifts}) == len(gifts)
    if chunks and idle:
        assert gifts
