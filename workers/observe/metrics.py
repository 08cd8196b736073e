"""Histograms with bounded error and bounded memory that merge across processes."""

import math
from collections.abc import Mapping
from typing import Final

#: Each bucket is this many times as wide as the one before: a quantile is off by at most 5 %.
GROWTH: Final = 1.1
#: Smallest value told from zero, and largest told from larger ones, in seconds: 291 buckets at most.
SMALLEST: Final = 1e-6
LARGEST: Final = 1e6
_PER_SECOND: Final = 1 / SMALLEST
_BUCKETS_PER_E: Final = 1 / math.log(GROWTH)
_log, _ceil = math.log, math.ceil
#: Index of the last bucket: whatever is larger is in it too.
LAST: Final = _ceil(_log(LARGEST * _PER_SECOND) * _BUCKETS_PER_E)


class Histogram:
    """Counts durations in logarithmic buckets (as DDSketch: Masson, Rim & Lee, VLDB 2019). Values are in seconds."""

    __slots__ = ("buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def __repr__(self) -> str:
        return f"<Histogram count={self.count} p50={self.quantile(0.5):.6f} max={self.largest:.6f}>"

    def add(self, seconds: float) -> None:
        # Written out, because it runs a dozen times for every completion: tests/benchmarks/test_profiling.py.
        if seconds <= SMALLEST:
            index = 0
        elif seconds < LARGEST:
            index = _ceil(_log(seconds * _PER_SECOND) * _BUCKETS_PER_E)
        else:
            index = LAST
        buckets = self.buckets
        try:
            buckets[index] += 1
        except KeyError:
            buckets[index] = 1
        self.count += 1
        self.total += seconds
        if seconds > self.largest:  # noqa: PLR1730  # a call of `max` takes as long as all the rest
            self.largest = seconds

    def quantile(self, share: float) -> float:
        """The duration that `share` (0-1) of all values do not exceed; 0.0 when there are none."""
        rank = share * self.count
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                return min(float(SMALLEST * GROWTH ** (index - 0.5)), self.largest)
        return self.largest

    def below(self, seconds: float) -> int:
        """How many values were at most so long; exact where `seconds` is the edge of a bucket (`edge`)."""
        last = _ceil(_log(max(seconds, SMALLEST) * _PER_SECOND) * _BUCKETS_PER_E - 1e-9)
        return sum(count for index, count in self.buckets.items() if index <= last)

    def summary(self) -> dict[str, float]:
        """The count, the total in seconds, and what people ask for, in milliseconds."""
        quantiles = {f"p{share}_ms": round(self.quantile(share / 100) * 1000, 3) for share in (50, 95, 99)}
        return {
            "count": self.count,
            "total_seconds": round(self.total, 6),
            **quantiles,
            "max_ms": round(self.largest * 1000, 3),
        }

    def bound(self) -> None:
        """Where only the buckets are known: the largest value is at most the edge of the last one."""
        self.largest = max(self.largest, edge(max(self.buckets, default=0)) if self.buckets else 0.0)

    def as_dict(self) -> dict[str, object]:
        """For the wire: `from_dict` reads it, `merge` adds it to another process's."""
        buckets = {str(index): count for index, count in self.buckets.items()}
        return {"count": self.count, "total": self.total, "largest": self.largest, "buckets": buckets}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Histogram":
        histogram = cls()
        buckets = data["buckets"]
        assert isinstance(buckets, Mapping)  # noqa: S101  # narrows the type of our own wire form
        histogram.buckets = {int(index): int(count) for index, count in buckets.items()}
        histogram.count = int(str(data["count"]))
        histogram.total = float(str(data["total"]))
        histogram.largest = float(str(data["largest"]))
        return histogram

    def merge(self, other: "Histogram") -> None:
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)


def edge(index: int) -> float:
    """The largest duration that a bucket counts, in seconds."""
    return float(SMALLEST * GROWTH**index)
