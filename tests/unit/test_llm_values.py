"""The LLM page's words: nothing that is not known looks like a zero."""

import time

from tasks.worker_reports import PoolReport, ProfileReport, SpanReport, WorkerReport
from workers.dashboard.llm_values import HEIGHT, LEAST_POINTS, charts, notices, page_values
from workers.diagnosis.system import RouteSummary, System
from workers.observe.format import NOTHING, rate
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


def test_rates_are_of_the_last_whole_minute() -> None:
    figures = _figures(_system(_worker()), _points(900, *[60] * 6, 5))
    assert figures["calls"] == "6.0/s", "neither what is older nor the ten seconds that still grow"


def test_what_nobody_measures_is_a_dash() -> None:
    points = _points(*[60] * 8)
    for system in (_system(), _system(_worker(profiles=False))):
        figures = _figures(system, points)
        assert {figures[name] for name in ("calls", "errors", "tokens", "hit-rate", "coalesced", "p95")} == {NOTHING}
    assert _figures(_system(), points)["pool"] == NOTHING
    assert _figures(_system(_worker()), points)["hit-rate"] == NOTHING, "nothing was asked"


def test_the_first_thing_said_is_what_keeps_numbers_away() -> None:
    said = notices(_system(destinations_open=7))
    assert "No worker is running" in said[0]["text"]
    assert "7 destinations waiting" in said[0]["text"]
    assert "Profiling is off" in notices(_system(_worker(profiles=False)))[0]["text"]
    assert "consumer" in notices(_system(_worker()))[0]["text"]


def test_a_chart_has_a_gap_where_nothing_is_known() -> None:
    points = [SeriesPoint(at=0, memory_hits=1, misses=1), SeriesPoint(at=10), SeriesPoint(at=20, redis_hits=4)]
    share = next(chart for chart in charts([*points, SeriesPoint(at=30)]) if chart.id == "chart-hits")
    ((_, line),) = share.lines
    assert line.count("M") == 2
    assert share.now == "100%"


def test_a_chart_begins_where_work_began_and_stays_in_its_box() -> None:
    long, short = charts(_points(*[0] * 300, *[40] * 60)), charts(_points(*[0] * 359, 7))
    assert long[0].ago == "10m 00s"
    assert short[0].ago == f"{LEAST_POINTS // 6}m 00s"
    for chart in (*long, *short):
        for _, line in chart.lines:
            heights = [float(place.partition(",")[2]) for place in line.replace("M", "").replace("L", "").split()]
            assert all(0 <= y <= HEIGHT for y in heights)
    assert len(long[0].lines) == 1, "no line of errors where there was none"


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
