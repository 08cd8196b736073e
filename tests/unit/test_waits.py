"""What is waited for, as a person reads it, and how often that is said."""

import io
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scripts.lib import job_view
from scripts.lib.job_view import QUIET_SECONDS, Lines, View
from scripts.lib.job_words import summary
from tasks.jobs.registry import JobStatus, waiting
from tasks.waits import Wait

STATUS = JobStatus(
    job_id="j", name="cities", state="running", total=10, done=1, failed=0, partial=0, llm_calls=5, cache_hits=0,
    coalesced=0, prompt_tokens=0, completion_tokens=0, cost_usd=None, rate_per_second=0.0, eta_seconds=None,
    created_at=0.0, started_at=0.0, finished_at=None,
)  # fmt: skip
LIMITED_BY = "rate limited by the server llm"
LIMITED = Wait("server_limit", "llm", 1000.0, 1432.0, "429: 'slow down'", "Retry-After: 432")


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (
            LIMITED,
            LIMITED_BY + " (429: 'slow down'), next try in 7m 12s (it said Retry-After: 432)",
        ),
        (
            Wait("server_limit", "llm", 1000.0, 4000.0, "429: 'x'", "Retry-After: 3000", next_try=1048.0),
            LIMITED_BY + " (429: 'x'), next try in 48 s, the wait ends in 50m 00s (it said Retry-After: 3000)",
        ),
        (Wait("server_limit", "llm", 1.0, 1008.0, "429: 'x'"), LIMITED_BY + " (429: 'x'), next try in 8 s"),
        (
            Wait("own_limit", "east", 1.0, 1055.0, "as configured: 1 request a minute"),
            "rate limit of east (as configured: 1 request a minute), next try in 55 s",
        ),
        (Wait("away", "east", 1.0, None, "refused"), "the server east is away (refused), a try is under way"),
        (Wait("errors", "llm", 1.0, 1002.0, "500"), "the server llm answers with errors (500), next try in 2 s"),
    ],
)  # fmt: skip
def test_a_wait_says_who_said_so_and_when_it_is_tried_again(wait: Wait, words: str) -> None:
    assert wait.format(1000.0) == words
    assert Wait.decode(wait.encode()) == wait


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), st.floats().map(str), st.none()))
def test_whatever_a_heartbeat_says_is_a_wait_that_can_be_shown(said: str | bytes | None) -> None:
    wait = Wait.decode(said)
    if wait is None:
        assert not said
    else:
        assert "\n" not in wait.format()
        assert wait.reason


def test_times_of_another_version_are_shown_within_reason() -> None:
    said = msgspec.json.encode({"kind": "away", "endpoint": "e", "since": 0, "until": 1e300, "said": "x"})
    wait = Wait.decode(said)
    assert wait is not None
    assert len(wait.format()) < 80


def test_the_reason_stays_while_only_numbers_in_the_message_change() -> None:
    one, other = (Wait("away", "e", 1.0, at, f"500 oops, request req-{at:.0f}ab") for at in (7.0, 8.0))
    assert one.reason == other.reason
    assert one.reason != Wait("errors", "e", 1.0, 7.0, "500 oops").reason


def test_a_line_comes_with_each_new_reason_and_after_a_while_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(job_view.time, "monotonic", lambda: clock[0])
    assert QUIET_SECONDS + 2 * job_view.LINE_SECONDS < 30
    lines = Lines()
    assert lines.next(STATUS) == summary(STATUS)
    assert lines.next(STATUS) is None
    limited = waiting(STATUS, LIMITED)
    said = lines.next(limited)
    assert said is not None
    assert "waiting: rate limited by the server llm" in said
    clock[0] += QUIET_SECONDS - 1
    assert lines.next(waiting(STATUS, LIMITED)) is None, "only the time that is left has changed"
    away = lines.next(waiting(STATUS, Wait("away", "llm", 1.0, None, "refused")))
    assert away is not None
    assert "is away" in away
    clock[0] += QUIET_SECONDS
    assert lines.next(waiting(STATUS, Wait("away", "llm", 1.0, None, "refused"))) is not None


def test_a_job_that_stands_still_asks_for_workers_only_where_there_are_any() -> None:
    stopped = replace(STATUS, state="stalled")
    assert "is a worker running?" in summary(stopped)
    assert "worker" not in summary(stopped, stalled="stopped")
    console = Console(width=150, file=io.StringIO())
    with console.capture() as shown:
        console.print(View(stalled="stopped").render(stopped))
    assert "stopped" in shown.get()
    assert "worker" not in shown.get()
