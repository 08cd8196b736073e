"""A server's answer, read: its texts wherever they lie, why it ended, which model gave it, and what it has used.

Servers put the answer into `content`, as a string, parts or an object; into a tool call; or beside the model's
thoughts. Some send server-sent events unasked. What cannot be read is an outage of this one call.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, Literal

import msgspec

from tasks.errors import EndpointDownError, EndpointRefusedError, ModelRefusedError
from tasks.texts import cleaned, one_line
from workers.llm.endpoints.error_body import ERROR_CHARACTERS
from workers.llm.endpoints.faults import PLACE
from workers.llm.endpoints.usage import PlainUsage, Tokens, tokens_of, usage_in

#: Characters of a model's name that are kept.
MODEL_CHARACTERS: Final = 200
TIER_CHARACTERS: Final = 40
#: Digits of a number that is read exactly.
MAX_DIGITS: Final = 300
#: How servers say that an answer met its limit (`length`, `max_tokens`, `model_length`, `MAX_TOKENS`, …).
_LIMIT: Final = re.compile(r"length|limit|max.*token|max_output|truncat|incomplete|context_window", re.IGNORECASE)
_FILTER: Final = re.compile(r"content_?filter|safety|prohibited|blocklist|recitation|sensitive|refus", re.IGNORECASE)
#: Fields of a message that most answers do not have: other places of the value, and a model's thoughts.
_ELSEWHERE: Final = frozenset({"parsed", "tool_calls", "function_call"})
_THOUGHTS: Final = frozenset({"reasoning_content", "reasoning", "thinking", "reasoning_details"})
_BROKEN: Final = re.compile(r"error|fail|abort|cancel|time_?out|overload|unavailable|system_resource", re.IGNORECASE)


class AnswerFormat(IntEnum):
    """How a server is asked for JSON, the strictest first."""

    JSON_SCHEMA = 0
    JSON_OBJECT = 1
    TEXT = 2


class RawAnswer(msgspec.Struct, frozen=True):
    """An answer as it came.

    `texts` are where the value may lie, the likeliest first; `thoughts` are read only where none of them has it.
    `cool_down_seconds` is when the endpoint may be asked again, where its headers say that nothing remains.
    """

    texts: tuple[str, ...]
    thoughts: tuple[str, ...]
    is_truncated: bool
    model: str
    tokens: Tokens
    style: AnswerFormat
    #: The most tokens that the completion was allowed.
    limit_tokens: int = 0
    cool_down_seconds: float | None = None
    #: The service tier that the server says it was answered at; empty where it says none.
    tier: str = ""

    @property
    def text(self) -> str:
        return next(iter(self.texts), "")


class AnsweredRefusalError(ModelRefusedError):
    """A refusal is an answer, and is paid for: `answer` has its tokens."""

    def __init__(self, message: str, answer: RawAnswer) -> None:
        super().__init__(message)
        self.answer = answer


class ErrorInAnswerError(EndpointDownError):
    """The status was 200, but there is an error in place of an answer: `error` is what stood there."""

    def __init__(self, error: Any, said: str = "status 200 with an error") -> None:
        super().__init__(said)
        self.error = error


class _PlainMessage(msgspec.Struct):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    tool_calls: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    refusal: None = None
    parsed: None = None
    function_call: None = None
    reasoning_content: None = None
    reasoning: None = None
    thinking: None = None
    reasoning_details: None = None


class _PlainChoice(msgspec.Struct):
    message: _PlainMessage
    finish_reason: Literal["stop"]
    error: None = None


class _Plain(msgspec.Struct):
    """A body as nearly all are: one whole answer, a text, with counts. Any other shape is no instance of this."""

    choices: Annotated[list[_PlainChoice], msgspec.Meta(min_length=1, max_length=1)]
    usage: PlainUsage
    model: str = ""
    error: None = None
    timings: None = None
    service_tier: str | None = None


_PLAIN: Final = msgspec.json.Decoder(_Plain)


def _plain_reply(raw: bytes, *, model: str, style: AnswerFormat, prompt_characters: int) -> RawAnswer | None:
    """What `read_reply` would read in a plain body, several times as quick; None where it is not plain."""
    try:
        # A field that is passed over is not looked into: the whole body is to be UTF-8.
        found = _PLAIN.decode(raw if raw.isascii() else raw.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    text = found.choices[0].message.content
    tokens = found.usage.tokens(prompt_characters=prompt_characters, completion_characters=len(text))
    if tokens is None:
        return None
    name = one_line(found.model, MODEL_CHARACTERS) or model
    return RawAnswer((text,), (), False, name, tokens, style, tier=_tier(found.service_tier))


def read_reply(raw: bytes, *, model: str, style: AnswerFormat, prompt_characters: int) -> RawAnswer:
    """The answer in the body of a response with a status of success.

    Args:
        raw: the body.
        model: the name to use where the server does not say which model answered.
        style: the format that was asked for.
        prompt_characters: length of the request, to estimate its tokens.

    Raises:
        AnsweredRefusalError: the model or the provider declined.
        EndpointDownError: there is no answer in it; `ErrorInAnswerError`: the server reports an error.
        EndpointRefusedError: it is a page: the address is no LLM's.
    """
    plain = _plain_reply(raw, model=model, style=style, prompt_characters=prompt_characters)
    return plain or _reply(_decoded(raw), model=model, style=style, prompt_characters=prompt_characters)


def _reply(decoded: Any, *, model: str, style: AnswerFormat, prompt_characters: int) -> RawAnswer:
    data = _mapping(decoded)
    choices = [choice for choice in _list(data.get("choices")) if isinstance(choice, dict)]
    if error := next((part["error"] for part in (data, *choices) if _is_error(part.get("error"))), None):
        raise ErrorInAnswerError(error)
    if not choices:
        # Some servers report every error under this status, and each has a name of its own for it.
        raise ErrorInAnswerError(decoded, "an answer without choices")
    messages = [_message(choice) for choice in choices]
    texts = tuple(text for message in messages for text in _texts(message) if text)
    thoughts = tuple(text for message in messages for text in _thoughts(message) if text)
    ended = " ".join(str(choice.get("finish_reason") or "")[:64] for choice in choices)
    is_plain = ended == "stop"
    if not is_plain and _BROKEN.search(ended):
        raise ErrorInAnswerError({"message": f"finish_reason {one_line(ended, 64)!r}"})
    name = data.get("model")
    answer = RawAnswer(
        texts=texts,
        thoughts=thoughts,
        is_truncated=not is_plain and bool(_LIMIT.search(ended)),
        model=(one_line(name, MODEL_CHARACTERS) if isinstance(name, str) else "") or model,
        tokens=tokens_of(
            usage_in(data),
            prompt_characters=prompt_characters,
            completion_characters=sum(map(len, (*texts, *thoughts))),
        ),
        style=style,
        tier=_tier(data.get("service_tier")),
    )
    refusal = next((message["refusal"] for message in messages if message.get("refusal")), None)
    if refusal and not texts:
        raise AnsweredRefusalError(f"the model declined: {one_line(str(refusal), ERROR_CHARACTERS)}", answer)
    if not is_plain and _FILTER.search(ended):
        said = "the model declined" if "refus" in ended.lower() else "the provider's content filter cut the answer"
        raise AnsweredRefusalError(said, answer)
    return answer


def _tier(told: Any) -> str:
    return one_line(told, TIER_CHARACTERS).lower() if isinstance(told, str) else ""


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_error(value: Any) -> bool:
    """Whether there is an error: some servers send its fields empty with every answer."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoded_leniently(raw)


def _whole(digits: str) -> float:
    """A whole number; one with more digits than Python converts is infinite."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def _decoded_leniently(raw: bytes) -> Any:
    """A body with a byte order mark, of server-sent events, or with lone surrogates in its texts."""
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise EndpointDownError(f"status 200, but not UTF-8 (byte {exc.start} of {len(raw)})") from exc
    if text.startswith(("data:", "event:", "id:", "retry:", ":")):
        return _assembled(text)
    if text.startswith("<"):
        raise EndpointRefusedError(f"status 200 with an HTML page ({PLACE})")
    try:
        return json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as exc:
        shown = one_line(text, ERROR_CHARACTERS)
        raise EndpointDownError(f"status 200, but no JSON: {shown!r}") from exc


def _assembled(text: str) -> dict[Any, Any]:
    """One answer out of the events of a stream: its pieces joined, the last of everything else."""
    whole: dict[Any, Any] = {}
    choice: dict[Any, Any] = {}
    pieces: dict[Any, str] = {}
    calls: dict[Any, str] = {}
    for event in _events(text):
        whole |= {key: value for key, value in event.items() if value is not None and key != "choices"}
        for one in _list(event.get("choices"))[:1]:
            choice |= {"index": 0} | {key: value for key, value in _mapping(one).items() if value is not None}
            delta = _mapping(choice.pop("delta", None) or choice.pop("message", None))
            for key, value in delta.items():
                if isinstance(value, str):
                    pieces[key] = pieces.get(key, "") + value
            for position, call in enumerate(_list(delta.get("tool_calls"))):
                index = str(_mapping(call).get("index", position))
                calls[index] = calls.get(index, "") + "".join(_arguments(call))
    message = pieces | {"tool_calls": [{"function": {"arguments": arguments}} for arguments in calls.values()]}
    return whole | {"choices": [choice | {"message": message}] if choice else []}


def _events(text: str) -> Iterator[dict[Any, Any]]:
    # Not `splitlines`, which also divides a text at U+2028.
    for line in re.split(r"\r\n|\n|\r", text):
        if not line.startswith("data:") or line[5:].strip() in {"", "[DONE]"}:
            continue
        try:
            event = json.loads(line[5:], parse_int=_whole)
        except (ValueError, RecursionError) as exc:
            raise EndpointDownError("status 200, but an event of the stream is no JSON") from exc
        if isinstance(event, dict):
            yield event


def _message(choice: Mapping[Any, Any]) -> Mapping[Any, Any]:
    message = choice.get("message") or choice.get("delta") or choice.get("text")
    return message if isinstance(message, dict) else {"content": message}


def _texts(message: Mapping[Any, Any]) -> Iterator[str]:
    """Where the value may lie: the content, what the server has parsed itself, the arguments of a tool call."""
    yield _text(message.get("content"))
    if _ELSEWHERE.isdisjoint(message):
        return
    yield _text(message.get("parsed"))
    for call in (*_list(message.get("tool_calls")), {"function": message.get("function_call")}):
        yield from _arguments(call)


def _arguments(call: Any) -> Iterator[str]:
    function = _mapping(call).get("function") or call
    if isinstance(function, dict) and (arguments := function.get("arguments") or function.get("input")):
        yield _text(arguments)


def _thoughts(message: Mapping[Any, Any]) -> Iterator[str]:
    if _THOUGHTS.isdisjoint(message):
        return
    for name in ("reasoning_content", "reasoning", "thinking"):
        yield _text(message.get(name))
    yield "".join(_text(part.get("text")) for part in _list(message.get("reasoning_details")) if isinstance(part, dict))


def _text(content: Any) -> str:
    """The text of a string, of parts, or of an object that was decoded already; empty where there is none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and any(isinstance(part, dict) and "text" in part for part in content):
        # Parts that hold a model's thoughts are not its answer.
        parts = [
            part for part in content if isinstance(part, dict) and part.get("type") not in {"reasoning", "thinking"}
        ]
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if isinstance(content, dict | list) and content:
        return cleaned(json.dumps(content, ensure_ascii=False))
    return ""


def model_names(raw: bytes) -> frozenset[str]:
    """The models that a server lists, as `{"data": [{"id": NAME}, …]}`; none where that cannot be read."""
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()  # as documented: a page, say
    listed = data.get("data") if isinstance(data, dict) else data
    entries = listed if isinstance(listed, list) else []
    return frozenset(str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry)
