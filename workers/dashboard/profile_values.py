"""A profile as its page shows it: plain values, which the template escapes."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

from tasks.messages import Profile, StageRecord, Theme, Usage
from tasks.texts import count
from workers.observe.format import NOTHING, dollars, duration, percent
from workers.results.database.values import MONTHS

#: The order in which stages of a kind run; other kinds come after them.
KINDS: Final = ("discover", "analyse", "enhance", "assess")
#: Price points from the least to the most.
PRICES: Final = ("budget", "mid", "luxury")
#: A profile's scores -> what the page calls them.
SCORES: Final = {
    "overall": "Overall", "quality": "Quality", "diversity": "Diversity", "coverage": "Categories covered",
    "completeness": "Fields filled",
}  # fmt: skip
TOP: Final = 5
#: What a theme of unknown confidence counts for where categories are ranked.
UNKNOWN_CONFIDENCE: Final = 0.5
#: Months in a strip are shaded in steps: how many of a destination's themes are at their best.
SHADES: Final = 4


def profile_values(profile: Profile) -> dict[str, Any]:
    themes = sorted(profile.themes, key=lambda theme: -(theme.confidence or 0.0))
    quality = profile.quality_assessment
    names = {theme.id: theme.name for theme in themes}
    overlap = profile.overlap_analysis
    known = [theme.confidence for theme in themes if theme.confidence is not None]
    return {
        "glance": _glance(themes),
        "groups": _groups(themes),
        "confidence": percent(sum(known) / len(known)) if known else "",
        "incomplete": _incomplete(profile),
        "scores": [(words, percent(getattr(quality, name), NOTHING)) for name, words in SCORES.items()],
        "recommendations": quality.recommendations or [],
        "overlaps": [
            ", ".join(names.get(each, each) for each in group)
            for group in (overlap.overlapping_groups if overlap else [])
        ],
        "log": _log(profile.stages),
        "sums": _sums(profile),
        "dollars": dollars,
    }


def _glance(themes: Sequence[Theme]) -> dict[str, Any]:
    """What all themes have in common, the best ones first."""
    prices = Counter(theme.price_point for theme in themes if theme.price_point)
    travellers = Counter(kind for theme in themes for kind in theme.traveler_types or ())
    order = [price for price in PRICES if price in prices] + sorted(set(prices) - set(PRICES))
    return {
        "months": _all_months(themes),
        "travellers": travellers.most_common(),
        "prices": [(price, prices[price]) for price in order],
        "range": " to ".join(dict.fromkeys((order[0], order[-1]))) if order else "",
        "top": [(theme.id, theme.name, percent(theme.confidence)) for theme in themes[:TOP]],
    }


def _all_months(themes: Sequence[Theme]) -> list[dict[str, Any]]:
    seasons = [theme.seasonality for theme in themes if theme.seasonality is not None]
    best = {month: sum(month in each.peak for each in seasons) for month in MONTHS}
    avoid = {month: sum(month in each.avoid for each in seasons) for month in MONTHS}
    most = max(best.values(), default=0)
    if not seasons:
        return []
    return [
        {
            "name": month[:3],
            "shade": f"shade{round(SHADES * best[month] / most) if most else 0}",
            "best": best[month],
            "words": f"{month}: best for {count(best[month], 'theme')}, to avoid for {avoid[month]}",
        }
        for month in MONTHS
    ]


def _groups(themes: Sequence[Theme]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Categories by strength, the sum of their themes' confidence; in each the surest theme first."""
    groups: dict[str, list[Theme]] = {}
    for theme in themes:
        groups.setdefault(theme.category, []).append(theme)

    def strength(group: Iterable[Theme]) -> float:
        return sum(UNKNOWN_CONFIDENCE if one.confidence is None else one.confidence for one in group)

    ranked = sorted(groups.items(), key=lambda group: -strength(group[1]))
    return [(category.capitalize(), [_theme(theme) for theme in group]) for category, group in ranked]


def _incomplete(profile: Profile) -> list[str]:
    """What is missing: the fields that lack for one reason in one line."""
    fields: dict[tuple[str, str], list[str]] = {}
    for each in profile.missing:
        of = f" of {count(len(each.themes), 'theme')}" if each.themes else ""
        fields.setdefault((each.stage, each.reason), []).append(f"{each.field}{of}")
    return [f"{', '.join(names)} ({stage}): {reason}" for (stage, reason), names in fields.items()]


def _log(stages: Sequence[StageRecord]) -> list[dict[str, Any]]:
    def place(stage: StageRecord) -> tuple[int, str]:
        kind = stage.stage.partition(".")[0]
        return KINDS.index(kind) if kind in KINDS else len(KINDS), stage.stage

    return [{"stage": stage, "took": duration(stage.elapsed_ms / 1000)} for stage in sorted(stages, key=place)]


def _sums(profile: Profile) -> dict[str, str]:
    usage = sum((stage.usage for stage in profile.stages), Usage())
    answered = Counter(stage.source for stage in profile.stages)
    return {
        "sources": ", ".join(f"{number} {source}" for source, number in answered.most_common()),
        "prompt": f"{usage.prompt_tokens:,}",
        "completion": f"{usage.completion_tokens:,}",
        "cost": dollars(usage.cost_usd),
        "took": duration(profile.elapsed_ms / 1000),
    }


def _theme(theme: Theme) -> dict[str, Any]:
    season = theme.seasonality
    lines = (
        ("Best", _ranges(season.peak) if season else ""),
        ("Avoid", _ranges(season.avoid) if season else ""),
        ("For", ", ".join(theme.traveler_types or ())),
        ("Price", theme.price_point or ""),
    )
    return {
        "theme": theme,
        "confidence": percent(theme.confidence),
        "authenticity": percent(theme.authenticity_score),
        "lines": [(words, value) for words, value in lines if value],
        "months": _months(theme),
        "citations": _citations(theme),
        "more": [(key, _plain(value)) for key, value in theme.more.items()],
    }


def _ranges(months: Sequence[str]) -> str:
    """Months in words, those that follow each other together: Mar-Apr, Oct; also over the end of the year."""
    if len(set(months)) == len(MONTHS):
        return "all year"
    calendar = list(MONTHS)
    numbers = [number for number, month in enumerate(calendar) if month in months]
    runs = [[at for _, at in run] for _, run in groupby(enumerate(numbers), key=lambda one: one[1] - one[0])]
    if len(runs) > 1 and runs[0][0] == 0 and runs[-1][-1] == len(calendar) - 1:
        runs = [*runs[1:-1], runs[-1] + runs[0]]
    ends = [dict.fromkeys((calendar[run[0]][:3], calendar[run[-1]][:3])) for run in runs]
    return ", ".join("\u2013".join(end) for end in ends)


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
