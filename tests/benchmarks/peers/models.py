"""The pydantic models that a user of a library would have written for the sixteen prompts, made of their schemas."""

from functools import cache
from typing import Annotated, Any, Literal

from driver import Call
from pydantic import ConfigDict, Field, create_model

_MADE: dict[str, Any] = {}
_BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
}
_PLAIN = {"string": str, "number": float, "integer": int, "boolean": bool}


def model_of(call: Call) -> Any:
    """The model of a call's prompt, made at its first call."""
    name = call.name
    if name not in _MADE:
        schema = call.response_format["json_schema"]["schema"]
        of_theme = cache(lambda: _type(f"{name}_theme", schema["$defs"]["theme"], None))
        _MADE[name] = _type(name, schema, of_theme)
    return _MADE[name]


def _type(name: str, schema: dict[str, Any], of_theme: Any) -> Any:
    if "$ref" in schema:
        return of_theme()
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    bounds = {_BOUNDS[key]: value for key, value in schema.items() if key in _BOUNDS}
    if schema["type"] == "array":
        return Annotated[list[_type(f"{name}_item", schema["items"], of_theme)], Field(**bounds)]
    if schema["type"] == "object":
        fields = {key: (_type(f"{name}_{key}", of, of_theme), ...) for key, of in schema["properties"].items()}
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return Annotated[_PLAIN[schema["type"]], Field(**bounds)]
