"""A profile as it travels from the worker to the database: the worker packs it once, the consumer reads it once.

What differs from run to run stands beside one frame of zstd, the themes whole and what was found about them together.
A cached profile keeps the frame, and the database gets it as it is.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from tasks.frames import MAX_UNPACKED_BYTES, WireError, compressed, decompressed
from tasks.identity import title_key
from tasks.messages import (
    Evidence,
    Missing,
    OverlapAnalysis,
    PackedProfile,
    Profile,
    QualityAssessment,
    StageRecord,
    Theme,
    Usage,
)
from tasks.storable import are_amounts, flaw, has_controls, storable

#: Hex digits of a version: 48 bits, for telling apart, not for safety.
VERSION_DIGITS: Final = 12
#: Theme names that a packed profile tells without being unpacked: a line on a screen.
BEST_THEMES: Final = 3
#: What `stages` has of each stage, in this order: how it was made, then its usage.
STAGE_VALUES: Final = (
    "stage", "status", "prompt_version", "model", "source", "elapsed_ms", "reason", *Usage.__struct_fields__,
)  # fmt: skip
#: Where its usage begins.
_USAGE_AT: Final = STAGE_VALUES.index(Usage.__struct_fields__[0])
#: What is said of a usage that no sum can take.
NO_AMOUNT: Final = "stages or its usage have an amount below 0 or beyond 64 bits"
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


_HOW: Final = {field.name: field.type for field in msgspec.structs.fields(StageRecord)}
#: A stage in `stages`. What an older version wrote ends earlier: the usage that it did not count is as its default.
_Stage: Final = msgspec.defstruct(
    "_Stage",
    [
        *((name, _HOW[name]) for name in STAGE_VALUES[:_USAGE_AT]),
        *((field.name, field.type, field.default) for field in msgspec.structs.fields(Usage)),
    ],
    array_like=True,
    frozen=True,
)
_stages: Final = msgspec.json.Decoder(list[_Stage])  # type: ignore[valid-type]  # made of two others
_missing: Final = msgspec.json.Decoder(list[_MissingValues])
_body: Final = msgspec.json.Decoder(_Body)
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
        p, (stages, missing, body) = _cleaned(profile)
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
        lacking=_lacking(p.missing),
        body=compressed(body),
        extra=p.extra,
    )


def _cleaned(profile: Profile) -> tuple[Profile, tuple[bytes, bytes, bytes]]:
    """The profile as any database keeps it, and its parts as JSON."""
    usages = (profile.usage, *(stage.usage for stage in profile.stages))
    if not math.isfinite(sum(_floats(profile))) or not are_amounts(*map(astuple, usages)):
        raise UnpackableError(flaw(profile) or NO_AMOUNT)
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


def _encoded(profile: Profile) -> tuple[bytes, bytes, bytes]:
    """JSON of stages, of what lacks, and of the body."""
    p = profile
    return (
        stages_json(p.stages),
        _encode([(m.stage, m.field, m.reason, m.themes) for m in p.missing]),
        _encode(_Body(p.themes, p.overlap_analysis, p.quality_assessment, p.more, p.evidence)),
    )


def _floats(profile: Profile) -> list[float]:
    quality, themes = profile.quality_assessment, profile.themes
    return [
        profile.elapsed_ms, profile.created_at, quality.diversity, quality.coverage, quality.completeness,
        quality.quality or 0.0, quality.overall or 0.0,
        *[t.confidence or 0.0 for t in themes], *[t.authenticity_score or 0.0 for t in themes],
        *[stage.elapsed_ms for stage in profile.stages],
    ]  # fmt: skip


def stages_json(stages: Iterable[StageRecord]) -> bytes:
    """What `stages` holds of some records."""
    return _encode([
        (s.stage, s.status, s.prompt_version, s.model, s.source, s.elapsed_ms, s.reason, *astuple(s.usage))
        for s in stages
    ])  # fmt: skip


def stages_of(json: str) -> list[StageRecord]:
    """The records that `stages` holds."""
    return [_record(*astuple(each)) for each in _decoded(_stages, json)]


def _record(stage: str, status: Any, version: str, model: str | None, source: Any, *others: Any) -> StageRecord:
    elapsed_ms, reason, *usage = others
    return StageRecord(stage, status, version, model, source, Usage(*usage), elapsed_ms, reason)


def _lacking(missing: Iterable[Missing]) -> int:
    """How many stages lack something."""
    return len({each.stage for each in missing})


def missing_of(json: str | None) -> list[Missing]:
    """What could not be had, as `missing` holds it."""
    return [Missing(*each) for each in _decoded(_missing, json)] if json else []


def checked(packed: PackedProfile, destination_id: str) -> tuple[PackedProfile, list[Theme]]:
    """A packed profile that comes from outside, without control characters, and its themes.

    Raises:
        WireError: its bytes are no profile, or a number of it is none.
    """
    p, body = packed, decompressed(packed.body)
    if not math.isfinite(p.elapsed_ms + p.created_at + (p.quality or 0.0)):
        raise UnpackableError(f"profile.{flaw(p)}")
    usages = (astuple(each)[_USAGE_AT:] for each in _decoded(_stages, p.stages))
    if not are_amounts(astuple(p.usage), *usages):
        raise UnpackableError(f"profile.{flaw(p) or NO_AMOUNT}")
    found: _Body = _decoded(_body, body)
    told = p.theme_count, p.lacking, p.quality
    has = len(found.themes), _lacking(missing_of(p.missing)), found.quality_assessment.overall
    if told != has:
        raise UnpackableError(f"profile.theme_count, lacking and quality are {told}, and it has {has}")
    try:
        is_clean = _is_clean(p, p.stages.encode(), p.missing.encode(), body, _encode(p.best))
    except UnicodeEncodeError:
        is_clean = False
    if is_clean:
        return packed, found.themes
    profile = storable(profile_of(p, destination_id, body))
    return pack_profile(profile), profile.themes


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


def version_of(versions: Iterable[tuple[str, str]], columns: Iterable[str] = ()) -> str:
    """A digest over the names and versions of stages, and the further columns that their prompts show."""
    lines = [f"{name}={version}" for name, version in versions]
    joined = "\n".join(sorted(lines + [f"column {title_key(column)}" for column in columns]))
    return hashlib.sha256(joined.encode()).hexdigest()[:VERSION_DIGITS]
