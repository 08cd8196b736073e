"""Bodies of answers as servers send them, and what is read in them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import EndpointDownError, EndpointRefusedError, ModelRefusedError
from workers.llm.endpoints import reply
from workers.llm.endpoints.reply import AnswerFormat, ErrorInAnswerError, RawAnswer, read_reply
from workers.llm.endpoints.usage import Tokens

TEXT = '{"themes": []}'
USAGE = {"prompt_tokens": 7, "completion_tokens": 5}


def _read(body: Any) -> RawAnswer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_reply(raw, model="asked", style=AnswerFormat.JSON_SCHEMA, prompt_characters=400)


def _choice(message: Any, ended: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": ended}], "usage": USAGE, **more}


def _event(**more: Any) -> str:
    return f"data: {json.dumps(more, ensure_ascii=False)}\n\n"


CALL = {"function": {"name": "answer", "arguments": TEXT}}


@pytest.mark.parametrize(
    "message",
    [
        {"content": TEXT},
        {"content": [{"type": "text", "text": TEXT[:5]}, {"type": "text", "text": TEXT[5:]}]},
        {"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": TEXT}]},
        {"content": json.loads(TEXT)},
        {"content": None, "parsed": json.loads(TEXT)},
        {"content": None, "tool_calls": [CALL]},
        {"content": "", "tool_calls": [{"function": {"arguments": json.loads(TEXT)}}]},
        {"content": None, "function_call": CALL["function"]},
        {"content": None, "tool_calls": [CALL["function"]]},
        {"content": None, "tool_calls": [{"name": "answer", "input": json.loads(TEXT)}]},
        TEXT,
    ],
)
def test_an_answer_is_read_wherever_a_server_puts_it(message: Any) -> None:
    assert _read(_choice(message)).text == TEXT


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": TEXT},
        {"content": "", "reasoning": TEXT},
        {"content": None, "reasoning_details": [{"type": "reasoning.text", "text": TEXT}]},
    ],
)
def test_thoughts_are_kept_apart_from_the_answer(message: Any) -> None:
    answer = _read(_choice(message))
    assert (answer.texts, answer.thoughts) == ((), (TEXT,))


def test_an_old_server_s_text_is_an_answer() -> None:
    assert _read({"choices": [{"text": TEXT, "finish_reason": "stop"}]}).text == TEXT


@pytest.mark.parametrize(
    "ended",
    ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens", "token_limit_reached",
     "limit", "incomplete", "model_context_window_exceeded"],
)  # fmt: skip
def test_every_spelling_of_a_limit_is_one(ended: str) -> None:
    assert _read(_choice({"content": TEXT[:4]}, ended)).is_truncated


@pytest.mark.parametrize("ended", ["stop", "eos", "end_turn", None, "", 7, ["x"], "tool_calls"])
def test_other_ends_are_no_limit(ended: Any) -> None:
    assert not _read(_choice({"content": TEXT}, ended)).is_truncated


@pytest.mark.parametrize(
    "body",
    [
        _choice({"content": "half a te"}, "error"),
        {"choices": [{"error": {"code": 502, "message": "lost"}, "message": {"content": "half"}}]},
        {"error": {"message": "overloaded"}},
        {"error": "overloaded", "choices": []},
        *(_choice({"content": TEXT[:4]}, end) for end in ("cancelled", "timeout", "insufficient_system_resource")),
        _event(message="Insufficient credits", code=402).encode(),
        {"detail": "Unauthorized"},
        [{"error": {"message": "lost"}}],
    ],
)
def test_an_error_in_place_of_an_answer_is_no_answer(body: Any) -> None:
    with pytest.raises(ErrorInAnswerError):
        _read(body)


@pytest.mark.parametrize("error", [None, False, "", {}, {"code": 0, "message": ""}])
def test_an_error_without_content_is_none(error: Any) -> None:
    assert _read(_choice({"content": TEXT}, error=error)).text == TEXT


@pytest.mark.parametrize(
    ("ended", "said"),
    [("content_filter", "filter"), ("SAFETY", "filter"), ("PROHIBITED_CONTENT", "filter"), ("refusal", "declined")],
)
def test_a_filtered_answer_is_a_refusal(ended: str, said: str) -> None:
    with pytest.raises(ModelRefusedError, match=said):
        _read(_choice({"content": None}, ended))


@pytest.mark.parametrize(
    "mark",
    ["\ufeff", "\n\n  "],
)
def test_a_byte_order_mark_and_blanks_before_the_body_are_passed_over(mark: str) -> None:
    assert _read((mark + json.dumps(_choice({"content": TEXT}))).encode()).text == TEXT


def test_events_that_were_not_asked_for_are_put_together() -> None:
    pieces = [_event(model="m", choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])]
    pieces += [_event(choices=[{"delta": {"content": TEXT[at : at + 3]}}]) for at in range(0, len(TEXT), 3)]
    pieces += [_event(choices=[{"delta": {}, "finish_reason": "length"}]), _event(choices=[], usage=USAGE)]
    answer = _read((": a comment\n\n" + "".join(pieces) + "data: [DONE]\n\n").encode())
    assert (answer.text, answer.model, answer.is_truncated) == (TEXT, "m", True)
    assert (answer.tokens.prompt, answer.tokens.is_estimated) == (7, False)


def test_a_tool_call_and_thoughts_in_events_are_put_together() -> None:
    calls = [{"index": 0, "function": {"arguments": part}} for part in (TEXT[:4], TEXT[4:])]
    body = "".join(_event(choices=[{"delta": {"tool_calls": [call], "reasoning_content": "h"}}]) for call in calls)
    answer = _read(body.encode())
    assert (answer.texts, answer.thoughts) == ((TEXT,), ("hh",))


def test_an_error_in_a_stream_of_events_is_one() -> None:
    with pytest.raises(ErrorInAnswerError):
        _read((_event(choices=[{"delta": {"content": "ha"}}]) + _event(error={"message": "lost"})).encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"   ", b"null", b"[]", b"7", b"{}", b'{"choices": []}', b'{"choices": [null]}', b"data: {\n\n",
     b"data: [DONE]\n\n", b'{"choices": [{"message": {"content": "\xff\xfe"}}]}', b"[" * 100_000, b"\x00\x01"],
)  # fmt: skip
def test_what_is_no_answer_is_an_outage_of_one_call(raw: bytes) -> None:
    with pytest.raises(EndpointDownError):
        _read(raw)


def test_a_page_means_that_the_address_is_no_llm_s() -> None:
    with pytest.raises(EndpointRefusedError, match="OPENAI_BASE_URL"):
        _read(b"<!DOCTYPE html><html>")


def test_a_separator_within_an_event_s_text_divides_nothing() -> None:
    text = '{"name": "a\u2028b\x85c"}'
    assert _read(_event(choices=[{"delta": {"content": text}}]).encode()).text == text


def test_a_count_of_thousands_of_digits_does_not_cost_the_answer() -> None:
    usage = f', "usage": {{"prompt_tokens": {"9" * 5_000}}}}}'
    answer = _read((json.dumps({"choices": [{"text": TEXT}]})[:-1] + usage).encode())
    assert (answer.text, answer.tokens.prompt) == (TEXT, 100)


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(EndpointDownError, match="not UTF-8"):
        _read(b'{"choices": [{"message": {"content": "\xc3("}}]}')


def test_a_lone_surrogate_does_not_cost_the_answer() -> None:
    raw = b'{"choices": [{"message": {"content": "{\\"name\\": \\"a \\ud800\\"}"}}]}'
    assert _read(raw).text.startswith('{"name"')


@pytest.mark.parametrize("name", [None, "", 7, ["m"], {"a": 1}, "  "])
def test_a_model_without_a_name_is_the_one_that_was_asked(name: Any) -> None:
    assert _read(_choice({"content": TEXT}, model=name)).model == "asked"


def test_a_model_s_name_is_bounded_and_clean() -> None:
    assert _read(_choice({"content": TEXT}, model="m\x00\n\u202e" + "x" * 9_000)).model == "m " + "x" * 198


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["message", "delta", "content", "finish_reason", "text", "tool_calls", "function", "arguments", "type",
                 "reasoning", "reasoning_details", "refusal", "error", "parsed"]
            ),
            inner, max_size=4,
        )
    ),
    max_leaves=15,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["choices", "usage", "model", "error", "id"]), ANYTHING))
def test_any_json_is_an_answer_or_a_named_error(body: Any) -> None:
    try:
        answer = _read(body)
    except (EndpointDownError, EndpointRefusedError, ModelRefusedError):
        return
    assert all(isinstance(text, str) for text in (*answer.texts, *answer.thoughts, answer.model))


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: f"data: {text}\n".encode("utf-8", "replace")))
def test_any_bytes_are_an_answer_or_a_named_error(raw: bytes) -> None:
    try:
        _read(raw)
    except (EndpointDownError, EndpointRefusedError, ModelRefusedError):
        return


COUNT = st.sampled_from([0, 1, 7, 12, 2_000_000, 2_000_001, -1, None, "7", 7.0, True])
EMPTY = st.sampled_from([None, "", [], {}, "x", [CALL]])


@given(
    st.fixed_dictionaries(
        {"content": st.sampled_from([TEXT, "Malmö", "", None])},
        optional=dict.fromkeys(("refusal", "tool_calls", "parsed", "reasoning", "reasoning_content", "name"), EMPTY),
    ),
    st.sampled_from(["stop", "stop", "length", None]),
    st.fixed_dictionaries(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT},
        optional={
            "total_tokens": COUNT,
            "completion_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"reasoning_tokens": COUNT}),
            "prompt_tokens_details": st.none()
            | st.fixed_dictionaries({}, optional={"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
            "cost": COUNT,
            "cached_tokens": COUNT,
            "reasoning_tokens": COUNT,
            "prompt_cache_hit_tokens": COUNT,
            "cache_read_input_tokens": COUNT,
            "output_tokens_details": st.none() | st.fixed_dictionaries({"reasoning_tokens": COUNT}),
            "input_tokens": COUNT,
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={"model": st.sampled_from([None, "", " a  model ", 7, "m\x00"]), "error": EMPTY}
        | {"timings": st.none() | st.just({"cache_n": 3, "prompt_n": 4, "predicted_n": 5})},
    ),
    st.integers(1, 2),
)
def test_a_plain_answer_is_read_as_any_other(message: Any, ended: Any, usage: Any, more: Any, count: int) -> None:
    body = {"choices": [{"message": message, "finish_reason": ended}] * count, "usage": usage, **more}

    def read(read_one: Callable[[bytes], RawAnswer]) -> Any:
        try:
            return read_one(json.dumps(body).encode())
        except (EndpointDownError, EndpointRefusedError, ModelRefusedError) as exc:
            return type(exc), str(exc)

    asked = {"model": "asked", "style": AnswerFormat.JSON_SCHEMA, "prompt_characters": 400}
    assert read(_read) == read(lambda raw: reply._reply(reply._decoded(raw), **asked))  # type: ignore[arg-type]


def test_a_usual_body_is_a_plain_one() -> None:
    usage = USAGE | {"total_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0}}
    usage["prompt_tokens_details"] = {"cached_tokens": 4, "audio_tokens": 0}
    message = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": [], "tool_calls": []}
    body = {"id": "x", "object": "chat.completion", "model": "m", "service_tier": "default"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    whole = json.dumps(body | {"choices": [choice], "usage": usage}).encode()
    asked = {"model": "asked", "style": AnswerFormat.JSON_SCHEMA, "prompt_characters": 400}
    tokens = Tokens(7, 5, cached=4, reasoning=2)
    expected = RawAnswer((TEXT,), (), False, "m", tokens, AnswerFormat.JSON_SCHEMA, tier="default")
    assert reply._plain_reply(whole, **asked) == expected  # type: ignore[arg-type]
    assert reply._plain_reply(whole.replace(b"default", b"\xff"), **asked) is None  # type: ignore[arg-type]
