"""From the texts of an answer to a validated value.

Models think aloud, wrap, decorate and misspell JSON. Any instance of the schema is the answer, wherever it lies: the
last one outside of reasoning wins. Code fences, prose, trailing commas, keys in another case, one wrapper too many or
too few are mended, and nothing is invented. Otherwise `InvalidAnswerError` has the text that the model gets when it is
asked again.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec

from tasks.errors import InvalidAnswerError
from tasks.texts import cleaned_value, is_fit

#: Deeper answers are not ours.
MAX_DEPTH: Final = 32
#: Characters of a validation error that the model is shown.
ERROR_CHARACTERS: Final = 300
#: Values inside one candidate that are looked at, and levels below it.
MAX_PARTS: Final = 200
PART_DEPTH: Final = 4
#: Places at which a text that was cut off is tried to be closed.
MAX_CUTS: Final = 200
#: Characters that may be read in vain for each character of a text: many braces in prose cost no more.
WASTE: Final = 20

_NAMES: Final = "think|thinking|thought|thoughts|reasoning|reason|analysis|reflection|scratchpad"
#: Marks around a model's thoughts: tags, Mistral's brackets, Kimi's signs, the channels of gpt-oss.
_MARK: Final = re.compile(
    rf"(?P<open><(?:{_NAMES})>|\[THINK\]|◁think▷|<\|channel\|>(?:analysis|commentary)<\|message\|>)|"
    rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|end\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_TRAILING_COMMA: Final = re.compile(r",(\s*[\]}])")
_START: Final = re.compile(r"[{\[]")


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


#: Not strict: small models write line breaks into strings as they are.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, strict=False)


class UnclosedAnswerError(InvalidAnswerError):
    """The answer has no instance of the schema, and its last object never closes: it was cut off."""


class AnswerSchema:
    """A JSON Schema, compiled once. `name` is what providers see; `text` is its canonical JSON."""

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        self.name = name
        self.document = document
        self.text = msgspec.json.encode(document, order="deterministic").decode()
        described = {"name": name, "strict": True, "schema": document}
        #: How a server is asked for it, encoded once.
        self.response_format = msgspec.Raw(msgspec.json.encode({"type": "json_schema", "json_schema": described}))
        self._validator = jsonschema_rs.validator_for(self.text)
        numbers = self.text.count('"integer"') + self.text.count('"number"')
        #: Whether a number may be too large to be stored and still be valid.
        self._has_open_numbers = numbers > self.text.count('"maximum"')

    def __repr__(self) -> str:
        return f"<AnswerSchema {self.name} {len(self.text)} bytes>"

    def is_valid(self, value: Any) -> bool:
        return self._validator.is_valid(value) and not (self._has_open_numbers and _is_too_large(value))

    def problem(self, value: Any) -> str | None:
        """The first thing that is wrong with a value, as the model will be told; None when it is valid."""
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is None:
            return "a number is too large" if self._has_open_numbers and _is_too_large(value) else None
        where = "/".join(str(step) for step in error.instance_path) or "the answer"
        return f"{where}: {error.message}"[:ERROR_CHARACTERS]

    def read(self, *texts: str, thoughts: Sequence[str] = ()) -> Any:
        """The valid value in an answer's texts, the likeliest text first; `thoughts` are read where none has one.

        Raises:
            UnclosedAnswerError: there is none, because the answer breaks off.
            InvalidAnswerError: there is none; the message says what is wrong.
        """
        problem: str | None = None
        is_open = False
        for text in texts:
            found = candidates(text)
            for value in reversed(found.values):
                if (usable := self._usable(value)) is not None:
                    return usable
            if found.values and problem is None:
                # The largest is the likeliest to be meant: its mistake is the one to tell.
                largest = max(found.values, key=lambda value: len(str(value)))
                # A list out of an object that is no JSON was not meant.
                problem = self.problem(largest) if isinstance(largest, dict) or "{" not in text else None
            is_open = is_open or found.open_at is not None
        if is_open:
            raise UnclosedAnswerError("the answer breaks off")
        for text in (*(split_reasoning(text)[1] for text in texts), *thoughts):
            for value in reversed(candidates(text).values):
                if (usable := self._usable(value)) is not None:
                    return usable
        raise InvalidAnswerError(problem or "the answer is not JSON")

    def _usable(self, value: Any) -> Any:
        """The instance of the schema in a value: as it is, in the schema's spelling, or inside; else None."""
        if self.is_valid(value):
            return value
        for part in _parts(value):
            shaped = conformed(part, self.document)
            if isinstance(part, dict) and self.is_valid(shaped):
                return shaped
        properties = self.document.get("properties", {})
        if not isinstance(value, dict) and len(properties) == 1:
            wrapped = conformed({next(iter(properties)): value}, self.document)
            return wrapped if self.is_valid(wrapped) else None
        return None


def _is_too_large(value: Any) -> bool:
    """Whether a value holds a number of more than 64 bits, which neither the cache nor a database takes."""
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        return True
    return False


def _parts(value: Any) -> Iterator[Any]:
    """A value, then what is inside it, level by level; a text that is JSON counts as what it says."""
    level = [value]
    left = MAX_PARTS
    for _ in range(PART_DEPTH):
        inner: list[Any] = []
        for part in level[:left]:
            yield part
            if isinstance(part, str) and "{" in part:
                inner += candidates(part).values
            elif isinstance(part, dict):
                inner += part.values()
            elif isinstance(part, list):
                inner += part
        left -= len(level)
        level = inner


class Candidates(NamedTuple):
    """The JSON values of a text, in their order, and where in it a value begins that never ends."""

    values: list[Any]
    open_at: int | None = None


def candidates(text: str) -> Candidates:
    """The JSON values that an answer's text may mean, outside of its reasoning, cleaned."""
    try:
        found = Candidates([msgspec.json.decode(text)])
        # Strict JSON has no control character but DEL in its texts.
        is_plain = text.isascii() and "\x7f" not in text
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        outside, inside = split_reasoning(text)
        found = _scanned(outside)
        if _TRAILING_COMMA.search(outside):
            found.values.extend(_scanned(_TRAILING_COMMA.sub(r"\1", outside)).values)
        if inside and not outside.strip() and not _ends_reasoning(text):
            found = Candidates([], 0)
        is_plain = False
    # An escape, or a character that cannot be printed, may be one that cannot be stored.
    is_clean = "\\u" not in text and (is_plain or text.isprintable() or is_fit(text))
    return found if is_clean else Candidates([cleaned_value(value) for value in found.values], found.open_at)


def _scanned(text: str) -> Candidates:
    """Every JSON object or list in a text that is not part of another."""
    values: list[Any] = []
    at, waste = 0, WASTE * (len(text) + 1000)
    open_at = None
    end = len(text.rstrip())
    while waste > 0 and (start := _START.search(text, at)):
        at = start.end()
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as exc:
            # The error itself counts the lines before it, which is quick, but not free.
            waste -= exc.pos - start.start() + 1 + exc.pos // 64
            if open_at is None and _is_cut(text, exc, end):
                open_at = start.start()
        except RecursionError:
            # It is slow, and what is nested so deeply is not ours: some tries, whatever the length.
            waste -= len(text) + 1000
        except ValueError:
            waste -= 1000
        else:
            # A list inside of what never ends is a part of it.
            if open_at is None or isinstance(value, dict):
                values.append(value)
    return Candidates(values, open_at)


def _is_cut(text: str, exc: json.JSONDecodeError, end: int) -> bool:
    """Whether a decoder misses nothing but the rest of a text that ends at `end`."""
    rest = text[exc.pos : end]
    return (
        not rest
        or exc.msg.startswith("Unterminated string")
        or (len(rest) <= len("\\u123") and exc.msg.startswith("Invalid \\"))
        or any(word.startswith(rest) for word in ("true", "false", "null", "-"))
    )


def split_reasoning(text: str) -> tuple[str, str]:
    """A text's part outside of reasoning, and the part inside.

    Reasoning without an opening mark begins with the text; reasoning without a closing mark ends with it.
    """
    outside: list[str] = []
    inside: list[str] = []
    is_inside, at = False, 0
    for mark in _MARK.finditer(text):
        piece, at = text[at : mark.start()], mark.end()
        if mark["open"]:
            (inside if is_inside else outside).append(piece)
            is_inside = True
        elif is_inside:
            inside.append(piece)
            is_inside = False
        else:
            inside += [*outside, piece]
            outside.clear()
    (inside if is_inside else outside).append(text[at:])
    return "\n".join(outside), "\n".join(inside)


def _ends_reasoning(text: str) -> bool:
    *_, last = (None, *_MARK.finditer(text))
    return last is not None and not last["open"]


def salvaged(text: str) -> Any:
    """What is complete in a JSON text that was cut off: open items are dropped, brackets closed; None for nothing."""
    outside, _ = split_reasoning(text)
    start = _scanned(outside).open_at
    if start is None:
        return None
    for end, closing in list(_cut_points(outside[start:]))[: -MAX_CUTS - 1 : -1]:
        try:
            return cleaned_value(_DECODER.raw_decode(outside[start : start + end] + closing)[0])
        except (ValueError, RecursionError):
            continue  # an earlier cut may be whole
    return None


def _cut_points(text: str) -> Iterator[tuple[int, str]]:
    """Ends of complete values in a JSON text, each with the brackets that close what is open there."""
    stack: list[str] = []
    in_string = escaped = False
    for index, char in enumerate(text):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[" and len(stack) < MAX_DEPTH:
            stack.append("}" if char == "{" else "]")
        elif char in "}]" and stack:
            stack.pop()
            yield index + 1, "".join(reversed(stack))
        elif char == ",":
            yield index, "".join(reversed(stack))


def conformed(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """The value with keys and enumerated words in the schema's spelling, without keys that the schema lacks.

    Only spelling changes: "Peak-Months" and "peak_months" are one key, "january" and "January" one word. `root` is the
    whole schema, in which references are looked up.
    """
    root = schema if root is None else root
    if depth > MAX_DEPTH:
        return value
    if isinstance(reference := schema.get("$ref"), str):
        schema = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
    if isinstance(value, dict) and (properties := schema.get("properties")):
        names = {_plain(name): name for name in properties}
        renamed = {names[_plain(key)]: item for key, item in value.items() if _plain(key) in names}
        return {name: conformed(item, properties[name], root, depth + 1) for name, item in renamed.items()}
    if isinstance(value, list) and (items := schema.get("items")):
        return [conformed(item, items, root, depth + 1) for item in value]
    if isinstance(value, str) and (words := schema.get("enum")):
        return next((word for word in words if _plain(str(word)) == _plain(value)), value)
    return value


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())
