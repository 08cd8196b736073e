"""The charts of the LLM page: what all processes measured over the last hour, on one clock axis.

Drawn as SVG without a fixed width, so that text keeps its size: places along the clock are percentages.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tasks.keys import SERIES_STEP_SECONDS as STEP_SECONDS
from workers.observe.format import NOTHING, duration, rate
from workers.observe.metrics import Histogram
from workers.observe.reporter import SeriesPoint

#: Points of the series that a chart has at least: five minutes.
LEAST_POINTS: Final = 30
#: Places along the clock at most: of an hour each is half a minute.
MOST_PLACES: Final = 120
#: A drawing's height in pixels, and the width that its paths are stretched from.
WIDTH, HEIGHT = 1_000, 110
#: Marks of the clock at most, and the minutes between them.
MOST_TICKS: Final = 5
TICK_MINUTES: Final = (1, 2, 5, 10, 15, 30)


@dataclass(frozen=True)
class Place:
    """The points that are drawn at one place of the clock, of so many seconds together."""

    points: Sequence[SeriesPoint]
    seconds: float

    @property
    def at(self) -> float:
        return self.points[0].at

    @functools.cached_property
    def calls(self) -> Histogram:
        return durations(self.points)


#: Name -> class of the style sheet, and its value at a place.
Lines = dict[str, tuple[str, Callable[[Place], float | None]]]


@dataclass(frozen=True, slots=True)
class Line:
    """`path` is in a box of `WIDTH` x `HEIGHT`; `dots` (percent, pixels) are points without a neighbour."""

    name: str
    kind: str
    path: str
    dots: tuple[tuple[str, str], ...]
    latest: str


@dataclass(frozen=True, slots=True)
class Chart:
    id: str
    title: str
    unit: str
    top: str
    half: str
    lines: tuple[Line, ...]
    #: (percent, seconds since 1970, the clock in UTC).
    ticks: tuple[tuple[str, float, str], ...]
    words: str
    #: JSON for `llm.js`: the places' times, each line's values.
    data: str


def charts(points: Sequence[SeriesPoint], now: float) -> list[Chart]:
    """None before anything was measured. The point that still grows is drawn where there is no other one."""
    places = _places(points, now)
    if not places:
        return []
    return [
        _chart("chart-calls", "LLM calls", "/s", CALLS, places),
        _chart("chart-latency", "Latency of a call", "s", LATENCY, places),
        _chart("chart-waits", "Callers that wait", "", WAITING, places),
    ]


def is_busy(point: SeriesPoint) -> bool:
    return bool(point.calls or point.hits or point.misses or point.destinations)


def _places(points: Sequence[SeriesPoint], now: float) -> list[Place]:
    shown = points[:-1] if any(map(is_busy, points[:-1])) else points
    first = next((at for at, point in enumerate(shown) if is_busy(point)), None)
    if first is None:
        return []
    shown = shown[max(0, min(first - 1, len(shown) - LEAST_POINTS)) :]
    group = math.ceil(len(shown) / MOST_PLACES)
    return [
        Place(part, sum(min(STEP_SECONDS, max(1.0, now - point.at)) for point in part))
        for part in (shown[at : at + group] for at in range(0, len(shown), group))
    ]


def _per_second(amount: Callable[[SeriesPoint], float]) -> Callable[[Place], float]:
    return lambda place: max(0.0, sum(map(amount, place.points))) / place.seconds


def _quantile(share: float) -> Callable[[Place], float | None]:
    return lambda place: place.calls.quantile(share) if place.calls.count else None


def durations(points: Sequence[SeriesPoint]) -> Histogram:
    """How long the calls of these points took."""
    histogram = Histogram()
    for point in points:
        for bucket, number in point.call_buckets.items():
            histogram.buckets[bucket] = histogram.buckets.get(bucket, 0) + number
            histogram.count += number
    histogram.bound()
    return histogram


CALLS: Final[Lines] = {
    "answered": ("llm", _per_second(lambda point: point.calls - point.errors)),
    "rate limited": ("wait", _per_second(lambda point: point.rate_limited)),
    "failed": ("bad", _per_second(lambda point: point.errors - point.rate_limited)),
}
LATENCY: Final[Lines] = {"p50": ("llm", _quantile(0.5)), "p95": ("cache", _quantile(0.95))}
WAITING: Final[Lines] = {
    "for the rate limit": ("wait", _per_second(lambda point: point.rate_wait_seconds)),
    "for a connection": ("cache", _per_second(lambda point: point.pool_wait_seconds)),
    "for an equal prompt": ("cpu", _per_second(lambda point: point.flight_wait_seconds)),
    "before another try": ("bad", _per_second(lambda point: point.backoff_seconds)),
}


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return NOTHING
    return duration(value) if unit == "s" else rate(value, unit)


def _chart(name: str, title: str, unit: str, lines: Lines, places: Sequence[Place]) -> Chart:
    series = {line: [value(each) for each in places] for line, (_, value) in lines.items()}
    # What never happened is left out, but for the first line: an empty legend says nothing.
    first = next(iter(series))
    series = {line: values for line, values in series.items() if line == first or any(values)}
    known = [value for values in series.values() for value in values if value is not None]
    top = _nice(max(known, default=0.0))
    drawn = tuple(_line(line, lines[line][0], values, top, unit) for line, values in series.items())
    peaks = ", ".join(f"{line} peak {_shown(max(filter(None, series[line]), default=0.0), unit)}" for line in series)
    data = {
        "at": [place.at for place in places],
        "unit": unit,
        "lines": {line: [_short(value) for value in values] for line, values in series.items()},
    }
    return Chart(
        id=name, title=title, unit=unit, top=_mark(top, unit), half=_mark(top / 2, unit), lines=drawn,
        ticks=_ticks(places[0].at, places[-1].at), words=f"{title} over time: {peaks}",
        data=msgspec.json.encode(data).decode(),
    )  # fmt: skip


def _mark(value: float, unit: str) -> str:
    return duration(value) if unit == "s" else f"{value:g}{unit}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _nice(most: float) -> float:
    """The next of 1, 2, 5, 10, 20 and so on."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= most * 0.999)


def _line(name: str, kind: str, values: Sequence[float | None], top: float, unit: str) -> Line:
    pieces = _pieces(values, top)
    path = " ".join("M" + " L".join(f"{x * WIDTH:.0f},{y:.1f}" for x, y in piece) for piece in pieces if len(piece) > 1)
    dots = tuple((f"{x:.2%}", f"{y:.1f}") for piece in pieces if len(piece) == 1 for x, y in piece)
    latest = next((value for value in reversed(values) if value is not None), None)
    return Line(name, kind, path, dots, _shown(latest, unit))


def _pieces(values: Sequence[float | None], top: float) -> list[list[tuple[float, float]]]:
    """Where the values are drawn (0-1, pixels), in pieces: what is not known is a gap, not a zero."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            x = at / (len(values) - 1) if len(values) > 1 else 0.5
            pieces[-1].append((x, HEIGHT - min(1.0, value / top) * HEIGHT))
    return [piece for piece in pieces if piece]


def _ticks(first: float, last: float) -> tuple[tuple[str, float, str], ...]:
    span = last - first
    if span <= 0:
        return (("50.00%", first, _clock(first)),)
    step = next((60 * each for each in TICK_MINUTES if span / (60 * each) <= MOST_TICKS), 60 * TICK_MINUTES[-1])
    begin = math.ceil(first / step) * step
    times = [float(begin + number * step) for number in range(int((last - begin) // step) + 1)]
    return tuple((f"{(at - first) / span:.2%}", at, _clock(at)) for at in times)


def _clock(at: float) -> str:
    return time.strftime("%H:%M", time.gmtime(at))
