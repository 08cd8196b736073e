"""The rows that entries of the results stream mean: tuples, in the order of their table's columns.

Texts that a user or a server wrote are cleaned here, so no row holds a control character but tab and newline.
"""

import functools
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import msgspec

from tasks.messages import Destination, PackedProfile, Result, Seasonality, Spent, Theme, Usage
from tasks.storable import MAX_WHOLE, clean_destination, whole_numbers
from tasks.texts import cleaned
from workers.results.database.reducer import DestinationState, Key
from workers.results.database.rows import JobRow
from workers.results.database.tables import SEASON_SHIFTS, USAGE_COLUMNS
from workers.results.database.totals import ended
from workers.results.stream import DeadEntry

#: Names of months as `Seasonality` has them; 1 is January.
MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (
            "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December",
        ),
        start=1,
    )
}  # fmt: skip
#: Bytes of a dead entry that are kept: enough to see what it was.
DEAD_BYTES: Final = 1024 * 1024

Values = tuple[Any, ...]


_encode: Final = msgspec.json.Encoder().encode


def as_json(value: Any) -> str:
    return _encode(value).decode()


def usage_values(usage: Usage) -> Values:
    """The columns of a sum of usages: one beyond 64 bits stays at the largest number that is kept."""
    values = msgspec.structs.astuple(usage)
    if max(whole_numbers(values)) <= MAX_WHOLE:
        return values
    return tuple(min(MAX_WHOLE, each) if isinstance(each, int) else each for each in values)


def listed_row(job_id: str, destination: Destination, now: float) -> Values:
    d = clean_destination(destination)
    extra = as_json(d.extra) if d.extra else "{}"
    return job_id, d.id, d.name, d.country, d.region, d.lat, d.lon, extra, 1, now, now


def destination_row(key: Key, state: DestinationState, now: float) -> Values:
    s = state
    head = (*key, s.name, s.country, as_json(s.extra), 0, s.state, int(s.partial), s.attempt)
    return (*head, *usage_values(s.usage), now, now)


def job_row(job: JobRow) -> dict[str, Any]:
    plain = {name: getattr(job, name) for name in job.__slots__ if name not in {"job_id", "usage"}}
    usage = zip(USAGE_COLUMNS, usage_values(job.usage), strict=True)
    return {**plain, **dict(usage), "of_job": job.job_id, "sealed": int(job.sealed)}


def run_row(result: Result | Spent) -> Values:
    r = result
    head = (r.job_id, r.destination_id, r.attempt, r.worker, r.at, ended(r), r.elapsed_ms)
    return (*head, *msgspec.structs.astuple(r.usage))


def profile_row(number: int, result: Result, profile: PackedProfile, now: float) -> Values:
    p = profile
    head = (number, result.job_id, result.destination_id, p.name, p.country, p.status, p.model, p.pipeline_version)
    middle = (p.quality, p.stages, p.missing or None, result.attempt)
    return (*head, *middle, *msgspec.structs.astuple(p.usage), p.elapsed_ms, p.created_at, now, p.body)


def theme_rows(number: int, themes: Iterable[Theme], first: int) -> list[Values]:
    """The rows of a profile's themes, numbered from `first`."""
    return [
        (
            theme_no, number, rank, t.category, t.name, t.description, t.confidence, t.price_point,
            t.authenticity_score, t.seasonality and seasons(t.seasonality),
            _travelers(*t.traveler_types) if t.traveler_types else None, _subthemes(t),
        )
        for theme_no, (rank, t) in enumerate(enumerate(themes, start=1), first)
    ]  # fmt: skip


def seasons(seasonality: Seasonality) -> int:
    """The months as bits. What is no month stays in the body; the schema of the answers has let none through."""
    bits = 0
    for name in seasonality.peak:
        bits |= _PEAK.get(name, 0)
    for name in seasonality.avoid:
        bits |= _AVOID.get(name, 0)
    return bits


def month_bits(months: Iterable[int], season: str) -> int:
    """The bits of `profile_themes.seasons` that stand for some months (1-12) of a season."""
    return sum(1 << month - 1 + SEASON_SHIFTS[season] for month in set(months))


_PEAK, _AVOID = ({name: month_bits([number], season) for name, number in MONTHS.items()} for season in SEASON_SHIFTS)


@functools.lru_cache(4_096)
def _travelers(*kinds: str) -> str:
    """Of ten kinds up to three: the same lists come again and again."""
    return as_json(list(dict.fromkeys(kinds)))


def _subthemes(theme: Theme) -> str | None:
    sub, nano = theme.sub_themes, theme.nano_themes
    if sub and nano:
        return as_json({"sub": sub, "nano": nano})
    return as_json({"sub": sub} if sub else {"nano": nano}) if sub or nano else None


def failure_row(result: Result) -> Values:
    failure = result.failure
    assert failure is not None  # noqa: S101 - the caller picked failures
    f = failure
    return result.job_id, result.destination_id, f.stage, f.error_class, cleaned(f.message), f.attempts, result.at


def dead_row(dead: DeadEntry, now: float) -> Values:
    fields = chain.from_iterable((dead.raw.fields or {}).items())
    kept = msgspec.msgpack.encode([part[:DEAD_BYTES] for part in fields])
    # A lone surrogate may be what is wrong with the entry: words about it must be storable themselves.
    job_id, destination_id, reason = (
        None if text is None else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        for text in (dead.job_id, dead.destination_id, dead.reason)
    )
    return dead.raw.id.decode(), job_id, destination_id, reason, kept, now
