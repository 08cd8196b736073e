"""The account of a job by the database, and the report that is made of it."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from scripts.report import curve, text_of
from tasks.jobs.registry import JobStatus
from tasks.messages import Destination, JobClosed, Spent, Usage
from tests.support.queueing import Network
from tests.support.stored import SPENT, announced, done, failed, holding, places
from workers.observe.measurements import JobMeasurements, SlowDestination
from workers.report.collect import status_of
from workers.report.page import page
from workers.report.report import JobReport, report_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.job_stats import JobStats, empty_job_stats, read_job_stats

NASTY = "<script>window.broken=1</script>\"onmouseover='window.broken=1' & <b>bold"


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        yield manager


async def _row(store: AsyncDatabaseManager) -> JobRow:
    found = await store.job("j")
    assert found
    return found


async def _filled(store: AsyncDatabaseManager) -> tuple[JobRow, JobStats]:
    """Twenty of 21 destinations, one a second for 2 s each; two fail, one was tried twice, one has a strange name."""
    towns = [*places(19), Destination.of(NASTY, "Utopia")]
    made: list[Any] = announced(*towns, *places(30)[29:])
    for number, town in enumerate(towns):
        at = 1002.0 + number
        result = done(town, at=at, worker="w1@h" if number % 2 else "w2@h")
        if number in {3, 4}:
            result = failed(town, at=at, worker="w1@h", message=NASTY)
        made.append(msgspec.structs.replace(result, elapsed_ms=2000.0))
    made.append(msgspec.structs.replace(done(towns[5], attempt=1, at=1030.0, worker="w1@h"), elapsed_ms=9000.0))
    made.append(Spent("j", towns[6].id, 1, Usage(llm_calls=3), "w2@h", 1031.0, 500.0))
    await store.apply(made)
    row = await _row(store)
    return row, await read_job_stats(store, row, now=1033.0)


async def test_the_account_adds_up_to_what_the_database_counts(store: AsyncDatabaseManager) -> None:
    row, account = await _filled(store)
    assert (account.runs, account.retried, account.stopped) == (22, 2, 1)
    assert account.started_at == 1000.0
    assert account.first_at == 1002.0
    assert account.last_at == 1031.0
    assert account.busy_seconds == pytest.approx(20 * 2 + 9 + 0.5)
    assert account.elapsed_ms == {"p50": 2000.0, "p95": 2000.0, "p99": 9000.0}
    points = account.timeline
    assert len(points) == 60
    assert sum(point.ended for point in points) == 21
    assert sum(point.failed for point in points) == 2
    assert sum(point.calls for point in points) == pytest.approx(row.usage.llm_calls, abs=0.05)
    assert sum(point.in_work * point.seconds for point in points) == pytest.approx(account.busy_seconds, rel=0.01)
    assert [(kind.error_class, kind.stage, kind.destinations) for kind in account.failures] == [
        ("RateLimitedError", "discover.food", 2)
    ]
    assert [(one.worker, one.runs, one.llm_calls) for one in account.workers] == [("w1@h", 12, 24), ("w2@h", 10, 21)]
    assert (account.slowest[0].name, account.slowest[0].elapsed_ms) == ("Town 5", 9000.0)
    assert len(account.slowest) == 10
    assert account.dead_letters == 0


async def test_a_job_without_any_result_has_an_account(store: AsyncDatabaseManager) -> None:
    await store.apply(announced(*places(3)))
    row = await _row(store)
    account = await read_job_stats(store, row, now=1000.0)
    assert (account.runs, account.first_at, account.slowest, account.stages) == (0, None, [], [])
    assert account.seconds == 100.0
    await store.apply([JobClosed("j", "cancelled", 950.0)])
    row = await _row(store)
    account = await read_job_stats(store, row, now=1000.0)
    assert account.seconds == 50.0
    report = _report(row, account, JobMeasurements())
    assert "Nothing was measured" in " ".join(report.notes)
    assert 'id="ended">0</dd><dd class="small">of 3' in page(report)
    assert "cancelled" in text_of(report)


async def test_stages_are_told_as_the_database_adds_them_up(store: AsyncDatabaseManager) -> None:
    from tasks.messages import StageRecord

    stage = StageRecord("discover.food", "ok", "v1", "sandbox", "called", SPENT, 40.0, None)
    results = [holding(town, stages=[stage]) for town in places(2)]
    await store.apply([*announced(*places(2)), *results])
    (found,) = (await read_job_stats(store, await _row(store), now=2000.0)).stages
    assert (found.stage, found.profiles, found.not_ok, found.called, found.llm_calls) == ("discover.food", 2, 0, 2, 4)
    assert (found.prompt_tokens, found.cost_usd, found.mean_ms) == (200, 0.5, 40.0)


def _report(row: JobRow, account: JobStats, picture: JobMeasurements, **more: Any) -> JobReport:
    status: JobStatus = more.pop("status", status_of(row))
    return report_of(status, row, account, picture, settings={}, now=2000.0, **more)


def _picture() -> JobMeasurements:
    """What a starved pool looks like, with the slowest destination of the account kept."""
    picture, _ = Network(pool=4, destinations=60, rounds=(1, 1)).run()
    (part,) = picture.parts
    spans = {"llm.pool_wait": 6.0, "llm.first_byte": 2.0, "queue.wait": 9.0}
    slow = SlowDestination(places(6)[5].id, "Town 5", 9000.0, spans, 1.0)
    part = msgspec.structs.replace(part, name="w1@h", slowest=[slow])
    return JobMeasurements.of([part])


async def test_the_page_says_what_the_report_says_and_runs_nothing(store: AsyncDatabaseManager) -> None:
    row, account = await _filled(store)
    report = _report(row, account, _picture(), alive=1)
    assert report.findings[0].resource in {"connections", "endpoint"}
    assert any(each.resource == "connections" and each.gain for each in report.findings)
    text = page(report)
    parser = _Elements()
    parser.feed(text)
    assert parser.open == []
    assert not parser.names & {"script", "link", "img", "iframe", "b", "object", "form"}
    assert not parser.attributes & {"style", "onmouseover", "onclick", "src", "href"}
    assert NASTY not in text
    assert parser.ids["calls"] == f"{row.usage.llm_calls:,}"
    assert parser.ids["ended"] == "20"
    assert parser.ids["failed"] == "2"
    assert parser.ids["cost"] == "$5.25"
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    (slow,) = [each for each in report.slowest if each.name == "Town 5, Utopia"]
    assert slow.shares == {"llm.pool_wait": 0.75, "llm.first_byte": 0.25}
    assert msgspec.json.decode(report.json())["job"]["job_id"] == "j"


async def test_the_text_fits_a_terminal_and_names_the_bound(store: AsyncDatabaseManager) -> None:
    row, account = await _filled(store)
    text = text_of(_report(row, account, _picture()))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "Bottleneck: " in text
    assert "llm_connection_pool_size 4 -> " in text.replace("\n   ", " ")
    assert "Work stealing" in text
    assert "<script>" in text, "a terminal shows names as they are"


def test_curves_are_drawn_from_nothing_to_the_most() -> None:
    assert curve([]) == ""
    assert curve([0, 0.01, 1, 2]) == " ▁▄█"
    assert curve([0, 0]) == "  "


def test_what_redis_alone_knows_makes_a_report() -> None:
    status = JobStatus(
        "j", "name", "queued", 5, 0, 0, 0, 0, 0, 0, 0, 0, None, 0.0, None, 1000.0, None, None
    )  # fmt: skip
    from workers.report.collect import row_of

    row = row_of(status)
    account = empty_job_stats(started_at=1000.0, ended_at=1010.0)
    report = _report(row, account, JobMeasurements(), status=status, alive=0)
    assert report.findings[0].resource == "workers"
    assert "5 destinations wait" in report.findings[0].evidence
    assert "no price set" in page(report)


class _Elements(HTMLParser):
    """Which elements and attributes a page has, the text of those with an id, and which were never closed."""

    VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: dict[str, str] = {}
        self._at = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._at = dict(attrs).get("id") or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._at = ""

    def handle_data(self, data: str) -> None:
        if self._at:
            self.ids[self._at] = self.ids.get(self._at, "") + data


def test_words_of_a_failure_are_escaped_in_charts() -> None:
    from workers.report.charts import bar, stack

    drawn = bar(0.5, 2.0, "llm", NASTY) + stack({NASTY: 0.5, "llm.body": 0.9}, NASTY)
    assert "<script" not in drawn
    assert not re.search(r'width="[^"]*-', drawn)
