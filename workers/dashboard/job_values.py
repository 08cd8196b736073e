"""A job and a profile as the pages show them: plain values, which the templates escape."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tasks.jobs.registry import JobStatus, format_paused
from tasks.messages import Profile, Theme
from workers.dashboard.job_words import left_words, parts, rest_words, sentence
from workers.observe.format import NOTHING, dollars, duration, percent, rate
from workers.results.database.values import MONTHS


def job_values(status: JobStatus) -> dict[str, Any]:
    words = ""
    if status.unreadable:
        words = f"Its entry in Redis cannot be read: {status.unreadable}"
    elif status.paused:
        words = format_paused(status)
    elif status.waiting_for:
        words = f"Waiting: {status.waiting_for}"
    elif status.state == "stalled":
        words = "Nothing has happened for a minute: is a worker running? (themes doctor)"
    left = status.eta_seconds
    return {
        "job_id": status.job_id,
        "name": status.name,
        "tag": tag_of(status),
        "words": words,
        "sentence": sentence(status),
        "is_final": status.is_final,
        "total": status.total,
        "ended": status.done + status.failed,
        "partial": status.partial,
        "failed": status.failed,
        "paused": status.paused,
        "rest": rest_words(status),
        "parts": parts(status),
        "rate": rate(status.rate_per_second or None),
        "eta": duration(status.eta_seconds),
        "calls": f"{status.llm_calls:,}",
        "hits": f"{status.cache_hits:,}",
        "tokens": f"{status.prompt_tokens + status.completion_tokens:,}",
        "cost": dollars(status.cost_usd),
        "time": duration(status.seconds) if status.is_final else "" if left is None else f"{left_words(left)} left",
    }


def tag_of(status: JobStatus) -> str:
    return "paused" if status.paused else "waiting" if status.waiting_for else status.state


def job_counts(status: JobStatus) -> dict[str, Any]:
    names = (
        "total", "done", "failed", "partial", "rate_per_second", "eta_seconds", "llm_calls", "cache_hits", "coalesced",
        "prompt_tokens", "completion_tokens", "cost_usd",
    )  # fmt: skip
    return {name: getattr(status, name) for name in names}


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a page: nothing in it can end the element that it stands in."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def label(name: str, country: str | None) -> str:
    return f"{name}, {country}" if country else name


def profile_values(profile: Profile) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for theme in profile.themes:
        groups.setdefault(theme.category, []).append(_theme(theme))
    quality = profile.quality_assessment
    names = {theme.id: theme.name for theme in profile.themes}
    overlap = profile.overlap_analysis
    scores = ("overall", "quality", "diversity", "coverage", "completeness")
    return {
        "groups": [(category.capitalize(), themes) for category, themes in groups.items()],
        "scores": [(name.capitalize(), percent(getattr(quality, name), NOTHING)) for name in scores],
        "recommendations": quality.recommendations or [],
        "overlaps": [
            ", ".join(names.get(each, each) for each in group)
            for group in (overlap.overlapping_groups if overlap else [])
        ],
        "dollars": dollars,
    }


def _theme(theme: Theme) -> dict[str, Any]:
    return {
        "theme": theme,
        "confidence": percent(theme.confidence),
        "authenticity": percent(theme.authenticity_score),
        "months": _months(theme),
        "citations": _citations(theme),
        "more": [(key, _plain(value)) for key, value in theme.more.items()],
    }


def _citations(theme: Theme) -> list[tuple[str, str]]:
    if theme.citations_supported is None:
        return [(text, "") for text in theme.citations]
    pairs = zip(theme.citations, theme.citations_supported, strict=True)
    return [(text, "found" if is_supported else "unsupported") for text, is_supported in pairs]


def _months(theme: Theme) -> list[dict[str, str]]:
    if theme.seasonality is None:
        return []
    found = []
    for month in MONTHS:
        kinds = [
            kind
            for kind, months in (("peak", theme.seasonality.peak), ("avoid", theme.seasonality.avoid))
            if month in months
        ]
        found.append({"kind": " ".join(kinds), "letter": month[0], "words": f"{month}: {', '.join(kinds) or 'open'}"})
    return found


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)
