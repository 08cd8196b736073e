"""The benchmarks run: their smallest case measures the whole system, and what it tells can be believed."""

from pathlib import Path

import pytest

from tests.benchmarks import figures, test_whole


def test_the_smallest_whole_system_case_tells_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DESTINATIONS", "2")
    monkeypatch.setattr(test_whole, "REPEATS", 1)
    with figures.telling("smallest"):
        test_whole.test_whole_uncached(tmp_path)
    measured = {figure.title: figure.median for figure in figures.told.pop("smallest")}
    assert measured["calls a destination"] == test_whole.CALLS
    assert measured["answers from the cache a destination"] == 0
    assert measured["CPU a destination, worker"] > 0
    assert measured["Redis commands a destination"] > test_whole.CALLS
    assert measured["a profile, as JSON"] > 20
