"""The rows that entries of the results stream mean: tuples, in the order of their table's columns.

Texts that a user or a server wrote are cleaned here, so no row holds a control character but tab and newline.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, cast

import msgspec

from tasks.messages import Destination, Profile, Result, Spent, Theme, Usage
from tasks.storable import MAX_WHOLE, clean_destination, flaw, has_controls, storable
from tasks.texts import cleaned
from workers.results.database.reducer import DestinationState, Key, UnusableEntryError
from workers.results.database.rows import JobRow
from workers.results.database.tables import USAGE_COLUMNS
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


def as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def usage_values(usage: Usage) -> Values:
    """The columns of a sum of usages: one beyond 64 bits stays at the largest number that is kept."""
    return tuple(min(MAX_WHOLE, each) if isinstance(each, int) else each for each in msgspec.structs.astuple(usage))


def clean_result(result: Result) -> tuple[Result, str]:
    """A result whose profile holds no control characters, and the profile's JSON.

    Raises:
        UnusableEntryError: a number of it is none; JSON would have null where readers expect a number.
    """
    if not math.isfinite(sum(_floats(cast("Profile", result.profile)))):
        raise UnusableEntryError(flaw(result))
    payload = msgspec.json.encode(result.profile)
    if has_controls(payload):
        result = msgspec.structs.replace(result, profile=storable(result.profile))
        payload = msgspec.json.encode(result.profile)
    return result, payload.decode()


def _floats(profile: Profile) -> Iterator[float]:
    quality = profile.quality_assessment
    yield from (profile.elapsed_ms, profile.created_at, quality.diversity, quality.coverage, quality.completeness)
    yield from (quality.quality or 0.0, quality.overall or 0.0)
    for theme in profile.themes:
        yield from (theme.confidence or 0.0, theme.authenticity_score or 0.0)
    for stage in profile.stages:
        yield from (stage.elapsed_ms, stage.usage.cost_usd or 0.0, stage.usage.saved_usd or 0.0)


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


def profile_row(number: int, result: Result, profile: Profile, payload: str, now: float) -> Values:
    p = profile
    head = (number, result.job_id, result.destination_id, p.name, p.country, p.status, p.model, p.pipeline_version)
    middle = (p.quality_assessment.overall, payload, result.attempt)
    return (*head, *middle, *msgspec.structs.astuple(p.usage), p.elapsed_ms, p.created_at, now)


def add_themes(rows: Mapping[str, list[Values]], result: Result, themes: Sequence[Theme], first: int) -> None:
    """The rows of a profile's themes, numbered from `first`."""
    of_themes, months = rows["themes"], rows["theme_months"]
    travelers, subthemes = rows["theme_travelers"], rows["theme_subthemes"]
    job_id, destination_id = result.job_id, result.destination_id
    for rank, t in enumerate(themes, start=1):
        number = first + rank - 1
        of_themes.append((
            number, job_id, destination_id, rank, t.category, t.name, t.description, t.confidence, t.price_point,
            t.authenticity_score, t.rationale,
        ))  # fmt: skip
        if t.seasonality is not None:
            for season, names in (("peak", t.seasonality.peak), ("avoid", t.seasonality.avoid)):
                # What is no month stays in the payload; the schema of the answers has let none through.
                months += [(number, MONTHS[name], season) for name in dict.fromkeys(names) if name in MONTHS]
        if t.traveler_types:
            travelers += [(number, kind) for kind in dict.fromkeys(t.traveler_types)]
        if t.sub_themes:
            subthemes += [(number, "sub", place, name) for place, name in enumerate(t.sub_themes, start=1)]
        if t.nano_themes:
            subthemes += [(number, "nano", place, name) for place, name in enumerate(t.nano_themes, start=1)]


def stage_rows(number: int, profile: Profile) -> list[Values]:
    """How each stage of a profile was made; of a stage that is there twice, the last."""
    rows = {
        s.stage: (
            number, s.stage, s.status, s.prompt_version, s.model, s.source, s.usage.llm_calls, s.usage.cache_hits,
            s.usage.prompt_tokens, s.usage.completion_tokens, s.usage.cost_usd, s.elapsed_ms, s.reason,
        )
        for s in profile.stages
    }  # fmt: skip
    return list(rows.values())


def missing_rows(number: int, profile: Profile) -> list[Values]:
    return [
        (number, place, m.stage, m.field, m.reason, as_json(m.themes))
        for place, m in enumerate(profile.missing, start=1)
    ]


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
