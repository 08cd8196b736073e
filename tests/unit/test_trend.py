import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.observe.leaks import LeakWatch, grown
from workers.observe.trend import MAX_SAMPLES, Trend, growth, slope

SEEDS = st.integers(0, 10_000)
MIB = 2.0**20
RSS = 150 * MIB


def _course(seed: int, per_step: float = 0.0, *, noise: float = 2 * MIB, count: int = 60) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(20.0 * n, RSS + per_step * n + draw.gauss(0, noise)) for n in range(count)]


@given(SEEDS)
def test_a_steady_leak_is_found_with_its_rate(seed: int) -> None:
    found = growth(_course(seed, 0.5 * MIB))
    assert found * 20 == pytest.approx(0.5 * MIB, rel=0.2)


def test_what_only_fluctuates_is_not_accused() -> None:
    accused = [seed for seed in range(1_000) if growth(_course(seed))]
    assert accused == []


@given(SEEDS, st.floats(1, 10))
def test_a_process_that_has_warmed_up_is_not_accused(seed: int, steps: float) -> None:
    draw = random.Random(seed)
    warm = [(20.0 * n, RSS + 80 * MIB * (1 - 2 ** (-n / steps)) + draw.gauss(0, MIB)) for n in range(120)]
    assert growth(warm) == 0.0


def test_the_process_that_was_accused_by_chance_is_not() -> None:
    draw = random.Random(107)
    warm = [(20.0 * n, RSS + 80 * MIB * (1 - 2 ** (-n / 2.0)) + draw.gauss(0, MIB)) for n in range(120)]
    assert growth(warm) == 0.0


@given(SEEDS, st.integers(5, 15))
def test_a_cache_that_fills_and_is_emptied_is_not_accused(seed: int, period: int) -> None:
    draw = random.Random(seed)
    sawtooth = [(20.0 * n, RSS + 5 * MIB * (n % period) + draw.gauss(0, MIB)) for n in range(90)]
    assert growth(sawtooth) == 0.0


def test_a_single_jump_is_not_accused() -> None:
    assert growth([(20.0 * n, RSS + (60 * MIB if n > 20 else 0.0)) for n in range(90)]) == 0.0


def test_outliers_do_not_move_the_slope() -> None:
    samples = [(float(n), 3.0 * n + (1e9 if n in {7, 40} else 0.0)) for n in range(60)]
    assert slope(samples) == pytest.approx(3.0, rel=0.05)


def test_too_few_samples_say_nothing() -> None:
    assert growth([(float(n), float(n)) for n in range(10)]) == 0.0
    assert slope([]) == slope([(1.0, 1.0)]) == 0.0


@given(st.integers(2, 5_000))
def test_samples_are_bounded_and_span_the_whole_life(count: int) -> None:
    trend = Trend(every_seconds=10)
    for n in range(count):
        trend.add(10.0 * n, 5.0 * n)
    assert len(trend._samples) <= MAX_SAMPLES
    assert trend._samples[0] == (0.0, 0.0)
    assert trend._samples[-1][0] >= 10.0 * (count - 1) / 2


def test_a_line_that_grows_all_the_time_is_a_suspect_and_one_that_came_once_is_not() -> None:
    looks = [
        (5.0 * n, {("a/b/leak.py", 3): 10_000 * n, ("a/b/start.py", 5): 500_000 if n else 0, ("a/b/gone.py", 1): 9 - n})
        for n in range(30)
    ]
    lines = {line.file: line for line in grown(looks, {})}
    assert lines["a/b/leak.py"].is_suspect
    assert lines["a/b/leak.py"].bytes_per_hour == pytest.approx(2_000 * 3600)
    assert not lines["a/b/start.py"].is_suspect
    assert "a/b/gone.py" not in lines
    explained = {line.file: line for line in grown(looks, {"a/b/leak.py": "a cache fills"})}
    assert not explained["a/b/leak.py"].is_suspect
    assert explained["a/b/leak.py"].reason == "a cache fills"


def test_allocations_are_traced_between_start_and_stop_only() -> None:
    import tracemalloc

    watch = LeakWatch()
    assert "start first" in watch.compare()["error"]
    watch.start(60)
    assert watch.start(60) == {"tracing": True}, "once begun, it is on"
    kept = [bytearray(3_000_000)]
    found = watch.compare()
    mine = [line for line in found["lines"] if line["file"].endswith("test_trend.py")]
    assert mine[0]["bytes_grown"] >= 3_000_000
    assert found["suspects"] == []
    assert watch.stop() == watch.stop() == {"tracing": False}
    assert not tracemalloc.is_tracing()
    del kept
