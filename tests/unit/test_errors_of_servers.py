"""Errors as providers and gateways word them, a line each in `errors_of_servers.jsonl`: what follows from each."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.llm.endpoints.error_body import error_body
from workers.llm.endpoints.faults import Fault, Parameters, fault_of

#: `body` is JSON, or a text that is no JSON. `follows` is the fault or, of a parameter's, what is asked differently.
SEEN = [
    json.loads(line) for line in Path(__file__).with_name("errors_of_servers.jsonl").read_text("utf-8").splitlines()
]
SENT = {"max_tokens": 1600, "temperature": 0.2, "reasoning_effort": "low"}


def _raw(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def _learnt(parameters: Parameters) -> str:
    if parameters.ceilings:
        return "lower"
    if parameters.limit_name != "max_tokens":
        return "rename"
    return " ".join(["drop", *sorted(parameters.dropped)]) if parameters.dropped else "nothing"


@pytest.mark.parametrize("seen", SEEN, ids=[f"{at}-{seen['status']}" for at, seen in enumerate(SEEN, 1)])
def test_what_follows_from_an_error(seen: dict[str, Any]) -> None:
    error, parameters = error_body(_raw(seen["body"])), Parameters()
    fault = fault_of(seen["status"], error).fault
    if fault is Fault.PARAMETER:
        parameters.learn(error, SENT, "discover.food")
    assert (_learnt(parameters) if fault is Fault.PARAMETER else fault.value) == seen["follows"], error.message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Invalid max_tokens value, the valid range is [1, 8192]",
            "Invalid max_tokens value, the valid range is [1, 8192]",
        ),
        ('Error code: 400 - {"error": {"message": "no such thing"}}', "no such thing"),
    ],
)
def test_json_at_the_end_of_a_message_hides_no_words_before_it(text: str, shown: str) -> None:
    error = error_body(_raw({"error": {"message": text}}))
    assert error.message == shown
    assert text[:10].lower() in error.words
