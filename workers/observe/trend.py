"""Whether something grows: a robust slope, and how sure that is.

The slope is Theil's and Sen's (Sen, JASA 1968): the median of the slopes between all pairs, which outliers do not move.
The test is Mann's and Kendall's (Mann, Econometrica 1945). Memory that rises while a process warms up is no leak: the
younger half of the samples has to grow by itself, nearly as fast as the whole, and by more than it fluctuates.
"""

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Final

#: Standard deviations by which a trend must stand out: by chance one steady series in 30,000 does.
SURE: Final = 4.0
#: The same for the younger half, which has fewer samples.
SURE_OF_HALF: Final = 2.5
#: Part of the whole slope that the younger half must have.
GOES_ON: Final = 0.5
#: Times their spread that the samples of the younger half must rise by. Of 20,000 processes that warm up and then
#: only fluctuate one was accused.
RISE: Final = 2.0
#: Standard deviations of a normal distribution for each median absolute deviation.
MAD: Final = 1.4826
#: Samples below which nothing is said.
FEWEST: Final = 16
#: Samples that are kept; when there are more, every second one goes.
MAX_SAMPLES: Final = 120

Samples = Sequence[tuple[float, float]]


def slope(samples: Samples) -> float:
    """Units a second: the median of the slopes of all pairs of `(seconds, value)`; 0 where there are none."""
    slopes = [(b - a) / (later - at) for (at, a), (later, b) in combinations(samples, 2) if later > at]
    return statistics.median(slopes) if slopes else 0.0


def deviations(samples: Samples) -> float:
    """How far the samples are from having no trend, in standard deviations; positive when they rise."""
    n = len(samples)
    score = sum((b > a) - (b < a) for (_, a), (_, b) in combinations(samples, 2))
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return (score - (score > 0) + (score < 0)) / deviation if deviation else 0.0


def growth(samples: Samples) -> float:
    """Units a second by which the samples grow, and go on growing; 0.0 when that is not sure."""
    if len(samples) < FEWEST or deviations(samples) < SURE:
        return 0.0
    younger, whole = samples[len(samples) // 2 :], slope(samples)
    rate = slope(younger)
    if deviations(younger) < SURE_OF_HALF or rate < GOES_ON * whole:
        return 0.0
    rise = rate * (younger[-1][0] - younger[0][0])
    return whole if rise >= RISE * spread(younger, rate) else 0.0


def spread(samples: Samples, rate: float) -> float:
    """How far samples scatter around a line of this slope: a standard deviation that outliers do not move."""
    left = [value - rate * at for at, value in samples]
    middle = statistics.median(left)
    return MAD * statistics.median(abs(value - middle) for value in left)


class Trend:
    """Samples of one value over a process's life, thinned out so that they stay `MAX_SAMPLES`."""

    def __init__(self, *, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._samples: list[tuple[float, float]] = []

    def add(self, at: float, value: float) -> bool:
        """Take a sample, unless the last one is too young; says whether it was taken."""
        samples = self._samples
        if samples and at - samples[-1][0] < self._every_seconds:
            return False
        samples.append((at, value))
        if len(samples) > MAX_SAMPLES:
            del samples[1::2]
            self._every_seconds *= 2
        return True

    def growth(self) -> float:
        return growth(self._samples)
