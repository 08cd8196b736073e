"""A profile's page: what it puts together of all themes, and in which order."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tasks.messages import Destination, Missing, OverlapAnalysis, Profile, Seasonality, StageRecord, Theme, Usage
from tests.support.stored import done, profile_in
from workers.dashboard.job_values import embedded
from workers.dashboard.profile_values import _ranges, profile_values
from workers.observe.format import dollars, duration
from workers.results.database.values import MONTHS


def _theme(number: int, **known: Any) -> Theme:
    return Theme(
        f"t{number}", **({"category": "food", "name": f"N{number}", "description": "D.", "citations": []} | known)
    )


def _profile(*themes: Theme, **changed: Any) -> Profile:
    return msgspec.structs.replace(profile_in(done(Destination.of("Kyoto"))), themes=list(themes), **changed)


def test_what_a_theme_lacks_is_left_out() -> None:
    words = profile_values(_profile(_theme(1, more={"new": [1], "words": ["a", "b"]})))
    (_, (shown,)) = words["groups"][0]
    assert (shown["months"], shown["confidence"], shown["lines"]) == ([], "", [])
    assert shown["more"] == [("new", "[1]"), ("words", "a, b")]
    assert words["scores"][0] == ("Overall", "80%")
    assert words["confidence"] == ""
    assert words["glance"]["months"] == words["glance"]["prices"] == words["glance"]["travellers"] == []
    assert profile_values(_profile())["glance"]["top"] == []


def test_categories_come_by_strength_and_their_themes_by_confidence() -> None:
    words = profile_values(
        _profile(
            _theme(1, category="art", confidence=0.9), _theme(2, confidence=0.4), _theme(3, confidence=0.7),
            _theme(4, category="art"),
        )
    )  # fmt: skip
    assert [(name, [each["theme"].id for each in themes]) for name, themes in words["groups"]] == [
        ("Art", ["t1", "t4"]),
        ("Food", ["t3", "t2"]),
    ]
    assert words["confidence"] == "67%"
    assert words["glance"]["top"][0] == ("t1", "N1", "90%")


def test_at_a_glance_all_themes_are_counted() -> None:
    season = Seasonality(peak=["May", "June"], avoid=["January"])
    glance = profile_values(
        _profile(
            _theme(1, seasonality=season, price_point="luxury", traveler_types=["family", "solo"]),
            _theme(2, seasonality=Seasonality(peak=["May"], avoid=[]), price_point="budget", traveler_types=["solo"]),
            _theme(3, price_point="odd"),
        )
    )["glance"]
    assert {each["name"]: (each["best"], each["shade"]) for each in glance["months"] if each["best"]} == {
        "May": (2, "shade4"),
        "Jun": (1, "shade2"),
    }
    assert glance["months"][0]["words"] == "January: best for 0 themes, to avoid for 1"
    assert glance["travellers"] == [("solo", 2), ("family", 1)]
    assert glance["prices"] == [("budget", 1), ("luxury", 1), ("odd", 1)]
    assert glance["range"] == "budget to odd"


@pytest.mark.parametrize(
    ("months", "words"),
    [
        ([], ""),
        (["March"], "Mar"),
        (["April", "March", "October"], "Mar\u2013Apr, Oct"),
        (["December", "January", "February", "July"], "Jul, Dec\u2013Feb"),
        (["December", "January"], "Dec\u2013Jan"),
        (list(MONTHS), "all year"),
    ],
)
def test_months_that_follow_each_other_are_one_range(months: Sequence[str], words: str) -> None:
    assert sorted(_ranges(months).split(", ")) == sorted(words.split(", "))


def test_what_is_missing_is_said_once_for_each_reason() -> None:
    missing = [
        Missing("assess.quality", "quality", "no JSON"), Missing("assess.quality", "overall", "no JSON"),
        Missing("analyse.price", "price_point", "late", themes=["t1", "t2"]),
    ]  # fmt: skip
    assert profile_values(_profile(missing=missing, status="partial"))["incomplete"] == [
        "quality, overall (assess.quality): no JSON",
        "price_point of 2 themes (analyse.price): late",
    ]


def test_the_log_is_in_the_order_of_work_with_sums() -> None:
    def record(stage: str, source: Any, tokens: int) -> StageRecord:
        return StageRecord(stage, "ok", "v", "m", source, Usage(prompt_tokens=tokens, cost_usd=0.5), 1500.0)

    stages = [
        record("own.last", "called", 1), record("assess.quality", "cached", 2), record("discover.food", "called", 3),
    ]  # fmt: skip
    words = profile_values(_profile(stages=stages))
    assert [each["stage"].stage for each in words["log"]] == ["discover.food", "assess.quality", "own.last"]
    assert (words["sums"]["prompt"], words["sums"]["cost"]) == ("6", "$1.50")
    assert words["sums"]["sources"] == "2 called, 1 cached"


def test_overlapping_themes_are_named() -> None:
    overlap = OverlapAnalysis([["t1", "t9"]], [], [])
    assert profile_values(_profile(_theme(1), overlap_analysis=overlap))["overlaps"] == ["N1, t9"]


def test_numbers_are_shown_as_they_are() -> None:
    assert [dollars(usd) for usd in (None, 0, 0.01234, 12.5)] == ["unknown", "$0", "$0.0123", "$12.50"]
    assert [duration(seconds) for seconds in (None, 5, 190, 7500)] == ["\u2013", "5 s", "3m 10s", "2h 05m"]
    assert "<" not in embedded({"a": "</script>"})
