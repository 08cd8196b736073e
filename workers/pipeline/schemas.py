"""The JSON Schemas of answers: strict, bounded, and few.

A schema depends only on the stage and on how many themes are asked about, never on their names: providers compile each
new schema in seconds and keep it. Every list and text has a maximum, because a small model in constrained decoding
fills what it may. Any instance that is valid under a schema is a usable answer.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from workers.llm.endpoints.answers import AnswerSchema

#: What stands in a prompt file where a theme's number is meant.
THEME_ID: Final = {"theme": "id"}

_TEXT: Final = {"type": "string", "minLength": 1}
_NEW_THEME: Final = {
    "type": "object",
    "properties": {
        "name": {**_TEXT, "maxLength": 80},
        "description": {**_TEXT, "maxLength": 600},
        "citations": {"type": "array", "maxItems": 3, "items": {**_TEXT, "maxLength": 300}},
    },
    "required": ["name", "description", "citations"],
    "additionalProperties": False,
}


@lru_cache(maxsize=1_024)
def theme_ids(count: int) -> tuple[str, ...]:
    """t1, t2, … as prompts and answers number themes."""
    return tuple(f"t{number}" for number in range(1, count + 1))


def new_themes(name: str, low: int, high: int) -> AnswerSchema:
    themes = {"type": "array", "minItems": low, "maxItems": high, "items": _NEW_THEME}
    return AnswerSchema(name, _closed({"themes": themes}))


def each_theme(name: str, fields: Mapping[str, Any], count: int) -> AnswerSchema:
    """An answer with the same fields for each of `count` themes, by number.

    The fields are defined once and referred to: a schema is part of what is paid for, and of what is compiled.
    """
    whole = _closed({theme_id: {"$ref": "#/$defs/theme"} for theme_id in theme_ids(count)})
    return AnswerSchema(name, whole | {"$defs": {"theme": _strict(_closed(fields), count)}})


def all_themes(name: str, fields: Mapping[str, Any], count: int) -> AnswerSchema:
    return AnswerSchema(name, _strict(_closed(fields), count))


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _strict(schema: Any, count: int) -> Any:
    """The schema as strict providers want it: objects closed, and theme numbers written out as an enumeration."""
    if schema == THEME_ID:
        return {"type": "string", "enum": [*theme_ids(count)]}
    if isinstance(schema, list):
        return [_strict(item, count) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value, count) for key, value in schema.items()}
    if strict.get("type") == "object" and isinstance(strict.get("properties"), dict):
        strict.setdefault("required", list(strict["properties"]))
        strict.setdefault("additionalProperties", False)
    return strict
