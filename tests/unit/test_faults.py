"""Errors of servers, each with whose fault it is: the table of `workers.llm.endpoints.faults`, tested as a table."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.endpoints.error_body import ERROR_CHARACTERS, error_body
from workers.llm.endpoints.faults import Fault, Parameters, fault_of

ACCOUNT, PROMPT, ANSWER, PARAMETER = Fault.ACCOUNT, Fault.PROMPT, Fault.ANSWER, Fault.PARAMETER
FORMAT, RATE, AWAY, ENDPOINT = Fault.FORMAT, Fault.RATE, Fault.AWAY, Fault.ENDPOINT


def _said(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def _wrapped(inner: Any, code: int = 400) -> dict[str, Any]:
    """As a gateway wraps a provider's error."""
    raw = inner if isinstance(inner, str) else json.dumps(inner)
    return _said("Provider returned error", code=code, metadata={"raw": raw, "provider_name": "Somebody"})


PAGE = b"<!DOCTYPE html><html><head><title>Attention Required!</title></head></html>"
TEMPERATURE = _said(
    "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
    type="invalid_request_error", param="temperature", code="unsupported_value",
)  # fmt: skip
RENAMED = _said(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    param="max_tokens", code="unsupported_parameter",
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        # The key.
        (401, _said("Incorrect API key provided: sk-***", code="invalid_api_key"), ACCOUNT),
        (401, b"<html><h1>401 Authorization Required</h1></html>", ACCOUNT),
        (400, [_said("API key not valid. Please pass a valid API key.", code=400, status="INVALID_ARGUMENT")], ACCOUNT),
        (400, _said("API key expired. Please renew the API key.", status="INVALID_ARGUMENT"), ACCOUNT),
        (403, _said("Access denied"), ACCOUNT),
        (403, {"detail": "Not authenticated: missing API key"}, ACCOUNT),
        (407, b"", ACCOUNT),
        # Its money.
        (429, _said("You exceeded your current quota, please check your plan", code="insufficient_quota"), ACCOUNT),
        (429, _said("Your account is suspended", type="exceeded_current_quota_error"), ACCOUNT),
        (400, _said("Your credit balance is too low to access the API.", type="invalid_request_error"), ACCOUNT),
        (402, _said("Insufficient Balance"), ACCOUNT),
        (402, b"", ACCOUNT),
        (403, {"code": "forbidden", "error": "Your team has used all available credits"}, ACCOUNT),
        (429, {"error": {"code": "1113", "message": "Insufficient balance or no resource package."}}, ACCOUNT),
        (400, {"code": "Arrearage", "message": "Access denied, your account must be in good standing."}, ACCOUNT),
        (500, _wrapped(_said("insufficient credits")), ACCOUNT),
        # A quota that comes back by itself is a rate.
        (429, _said("You exceeded your current quota. Please retry in 18.2s.", status="RESOURCE_EXHAUSTED"), RATE),
        (429, _said("Rate limit reached for gpt-x in organization org on requests per min (RPM): Limit 3"), RATE),
        (429, _said("Quota exceeded for metric: generate_requests_per_minute", code="quota_exceeded"), RATE),
        (429, PAGE, RATE),
        # Its model, or its address.
        (404, _said("The model `x` does not exist or you do not have access to it.", code="model_not_found"), ACCOUNT),
        (400, _said("x is not a valid model ID"), ACCOUNT),
        (404, b"<html>404 Not Found nginx</html>", ACCOUNT),
        (404, {"detail": "Not Found"}, ACCOUNT),
        (405, b"", ACCOUNT),
        (301, b"<html>Moved</html>", ACCOUNT),
        # The prompt alone.
        (400, _said("Invalid prompt: your prompt was flagged as potentially violating our usage policy"), PROMPT),
        (403, _said("Your input was flagged by moderation", code=403), PROMPT),
        (400, _said("The response was filtered", code="content_filter"), PROMPT),
        (413, b"<html>413 Request Entity Too Large</html>", PROMPT),
        (418, b"", PROMPT),
        # The model's slip.
        (400, _said("Failed to generate JSON. See 'failed_generation'.", code="json_validate_failed",
                    failed_generation='{"temperature": '), ANSWER),
        (400, _said("Generated JSON does not match the expected schema. Please adjust your prompt."), ANSWER),
        (500, _said("The model did not produce valid JSON"), ANSWER),
        # A parameter.
        (400, TEMPERATURE, PARAMETER),
        (400, RENAMED, PARAMETER),
        (400, _wrapped(RENAMED), PARAMETER),
        (400, _said("Error code: 400 - " + json.dumps(RENAMED)), PARAMETER),
        (422, {"detail": [{"loc": ["body", "reasoning_effort"], "msg": "Extra inputs are not permitted"}]}, PARAMETER),
        (400, _said("max_tokens is too large: 32000. This model supports at most 16384 completion tokens"), PARAMETER),
        (400, _said("This model's maximum context length is 2048 tokens.", code="context_length_exceeded"), PARAMETER),
        # The response format.
        (400, _said("Invalid parameter: 'response_format' of type 'json_schema' is not supported."), FORMAT),
        (500, {"error": "failed to parse grammar"}, FORMAT),
        (422, {"detail": [{"loc": ["body", "response_format"], "msg": "extra fields not permitted"}]}, FORMAT),
        # Outages.
        (403, PAGE, AWAY),
        (400, PAGE, AWAY),
        (502, b"", AWAY),
        (503, _said("overloaded"), AWAY),
        (529, _said("Overloaded", type="overloaded_error"), AWAY),
        (520, b"", ENDPOINT),
        (500, _said("The server had an error while processing your request"), ENDPOINT),
        (408, b"", ENDPOINT),
        (400, b"", PROMPT),
        (400, _said("Bad request"), PROMPT),
    ],
)  # fmt: skip
def test_each_error_is_blamed_on_what_is_at_fault(status: int, body: Any, fault: Fault) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert fault_of(status, error_body(raw)).fault is fault


@pytest.mark.parametrize(
    ("body", "first"),
    [
        (_wrapped(_said("use max_completion_tokens")), "use max_completion_tokens; Provider returned error"),
        (_wrapped("plain words of the provider"), "plain words of the provider; Provider returned error"),
        ([_said("API key not valid")], "API key not valid"),
        ({"error": "model is not loaded"}, "model is not loaded"),
        ({"detail": [{"loc": ["body", "x"], "msg": "field required"}]}, "field required"),
        (_said("outer", innererror={"code": "X", "message": "inner"}), "inner; outer"),
        ({"unheard": {"of": 1}}, '{"unheard":{"of":1}}'),
        (_said("two\nlines \x1b[2J\u202e and more"), "two lines [2J and more"),
    ],
)
def test_the_innermost_message_is_shown_first_and_clean(body: Any, first: str) -> None:
    assert error_body(json.dumps(body).encode()).message == first


def test_a_model_s_rejected_text_says_nothing_of_the_error() -> None:
    error = error_body(json.dumps(_said("Failed", failed_generation="invalid api key, insufficient quota")).encode())
    assert "quota" not in error.words
    assert fault_of(400, error).fault is ANSWER


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "metadata", "raw", "param"]), inner)
    ),
    max_leaves=20,
)


@given(st.integers(100, 999), st.binary(max_size=80) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_body_of_an_error_is_somebody_s_fault_and_shown_within_bounds(status: int, raw: bytes) -> None:
    error = error_body(raw)
    assert fault_of(status, error).fault in Fault
    assert len(error.message) <= ERROR_CHARACTERS + len("''")
    assert error.number is None or 400 <= error.number < 600


def test_a_body_nested_without_end_is_read() -> None:
    raw = b'{"error":' * 5_000 + b'"x"' + b"}" * 5_000
    assert error_body(raw).message
    assert error_body(b"[" * 100_000).message
    many = json.dumps({"error": {str(n): {"message": "x" * 999} for n in range(3_000)}}).encode()
    assert len(error_body(many).message) <= ERROR_CHARACTERS


SENT = {"max_tokens": 1600, "temperature": 0.2, "reasoning_effort": "low", "top_k": 3}


@pytest.mark.parametrize(
    ("body", "dropped", "name"),
    [
        (TEMPERATURE, {"temperature"}, "max_tokens"),
        (RENAMED, set(), "max_completion_tokens"),
        (_said("Unrecognized request argument supplied: top_k"), {"top_k"}, "max_tokens"),
        (_said("reasoning_effort: Extra inputs are not permitted"), {"reasoning_effort"}, "max_tokens"),
        (_said("Unsupported parameter: max_tokens"), set(), "max_completion_tokens"),
    ],
)
def test_a_refused_parameter_is_renamed_or_dropped(body: Any, dropped: set[str], name: str) -> None:
    parameters = Parameters()
    assert parameters.learn(error_body(json.dumps(body).encode()), SENT, "discover.food")
    assert (parameters.dropped, parameters.limit_name) == (dropped, name)


def test_a_limit_that_is_too_high_is_halved_until_there_is_nothing_left_to_halve() -> None:
    error = error_body(json.dumps(_said("This model's maximum context length is 2048 tokens.")).encode())
    parameters, asked = Parameters(), 1600
    lower = []
    while parameters.learn(error, {"max_tokens": asked}, "discover.food"):
        asked = parameters.ceilings["discover.food"]
        lower.append(asked)
    assert lower == [800, 400, 256]


def test_what_no_parameter_of_ours_is_named_in_changes_nothing() -> None:
    parameters = Parameters()
    error = error_body(json.dumps(_said("Invalid request: tool_choice is not supported")).encode())
    assert parameters.learn(error, SENT, "discover.food") is None
    assert parameters == Parameters()
