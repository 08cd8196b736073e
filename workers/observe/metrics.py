"""Histograms with bounded error and bounded memory that merge across processes."""

import math
from collections.abc import Mapping
from typing import Final

#: Each bucket is this many times as wide as the one before: a quantile is off by at most 5 %.
GROWTH: Final = 1.1
_LOG_GROWTH: Final = math.log(GROWTH)
#: Smallest value told from zero, in seconds.
SMALLEST: Final = 1e-6


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
        """Count one duration."""
        index = math.ceil(math.log(max(seconds, SMALLEST) / SMALLEST) / _LOG_GROWTH)
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)

    def quantile(self, share: float) -> float:
        """The duration that `share` (0-1) of all values do not exceed; 0.0 when there are none."""
        rank = share * self.count
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                return min(float(SMALLEST * GROWTH ** (index - 0.5)), self.largest)
        return self.largest

    def as_dict(self) -> dict[str, object]:
        """For the wire: `from_dict` reads it, `merge` adds it to another process's."""
        buckets = {str(index): count for index, count in self.buckets.items()}
        return {"count": self.count, "total": self.total, "largest": self.largest, "buckets": buckets}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Histogram":
        """Read what `as_dict` wrote."""
        histogram = cls()
        buckets = data["buckets"]
        assert isinstance(buckets, Mapping)  # noqa: S101  # narrows the type of our own wire form
        histogram.buckets = {int(index): int(count) for index, count in buckets.items()}
        histogram.count = int(str(data["count"]))
        histogram.total = float(str(data["total"]))
        histogram.largest = float(str(data["largest"]))
        return histogram

    def merge(self, other: "Histogram") -> None:
        """Add another histogram's counts."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)
