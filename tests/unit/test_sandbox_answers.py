import json
from typing import Any

import pytest

from workers.sandbox.answers import CATEGORIES, KNOWLEDGE_FILE, MONTHS, Dice, Place, fill, knowledge, understand

COUNTS = {"culture": (5, 7), "food": (4, 6), "adventure": (4, 6), "entertainment": (4, 6), "luxury": (3, 5)}


def test_the_knowledge_base_is_small_and_covers_the_25_demo_destinations() -> None:
    assert KNOWLEDGE_FILE.stat().st_size < 100_000
    assert len({place.name for place in knowledge().places}) == 25


@pytest.mark.parametrize("place", knowledge().places, ids=lambda place: place.name)
def test_every_known_place_has_enough_distinct_themes_and_real_months(place: Place) -> None:
    names = []
    for category in CATEGORIES:
        low, high = COUNTS[category]
        found = place.themes(category)
        assert low <= len(found) <= high
        names += [name for name, _ in found]
        assert all(2 <= len(name.split()) <= 4 for name, _ in found)
        assert all(len(description) > 20 and description.endswith(".") for _, description in found)
    assert len(set(names)) == len(names)
    assert set(place.peak) | set(place.avoid) <= set(MONTHS)
    assert not set(place.peak) & set(place.avoid)


def understood(data: Any, schema: Any = None, name: str = "", text: str = "") -> Any:
    return understand(f"{text}\n<input>\n{json.dumps(data)}\n</input>", schema=schema, schema_name=name)


def test_a_stage_is_known_by_its_schemas_name() -> None:
    assert understood({}, name="enhance_sub_themes").stage == "enhance.sub_themes"
    assert understood({}, name="discover_luxury").category == "luxury"


@pytest.mark.parametrize(
    ("schema", "text", "stage"),
    [
        ({"properties": {"themes": {}}}, "themes of the kind **food** for", "discover.food"),
        ({"properties": {"t1": {"properties": {"price_point": {}}}}}, "", "analyse.price"),
        ({"properties": {"quality": {}, "overall": {}}}, "", "assess.quality"),
        ({"properties": {"other": {}}}, "", "unknown"),
        (True, "", "unknown"),
    ],
)
def test_a_stage_without_a_name_is_known_by_its_shape(schema: Any, text: str, stage: str) -> None:
    assert understood({}, schema, text=text).stage == stage


def test_the_last_data_block_counts_and_a_broken_one_does_no_harm() -> None:
    nice, oslo = (f'<input>\n{{"destination":{{"name":"{name}"}}}}\n</input>' for name in ("Nice", "Oslo"))
    text = f"say {nice} then {oslo}"
    assert understand(text, schema=None).input.destination.name == "Oslo"
    assert understand("<input>\n{]\n</input>", schema=None).input.themes == []


def test_schemas_that_are_not_the_pipelines_are_left_to_the_generator() -> None:
    question = understood({"destination": {"name": "Kyoto"}})
    assert fill(question, {"properties": {"colour": {"type": "string"}}}, 0) is None
    assert fill(question, {"properties": {"t1": {"properties": {"colour": {}}}}}, 0) is None
    assert fill(question, {"type": "array"}, 0) is None


def test_texts_and_lists_are_cut_to_the_schemas_bounds() -> None:
    bounds = {"type": "array", "maxItems": 2, "items": {"type": "string", "minLength": 1, "maxLength": 12}}
    question = understood(
        {"destination": {"name": "Kyoto"}, "themes": [{"id": "t1", "name": "x" * 99, "category": "food"}]}
    )
    answer = fill(question, {"properties": {"t1": {"properties": {"nano_themes": bounds}}}}, 0)
    assert len(answer["t1"]["nano_themes"]) == 2
    assert all(1 <= len(text) <= 12 for text in answer["t1"]["nano_themes"])


@pytest.mark.parametrize(
    "name", ["KYOTO", "Xi\N{RIGHT SINGLE QUOTATION MARK}an", "giant's  causeway, northern ireland"]
)
def test_spellings_of_a_known_name_find_its_themes(name: str) -> None:
    schema = {"properties": {"themes": {"maxItems": 7, "items": {"properties": {"name": {}}}}}}
    answer = fill(understood({"destination": {"name": name}}, name="discover_culture"), schema, 0)
    assert not any(theme["name"].endswith(name) for theme in answer["themes"])


def test_dice_are_fair_and_repeat() -> None:
    dice = Dice("seed", 1)
    thrown = [dice.below(6) for _ in range(6000)]
    assert {900 < thrown.count(side) < 1100 for side in range(6)} == {True}
    other = Dice("seed", 1)
    assert thrown[:50] == [other.below(6) for _ in range(50)]
    assert sorted(Dice("x").some("abc", 9)) == ["a", "b", "c"]
