"""Numbers and strings within the bounds of a JSON Schema, for `workers.sandbox.instances`."""

import math
import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from workers.sandbox.conjunction import Schema, common_multiple
from workers.sandbox.patterns import PatternError, compile_pattern

#: Draws one instance at a depth of nesting.
Draw = Callable[[random.Random, int], Any]


#: Magnitude of numbers without a bound.
OPEN_NUMBER: Final = 1000

#: Draws of a string from a pattern before its length counts as out of reach.
PATTERN_ATTEMPTS: Final = 400
_WORDS: Final[list[str]] = re.findall(
    r"\w+",
    "sandbox harbour market garden walk river lantern terrace quiet morning old bridge hill song bread "
    "craft light street museum summer",
)
#: Printable text of many scripts, with the characters that break careless parsers.
ALPHABET: Final = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    "
    "\"'\\`/{}[]()<>:;,.!?#%&$@*+-=_|~^"
    "äöüßéèñçøåÆŁžþ\N{NO-BREAK SPACE}ЖдюΩπλאבعرबकไทย漢字かなカナ한글"
    "\N{EN DASH}\N{EM DASH}\N{LEFT DOUBLE QUOTATION MARK}\N{EURO SIGN}\N{SNOWMAN}\N{SLICE OF PIZZA}"
    "\N{MAN}\N{COMBINING ACUTE ACCENT}"
)


class NoInstanceError(ValueError):
    """No valid instance of this schema was found: it has none, or uses what is not handled."""


def never(reason: str) -> Draw:
    """Make a draw that always fails, with this reason."""

    def draw(_rng: random.Random, _depth: int) -> Any:
        raise NoInstanceError(reason)

    return draw


def matching(pattern: str, least: int, most: int) -> Draw:
    """Strings that match a pattern and are `least` to `most` characters long."""
    try:
        match: Callable[[random.Random], str] = compile_pattern(pattern)
    except PatternError as exc:
        return never(str(exc))
    open_end = not pattern.endswith("$") and "|" not in pattern

    def draw(rng: random.Random, _: int) -> str:
        for _attempt in range(PATTERN_ATTEMPTS):
            text = match(rng)
            if open_end:
                text = text.ljust(least, "a")
            if least <= len(text) <= most:
                return text
        raise NoInstanceError(f"{pattern!r} does not fit the string's length")

    return draw


def words(rng: random.Random, least: int, most: int) -> str:
    """Join plain English words to `least` to `most` characters."""
    goal = min(most, max(least, rng.randint(8, 40)))
    text = rng.choice(_WORDS).capitalize()
    while len(text) < goal:
        text += " " + rng.choice(_WORDS)
    text = text[:most].rstrip()
    return text + "." * max(0, least - len(text))


def number(flat: Schema, *, whole: bool) -> Draw:
    """Numbers as multiples of a step: `multipleOf`, or 1 for integers, or a fine one that fits the range."""
    low, high, above, below = _range(flat)
    if low > high:
        return never("minimum is above maximum")
    step = Decimal(str(flat["multipleOf"])) if "multipleOf" in flat else None
    if whole:
        step = Decimal(1) if step is None else common_multiple(step, Decimal(1))
    fine = step is None
    if step is None:
        step = Decimal(1).scaleb((high - low).adjusted() - 3) if high > low else Decimal(1)
    first = math.ceil(low / step) + (1 if above and math.ceil(low / step) * step == low else 0)
    last = math.floor(high / step) - (1 if below and math.floor(high / step) * step == high else 0)
    if first > last:
        if fine and low == high and not (above or below):
            return lambda _rng, _depth: float(low)
        return never("no number lies within the bounds")

    def draw(rng: random.Random, _: int) -> int | float:
        value = step * rng.randint(first, last)
        return int(value) if whole or value == value.to_integral_value() else float(value)

    return draw


def _range(flat: Schema) -> tuple[Decimal, Decimal, bool, bool]:
    """Read the lowest and highest number, and whether each itself is excluded."""
    lows = [(Decimal(str(flat[key])), key != "minimum") for key in ("minimum", "exclusiveMinimum") if key in flat]
    highs = [(Decimal(str(flat[key])), key == "maximum") for key in ("maximum", "exclusiveMaximum") if key in flat]
    span = Decimal(OPEN_NUMBER) * max(Decimal(1), Decimal(str(flat.get("multipleOf", 1))))
    low, above = max(lows) if lows else (None, False)
    high, included = min(highs) if highs else (None, True)
    if low is None:
        low = -span if high is None else high - span
    if high is None:
        high = low + span
    return low, high, above, not included


#: What strings of a `format` look like.
FORMATS: Final[dict[str, Callable[[random.Random], str]]] = {
    "date": lambda rng: f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    "time": lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:00Z",
    "date-time": lambda rng: f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02}-01T{rng.randint(0, 23):02}:00:00Z",
    "duration": lambda rng: f"P{rng.randint(1, 30)}D",
    "email": lambda rng: f"{rng.choice(_WORDS)}{rng.randint(1, 99)}@example.com",
    "hostname": lambda rng: f"{rng.choice(_WORDS)}.example.com",
    "ipv4": lambda rng: f"192.0.2.{rng.randint(0, 255)}",
    "ipv6": lambda rng: f"2001:db8::{rng.randint(1, 9999)}",
    "uri": lambda rng: f"https://example.com/{rng.choice(_WORDS)}/{rng.randint(1, 99)}",
    "uuid": lambda rng: "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}".format(*map(rng.getrandbits, (32, 16, 12, 12, 48))),
}
