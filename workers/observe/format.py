"""Numbers as people read them: with their unit, and no more digits than were measured."""

import math

from tasks.texts import plural
from workers.observe.metrics import Histogram


def rounded(amount: float) -> float:
    """A number that a person would set: at least `amount`, of two digits."""
    whole = math.ceil(round(amount, 6))
    if whole < 20:  # noqa: PLR2004  # as it is
        return float(max(1, whole))
    step = 10 ** max(0, len(str(whole)) - 2) * (5 if whole < 100 else 1)  # noqa: PLR2004  # 25, 30, 35 …
    return float(math.ceil(whole / step) * step)


def plain(amount: float | None) -> str:
    """A number of a setting."""
    return "?" if amount is None else f"{amount:.0f}" if amount >= 1000 else f"{amount:.6g}"  # noqa: PLR2004


def times(gain: float) -> str:
    """2.4x: two digits are more than a forecast can hold."""
    return f"{gain:.2g}x" if gain < 10 else f"{gain:.0f}x"  # noqa: PLR2004


def time(seconds: float) -> str:
    """A duration with its unit, in three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"  # noqa: PLR2004
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"  # noqa: PLR2004


def spread(histogram: Histogram) -> str:
    return f"{time(histogram.quantile(0.5))} in the middle, more than {time(histogram.quantile(0.95))} for 5 of 100"


def size(count: float) -> str:
    """Bytes as people say them: 4.2 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:  # noqa: PLR2004
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} GiB"


def amount(mean: float) -> str:
    """A mean of things that are whole: 12 where it is next to 12, for workers come and go by moments."""
    whole = round(mean)
    return f"{whole:,}" if whole and abs(mean - whole) < 0.02 * whole else f"{mean:.1f}"  # 2 %


def amount_of(mean: float, noun: str) -> str:
    """A mean with its noun, which is singular for 1 alone."""
    said = amount(mean)
    return f"{said} {noun if said == '1' else plural(noun)}"
