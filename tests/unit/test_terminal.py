"""Lines for a terminal and for a pipe: aligned, cut where a terminal ends and nowhere else."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from scripts.failures import kind_lines
from scripts.lib.job_view import View
from scripts.lib.job_words import job_lines, summary
from scripts.lib.terminal import columns, cut
from tasks.errors import JobNotFoundError
from tasks.jobs.registry import JobStatus
from tasks.jobs.short_ids import short_id, short_ids, the_one
from tasks.texts import cleaned
from workers.results.queries.reasons import Reason

IDS = ("20261129-120000-c4c243", "20261129-120001-b64451", "20261130-120001-b64452")
LONG = "Autumn catalogue 2026 " + "and more " * 30
RUNNING = JobStatus(
    IDS[0], "Autumn catalogue 2026", "running", total=500, done=381, failed=3, partial=62, rate_per_second=0.8,
    eta_seconds=125.0, started_at=1.0, llm_calls=6_000, cost_usd=1.5,
)  # fmt: skip
PAUSED = replace(RUNNING, job_id=IDS[1], name=LONG, state="stalled", paused="user", rate_per_second=0, eta_seconds=None)
DONE = replace(RUNNING, job_id=IDS[2], name="Test", state="done", total=384, finished_at=730.0, eta_seconds=None)
#: What terminals show in one line: letters of one cell and of two.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), max_size=120).map(cleaned)


def test_a_line_a_job_says_what_a_list_is_looked_at_for() -> None:
    assert job_lines([RUNNING, PAUSED, DONE], width=80) == [
        "c4c243  running  384/500  3 failed  0.8/s  2m 05s left   Autumn catalogue 2026",
        "b64451  paused   384/500  themes resume b64451           Autumn catalogue 2026…",
        "b64452  done     384/384  3 failed         took 12m 09s  Test",
    ]
    assert LONG.strip() in "\n".join(job_lines([RUNNING, PAUSED, DONE]))


@given(st.lists(st.tuples(texts, texts, texts), max_size=5), st.integers(10, 120))
def test_lines_end_at_the_terminal_and_are_whole_in_a_pipe(rows: list[tuple[str, ...]], width: int) -> None:
    lines = columns(rows, titles=("one", "two", "three"), right=(1,), limits={0: width // 2}, width=width)
    assert all(cell_len(line) <= width for line in lines)
    for line, row in zip(columns(rows, right=(1,)), rows, strict=False):
        assert all(cell in line for cell in row)
        assert line == line.rstrip()


def test_columns_that_are_empty_are_left_out() -> None:
    assert columns([("a", "", "bb"), ("ccc", "", "d")], titles=("x", "y", "z")) == ["x    z", "a    bb", "ccc  d"]
    assert columns([]) == []
    assert cut("東京都千代田区", 7) == "東京都…"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("status", [RUNNING, PAUSED, DONE], ids=lambda status: status.job_id)
def test_the_view_of_a_job_has_a_bar_its_figures_and_no_wrapped_line(status: JobStatus, width: int) -> None:
    view = View()
    view.verdict = "Limited by the provider's rate limit."
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    with console.capture() as shown:
        console.print(view.render(status))
    lines = [line.rstrip() for line in Console(width=width).render_str(shown.get()).plain.splitlines()]
    assert len(lines) == 4 if status.paused else 3
    assert "━" in lines[0]
    assert "/384 finished" in lines[1] or "/500 finished" in lines[1]
    assert "3 failed" in lines[1]
    assert lines[2] == view.verdict
    # A bar is green while the job goes on, whatever failed.
    assert "\x1b[32m━" in shown.get()
    assert "\x1b[31m━" not in shown.get()


def test_a_paused_job_is_paused_wherever_people_read() -> None:
    assert f"{LONG}: paused  384/500 finished" in summary(PAUSED)
    assert f"go on with: themes resume {IDS[1]}" in summary(PAUSED)
    assert "stalled" not in summary(PAUSED)
    assert "  $0.0352" in summary(replace(PAUSED, cost_usd=0.0352)), "the cents of a small job, as beside what it saved"


def test_a_short_id_is_enough_where_no_other_job_has_it() -> None:
    assert [the_one(text, IDS) for text in ("c4c2", "c4c243", "20261130", IDS[1], "b64452", "ffff")] == [
        IDS[0], IDS[0], IDS[2], IDS[1], IDS[2], None,
    ]  # fmt: skip
    with pytest.raises(JobNotFoundError, match=f"'b644' may be any of 2 jobs: {IDS[2]}, {IDS[1]}$"):
        the_one("b644", IDS)
    assert short_id("another id") == "another id"
    same = "20261201-000000-c4c243"
    assert short_ids([*IDS, same])[same] == same
    assert short_ids(IDS)[IDS[0]] == "c4c243"


def test_a_kind_of_failure_keeps_its_message_on_a_narrow_terminal_and_one_line_in_a_pipe() -> None:
    refused = Reason(
        "BadRequestError", "http://127.0.0.1:18123/v1: 400 The request was refused.", ["Naples, Italy"], 108
    )
    refused.stages["discover.adventure"] = 108
    rare = Reason("E", "no", ["Oslo, Norway"], 1, {"analyse.price": 1})
    kinds = [("failed", refused), ("partial", rare)]
    assert kind_lines(kinds, width=80) == [
        "108 failed  BadRequestError  discover.adventure",
        "  http://127.0.0.1:18123/v1: 400 The request was refused.",
        "  Naples, Italy · and 107 more",
        "1 partial   E                analyse.price       no",
        "  Oslo, Norway",
    ]
    assert kind_lines(kinds)[0] == f"108 failed  BadRequestError  discover.adventure  {refused.message}"
