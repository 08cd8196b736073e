"""A job's batches in sum, and in words."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.jobs.batches import Batches, from_replies, seconds_under_way, summed
from tasks.jobs.budget import BudgetState
from tasks.waits import Wait
from tests.support.batches import batch

NOW = 5800.0
ENDED: dict[str, Any] = {"state": "ended", "ended_at": 2000.0}


def _words(*batches: Any, waiting: int = 0) -> str:
    known = summed(batches, waiting)
    assert known
    return known.format(NOW)


@pytest.mark.parametrize(
    ("batches", "waiting", "words"),
    [
        ([batch("a", requests=1)], 0, "Batches: 1 open (1 request), oldest 1h 20m"),
        (
            [batch("a", requests=12_000, done_there=8_100), batch("b", requests=400, asked_at=2000.0)],
            500,
            "Batches: 2 open (12,400 requests; 8,100 done there), oldest 1h 20m; 500 wait to be sent",
        ),
        ([batch("a", state="forming", asked_at=0.0, requests=7)], 3, "Batches: 10 wait to be sent"),
        # It was asked for before, and refused: the provider's queue was full.
        ([batch("a", state="uploaded", requests=7)], 0, "Batches: 7 wait to be sent"),
        ([batch("a", state="creating", requests=7)], 0, "Batches: 1 open (7 requests), oldest 1h 20m"),
        ([], 1, "Batches: 1 waits to be sent"),
        ([batch("a", state="forming", asked_at=0.0, requests=0)], 0, "Batches: none is sent yet"),
        (
            [
                batch("a", **ENDED, end="completed", answered=98, unanswered=2, saved_usd=1.23),
                batch("b", **ENDED, end="expired", answered=60, unanswered=40),
            ],
            0,
            "Batches: 2 ended (158 requests answered); 40 expired; 2 failed there; $1.23 saved",
        ),
        ([batch("a", **ENDED, answered=100, saved_usd=None)], 0, "Batches: 1 ended (100 requests answered)"),
        (
            [batch("a", said="enqueued token limit\x1b[2J reached\nnow")],
            0,
            "Batches: 1 open (100 requests), oldest 1h 20m; last trouble: enqueued token limit[2J reached now",
        ),
        ([batch("a", asked_at=NOW + 50)], 0, "Batches: 1 open (100 requests), oldest 0 s"),
    ],
)
def test_one_line_says_where_the_questions_are(batches: list[Any], waiting: int, words: str) -> None:
    assert _words(*batches, waiting=waiting) == words


def test_a_job_without_batches_has_none() -> None:
    assert summed([], 0) is None
    assert from_replies({}, {}) is None
    assert from_replies(ValueError("a key of another type"), None) is None


def test_what_another_program_wrote_is_none_and_hides_no_other() -> None:
    good = msgspec.json.encode(batch("a"))
    bad: dict[bytes, Any] = {
        b"b": b"not JSON", b"c": b'{"tag": 5}', b"d": b"\xff", b"e": b"[" * 100_000,
        b"f": good.replace(b"100,", b"1e999,"), b"g": good.replace(b"running", b"dancing"), b"h": b"",
    }  # fmt: skip
    assert from_replies({b"a": good} | bad, {b"llm/m": b"5", b"x": b"nan", b"y": b"-7"}) == summed([batch("a")], 5)


def test_what_a_job_waits_for_names_the_endpoints_that_have_its_questions() -> None:
    known = summed([batch("a", endpoint="west"), batch("b", endpoint="east"), batch("c", **ENDED, endpoint="x")], 0)
    assert known
    said = "the provider works on batches at east, west"
    assert known.wait == Wait("batch", "east, west", 1000.0, None, said)
    assert known.wait.format() == said
    assert Wait.decode(known.wait.encode()) == known.wait
    waiting, over = summed([], 5), summed([batch("a", **ENDED)], 0)
    assert waiting
    assert waiting.wait == Wait("batch", "", 0.0, None, "its questions wait for a batch")
    assert over
    assert over.wait is None


def test_questions_that_a_budget_keeps_from_being_sent_say_so() -> None:
    known = summed([batch("a", requests=10)], 5)
    assert known
    short = known.beside(BudgetState(limit_usd=1.0, spent_usd=0.25, reserved_usd=0.7))
    assert short.short_usd == pytest.approx(0.05)
    assert short.wait
    for said in (short.wait.said, short.clause(), short.format()):
        assert "the budget has $0.05 that is neither spent nor reserved, so 5 wait for what comes back" in said
    for budget in (None, BudgetState(9.0, 0.25, 0.7), BudgetState(1.0, 1.0, 0.0)):
        assert known.beside(budget) == known
    nothing_waits = summed([batch("a", requests=10)], 0)
    assert nothing_waits
    assert nothing_waits.beside(BudgetState(1.0, 0.25, 0.7)) == nothing_waits


def test_several_jobs_add_up() -> None:
    first, second = [batch("a", done_there=7), batch("b", **ENDED, saved_usd=0.5)], [batch("c", asked_at=500.0)]
    one, other = summed(first, 3), summed(second, 4)
    assert one
    assert other
    assert one + other == summed([*first, *second], 7)
    assert (one + Batches(saved_usd=None)).saved_usd is None


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=6))
def test_the_time_in_which_a_provider_had_a_batch_counts_once(spans: list[tuple[int, int]]) -> None:
    batches = [
        batch(str(n), asked_at=float(at), ended_at=float(at + length) if length else 0.0)
        for n, (at, length) in enumerate(spans)
    ]
    seconds = {second for at, length in spans for second in range(at, at + length if length else 50)}
    assert seconds_under_way(batches, 50.0) == len(seconds)
