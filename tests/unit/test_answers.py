import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidAnswerError
from workers.llm.endpoints.answers import AnswerSchema, UnclosedAnswerError, candidates, salvaged

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
DRAFT = json.dumps({"themes": [{"name": "A draft", "peak_month": "January"}]})


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
        # Prose and thoughts with braces, before and after.
        f"For {{destination}} the answer follows.\n{PLAIN}",
        f"Braces {{a}} {{b}} [c] first, then {PLAIN} and {{d}} after it.",
        f"thoughts with {{braces}} and no opening mark</think>{PLAIN}",
        f"<reasoning>maybe {{a}}, or {DRAFT}</reasoning>{PLAIN}",
        f"<analysis>{DRAFT}</analysis>\n{PLAIN}",
        f"[THINK]{DRAFT}[/THINK]{PLAIN}",
        f"◁think▷{DRAFT}◁/think▷{PLAIN}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{PLAIN}",
        f"<think>one</think>{{x}}<think>{DRAFT}</think>{PLAIN}",
        # The last one that is an instance wins.
        f"A first draft: {DRAFT}\nBetter: {PLAIN}",
        f"{PLAIN}\nNote: {{'python': 1}} and {{\"other\": 2}}",
        # Inside of something else, or JSON inside of JSON.
        json.dumps({"thoughts": "well", "result": VALUE}),
        json.dumps({"answer": {"final": VALUE}}),
        json.dumps(PLAIN),
        json.dumps([VALUE]),
        json.dumps({"output": PLAIN}),
        # Nowhere but in the thoughts.
        f"<think>{PLAIN}</think>",
        f"<think>{PLAIN}</think>That is all.",
    ],
)
def test_a_decorated_answer_is_read_for_what_it_says(text: str) -> None:
    assert THEMES.read(text) == VALUE


def test_a_line_break_as_it_is_within_a_string_is_read() -> None:
    assert THEMES.read(PLAIN.replace(", Cheese", ",\nCheese"))["themes"][0]["name"] == "Wine,\nCheese and Bread"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("I cannot do that.", "not JSON"),
        ('{"themes": []}', "themes"),
        ('{"themes": [{"name": "A", "peak_month": "Smarch"}]}', "Smarch"),
        ('{"themes": [{"name": 7, "peak_month": "May"}]}', "name"),
        ('{"themes": NaN}', "not JSON"),
        ("[" * 2_000_000, "not JSON"),
        ("{'themes': [{'name': 'A', 'citations': []}]}", "not JSON"),
    ],
)
def test_an_unusable_answer_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InvalidAnswerError, match=says):
        THEMES.read(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert isinstance(candidates(text).values, list)
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


@pytest.mark.parametrize(
    "text",
    [
        PLAIN[:40],
        PLAIN[:-1],
        PLAIN[: PLAIN.index("Bread")],
        f"Here it is: {PLAIN[:-3]}",
        f"Some {{braces}} first. {PLAIN[:30]}",
        f"<think>short</think>{PLAIN[:50]}",
        "<think>it goes on and on, with {braces}",
        '{"themes": [{"name": "A", "peak_month": "May"}, {"name": "B", "peak_month": nul',
    ],
)
def test_an_answer_that_breaks_off_is_told_from_a_wrong_one(text: str) -> None:
    with pytest.raises(UnclosedAnswerError):
        THEMES.read(text)


def test_an_unfinished_draft_does_not_hide_the_answer_after_it() -> None:
    assert THEMES.read(f"{DRAFT[:-4]}\n{PLAIN}") == VALUE


def test_thoughts_are_read_only_where_no_text_has_an_instance() -> None:
    assert THEMES.read("", thoughts=(f"so: {PLAIN}",)) == VALUE
    assert THEMES.read(PLAIN, thoughts=(DRAFT,)) == VALUE
    assert THEMES.read("see the tool", PLAIN) == VALUE


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Wine\x00 and Bread", "Wine and Bread"),
        ("\x1b[2JWine\x9b", "[2JWine"),
        ("Wi\x7fne", "Wine"),
        ("Wine \u202egnihtemos", "Wine gnihtemos"),
        ("Wine \ud800!", "Wine \ufffd!"),
        ("Wine\tand\nBread", "Wine\tand\nBread"),
        ("Åre 日本 \U0001f377", "Åre 日本 \U0001f377"),
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_control_characters_and_lone_surrogates_never_enter_a_value(name: str, kept: str, *, escaped: bool) -> None:
    text = json.dumps({"themes": [{"name": name, "peak_month": "May"}]}, ensure_ascii=escaped)
    assert THEMES.read(text)["themes"][0]["name"] == kept
    assert THEMES.read(f"Look: {text}")["themes"][0]["name"] == kept
    saved = salvaged(text[: text.index("May")] + "May")
    assert saved is None or saved["themes"][0]["name"] == kept


@pytest.mark.parametrize("text", ["{" * 200_000, "[" * 200_000, '{"a' * 60_000, "</think>" * 60_000, "<think>" * 60_000,
                                  '{"a": [' * 60_000, '{"a": 1, ' * 30_000, f"{{{PLAIN}" * 2_000])  # fmt: skip
def test_a_text_made_to_be_slow_is_read_in_linear_time(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(InvalidAnswerError):
        THEMES.read(text)
    salvaged(text)
    assert time.process_time() - began < 30


def test_a_number_that_nothing_can_store_is_no_answer() -> None:
    schema = AnswerSchema("count", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    assert schema.read('{"n": 5}') == {"n": 5}
    with pytest.raises(InvalidAnswerError, match="too large"):
        schema.read('{"n": 1%s}' % ("0" * 30))
