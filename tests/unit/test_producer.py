from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tasks.messages import Destination
from tasks.queue.producer import CHUNKS_A_WORKER, LABEL_CHARACTERS, chunk_size, cut, label
from workers.worker.chunks import MAX_ON_THEIR_WAY

TOWN = Destination.of("City")


def _stream(count: int) -> list[Destination]:
    return [msgspec.structs.replace(TOWN, id=str(number)) for number in range(count)]


@given(count=st.integers(0, 3000), parts=st.integers(1, 40), largest=st.integers(1, 60))
def test_cutting_loses_nothing_and_keeps_the_order(count: int, parts: int, largest: int) -> None:
    rows = _stream(count)
    pieces = list(cut(iter(rows), parts=parts, largest=largest))
    assert [row for piece in pieces for row in piece] == rows
    assert all(1 <= len(piece) <= largest for piece in pieces)


@given(count=st.integers(1, 3000), parts=st.integers(2, 40), largest=st.integers(1, 60))
def test_chunks_never_grow_and_end_with_single_destinations(count: int, parts: int, largest: int) -> None:
    sizes = [len(piece) for piece in cut(iter(_stream(count)), parts=parts, largest=largest)]
    assert all(left >= right for left, right in pairwise(sizes))
    assert sizes[-1] == 1
    assert sizes[-parts:] == [1] * min(parts, len(sizes))


def test_a_small_job_travels_one_destination_a_message() -> None:
    assert [len(piece) for piece in cut(iter(_stream(25)), parts=24, largest=50)] == [1] * 25


def test_a_large_job_needs_few_messages() -> None:
    pieces = list(cut(iter(_stream(100_000)), parts=24, largest=50))
    assert len(pieces) < 2_000 + 120


@given(workers=st.integers(2, 8), count=st.integers(400, 3000))
def test_a_worker_that_comes_first_takes_no_more_than_its_part(workers: int, count: int) -> None:
    """A worker takes some chunks before its lanes have the first: the others may come a moment later."""
    sizes = [len(piece) for piece in cut(iter(_stream(count)), parts=CHUNKS_A_WORKER * workers, largest=10_000)]
    assert sum(sizes[:MAX_ON_THEIR_WAY]) <= count / workers


def test_the_stream_is_read_no_further_than_needed() -> None:
    read = 0

    def rows() -> object:
        nonlocal read
        for row in _stream(100_000):
            read += 1
            yield row

    next(cut(rows(), parts=4, largest=10))  # type: ignore[arg-type]
    assert read <= 4 * 10


def test_a_chunk_is_never_empty() -> None:
    assert chunk_size(0, 10, 50) == 1


def test_labels_name_the_destinations_and_stay_short() -> None:
    kyoto = Destination.of("Kyoto", "Japan")
    assert label([kyoto]) == "Kyoto, Japan"
    assert label([kyoto, kyoto, kyoto]) == "Kyoto, Japan + 2 more"
    assert len(label([Destination.of("x" * 200)])) == LABEL_CHARACTERS
