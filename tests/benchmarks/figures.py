"""What benchmarks measure: each figure as its median, lowest and highest value, printed and kept for the record."""

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

#: Knobs of the benchmarks that a reader of a figure has to know begin with this.
KNOB: Final = "BENCH_"


class Figure(msgspec.Struct, frozen=True, array_like=True):
    """What one case has measured; `runs` is how many values the median is of."""

    case: str
    title: str
    unit: str
    median: float
    lowest: float
    highest: float
    runs: int


#: A test's id -> its figures, in the order in which they were told.
told: Final[dict[str, list[Figure]]] = defaultdict(list)
_running: str = ""


@contextmanager
def telling(test: str) -> Iterator[None]:
    """Within the body, what is told belongs to this test."""
    global _running  # noqa: PLW0603  # one test runs at a time
    _running = test
    told.pop(test, None)
    try:
        yield
    finally:
        _running = ""


def knob(name: str, usual: int) -> int:
    """What BENCH_`name` says, or the usual."""
    return int(os.environ.get(KNOB + name, usual))


def repeats(usual: int = 3) -> int:
    """How often each measurement is taken."""
    return knob("REPEATS", usual)


def tell(case: str, what: str, values: Sequence[float], unit: str = "") -> None:
    """Print and keep the median of what was measured in turns, and from where to where."""
    middle, low, high = statistics.median(values), min(values), max(values)
    spread = f" ({low:.4g} to {high:.4g})" if len(values) > 1 else ""
    print(f"{case}: {what}: {middle:.4g} {unit}{spread}")
    told[_running].append(Figure(case, what, unit, _short(middle), _short(low), _short(high), len(values)))


def tell_quantiles(case: str, what: str, seconds: Sequence[float]) -> None:
    """Tell the middle, the slow and the slowest of many durations of one run, in milliseconds."""
    ordered = sorted(seconds)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        tell(case, f"{what}, {name}", [ordered[int(len(ordered) * share)] * 1e3], "ms")
    tell(case, f"{what}, the slowest of {len(ordered):,}", [ordered[-1] * 1e3], "ms")


def ratios(some: Sequence[float], others: Sequence[float]) -> list[float]:
    """Turn by turn, how many times the other each is."""
    return [one / other for one, other in zip(some, others, strict=True)]


def _short(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
