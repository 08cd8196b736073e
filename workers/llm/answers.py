"""From the text of an answer to a validated value.

Models wrap, decorate and misspell JSON: code fences, sentences around it, trailing commas, keys in another case, one
wrapper too many or too few. All of that is mended here, without inventing anything; what cannot be mended is an
`InvalidAnswerError` whose text is what the model is told when it is asked again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
import msgspec

from tasks.errors import InvalidAnswerError

#: Deeper answers are not ours.
MAX_DEPTH: Final = 32
#: Characters of a validation error that the model is shown.
ERROR_CHARACTERS: Final = 300

_THOUGHTS: Final = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE: Final = re.compile(r"```[ \t]*[A-Za-z0-9_-]*\s*(.*?)(?:```|\Z)", re.DOTALL)
_TRAILING_COMMA: Final = re.compile(r",(\s*[\]}])")


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


class AnswerSchema:
    """A JSON Schema, compiled once. `name` is what providers see; `text` is its canonical JSON."""

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        self.name = name
        self.document = document
        self.text = msgspec.json.encode(document, order="deterministic").decode()
        self._validator = jsonschema_rs.validator_for(self.text)

    def __repr__(self) -> str:
        return f"<AnswerSchema {self.name} {len(self.text)} bytes>"

    def is_valid(self, value: Any) -> bool:
        """Whether a value is an instance of the schema."""
        return self._validator.is_valid(value)

    def problem(self, value: Any) -> str | None:
        """The first thing that is wrong with a value, as the model will be told; None when it is valid."""
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is None:
            return None
        where = "/".join(str(step) for step in error.instance_path) or "the answer"
        return f"{where}: {error.message}"[:ERROR_CHARACTERS]

    def read(self, text: str) -> Any:
        """The valid value in an answer's text.

        Raises:
            InvalidAnswerError: there is none; the message says what is wrong.
        """
        problem: str | None = None
        for value in candidates(text):
            for shaped in self._shapes(value):
                found = self.problem(shaped)
                if found is None:
                    return shaped
                # The likeliest reading's mistake is the one to tell.
                problem = problem or found
        raise InvalidAnswerError(problem or "the answer is not JSON")

    def _shapes(self, value: Any) -> Iterator[Any]:
        """The value as it is, then with the wrapper that it lacks or has too many."""
        if self.is_valid(value):
            yield value
            return
        yield conformed(value, self.document)
        properties = self.document.get("properties", {})
        if not isinstance(value, dict) and len(properties) == 1:
            yield conformed({next(iter(properties)): value}, self.document)
        if isinstance(value, dict) and len(value) == 1:
            yield conformed(next(iter(value.values())), self.document)


def candidates(text: str) -> Iterator[Any]:
    """JSON values that an answer's text may mean, the likeliest first."""
    try:
        yield msgspec.json.decode(text)
        return
    except (msgspec.DecodeError, RecursionError):
        pass  # mended below: the text around or inside the JSON is looked at
    # A reasoning model's thoughts are not its answer.
    text = _THOUGHTS.sub("", text)
    fenced = [match.strip() for match in _FENCE.findall(text)]
    for piece in (*fenced, text):
        start = next((i for i, char in enumerate(piece) if char in "{["), None)
        if start is None:
            continue
        for repaired in (piece[start:], _TRAILING_COMMA.sub(r"\1", piece[start:])):
            try:
                value = _DECODER.raw_decode(repaired)[0]
                msgspec.json.encode(value)  # a lone surrogate is no text, and nothing downstream can store it
            except (ValueError, RecursionError):
                continue  # the next repair may read it; when none does, the caller says so
            yield value
            break


def salvaged(text: str) -> Any:
    """What is complete in a JSON text that was cut off: open strings and items are dropped, brackets closed.

    Returns None where nothing is.
    """
    start = next((i for i, char in enumerate(text) if char in "{["), None)
    if start is None:
        return None
    for end, closing in reversed(list(_cut_points(text[start:]))):
        try:
            return _DECODER.raw_decode(text[start : start + end] + closing)[0]
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
