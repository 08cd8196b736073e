"""The LLM page's words: nothing that is not known looks like a zero."""

import time

import msgspec
import pytest

from tasks.worker_reports import PoolReport, ProfileReport, SpanReport, WorkerReport
from workers.dashboard.llm_charts import HEIGHT, LEAST_POINTS, MOST_PLACES, charts
from workers.dashboard.llm_funnel import STEP_OF, Step
from workers.dashboard.llm_values import notices, page_values
from workers.diagnosis.finding import NAMES, Resource
from workers.diagnosis.system import RouteSummary, System
from workers.diagnosis.verdict import Verdict
from workers.observe.format import NOTHING, rate
from workers.observe.measurements import HOPS, WHOLES
from workers.observe.metrics import Histogram
from workers.observe.reporter import Metrics, SeriesPoint


def _worker(*, profiles: bool = True) -> WorkerReport:
    profile = ProfileReport(spans={"llm.call": SpanReport(1, 0.5)} if profiles else {})
    return WorkerReport(
        lanes=12, lanes_busy=3, connections=15, connections_in_use=4, pool=PoolReport(idle=2), profile=profile
    )


def _system(*workers: WorkerReport, **changed: object) -> System:
    known: dict[str, object] = {
        "at": time.time(), "workers": dict(zip(("w@here", "v@here"), workers, strict=False)), "lost": (),
        "consumers": {}, "routes": (RouteSummary("east", "m"),), "queue": 0,
        "queue_dead": 0, "results": 0, "results_unread": 0, "jobs": {}, "destinations_open": 0, "budget_used": None,
        "cache": {"since": None}, "totals": {}, "metrics": Metrics(), "redis_bytes": 1, "redis_limit_bytes": 0,
    }  # fmt: skip
    return System(**(known | changed))  # type: ignore[arg-type]


def _points(*calls: float) -> list[SeriesPoint]:
    return [SeriesPoint(at=at * 10.0, calls=amount) for at, amount in enumerate(calls)]


def _figures(system: System, points: list[SeriesPoint]) -> dict[str, str]:
    return {each["id"]: each["value"] for each in page_values(system, points)["figures"]}


def _funnel(system: System) -> dict[str, Step]:
    return {step.id: step for step in page_values(system, [])["funnel"]}


def test_rates_are_of_the_last_whole_minute() -> None:
    figures = _figures(_system(_worker()), _points(900, *[60] * 6, 5))
    assert figures["calls"] == "6.0/s", "neither what is older nor the ten seconds that still grow"


def test_what_nobody_measures_is_a_dash() -> None:
    points = _points(*[60] * 8)
    for system in (_system(), _system(_worker(profiles=False))):
        figures = _figures(system, points)
        assert {figures[name] for name in ("calls", "errors", "tokens", "hit-rate", "coalesced")} == {NOTHING}
    assert _funnel(_system())["connections"].value == NOTHING
    assert _figures(_system(_worker()), points)["hit-rate"] == NOTHING, "nothing was asked"


def test_the_first_thing_said_is_what_keeps_numbers_away() -> None:
    said = notices(_system(destinations_open=7))
    assert "No worker is running" in said[0]["text"]
    assert "7 destinations waiting" in said[0]["text"]
    assert "Profiling is off" in notices(_system(_worker(profiles=False)))[0]["text"]
    assert "consumer" in notices(_system(_worker()))[0]["text"]


def test_a_chart_has_a_gap_where_nothing_is_known_and_a_dot_where_one_value_stands_alone() -> None:
    one, two = {200: 3}, {201: 4}
    points = [
        SeriesPoint(at=10.0 * at, calls=1, call_buckets=buckets)
        for at, buckets in enumerate([one, two, {}, one, {}, two, two])
    ]
    latency = next(chart for chart in charts([*points, SeriesPoint(at=70)], now=75) if chart.id == "chart-latency")
    assert [(line.name, line.path.count("M"), len(line.dots)) for line in latency.lines] == [
        ("p50", 2, 1),
        ("p95", 2, 1),
    ]


def test_a_chart_begins_where_work_began_stays_in_its_box_and_has_a_clock() -> None:
    long, short = charts(_points(*[0] * 300, *[40] * 60), now=3600), charts(_points(*[0] * 359, 7), now=3595)
    assert [[at for _, at, _ in chart.ticks] for chart in (long[0], short[0])] == [
        [3000, 3120, 3240, 3360, 3480],
        [3300, 3360, 3420, 3480, 3540],
    ]
    assert long[0].ticks[0][2] == "00:50"
    assert len(msgspec.json.decode(short[0].data)["at"]) == LEAST_POINTS
    for chart in (*long, *short):
        for line in chart.lines:
            heights = [float(place.partition(",")[2]) for place in line.path.replace("M", "").replace("L", "").split()]
            assert all(0 <= y <= HEIGHT for y in heights)
    assert len(long[0].lines) == 1, "no line of errors where there was none"
    assert (long[0].top, long[0].lines[0].latest) == ("5/s", "4.0/s")


def test_the_first_ten_seconds_of_work_are_drawn() -> None:
    assert charts(_points(*[0] * 360), now=3600) == []
    (calls, *_) = charts(_points(*[0] * 359, 8), now=3594)
    assert calls.lines[0].latest == "2.0/s", "8 calls in the 4 seconds of the point that still grows"


def test_an_hour_has_at_most_so_many_places_and_loses_no_call() -> None:
    (calls, latency, waits) = charts(
        [SeriesPoint(at=at * 10.0, calls=10, rate_wait_seconds=30, call_buckets={200: 9, 250: 1}) for at in range(361)],
        now=3610,
    )
    data = msgspec.json.decode(calls.data)
    assert len(data["at"]) == MOST_PLACES
    assert set(data["lines"]["answered"]) == {1.0}
    assert latency.lines[0].latest != latency.lines[1].latest
    assert (waits.lines[0].name, waits.lines[0].latest) == ("for the rate limit", "3.0")


@pytest.mark.parametrize(
    ("resource", "step"), [("rate limit", "rate"), ("connections", "connections"), ("work", None), (None, None)]
)
def test_the_step_is_marked_that_the_sentence_is_about(resource: Resource | None, step: str | None) -> None:
    system = _system(_worker(), verdict=Verdict(resource, "A sentence.", "What to do."))
    assert page_values(system, [])["verdict"] == "A sentence. What to do."
    assert [each.id for each in _funnel(system).values() if each.is_limit] == ([step] if step else [])


def test_every_resource_has_a_step_or_is_about_none() -> None:
    assert set(NAMES) - set(STEP_OF) == {"redis", "work", "tail", "web", "unknown"}
    assert set(STEP_OF.values()) <= set(_funnel(_system()))


def test_the_steps_that_took_longest_come_first_and_the_rest_is_folded() -> None:
    spans = {name: Histogram() for name in (*HOPS, *WHOLES)}
    for number, histogram in enumerate(spans.values()):
        histogram.add(1.0 + number)
    shown = page_values(_system(_worker(), metrics=Metrics(spans=spans)), [])
    assert [each["name"] for each in shown["steps"]] == list(HOPS)[:-7:-1]
    assert len(shown["steps"]) + len(shown["more_steps"]) == len(spans)


def test_calls_without_a_price_are_not_free() -> None:
    totals = {"llm_calls": 9, "cost_nano_usd": 0, "unpriced_calls": 9}
    shown = {each["id"]: each["value"] for each in page_values(_system(totals=totals), [])["totals"]}
    assert shown["total-cost"] == "unknown (9 calls without a price)"
    shown = {
        each["id"]: each["value"]
        for each in page_values(_system(totals=totals | {"cost_nano_usd": 2_500_000_000}), [])["totals"]
    }
    assert shown["total-cost"] == "$2.50 (9 calls without a price)"


def test_rates_have_the_digits_that_mean_something() -> None:
    assert [rate(value) for value in (None, 0, 0.04, 12.34, 1234.5)] == [
        NOTHING,
        "0.0/s",
        "0.04/s",
        "12.3/s",
        "1,234/s",
    ]
