"""Entries of the results stream, as workers and producers write them."""

from typing import Any

import msgspec

from tasks.messages import (
    Destination,
    Failure,
    JobInputs,
    JobOpened,
    JobOptions,
    JobSealed,
    Profile,
    QualityAssessment,
    Result,
    StreamEntry,
    Theme,
    Usage,
)
from tasks.packed import pack_profile, unpack_profile

SPENT = Usage(llm_calls=2, cache_hits=1, coalesced=1, prompt_tokens=100, completion_tokens=50, cost_usd=0.25)


def places(count: int) -> list[Destination]:
    return [Destination.of(f"Town {n}", "Utopia", extra={"row": str(n)}) for n in range(count)]


KYOTO = Destination.of("Kyoto", "Japan", region="Kansai", lat=35.0, lon=135.75, extra={"tier": "1"})


def theme(number: int, **more: Any) -> Theme:
    return Theme(f"t{number}", "food", more.pop("name", f"Theme {number}"), "Told.", [], **more)


def done(
    destination: Destination = KYOTO,
    *,
    attempt: int = 0,
    usage: Usage = SPENT,
    job: str = "j",
    worker: str = "w",
    at: float = 1000.0,
    partial: bool = False,
    themes: int = 2,
    **more: Any,
) -> Result:
    fields: dict[str, Any] = {
        "model": "sandbox",
        "pipeline_version": "1",
        "themes": [theme(n) for n in range(themes)],
        "extra": destination.extra,
        **more,
    }
    profile = Profile(
        destination_id=destination.id,
        name=destination.name,
        country=destination.country,
        status="partial" if partial else "ok",
        overlap_analysis=None,
        quality_assessment=QualityAssessment(0.5, 0.6, 0.7, overall=0.8),
        missing=[],
        stages=[],
        usage=usage,
        elapsed_ms=12.5,
        created_at=at,
        **fields,
    )
    return Result(job, destination.id, attempt, usage, worker, at, 12.5, profile=pack_profile(profile))


def profile_in(result: Result) -> Profile:
    assert result.profile
    return unpack_profile(result.profile, result.destination_id)


def packed_as(result: Result, **fields: Any) -> Result:
    """A result with other fields in its packed profile, as no worker of ours would pack it."""
    assert result.profile
    return msgspec.structs.replace(result, profile=msgspec.structs.replace(result.profile, **fields))


def holding(destination: Destination, of: Result | None = None, **fields: Any) -> Result:
    """A destination's result whose profile has these fields."""
    result = of or done(destination)
    profile = msgspec.structs.replace(profile_in(result), **fields)
    return msgspec.structs.replace(result, profile=pack_profile(profile))


def failed(
    destination: Destination = KYOTO,
    *,
    attempt: int = 0,
    usage: Usage = SPENT,
    job: str = "j",
    worker: str = "w",
    at: float = 1000.0,
    message: str = "429",
) -> Result:
    failure = Failure("discover.food", "RateLimitedError", message, attempt + 1)
    return Result(job, destination.id, attempt, usage, worker, at, 12.5, failure=failure)


def announced(*destinations: Destination, job: str = "j") -> list[StreamEntry]:
    return [
        JobOpened(job, "a name", 900.0, JobOptions()),
        JobInputs(job, destinations),
        JobSealed(job, len(destinations)),
    ]
