"""Counts of tokens as servers send them, and what is believed of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.endpoints.usage import MAX_TOKENS, tokens_of

PROMPT, ANSWER = 4_000, 2_000
ESTIMATES = (1_000, 500)


def _tokens(usage: Any) -> tuple[int, int, bool]:
    tokens = tokens_of(usage, prompt_characters=PROMPT, completion_characters=ANSWER)
    return tokens.prompt, tokens.completion, tokens.is_estimated


@pytest.mark.parametrize(
    ("usage", "prompt", "completion"),
    [
        ({"prompt_tokens": 70, "completion_tokens": 50}, 70, 50),
        ({"prompt_tokens": "120", "completion_tokens": 120.0}, 120, 120),
        ({"prompt_tokens": " 120.0 ", "completion_tokens": "30"}, 120, 30),
        ({"input_tokens": 70, "output_tokens": 50}, 70, 50),
        # Hidden reasoning, which is billed, stands in the total or in the details alone.
        ({"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 5600}, 500, 5100),
        (
            {"prompt_tokens": 500, "completion_tokens": 100, "completion_tokens_details": {"reasoning_tokens": 900}},
            500,
            1000,
        ),
        (
            {"prompt_tokens": 500, "completion_tokens": 900, "completion_tokens_details": {"reasoning_tokens": 800}},
            500,
            900,
        ),
        ({"prompt_tokens": 500, "total_tokens": 700}, 500, 200),
        ({"completion_tokens": 200, "total_tokens": 700}, 500, 200),
        # A total that cannot be true changes nothing.
        ({"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 50}, 500, 100),
        ({"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 10**30}, 500, 100),
        ({"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": "many"}, 500, 100),
    ],
)
def test_what_a_server_counts_is_read(usage: Any, prompt: int, completion: int) -> None:
    assert _tokens(usage) == (prompt, completion, False)


@pytest.mark.parametrize(
    "usage",
    [
        None, [], "usage", 7, {}, {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -1, "completion_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 1},
        {"prompt_tokens": 39, "completion_tokens": 19, "total_tokens": 58},
        {"prompt_tokens": -1_000_000, "completion_tokens": -1_000_000, "total_tokens": -2_000_000},
        *({"prompt_tokens": n, "completion_tokens": n} for n in (2**63 - 1, 2**64 - 1, 10**19, 10**30, MAX_TOKENS + 1)),
        *({"prompt_tokens": n, "completion_tokens": n} for n in (True, "", "-1", "1e9", "\u0661\u0662", 1.5, [], {})),
        *({"prompt_tokens": n, "completion_tokens": n} for n in (float("nan"), float("inf"), -0.5, "9" * 400)),
    ],
)  # fmt: skip
def test_what_cannot_be_true_is_estimated_and_marked(usage: Any) -> None:
    assert _tokens(usage) == (*ESTIMATES, True)


def test_only_the_count_that_cannot_be_true_is_replaced() -> None:
    assert _tokens({"prompt_tokens": 80, "completion_tokens": 0}) == (80, 500, True)
    assert _tokens({"prompt_tokens": "?", "completion_tokens": 60}) == (1000, 60, True)


def test_an_empty_answer_may_have_no_tokens() -> None:
    tokens = tokens_of({"prompt_tokens": 80, "completion_tokens": 0}, prompt_characters=9, completion_characters=0)
    assert (tokens.prompt, tokens.completion, tokens.is_estimated) == (80, 0, False)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from([2**63, -(2**63)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details", "input_tokens")


@given(ANYTHING | st.dictionaries(st.sampled_from(COUNTS), ANYTHING, max_size=5), st.integers(0, 10**6))
def test_no_usage_gives_a_count_out_of_range(usage: Any, characters: int) -> None:
    tokens = tokens_of(usage, prompt_characters=characters, completion_characters=characters)
    assert 0 <= tokens.prompt <= MAX_TOKENS
    assert 0 <= tokens.completion <= MAX_TOKENS
