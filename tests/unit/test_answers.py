import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidAnswerError
from workers.llm.answers import AnswerSchema, candidates, salvaged

THEMES = AnswerSchema(
    "themes",
    {
        "type": "object",
        "properties": {
            "themes": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "peak_month": {"type": "string", "enum": ["January", "May"]},
                    },
                    "required": ["name", "peak_month"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["themes"],
        "additionalProperties": False,
    },
)
VALUE = {"themes": [{"name": "Wine, Cheese and Bread", "peak_month": "May"}]}
PLAIN = json.dumps(VALUE)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"```json\n{PLAIN}\n```",
        f"```JSON\n{PLAIN}\n```",
        f"```{PLAIN}```",
        f"``` {PLAIN}",
        f"Here is what I found:\n\n{PLAIN}",
        f"{PLAIN}\nI hope this helps!",
        f"Sure!\n```json\n{PLAIN}\n```\nAnything else?",
        f"<think>Maybe {{1: 2}} or [3]?</think>\n{PLAIN}",
        f"<THINKING>\nno braces\n</THINKING>{PLAIN}",
        PLAIN.replace("}]", "},]"),
        PLAIN.replace('"May"}', '"May",}'),
        PLAIN.replace("themes", "Themes").replace("peak_month", "Peak Month"),
        PLAIN.replace("peak_month", "peakMonth").replace("May", "MAY"),
        json.dumps({"answer": VALUE}),
        json.dumps(VALUE["themes"]),
        json.dumps({"themes": [{**VALUE["themes"][0], "note": "more than was asked"}]}),
    ],
)
def test_a_decorated_answer_is_read_for_what_it_says(text: str) -> None:
    assert THEMES.read(text) == VALUE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("I cannot do that.", "not JSON"),
        ('{"themes": []}', "themes"),
        ('{"themes": [{"name": "A", "peak_month": "Smarch"}]}', "Smarch"),
        ('{"themes": [{"name": 7, "peak_month": "May"}]}', "name"),
        ('{"themes": NaN}', "not JSON"),
        ('Here: {"themes": [{"name": "\\ud800", "peak_month": "May"}]}', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_unusable_answer_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InvalidAnswerError, match=says):
        THEMES.read(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    list(candidates(text))
    salvaged(text)
    with pytest.raises(InvalidAnswerError):
        THEMES.read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(value=st.lists(JSON, min_size=1, max_size=5), cut=st.integers(0, 400))
def test_what_is_salvaged_from_a_cut_list_is_a_true_beginning_of_it(value: list[Any], cut: int) -> None:
    text = json.dumps(value)
    saved = salvaged(text[:cut])
    if saved is None:
        return
    assert isinstance(saved, list)
    for whole, kept in zip(value, saved, strict=False):
        if isinstance(whole, list | dict):
            assert type(kept) is type(whole)
        else:
            assert kept == whole
    if cut >= len(text):
        assert saved == value


def test_complete_items_of_a_cut_answer_are_kept() -> None:
    text = '{"themes": [{"name": "A", "peak_month": "May"}, {"name": "B", "peak_month": "Ja'
    saved = salvaged(text)
    assert saved["themes"][0] == {"name": "A", "peak_month": "May"}


def test_spelling_is_mended_behind_references_too() -> None:
    schema = AnswerSchema(
        "prices",
        {
            "type": "object",
            "properties": {"t1": {"$ref": "#/$defs/theme"}},
            "required": ["t1"],
            "additionalProperties": False,
            "$defs": {
                "theme": {
                    "type": "object",
                    "properties": {"price_point": {"type": "string", "enum": ["mid"]}},
                    "required": ["price_point"],
                    "additionalProperties": False,
                }
            },
        },
    )
    assert schema.read('{"T1": {"Price Point": "MID", "note": "x"}}') == {"t1": {"price_point": "mid"}}
