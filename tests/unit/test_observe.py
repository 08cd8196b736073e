import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.observe.metrics import Histogram
from workers.observe.profiler import PerformanceProfiler

DURATIONS = st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200)


def _filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(DURATIONS)
def test_a_quantile_is_off_by_at_most_five_percent(values: list[float]) -> None:
    histogram = _filled(values)
    ordered = sorted(values)
    for share in (0.5, 0.95, 1.0):
        exact = ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.051)


@given(DURATIONS, DURATIONS)
def test_merged_histograms_equal_one_over_all_values(left: list[float], right: list[float]) -> None:
    merged = Histogram.from_dict(json.loads(json.dumps(_filled(left).as_dict())))
    merged.merge(_filled(right))
    both = _filled(left + right)
    assert merged.buckets == both.buckets
    assert merged.count == both.count
    assert merged.largest == both.largest
    assert merged.total == pytest.approx(both.total)


def test_a_span_is_measured_also_when_its_body_fails() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with pytest.raises(ValueError, match="planted"), profiler.span("step"):
        raise ValueError("planted")
    assert profiler.snapshot()["spans"]["step"]["count"] == 1


def test_a_sample_reads_the_process() -> None:
    profiler = PerformanceProfiler(enabled=True)
    profiler.sample()
    assert profiler.snapshot()["process"]["rss_bytes"] > 1_000_000


def test_switched_off_it_records_nothing() -> None:
    profiler = PerformanceProfiler(enabled=False)
    with profiler.span("step"):
        pass
    profiler.record("step", 1.0)
    profiler.sample()
    assert profiler.snapshot() == {}
