"""What is given away, by what is unstarted here, what queues, and who is idle."""

from hypothesis import given
from hypothesis import strategies as st

from workers.worker.rebalance import Transfer, Unstarted, for_idle, less_urgent

SMALL, LARGE, URGENT = Unstarted("j", "a", 5, 3), Unstarted("j", "b", 5, 20), Unstarted("u", "c", 9, 4)
CHUNKS = st.lists(
    st.builds(Unstarted, st.just("j"), st.uuids().map(str), st.integers(0, 9), st.integers(1, 50)), max_size=8
)


def test_half_goes_to_idle_lanes_the_most_urgent_and_fullest_first() -> None:
    assert for_idle([SMALL, LARGE], 4) == [Transfer(LARGE, 12, parts=4)]
    assert for_idle([SMALL, LARGE, URGENT], 6) == [Transfer(URGENT, 4, parts=4), Transfer(LARGE, 10, parts=2)]
    assert for_idle([Unstarted("j", "a", 5, 1)], 12) == [Transfer(Unstarted("j", "a", 5, 1), 1, parts=1)]
    assert for_idle([SMALL], 0) == []


def test_as_many_chunks_make_way_as_more_urgent_messages_queue() -> None:
    assert less_urgent([SMALL, LARGE, URGENT], {9: 1, 5: 70}) == [Transfer(LARGE, 20, parts=1)]
    assert less_urgent([SMALL, LARGE, URGENT], {9: 8}) == [Transfer(LARGE, 20, parts=1), Transfer(SMALL, 3, parts=1)]
    assert less_urgent([SMALL, LARGE], {5: 3, 0: 4}) == []


@given(CHUNKS, st.integers(0, 40))
def test_never_more_is_given_than_half_and_never_in_more_parts_than_lanes_are_idle(
    chunks: list[Unstarted], idle: int
) -> None:
    transfers = for_idle(chunks, idle)
    assert sum(transfer.parts for transfer in transfers) <= idle
    assert sum(transfer.count for transfer in transfers) <= (sum(one.count for one in chunks) + 1) // 2
    assert all(0 < transfer.parts <= transfer.count <= transfer.of.count for transfer in transfers)
    assert len({transfer.of.chunk_id for transfer in transfers}) == len(transfers)
    if chunks and idle:
        assert transfers
