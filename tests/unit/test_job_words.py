"""What a job's page says, in one sentence and in parts."""

import pytest

from tasks.jobs.registry import JobStatus
from workers.dashboard.actions import acts_of
from workers.dashboard.destinations_page import Links, last_page, pages
from workers.dashboard.job_facts import problems_of
from workers.dashboard.job_words import BAR_WIDTH, left_words, parts, sentence, why
from workers.results.queries.destination_pages import Choice
from workers.results.queries.reasons import Reason


def _status(state: str = "running", **fields: object) -> JobStatus:
    return JobStatus("j1", "cities", state, **({"total": 500} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (_status(done=210, failed=3, eta_seconds=420.0), "213 of 500 finished, about 7 min left."),
        (_status("stalled", done=210, failed=3), "213 of 500 finished."),
        (_status("stalled", paused="user", done=4), "Paused: 4 of 500 finished."),
        (_status("queued"), "500 destinations queued, none begun."),
        (_status("cancelled", done=3, partial=1), "Cancelled: 3 of 500 finished (2 complete, 1 partial, 0 failed)."),
        (_status("unreadable", unreadable="why"), ""),
    ],
)
def test_one_sentence_says_how_a_job_stands(status: JobStatus, words: str) -> None:
    assert sentence(status) == words


def test_an_ended_job_counts_what_came_of_it_and_all_parts_are_its_finished_ones() -> None:
    status = _status("done", done=496, partial=62, failed=4, started_at=1.0, finished_at=31.0)
    assert sentence(status).endswith(": 434 complete, 62 partial, 4 failed.")
    assert sum(part["number"] for part in parts(status)) == 500


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (3_570, "1 h 0 min"), (7_800, "2 h 10 min")]
)
def test_time_left_is_no_more_exact_than_a_forecast(seconds: float, words: str) -> None:
    assert left_words(seconds) == words


def test_one_failure_in_a_million_is_seen_and_the_bar_is_not_longer_than_it_is() -> None:
    found = parts(_status(total=1_000_000, done=999_999, partial=1, failed=1))
    assert [float(part["width"]) >= 4 for part in found] == [True] * 3
    assert float(found[-1]["x"]) + float(found[-1]["width"]) <= BAR_WIDTH
    assert all(part["width"] == "0.0" for part in parts(_status(total=0)))


def test_a_class_is_never_said_twice() -> None:
    assert why("InvalidAnswerError", "InvalidAnswerError: not JSON") == "InvalidAnswerError: not JSON"
    assert why("InvalidAnswerError", "not JSON") == "InvalidAnswerError: not JSON"
    assert why("InvalidAnswerError", "") == "InvalidAnswerError"
    assert why(None, "gone") == "gone"


def test_problems_are_grouped_by_class_with_the_command_that_asks_again() -> None:
    status = _status(done=10, partial=3, failed=2)
    failures = [Reason("EndpointDownError", "EndpointDownError: 500", "Rome", 2, {"discover.food": 2})]
    gaps = [
        Reason("EndpointDownError", "503", "Oslo", 2, {"analyse.price": 2}),
        *(Reason("InvalidAnswerError", f"shape {n}", "Bonn", 2, {"analyse.months": 2}) for n in range(5)),
    ]
    down, invalid = problems_of(status, failures, gaps)
    assert (down.failed, down.partial, [kind.message for kind in down.kinds]) == (2, 2, ["500", "503"])
    assert down.command == "themes retry j1 --only EndpointDownError --partial"
    assert (invalid.failed, invalid.partial, len(invalid.kinds), invalid.more_kinds) == (0, 3, 3, 2)


def test_what_can_be_done_depends_on_how_the_job_stands() -> None:
    def offered(status: JobStatus) -> list[str]:
        return [act.command for act in acts_of(status)]

    assert offered(_status(done=3, partial=1, failed=2)) == [
        "themes pause j1", "themes retry j1", "themes retry j1 --partial", "themes cancel j1",
    ]  # fmt: skip
    assert offered(_status("stalled", paused="user", failed=2)) == ["themes resume j1", "themes cancel j1"]
    assert offered(_status("done", done=500)) == []
    (resume, _) = acts_of(_status("stalled", paused="budget", budget_usd=2.0, spent_usd=2.0))
    assert (resume.command, resume.is_simple) == ("themes resume j1 --budget 4", False)


def test_page_numbers_show_the_ends_and_what_is_beside() -> None:
    assert pages(0, 0) == [0]
    assert pages(5, 19) == [0, None, 3, 4, 5, 6, 7, None, 19]
    assert last_page(1_000_000, Choice()) == 19_999
    assert last_page(1_000_000, Choice(order="cost")) == 1_000
    assert last_page(0, Choice()) == 0


def test_links_change_one_thing_and_turn_an_order_round() -> None:
    links = Links("partial", Choice("partial", "cost", is_descending=True, text="a&b"))
    assert links(page=2) == "?state=partial&sort=cost&q=a%26b&page=2"
    assert links(state="failed") == "?state=failed&sort=cost&q=a%26b"
    assert links.sorted("cost") == "?state=partial&sort=-cost&q=a%26b"
    assert (links.direction("cost"), links.direction("time")) == ("descending", "")
