"""Few entries at once while the consumer keeps up, more when a backlog has built up."""

from workers.results.batch_size import MAX_BYTES, MAX_TIMES, BatchSize


def test_a_backlog_is_taken_in_batches_that_double_up_to_a_bound() -> None:
    size = BatchSize(100)
    taken = []
    for _ in range(6):
        taken.append(size.now)
        size.seen(size.now, 1_000)
    assert taken == [100, 200, 400, 800, 800, 800]
    assert max(taken) == 100 * MAX_TIMES


def test_when_the_backlog_is_gone_batches_shrink_to_what_is_configured_and_no_further() -> None:
    size = BatchSize(100)
    for _ in range(6):
        size.seen(size.now, 1_000)
    taken = []
    for _ in range(5):
        size.seen(3, 30)
        taken.append(size.now)
    assert taken == [400, 200, 100, 100, 100]


def test_a_batch_that_is_half_full_or_more_is_right_as_it_is() -> None:
    size = BatchSize(100)
    size.seen(100, 1_000)
    size.seen(150, 1_000)
    assert size.now == 200


def test_a_batch_of_large_entries_does_not_grow_but_halves() -> None:
    size = BatchSize(100)
    for _ in range(3):
        size.seen(size.now, 1_000)
    size.seen(800, MAX_BYTES)
    assert size.now == 400
    for _ in range(5):
        size.seen(size.now, MAX_BYTES)
    assert size.now == 100
