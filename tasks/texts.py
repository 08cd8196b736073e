"""Texts from outside, made fit for what they pass through: a database, a terminal, a page, a prompt."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

#: What is shown where nothing is known.
NOTHING: Final = "\u2013"
#: Control characters but tab and line feed, the marks that turn the direction of text, and lone surrogates.
_UNFIT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Names that an error names where none is the one that was meant.
MAX_NAMED: Final = 10
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def is_fit(text: str) -> bool:
    """Whether a text holds nothing that `cleaned` takes out."""
    return _UNFIT.search(text) is None


def cleaned(text: str) -> str:
    """A text without control characters, which are left out; a lone surrogate becomes U+FFFD."""
    if text.isprintable() or is_fit(text):
        return text
    return _UNFIT.sub("", _SURROGATES.sub("\ufffd", text))


def clean_line(text: str) -> str:
    return text if text.isprintable() else " ".join(cleaned(text).split())


def cleaned_value(value: Any) -> Any:
    """A JSON value whose texts and keys are `cleaned`; the same object where all of them were."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, list):
        return [cleaned_value(item) for item in value]
    if isinstance(value, dict):
        return {cleaned(key): cleaned_value(item) for key, item in value.items()}
    return value


def count(number: float, noun: str) -> str:
    """A number with its noun, which is singular for 1 alone: 1 duplicate, 2 duplicates, 1,000 entries."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def duration(seconds: float | None) -> str:
    """Seconds as people read them: 0.05 ms, 406 ms, 9.4 s, 42 s, 12m 09s, 1h 39m, 2d 03h; a dash where unknown."""
    if seconds is None:
        return NOTHING
    if 0 < seconds < 0.9995:  # noqa: PLR2004  # where a second begins, rounded
        ms = 1000 * seconds
        return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.2g} ms"  # noqa: PLR2004  # digits
    if seconds < 59.5:  # noqa: PLR2004  # where a minute begins, rounded
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"  # noqa: PLR2004  # digits
    minutes, whole = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004  # minutes in an hour
        return f"{minutes}m {whole:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:  # noqa: PLR2004  # hours in a day
        return f"{hours}h {minutes:02d}m"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days:,}d {hours:02d}h"


def plural(noun: str) -> str:
    if re.search("[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search("(s|x|ch|sh)$", noun) else f"{noun}s"


def one_line(text: str, characters: int) -> str:
    """The beginning of a text as one clean line of at most `characters`."""
    return " ".join(cleaned(text[: 4 * characters]).split())[:characters]


def known_name(text: str, known: Sequence[str]) -> str | None:
    """The one of some names that a text means: itself, else one that differs in case alone."""
    return text if text in known else next((one for one in known if folded(one) == folded(text)), None)


def folded(text: str) -> str:
    """Equal for texts that differ in case, or in how one letter is encoded: as one character or as two."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def nearest(text: str, known: Sequence[str], kind: str = "known") -> str:
    """`; did you mean X? (columns: …)`: what is like a text, and some of what there is of a `kind`."""
    by_key = {folded(one): one for one in known}
    like = difflib.get_close_matches(folded(text), by_key, 1)
    names = list(by_key.values())
    more = ", …" if len(names) > MAX_NAMED else ""
    there = f"{kind}: {', '.join(names[:MAX_NAMED]) or 'none'}{more}"
    return f"; did you mean {by_key[like[0]]}? ({there})" if like else f"; {there}"
