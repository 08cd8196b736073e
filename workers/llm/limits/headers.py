"""The numbers in a server's HTTP headers, or in its words: when a request may be repeated.

A value is a number of seconds between 0 and `MAX_WAIT_SECONDS`, or unknown (None): then the caller uses its own
estimate. Servers, gateways and proxies write seconds, milliseconds, durations (`6m0s`), HTTP dates, ISO dates, Unix
times in seconds, milliseconds or microseconds. A number of 10^9 or more can only be a time: as a duration it would be
31 years.
"""

import email.utils
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Self

from multidict import MultiMapping

log = logging.getLogger("themes.llm")

#: The longest wait that is believed: limits for a day exist, longer ones do not.
MAX_WAIT_SECONDS: Final = 86_400.0
#: Characters of a value that can be a number or a date.
MAX_CHARACTERS: Final = 64
#: The smallest number that can only be a time: 2001-09-09 as a Unix time in seconds.
FIRST_TIME: Final = 1e9
#: A Unix time in each of these units is below a hundred times `FIRST_TIME` of them.
_UNIX_UNITS: Final = (1.0, 1e3, 1e6, 1e9)

_NUMBER: Final = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_DURATION: Final = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m(?!s))?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_UNITS: Final = (86_400.0, 3600.0, 60.0, 1.0, 0.001)
#: Headers that say when to come back, the most exact first, and the unit of their plain numbers in seconds.
_RETRY_AFTER: Final = (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("Retry-After", 1.0))
#: Headers that say when a limit is free again: `x-ratelimit-reset-tokens`, `ratelimit-reset`,
#: `anthropic-ratelimit-requests-reset`. The same name with `remaining` or `limit` says how much is left, or whole.
_RESET: Final = re.compile(r"(?:[a-z]+-)?ratelimit-(?:reset(?:-([a-z-]+))?|([a-z-]+)-reset)")
#: The same in the words of an error: `try again in 6m0s`, `retry after 26 seconds`, `wait 40 seconds before`.
_IN_WORDS: Final = re.compile(
    r"(?:(?:re)?try (?:again )?(?:in|after)|please wait)[: ]+"
    r"((?:[0-9]+(?:\.[0-9]+)? ?(?:ms|milli|h|m|s)[a-z]*[ ,]{0,2})+)",
    re.IGNORECASE,
)
_IN_WORDS_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|milli|h|m|s)", re.IGNORECASE)
_WORD_UNITS: Final = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Endpoints whose unreadable headers have been logged.
_logged: Final[set[tuple[str, str]]] = set()


class HeaderSeconds(float):
    """Seconds that a server asks for; `source` is the header as it was sent, or the words in quotes."""

    source: str

    def __new__(cls, seconds: float, source: str) -> Self:
        """Keep the header beside the number; arithmetic gives a plain number again."""
        made = super().__new__(cls, seconds)
        made.source = source
        return made


def duration_seconds(text: str) -> float | None:
    """Read `1s`, `6m0s`, `120ms`, `2m59.56s`, `20` (seconds); None where it is none of these."""
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    if text.isdecimal() and text.isascii():
        return float(text)
    if match := _DURATION.fullmatch(text):
        return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS, strict=True) if number)
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def wait_seconds(text: str, *, now: float, unit: float = 1.0) -> float | None:
    """Read when something may be done again, in seconds from `now` (seconds since 1970); None where that is unknown.

    A plain number counts in `unit` seconds. A time that passed less than a day ago is 0: the clocks differ.
    """
    text = text.strip()
    number = float(text) if len(text) <= MAX_CHARACTERS and _NUMBER.fullmatch(text) else None
    if number is not None and number < FIRST_TIME:
        return _checked(number * unit)
    at = _date(text) if number is None else _unix(number)
    if at is not None:
        return _checked(max(0.0, at - now) if now - at <= MAX_WAIT_SECONDS else math.nan)
    return _checked(duration_seconds(text)) if number is None else None


def unix_time(text: str) -> float | None:
    """Read a time in seconds since 1970: a number in any of its units, an ISO or HTTP date; None where it is none."""
    text = text.strip()
    if len(text) <= MAX_CHARACTERS and _NUMBER.fullmatch(text):
        return _unix(float(text)) if float(text) >= FIRST_TIME else None
    return _date(text)


def _checked(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 <= seconds <= MAX_WAIT_SECONDS else None


def _unix(number: float) -> float | None:
    """A Unix time in seconds, by its size in whichever unit."""
    return next((number / unit for unit in _UNIX_UNITS if number < 100 * FIRST_TIME * unit), None)


def _date(text: str) -> float | None:
    """An HTTP date (RFC 9110, 5.6.7) or an ISO date as seconds since 1970; one without a zone is UTC."""
    if len(text) > MAX_CHARACTERS or not text.isascii():
        return None
    for read in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            at = read(text)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue  # then it may be the other form, or no date
    return None


def retry_after_seconds(headers: Mapping[str, str], *, now: float, endpoint: str = "") -> HeaderSeconds | None:
    """When a refused request may be repeated; None where no header says something readable.

    The longest of several values counts. `now` is in seconds since 1970. Unreadable values are logged once an
    `endpoint`.
    """
    for name, unit in _RETRY_AFTER:
        values = _values(headers, name)
        found = [seconds for text in _parts(values) if (seconds := wait_seconds(text, now=now, unit=unit)) is not None]
        if found:
            return HeaderSeconds(max(found), _shown(name, values))
        if values:
            _log_once(endpoint, name, _shown(name, values))
    return None


def words_seconds(words: str) -> HeaderSeconds | None:
    """When a refused request may be repeated, as the words of the error say; None where they do not."""
    if (match := _IN_WORDS.search(words)) is None:
        return None
    parts = _IN_WORDS_PART.findall(match[1])
    seconds = _checked(sum(float(number[:MAX_CHARACTERS]) * _WORD_UNITS[unit.lower()] for number, unit in parts))
    return None if seconds is None else HeaderSeconds(seconds, repr(match[0].strip()[:MAX_CHARACTERS]))


def exhausted_seconds(
    headers: Mapping[str, str], *, now: float | None = None, endpoint: str = ""
) -> HeaderSeconds | None:
    """When rate-limit headers say that nothing remains, the seconds until something does; else None.

    `reset` is the time until everything is free again. Where the limit is known and refills evenly, as those for
    requests and tokens do (OpenAI, Groq), one request is free after its part of that, and a hundredth of the tokens.
    """
    names = "\n".join(map(str, headers)).lower()
    if "ratelimit" not in names:
        return None
    now = time.time() if now is None else now
    waits = []
    for name in set(names.split("\n")):
        if (
            "ratelimit" not in name
            or not (match := _RESET.fullmatch(name))
            or _number(headers, name.replace("reset", "remaining")) != 0
        ):
            continue
        values = _values(headers, name)
        found = [seconds for text in _parts(values) if (seconds := wait_seconds(text, now=now)) is not None]
        if not found:
            _log_once(endpoint, "reset", _shown(name, values))
            continue
        what = match[1] or match[2] or ""
        limit = _number(headers, name.replace("reset", "limit")) if what else None
        part = 1.0 if not limit else 100.0 if "tokens" in what else max(1.0, limit)
        waits.append(HeaderSeconds(max(found) / part, _shown(name, values)))
    return max(waits, default=None)


def _number(headers: Mapping[str, str], name: str) -> float | None:
    values = _values(headers, name)
    return duration_seconds(values[0]) if values else None


def _values(headers: Mapping[str, str], name: str) -> list[str]:
    """Every value that a header was sent with; names are compared without case."""
    if isinstance(headers, MultiMapping):
        return [*headers.getall(name, [])]
    return [value for key, value in headers.items() if key.lower() == name.lower()]


def _parts(values: Iterable[str]) -> Iterable[str]:
    """Each value as it is and, where a proxy has joined several by commas, each of those: a date has one too."""
    for value in values:
        yield value
        if "," in value:
            yield from value.split(",")[:8]


def _shown(name: str, values: Iterable[str]) -> str:
    """A header as people read it; what is in it comes from outside."""
    text = ", ".join(values)[:MAX_CHARACTERS]
    return f"{name}: {''.join(each if each.isprintable() else '?' for each in text)}"


def _log_once(endpoint: str, kind: str, shown: str) -> None:
    if (endpoint, kind) not in _logged:
        _logged.add((endpoint, kind))
        log.warning(
            "action=header_unreadable endpoint=%s no time to wait can be read, our own pause is taken: %s",
            endpoint or "?", shown,
        )  # fmt: skip
