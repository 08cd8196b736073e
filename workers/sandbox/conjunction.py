"""One JSON Schema out of two that accepts what both accept: what `allOf` means, folded before drawing."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

Schema = dict[str, Any]


def both(one: Schema | None, other: Schema | None) -> Schema | None:
    """Fold two flat schemas into one that only accepts what both accept; None when their types never meet."""
    if one is None or other is None:
        return None
    merged = {**one, **other}
    for key in one.keys() & other.keys():
        merged[key] = _combined(key, one[key], other[key])
    if merged.get("type") == []:
        return None
    if "properties" in merged or "additionalProperties" in merged:
        merged.update(_members(one, other))
    if "prefixItems" in merged:
        merged.update(_positions(one, other))
    return merged


def _combined(key: str, one: Any, other: Any) -> Any:
    """Fold the two values of one keyword; of those not known here the first stays."""
    combine = _COMBINE.get(key)
    return one if combine is None else combine(one, other)


def _common_values(one: list[Any], other: list[Any]) -> list[Any]:
    allowed = {identity(value) for value in other}
    return [value for value in one if identity(value) in allowed]


def _every_pair(one: list[Any], other: list[Any]) -> list[Any]:
    return [{"allOf": [left, right]} for left in one for right in other]


def _common_types(one: Any, other: Any) -> list[str]:
    left, right = ([kind] if isinstance(kind, str) else list(kind) for kind in (one, other))
    for names in (left, right):
        if "number" in names and "integer" not in names:
            names.append("integer")
    both = [name for name in left if name in right]
    return [name for name in both if not (name == "integer" and "number" in both)]


def _members(one: Schema, other: Schema) -> Schema:
    """Fold `properties`: a name that only one side lists meets the other side's `additionalProperties`."""
    left, right = one.get("properties", {}), other.get("properties", {})
    left_extra, right_extra = one.get("additionalProperties", True), other.get("additionalProperties", True)
    return {
        "properties": {
            name: {"allOf": [left.get(name, left_extra), right.get(name, right_extra)]} for name in {**left, **right}
        },
        "additionalProperties": False
        if left_extra is False or right_extra is False
        else {"allOf": [left_extra, right_extra]},
    }


def _positions(one: Schema, other: Schema) -> Schema:
    left, right = one.get("prefixItems", []), other.get("prefixItems", [])
    left_rest, right_rest = one.get("items", True), other.get("items", True)
    length = max(len(left), len(right))
    pairs = zip(
        [*left, *[left_rest] * (length - len(left))],
        [*right, *[right_rest] * (length - len(right))],
        strict=True,
    )
    rest = False if left_rest is False or right_rest is False else {"allOf": [left_rest, right_rest]}
    return {"prefixItems": [{"allOf": list(pair)} for pair in pairs], "items": rest}


def common_multiple(one: Decimal, other: Decimal) -> Decimal:
    """Return the least number that both divide; both may be fractions."""
    top_one, bottom_one = one.as_integer_ratio()
    top_other, bottom_other = other.as_integer_ratio()
    return Decimal(math.lcm(top_one, top_other)) / Decimal(math.gcd(bottom_one, bottom_other))


def identity(value: Any) -> Any:
    """Make a key that is equal for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return ("object", frozenset((key, identity(part)) for key, part in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(identity, value)))
    return ("boolean", value) if isinstance(value, bool) else value


_COMBINE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"), min),
    **dict.fromkeys(("anyOf", "oneOf"), _every_pair),
    "type": _common_types,
    "enum": _common_values,
    "required": lambda one, other: [*one, *other],
    "uniqueItems": lambda one, other: one or other,
    "multipleOf": lambda one, other: float(common_multiple(Decimal(str(one)), Decimal(str(other)))),
    "items": lambda one, other: {"allOf": [one, other]},
}
