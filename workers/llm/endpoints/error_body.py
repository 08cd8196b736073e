"""An error as a server puts it: its message and its codes, the innermost first, whatever the shape of the body.

Gateways wrap the error of the provider behind them, in `error.metadata.raw`, in `innererror`, in a list, as JSON in a
string; the provider's words decide.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tasks.texts import one_line

#: Characters of a server's error text that are shown, and of all its texts that rules look at.
ERROR_CHARACTERS: Final = 300
WORDS_CHARACTERS: Final = 4_000
#: Levels of wrapping that are opened, and values that are looked at.
MAX_DEPTH: Final = 6
MAX_VALUES: Final = 200

_MESSAGE_KEYS: Final = (
    "message", "detail", "msg", "error_description", "title", "reason", "status_msg", "error_msg", "errmsg",
)  # fmt: skip
_CODE_KEYS: Final = ("code", "type", "status", "reason")
#: Text that may itself be an error body.
_JSON_TEXT: Final = re.compile(r"([^{\[]{0,200})([{\[].*[}\]])", re.DOTALL)
#: What Cloudflare sends to clients that are no browsers in place of its page.
_GATEWAY_TEXT: Final = re.compile(r"error code: \d{3,4}")
_CODE: Final = re.compile(r"[A-Za-z0-9_.\-]{2,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error body says.

    `message` is for people: the innermost text, bounded and clean. `words` are all its texts in lower case. `codes` are
    the values of `code`, `type` and the like, in lower case; `number` is a status among them (400-599). `parameter` is
    the parameter that the server blames. `is_page` means that a gateway speaks, not the server of the LLM.
    """

    message: str
    words: str = ""
    codes: frozenset[str] = frozenset()
    number: int | None = None
    parameter: str | None = None
    is_page: bool = False


def error_body(raw: bytes) -> ErrorBody:
    """Read an error body: JSON of any shape, a page, or text."""
    text = raw[: 4 * WORDS_CHARACTERS].decode("utf-8-sig", "replace").strip()
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if text.startswith("<"):
            return ErrorBody("an HTML page", words=text[:WORDS_CHARACTERS].lower(), is_page=True)
        if _GATEWAY_TEXT.fullmatch(text):
            return ErrorBody(repr(text), words=text.lower(), is_page=True)
        # `repr` doubles every backslash.
        shown = repr(one_line(text, ERROR_CHARACTERS))[: ERROR_CHARACTERS + 2]
        return ErrorBody(shown, words=text[:WORDS_CHARACTERS].lower())
    return error_value(data)


def error_value(data: Any) -> ErrorBody:
    found = _Found()
    found.look(data, 0)
    # Looked at from the outside in: the last message is the innermost.
    shown = list(dict.fromkeys(one_line(text, ERROR_CHARACTERS) for text in reversed(found.messages)))
    message = "; ".join(text for text in shown if text) or one_line(
        msgspec.json.encode(data).decode(), ERROR_CHARACTERS
    )
    return ErrorBody(
        message=message[:ERROR_CHARACTERS],
        words="\n".join(found.texts)[:WORDS_CHARACTERS].lower(),
        codes=frozenset(found.codes),
        number=found.number,
        parameter=found.parameter,
    )


class _Found:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.texts: list[str] = []
        self.codes: list[str] = []
        self.number: int | None = None
        self.parameter: str | None = None
        self._left = MAX_VALUES

    def look(self, value: Any, depth: int, key: str = "") -> None:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            return
        if isinstance(value, dict):
            for name, item in _plain_first(value):
                self.look(item, depth + 1, str(name).lower())
        elif isinstance(value, list):
            for item in value:
                self.look(item, depth + 1, key)
        elif isinstance(value, str):
            self._text(value, depth, key)
        elif isinstance(value, int) and not isinstance(value, bool) and key in _CODE_KEYS:
            self._code(str(value))

    def _text(self, value: str, depth: int, key: str) -> None:
        if key == "failed_generation":
            # It is the model's text: its words say nothing of the error.
            self.codes.append(key)
            return
        before, inner = _json_in(value)
        if inner is not None:
            known = len(self.messages)
            self.texts.append(before)
            self.look(inner, depth + 1, key)
            # JSON that says nothing by itself, such as the value that is refused, belongs to the words before it.
            if before and len(self.messages) == known:
                self.messages.append(value)
            return
        self.texts.append(value[:WORDS_CHARACTERS])
        if key in _CODE_KEYS and _CODE.fullmatch(value):
            self._code(value)
        elif key == "param" and value:
            self.parameter = value[:64].lower()
        elif key in _MESSAGE_KEYS or key in {"", "error", "errors", "raw"}:
            self.messages.append(value)

    def _code(self, code: str) -> None:
        self.codes.append(code.lower())
        # A code of our kind, such as Zhipu's 1113, is no status.
        if code.isascii() and code.isdecimal() and 400 <= int(code[:9]) < 600:  # noqa: PLR2004
            self.number = int(code)


def _plain_first(value: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """A mapping's texts before what is nested in it: outer messages come before inner ones."""
    return iter(sorted(value.items(), key=lambda item: isinstance(item[1], dict | list) or item[0] == "raw"))


def _json_in(text: str) -> tuple[str, Any]:
    """What stands before the JSON in a text such as `Error code: 400 - {"error": …}`, and the JSON; None without."""
    match = _JSON_TEXT.fullmatch(text.strip()) if len(text) <= WORDS_CHARACTERS * 4 else None
    if match is None:
        return "", None
    try:
        value = msgspec.json.decode(match[2])
    except (msgspec.DecodeError, RecursionError):
        return "", None  # braces in prose
    return (match[1], value) if isinstance(value, dict | list) and value else ("", None)
