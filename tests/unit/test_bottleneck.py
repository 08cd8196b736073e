"""The bottleneck is named, and its advice is true: on simulated networks whose bound is known."""

from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.queueing import Network
from workers.diagnosis.bottleneck import EXPLAINS, WAITS, bounds, diagnose
from workers.diagnosis.finding import Finding
from workers.diagnosis.measured import Measured, expected_slowest, measured, worked_seconds
from workers.diagnosis.troubles import FULL_CPU_CORES
from workers.observe.format import plain, rounded, times
from workers.observe.measurements import HOPS, JobMeasurements, ProcessMeasurements
from workers.observe.metrics import Histogram

#: Setting that advice names -> what it is in the simulation.
FIELDS = {
    "performance_optimization.llm_connection_pool_size": "pool",
    "performance_optimization.worker_pool_size": "lanes",
    "llm.requests_per_minute": "requests_per_minute",
}


def _findings(network: Network) -> tuple[list[Finding], float]:
    picture, seconds = network.run()
    return diagnose(measured(picture, total=network.destinations)), seconds


PLANTED = {
    "pool": (Network(pool=4, destinations=60), "connections"),
    "pool with a spread": (Network(pool=4, destinations=60, spread=0.4), "connections"),
    "rate limit": (Network(requests_per_minute=600, destinations=60), "rate limit"),
    "one lane": (Network(lanes=1, pool=40, destinations=60), "lanes"),
    "two lanes with a spread": (Network(lanes=2, pool=60, destinations=60, spread=0.4), "lanes"),
    "cpu": (Network(cpu_seconds=0.02, pool=100, destinations=60), "cpu"),
    "too little work": (Network(destinations=3, pool=100), "work"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bottleneck_is_named_first(planted: str) -> None:
    network, resource = PLANTED[planted]
    findings, _ = _findings(network)
    assert findings[0].resource == resource, findings
    assert findings[0].share > 0.7
    assert any(digit in findings[0].evidence for digit in "0123456789")


networks = st.builds(
    Network, destinations=st.integers(3, 50), lanes=st.integers(1, 30), pool=st.integers(1, 60),
    call_seconds=st.floats(0.01, 3), cpu_seconds=st.floats(0, 0.02), spread=st.floats(0, 1),
    requests_per_minute=st.none() | st.integers(20, 6_000), limit_ends_after=st.none() | st.integers(10, 700),
)  # fmt: skip


@given(networks)
@hypothesis.settings(max_examples=200, deadline=None)
def test_the_headline_never_contradicts_the_longest_bar(network: Network) -> None:
    picture, _ = network.run()
    m = measured(picture, total=network.destinations)
    first, *others = diagnose(m)
    bars = {name: span.total for name, span in m.spans.items() if name in HOPS}
    longest = max(bars, key=bars.__getitem__)
    if first.resource == "cpu" and m.cpu_cores >= FULL_CPU_CORES:
        return
    if longest in WAITS:
        assert first.resource == WAITS[longest], (first, bars)
    if first.resource == "work":
        assert m.lanes_busy < 0.7 * m.lanes, first
    if longest == "llm.rate_wait":
        # What is nearly idle is not said to give several times the speed.
        assert all(each.gain is None or each.share >= EXPLAINS for each in others), others


def test_a_limit_that_went_away_before_the_end_is_still_what_bounded_the_job() -> None:
    network = Network(lanes=24, pool=15, requests_per_minute=300, limit_ends_after=900, destinations=60)
    picture, _ = network.run()
    (part,) = picture.parts
    since_then = part.facts | {"learnt_requests_per_minute:llm": 9_000.0}
    (first, *others) = diagnose(measured(JobMeasurements.of([_with(part, facts=since_then)]), total=60))
    assert first.resource == "rate limit"
    assert "waiting for the rate limit took 9" in first.evidence
    assert "150 are allowed since the limit changed" in first.evidence
    assert not any(each.gain for each in others), others


@pytest.mark.parametrize("planted", ["pool", "pool with a spread", "rate limit", "one lane", "two lanes with a spread"])
def test_following_the_advice_gives_the_forecast_gain(planted: str) -> None:
    network, _ = PLANTED[planted]
    (first, *_), before = _findings(network)
    assert first.setting in FIELDS
    assert first.gain
    assert first.new
    followed: Any = replace(network, **{FIELDS[first.setting]: int(first.new)})
    findings, after = _findings(followed)
    assert before / after == pytest.approx(first.gain, rel=0.25), first.advice
    assert findings[0].resource == first.until, "what was said to bound it next does"
    assert f"{first.setting} {plain(first.old)} -> {plain(first.new)}" in first.advice
    assert f"would give {times(first.gain)} until" in first.advice


def test_the_second_bound_says_that_more_of_it_would_bring_nothing() -> None:
    # 12 lanes could carry 480 calls/s, 96 connections as many.
    findings, _ = _findings(Network(pool=96, lanes=12, spread=0.2))
    first, second = findings[:2]
    assert {first.resource, second.resource} == {"lanes", "connections"}
    assert second.gain is None
    assert f"more would bring nothing by itself: {first.name}" in second.advice
    assert second.setting is None


def test_with_too_little_measured_nothing_is_forecast() -> None:
    (only,), _ = _findings(Network(destinations=1))
    assert (only.resource, only.gain, only.setting) == ("unknown", None, None)
    assert "too little to name a bottleneck: 1 destination, 16 calls" in only.evidence
    assert diagnose(measured(JobMeasurements.of([]), total=0)) == []


def test_a_job_answered_by_the_cache_has_no_llm_to_wait_for() -> None:
    part = _part(spans={"destination": [0.001] * 100}, lane_busy_seconds=0.1)
    assert diagnose(measured(JobMeasurements.of([part]), total=100)) == []


def test_refusals_without_a_limit_of_ours_are_the_endpoints_limit() -> None:
    picture, _ = Network(requests_per_minute=600, destinations=60).run()
    (part,) = picture.parts
    sums = part.sums | {"llm.errors.RateLimitedError": 80, "llm.requests": 1040}
    bare = _with(part, sums=sums, facts={})
    first, *_ = diagnose(measured(JobMeasurements.of([bare]), total=60))
    assert first.resource == "rate limit"
    assert "80 of 1,040 requests refused (429)" in first.evidence
    assert "llm.endpoints" in first.advice
    assert first.gain
    assert first.setting is None


def test_an_error_storm_comes_first_with_its_class() -> None:
    picture, _ = Network(destinations=60, pool=100).run()
    (part,) = picture.parts
    bad = _with(part, sums=part.sums | {"llm.errors.EndpointDownError": 300, "llm.requests": 1260})
    first, *_ = diagnose(measured(JobMeasurements.of([bad]), total=60))
    assert first.resource == "endpoint"
    assert "300 of 1,260 requests failed, most with EndpointDownError (300)" in first.evidence


def test_a_line_that_takes_most_of_the_time_comes_before_a_few_errors() -> None:
    picture, _ = Network(destinations=60, pool=4).run()
    (part,) = picture.parts
    bad = _with(part, sums=part.sums | {"llm.errors.EndpointDownError": 150, "llm.requests": 1110})
    first, second, *_ = diagnose(measured(JobMeasurements.of([bad]), total=60))
    assert (first.resource, second.resource) == ("connections", "endpoint")


@pytest.mark.parametrize("learnt", ["FormatRefusedError", "ParameterRefusedError"])
def test_a_server_that_says_what_it_does_not_take_is_no_server_that_fails(learnt: str) -> None:
    picture, _ = Network(destinations=60, pool=100).run()
    (part,) = picture.parts
    asked = _with(part, sums=part.sums | {f"llm.errors.{learnt}": 300, "llm.requests": 1260})
    assert "endpoint" not in {each.resource for each in diagnose(measured(JobMeasurements.of([asked]), total=60))}


def test_results_that_wait_for_the_consumer_name_the_database() -> None:
    picture, _ = Network(destinations=60).run()
    consumer = _part(role="consumer", spans={"db.commit": [0.9] * 10, "result.wait": [1.5] * 60}, held_seconds=10)
    found = diagnose(measured(JobMeasurements.of([*picture.parts, consumer]), total=60))
    (database,) = [each for each in found if each.resource == "database"]
    assert database.share == pytest.approx(0.9)
    assert "a result waits 1.5 s for the consumer" in database.evidence
    assert "DATABASE_URL" in database.advice


def test_a_slow_redis_is_named_beside_the_bound() -> None:
    picture, _ = Network(destinations=60, pool=200).run()
    (part,) = picture.parts
    slow = Histogram()
    for _ in range(1900):
        slow.add(0.15)
    found = diagnose(
        measured(JobMeasurements.of([_with(part, spans=part.spans | {"cache.get": slow.as_dict()})]), total=60)
    )
    (redis,) = [each for each in found if each.resource == "redis"]
    assert "1,900 trips to Redis took 150 ms each" in redis.evidence


def test_evidence_from_the_web_counts_as_time_of_the_lane_and_is_named() -> None:
    starved, free = (_searching(Network(destinations=60, pool=pool), 0.2) for pool in (4, 200))
    assert starved.unqueued_seconds == pytest.approx(0.2 + 0.4, rel=0.06)
    (web,) = [each for each in diagnose(free) if each.resource == "web"]
    assert "200 ms median, 200 ms p95" in web.evidence
    assert "max_concurrent_web_requests" in web.advice


def _searching(network: Network, seconds: float) -> Measured:
    """What is measured when each destination searches for so long, as part of its time."""
    picture, _ = network.run()
    (part,) = picture.parts
    searches = Histogram()
    for _ in range(network.destinations):
        searches.add(seconds)
    spans = part.spans | {"web.evidence": searches.as_dict()}
    return measured(JobMeasurements.of([_with(part, spans=spans)]), total=network.destinations)


def test_idle_lanes_with_nothing_full_are_too_little_work() -> None:
    picture, seconds = Network(destinations=60, pool=60).run()
    (part,) = picture.parts
    # The same work in five times the time: it came in drops.
    stretched = {"held_seconds": 5 * seconds, "lane_seconds": 60 * seconds, "pool_seconds": 300 * seconds}
    thin = _with(part, sums=part.sums | stretched, until=part.since + 5 * seconds)
    first, *_ = diagnose(measured(JobMeasurements.of([thin]), total=60))
    assert (first.resource, first.setting) == ("work", None)
    assert "nothing is full" in first.evidence


def test_bounds_are_sorted_and_only_of_what_was_measured() -> None:
    picture, _ = Network(pool=4, destinations=60).run()
    found = bounds(measured(picture, total=60))
    assert [bound.resource for bound in found] == ["connections", "lanes", "work"]
    assert found[0].rate == pytest.approx(4 / (16 * 0.2), rel=0.01)
    assert found[1].rate == pytest.approx(12 / 0.4, rel=0.06)


def test_time_without_work_is_no_time() -> None:
    first = _part(since=0.0, until=10.0, held_seconds=10)
    assert worked_seconds([first]) == 10
    assert worked_seconds([first, _part(since=5.0, until=15.0, held_seconds=10)]) == 15
    assert worked_seconds([first, _part(since=20.0, until=30.0, held_seconds=10)]) == 20
    assert worked_seconds([_part(since=0.0, until=10.0, held_seconds=4)]) == 4
    assert worked_seconds([]) == 0


def test_a_round_takes_as_long_as_its_slowest_call() -> None:
    even = Histogram()
    for number in range(1, 1001):
        even.add(number / 1000)
    assert expected_slowest(even, 1) == pytest.approx(0.5, rel=0.06)
    assert expected_slowest(even, 9) == pytest.approx(0.9, rel=0.06)
    assert expected_slowest(Histogram(), 5) == 0


def test_numbers_have_units_and_no_invented_digits() -> None:
    assert [rounded(each) for each in (0.2, 7.1, 21, 99, 101, 1234)] == [1, 8, 25, 100, 110, 1300]
    assert [times(each) for each in (1.234, 9.87, 15.4)] == ["1.2x", "9.9x", "15x"]
    assert [plain(each) for each in (None, 0.5, 40.0, 60_000.0)] == ["?", "0.5", "40", "60000"]


def _part(
    *,
    role: Any = "worker",
    since: float = 0.0,
    until: float = 10.0,
    spans: dict[str, list[float]] | None = None,
    **sums: float,
) -> ProcessMeasurements:
    made: dict[str, Any] = {}
    for name, values in (spans or {}).items():
        histogram = Histogram()
        for value in values:
            histogram.add(value)
        made[name] = histogram.as_dict()
    return ProcessMeasurements("p", role, role, "host", since, until, spans=made, sums=sums)


def _with(part: ProcessMeasurements, **changes: Any) -> ProcessMeasurements:
    import msgspec

    return msgspec.structs.replace(part, **changes)
