"""The rows that entries of the results stream mean: tuples, in the order of their table's columns.

Texts that a user or a server wrote are cleaned here, so no row holds a control character but tab and newline.
"""

import functools
import math
import threading
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, cast

import msgspec
import zstandard

from tasks.messages import Destination, Profile, Result, Seasonality, Spent, StageRecord, Theme, Usage
from tasks.storable import MAX_WHOLE, clean_destination, flaw, has_controls, storable
from tasks.texts import cleaned
from workers.results.database.reducer import DestinationState, Key, UnusableEntryError
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
#: zstd's level of a payload: the next three take twice the time for five percent.
PAYLOAD_LEVEL: Final = 3
#: Bytes of a dead entry that are kept: enough to see what it was.
DEAD_BYTES: Final = 1024 * 1024

Values = tuple[Any, ...]


_encode: Final = msgspec.json.Encoder().encode


def as_json(value: Any) -> str:
    return _encode(value).decode()


def usage_values(usage: Usage) -> Values:
    """The columns of a sum of usages: one beyond 64 bits stays at the largest number that is kept."""
    return tuple(min(MAX_WHOLE, each) if isinstance(each, int) else each for each in msgspec.structs.astuple(usage))


class _Payloads(threading.local):
    """A compressor for each thread: to make one takes longer than to use it, and two threads cannot share it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=PAYLOAD_LEVEL)


_payloads: Final = _Payloads()


def clean_result(result: Result) -> tuple[Result, bytes]:
    """A result whose profile holds no control characters, and the profile's JSON, compressed.

    Raises:
        UnusableEntryError: a number of it is none, or beyond 64 bits; readers of JSON expect one.
    """
    profile = cast("Profile", result.profile)
    if not math.isfinite(sum(_floats(profile))) or any(map(_is_beyond, profile.stages)):
        raise UnusableEntryError(flaw(result))
    payload = msgspec.json.encode(result.profile)
    if has_controls(payload):
        result = msgspec.structs.replace(result, profile=storable(result.profile))
        payload = msgspec.json.encode(result.profile)
    return result, _payloads.compressor.compress(payload)


def _is_beyond(stage: StageRecord) -> bool:
    u = stage.usage
    return max(u.llm_calls, u.cache_hits, u.prompt_tokens, u.completion_tokens) > MAX_WHOLE


def _floats(profile: Profile) -> list[float]:
    quality, themes = profile.quality_assessment, profile.themes
    return [
        profile.elapsed_ms, profile.created_at, quality.diversity, quality.coverage, quality.completeness,
        quality.quality or 0.0, quality.overall or 0.0,
        *[t.confidence or 0.0 for t in themes], *[t.authenticity_score or 0.0 for t in themes],
        *[s.elapsed_ms + (s.usage.cost_usd or 0.0) + (s.usage.saved_usd or 0.0) for s in profile.stages],
    ]  # fmt: skip


def listed_row(job_id: str, destination: Destination, now: float) -> Values:
    d = clean_destination(destination)
    extra = as_json(d.extra) if d.extra else "{}"
    return job_id, d.id, d.name, d.country, d.region, d.lat, d.lon, extra, 1, now, now


def destination_row(key: Key, state: DestinationState, now: float) -> Values:
    s = state
    head = (*key, s.name, s.country, "{}", 0, s.state, int(s.partial), s.attempt)
    return (*head, *usage_values(s.usage), now, now)


def job_row(job: JobRow) -> dict[str, Any]:
    plain = {name: getattr(job, name) for name in job.__slots__ if name not in {"job_id", "usage"}}
    usage = zip(USAGE_COLUMNS, usage_values(job.usage), strict=True)
    return {**plain, **dict(usage), "of_job": job.job_id, "sealed": int(job.sealed)}


def run_row(result: Result | Spent) -> Values:
    r = result
    head = (r.job_id, r.destination_id, r.attempt, r.worker, r.at, ended(r), r.elapsed_ms)
    return (*head, *msgspec.structs.astuple(r.usage))


def profile_row(number: int, result: Result, profile: Profile, payload: bytes, now: float) -> Values:
    p = profile
    head = (number, result.job_id, result.destination_id, p.name, p.country, p.status, p.model, p.pipeline_version)
    middle = (p.quality_assessment.overall, _stages(p), _missing(p), result.attempt)
    return (*head, *middle, *msgspec.structs.astuple(p.usage), p.elapsed_ms, p.created_at, now, payload)


def theme_rows(number: int, themes: Sequence[Theme], first: int) -> list[Values]:
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
    """The months as bits. What is no month stays in the payload; the schema of the answers has let none through."""
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


def _stages(profile: Profile) -> str:
    """How each stage of a profile was made; of a stage that is there twice, the last."""
    rows = {
        s.stage: (
            s.stage, s.status, s.prompt_version, s.model, s.source, s.usage.llm_calls, s.usage.cache_hits,
            s.usage.prompt_tokens, s.usage.completion_tokens, s.usage.cost_usd, s.elapsed_ms, s.reason,
        )
        for s in profile.stages
    }  # fmt: skip
    return as_json(list(rows.values()))


def _missing(profile: Profile) -> str | None:
    return as_json([(m.stage, m.field, m.reason, m.themes) for m in profile.missing]) if profile.missing else None


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
