"""A profile as it travels from the worker to the database, packed once: the consumer writes what it is given.

What differs from run to run stands beside two frames of zstd: what SQL asks of each theme, and what readers of the
whole profile want. A cached profile keeps both frames, and neither is made again.
"""

import math
from collections.abc import Iterable
from types import GenericAlias
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from tasks.frames import MAX_UNPACKED_BYTES, WireError, compressed, decompressed
from tasks.messages import (
    Evidence,
    Missing,
    OverlapAnalysis,
    PackedProfile,
    Profile,
    QualityAssessment,
    Seasonality,
    StageRecord,
    Theme,
    Usage,
)
from tasks.storable import MAX_WHOLE, flaw, has_controls, storable

#: Theme names that a packed profile tells without being unpacked: a line on a screen.
BEST_THEMES: Final = 3
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
#: Where the bits of a season begin in a theme's `seasons`.
SEASON_SHIFTS: Final = {"peak": 0, "avoid": 12}

#: What SQL asks of a theme: category, name, description, confidence, price point, authenticity, seasons as bits,
#: traveller types, and sub-themes by level, the last two as JSON.
ThemeValues = tuple[str, str, str, float | None, str | None, float | None, int | None, msgspec.Raw, msgspec.Raw]
#: What `stages` has of each stage, in this order: how it was made, then its usage.
STAGE_VALUES: Final = (
    "stage", "status", "prompt_version", "model", "source", "elapsed_ms", "reason", *Usage.__struct_fields__,
)  # fmt: skip
_MissingValues = tuple[str, str, str, list[str]]


class UnpackableError(WireError):
    """This profile holds what no database keeps, or no JSON can say."""


class _Body(msgspec.Struct, frozen=True):
    """What of a profile no column has."""

    themes: list[Theme]
    overlap_analysis: OverlapAnalysis | None
    quality_assessment: QualityAssessment
    more: dict[str, Any] = {}
    evidence: list[Evidence] = []


class _Shape(msgspec.Struct, frozen=True):
    """What is looked at of a body: that it is JSON, and has as many themes as it should."""

    themes: list[msgspec.Raw]


_TYPES: Final = {field.name: field.type for of in (StageRecord, Usage) for field in msgspec.structs.fields(of)}
_values: Final = msgspec.json.Decoder(list[ThemeValues])
_stages: Final = msgspec.json.Decoder(
    list[GenericAlias(tuple, tuple(_TYPES[name] for name in STAGE_VALUES))]  # type: ignore[misc]  # as wide as `Usage`
)
_missing: Final = msgspec.json.Decoder(list[_MissingValues])
_body: Final = msgspec.json.Decoder(_Body)
_shape: Final = msgspec.json.Decoder(_Shape)
_encode: Final = msgspec.json.Encoder().encode


def _decoded(decoder: msgspec.json.Decoder[Any], json: bytes | str) -> Any:
    try:
        return decoder.decode(json)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise WireError(f"not a packed profile: {exc}") from exc


def pack_profile(profile: Profile) -> PackedProfile:
    """Pack a profile, without the control characters and half surrogates that its texts may hold.

    Raises:
        UnpackableError: a number is none, or one of its usage beyond 64 bits; a value is not JSON's; it is too large.
    """
    try:
        p, (stages, missing, themes, body) = _cleaned(profile)
    except UnpackableError:
        raise
    except (UnicodeError, OverflowError, TypeError, ValueError, RecursionError) as exc:
        raise UnpackableError(flaw(profile) or f"{type(exc).__name__}: {exc}") from exc
    return PackedProfile(
        name=p.name,
        country=p.country,
        status=p.status,
        model=p.model,
        pipeline_version=p.pipeline_version,
        quality=p.quality_assessment.overall,
        usage=p.usage,
        elapsed_ms=p.elapsed_ms,
        created_at=p.created_at,
        theme_count=len(p.themes),
        best=p.top_themes(BEST_THEMES),
        stages=stages.decode(),
        missing=missing.decode() if p.missing else "",
        lacking=len({each.stage for each in p.missing}),
        themes=compressed(themes),
        body=compressed(body),
        extra=p.extra,
    )


def _cleaned(profile: Profile) -> tuple[Profile, tuple[bytes, bytes, bytes, bytes]]:
    """The profile as any database keeps it, and its parts as JSON."""
    if not math.isfinite(sum(_floats(profile))) or any(map(_is_beyond, (profile.usage, *_usages(profile)))):
        raise UnpackableError(flaw(profile))
    try:
        parts = _encoded(profile)
        is_clean = _is_clean(profile, *parts)
    except UnicodeEncodeError:  # half a pair of surrogates
        is_clean = False
    if not is_clean:
        profile = storable(profile)
        parts = _encoded(profile)
    if (size := sum(map(len, parts))) > MAX_UNPACKED_BYTES:
        raise UnpackableError(f"it takes {size:,} bytes, at most {MAX_UNPACKED_BYTES:,} are allowed")
    return profile, parts


def _is_clean(head: Profile | PackedProfile, *parts: bytes) -> bool:
    """Whether neither the texts that stand by themselves nor the parts in JSON hold control characters."""
    texts = _encode([head.name, head.country, head.model, head.pipeline_version, head.extra])
    return not any(map(has_controls, (texts, *parts)))


def _encoded(profile: Profile) -> tuple[bytes, bytes, bytes, bytes]:
    """JSON of stages, of what lacks, of the themes' values, and of the body."""
    p = profile
    return (
        stages_json(p.stages),
        _encode([(m.stage, m.field, m.reason, m.themes) for m in p.missing]),
        _encode([_theme_values(theme) for theme in p.themes]),
        _encode(_Body(p.themes, p.overlap_analysis, p.quality_assessment, p.more, p.evidence)),
    )


def _usages(profile: Profile) -> list[Usage]:
    return [stage.usage for stage in profile.stages]


def _is_beyond(usage: Usage) -> bool:
    return max(usage.llm_calls, usage.cache_hits, usage.prompt_tokens, usage.completion_tokens) > MAX_WHOLE


def _floats(profile: Profile) -> list[float]:
    quality, themes = profile.quality_assessment, profile.themes
    return [
        profile.elapsed_ms, profile.created_at, quality.diversity, quality.coverage, quality.completeness,
        quality.quality or 0.0, quality.overall or 0.0,
        *[t.confidence or 0.0 for t in themes], *[t.authenticity_score or 0.0 for t in themes],
        *[s.elapsed_ms + (s.usage.cost_usd or 0.0) + (s.usage.saved_usd or 0.0) for s in profile.stages],
    ]  # fmt: skip


def _theme_values(theme: Theme) -> tuple[Any, ...]:
    t = theme
    within = {level: names for level, names in (("sub", t.sub_themes), ("nano", t.nano_themes)) if names}
    return (
        t.category, t.name, t.description, t.confidence, t.price_point, t.authenticity_score,
        t.seasonality and seasons(t.seasonality), list(dict.fromkeys(t.traveler_types)) if t.traveler_types else None,
        within or None,
    )  # fmt: skip


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


def stages_json(stages: Iterable[StageRecord]) -> bytes:
    """What `stages` holds of some records."""
    return _encode([
        (s.stage, s.status, s.prompt_version, s.model, s.source, s.elapsed_ms, s.reason, *astuple(s.usage))
        for s in stages
    ])  # fmt: skip


def stages_of(json: str) -> list[StageRecord]:
    """The records that `stages` holds."""
    return [_record(*each) for each in _decoded(_stages, json)]


def _record(stage: str, status: Any, version: str, model: str | None, source: Any, *others: Any) -> StageRecord:
    elapsed_ms, reason, *usage = others
    return StageRecord(stage, status, version, model, source, Usage(*usage), elapsed_ms, reason)


def missing_of(json: str | None) -> list[Missing]:
    """What could not be had, as `missing` holds it."""
    return [Missing(*each) for each in _decoded(_missing, json)] if json else []


def checked(packed: PackedProfile, destination_id: str) -> tuple[PackedProfile, list[ThemeValues]]:
    """A packed profile that comes from outside, without control characters, and what SQL asks of its themes.

    Raises:
        WireError: its bytes are no profile, or a number of it is none.
    """
    p = packed
    numbers = (p.elapsed_ms, p.created_at, p.quality or 0.0, p.usage.cost_usd or 0.0, p.usage.saved_usd or 0.0)
    if not math.isfinite(sum(numbers)) or _is_beyond(p.usage):
        raise UnpackableError(f"profile.{flaw(p)}")
    themes, body = decompressed(p.themes), decompressed(p.body)
    values: list[ThemeValues] = _decoded(_values, themes)
    if len(values) != p.theme_count:
        raise UnpackableError(f"profile.theme_count is {p.theme_count}, and it has values of {len(values)}")
    _decoded(_stages, p.stages)
    if p.missing:
        _decoded(_missing, p.missing)
    shape: _Shape = _decoded(_shape, body)
    if len(shape.themes) != p.theme_count:
        raise UnpackableError(f"profile.theme_count is {p.theme_count}, and it has {len(shape.themes)} themes")
    try:
        is_clean = _is_clean(p, p.stages.encode(), p.missing.encode(), themes, body, _encode(p.best))
    except UnicodeEncodeError:
        is_clean = False
    if not is_clean:
        packed = pack_profile(storable(unpack_profile(p, destination_id)))
        values = _decoded(_values, decompressed(packed.themes))
    return packed, values


def unpack_profile(packed: PackedProfile, destination_id: str) -> Profile:
    """The profile that was packed. Raises `WireError`: these bytes are none."""
    return profile_of(packed, destination_id, decompressed(packed.body))


def profile_of(head: Any, destination_id: str, body: bytes) -> Profile:
    """A profile out of its body and a row, or a packed profile, that has the rest as attributes."""
    found: _Body = _decoded(_body, body)
    return Profile(
        destination_id=destination_id,
        name=head.name,
        country=head.country,
        status=head.status,
        model=head.model,
        pipeline_version=head.pipeline_version,
        themes=found.themes,
        overlap_analysis=found.overlap_analysis,
        quality_assessment=found.quality_assessment,
        missing=missing_of(head.missing),
        stages=stages_of(head.stages),
        usage=head.usage,
        elapsed_ms=head.elapsed_ms,
        created_at=head.created_at,
        extra=head.extra,
        more=found.more,
        evidence=found.evidence,
    )
