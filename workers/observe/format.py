"""Numbers as people read them: with their unit, and no more digits than were measured."""

import math
from typing import Final

from tasks import texts
from tasks.texts import plural
from workers.observe.metrics import Histogram

#: Of `tasks.texts`, under the names that pages use.
NOTHING: Final = texts.NOTHING
duration = texts.duration


def dollars(usd: float | None) -> str:
    """US dollars: $0.0123, $12.50; "unknown" without a price."""
    if usd is None:
        return "unknown"
    if usd == 0:
        return "$0"
    return f"${usd:.3g}" if usd < 1 else f"${usd:,.2f}"


def known(number: float | None, spec: str = "") -> str:
    """A number in a format of Python's; a dash where it is not known."""
    return NOTHING if number is None else f"{number:{spec}}"


def percent(share: float | None, unknown: str = "") -> str:
    """0.83 as 83%."""
    return unknown if share is None else f"{share:.0%}"


def rate(per_second: float | None, unit: str = "/s") -> str:
    """12.3/s, 0.04/s; a dash where it is not measured."""
    if per_second is None:
        return NOTHING
    if 0 < per_second < 0.1:  # noqa: PLR2004  # digits
        return f"{per_second:.1g}{unit}"
    return f"{per_second:,.0f}{unit}" if per_second >= 100 else f"{per_second:.1f}{unit}"  # noqa: PLR2004  # digits


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


def spread(histogram: Histogram) -> str:
    return f"{duration(histogram.quantile(0.5))} median, {duration(histogram.quantile(0.95))} p95"


def size(count: float) -> str:
    """Bytes as people say them: 4.2 MiB, 1,023 MiB, 12.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":  # noqa: PLR2004
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 100 and unit != "B" else f"{count:,.0f} {unit}"  # noqa: PLR2004


def amount(mean: float) -> str:
    """A mean of things that are whole: 12 where it is next to 12, for workers come and go by moments."""
    whole = round(mean)
    return f"{whole:,}" if whole and abs(mean - whole) < 0.02 * whole else f"{mean:.1f}"  # 2 %


def amount_of(mean: float, noun: str) -> str:
    """A mean with its noun, which is singular for 1 alone."""
    said = amount(mean)
    return f"{said} {noun if said == '1' else plural(noun)}"
