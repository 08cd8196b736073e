"""Valid instances of a JSON Schema, drawn by a seeded generator: what constrained decoding may say.

The strict subset that providers take is drawn: types and lists of types, `enum`, `const`, objects, arrays, bounds,
`anyOf` and local references. Any other keyword is checked on what was drawn.
"""

import json
import math
import random
import re
from typing import Any, Final

import jsonschema_rs

ATTEMPTS: Final = 100
#: Levels of nesting below which optional members and items are left out, and at which a draw is abandoned.
DEEP: Final = 6
TOO_DEEP: Final = 40
#: Items beyond its minimum that an array without `maxItems` may have; the same for the characters of a string.
OPEN_ITEMS: Final = 4
OPEN_LENGTH: Final = 40
OPEN_NUMBER: Final = 1000
#: No bound, however generous, makes an array or string longer than its minimum plus this.
MAX_LENGTH: Final = 2000
_WORDS: Final = re.findall(
    r"\w+",
    "sandbox harbour market garden walk river lantern terrace quiet morning old bridge hill song bread "
    "craft light street museum summer",
)
#: Printable text of many scripts, with the characters that break careless parsers.
ALPHABET: Final = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    "
    "\"'\\`/{}[]()<>:;,.!?#%&$@*+-=_|~^"
    "äöüßéèñçøåÆŁžþ\N{NO-BREAK SPACE}ЖдюΩπλאבعرबकไทย漢字かなカナ한글"
    "\N{EN DASH}\N{EM DASH}\N{LEFT DOUBLE QUOTATION MARK}\N{EURO SIGN}\N{SNOWMAN}\N{SLICE OF PIZZA}"
    "\N{MAN}\N{COMBINING ACUTE ACCENT}"
)

Schema = dict[str, Any]


class NoInstanceError(ValueError):
    """No valid instance of this schema was found: it has none, or uses what is not drawn."""


class Instances:
    """Draws and validates instances of one schema. Raises ValueError where it is no JSON Schema.

    `wild` draws anything between the bounds; otherwise words, every optional member, few items, the first branch.
    """

    def __init__(self, schema: Any, *, wild: bool = False) -> None:
        self.schema = schema
        self._wild = wild
        self._validator = jsonschema_rs.validator_for(schema)

    def is_valid(self, instance: Any) -> bool:
        return self._validator.is_valid(instance)

    def draw(self, rng: random.Random) -> Any:
        reason = "it has none, or uses keywords that the sandbox does not draw"
        for _ in range(ATTEMPTS):
            try:
                instance = self._any(self.schema, rng, 0)
            except NoInstanceError as exc:
                reason = str(exc)
                continue
            if self._validator.is_valid(instance):
                return instance
        raise NoInstanceError(f"no instance found: {reason}")

    def _any(self, schema: Any, rng: random.Random, depth: int) -> Any:
        if depth > TOO_DEEP:
            raise NoInstanceError("the schema never ends")
        if not isinstance(schema, dict):
            schema = {} if schema else {"enum": []}
        if "$ref" in schema:
            return self._any(self._target(schema["$ref"]), rng, depth + 1)
        if "anyOf" in schema:
            return self._any(self._branch(schema["anyOf"], rng, depth), rng, depth + 1)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values == []:
            raise NoInstanceError("a part of the schema allows nothing")
        return rng.choice(values) if values else self._typed(schema, rng, depth)

    def _typed(self, schema: Schema, rng: random.Random, depth: int) -> Any:
        kinds = schema.get("type", "string")
        match kinds if isinstance(kinds, str) else self._branch(kinds, rng, depth):
            case "object":
                return self._object(schema, rng, depth)
            case "array":
                return self._array(schema, rng, depth)
            case "string":
                return self._string(schema, rng)
            case "number" | "integer" as kind:
                return _number(schema, rng, whole=kind == "integer")
            case kind:
                return bool(rng.getrandbits(1)) if kind == "boolean" else None

    def _target(self, reference: str) -> Any:
        node = self.schema
        for step in filter(None, reference.removeprefix("#").split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            node = node.get(key) if isinstance(node, dict) else None
        if node is None or not reference.startswith("#"):
            raise NoInstanceError(f"{reference!r} leads nowhere")
        return node

    def _branch(self, branches: list[Any], rng: random.Random, depth: int) -> Any:
        """The first branch, or any; deep down one that does not lead further, where there is one."""
        if depth >= DEEP:
            return min(branches, key=lambda branch: "$ref" in str(branch) or branch in ("object", "array"))
        return rng.choice(branches) if self._wild else branches[0]

    def _length(self, rng: random.Random, low: int, high: int) -> int:
        high = min(high, low + MAX_LENGTH)
        if high < low:
            raise NoInstanceError("a minimum is above its maximum")
        if not self._wild:
            return rng.randint(low, min(high, low + 2))
        return rng.choice((low, high, *[rng.randint(low, high)] * 4))

    def _object(self, schema: Schema, rng: random.Random, depth: int) -> dict[str, Any]:
        members, required = schema.get("properties", {}), schema.get("required", ())
        other = schema.get("additionalProperties", True)
        names = dict.fromkeys(members) | dict.fromkeys(required)
        if self._wild and other is not False and depth < DEEP:
            names |= dict.fromkeys(f"extra_{at}" for at in range(rng.randrange(3)))
        wanted = [
            name
            for name in names
            if name in required or (depth < DEEP and not (self._wild and name in members and rng.getrandbits(1)))
        ]
        return {name: self._any(members.get(name, other), rng, depth + 1) for name in wanted}

    def _array(self, schema: Schema, rng: random.Random, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", least + OPEN_ITEMS)
        length = least if depth >= DEEP else self._length(rng, least, most)
        if not self._wild and depth < DEEP:
            length = max(length, min(most, 1))
        items = [self._any(schema.get("items", True), rng, depth + 1) for _ in range(length)]
        if not schema.get("uniqueItems"):
            return items
        return list({json.dumps(item, sort_keys=True): item for item in items}.values())

    def _string(self, schema: Schema, rng: random.Random) -> str:
        least: int = schema.get("minLength", 0)
        most: int = schema.get("maxLength", least + OPEN_LENGTH)
        length = self._length(rng, least, most)
        if self._wild:
            return "".join(rng.choices(ALPHABET, k=length))
        goal = min(most, max(least, rng.randint(8, OPEN_LENGTH)))
        text: str = rng.choice(_WORDS).capitalize()
        while len(text) < goal:
            text += " " + rng.choice(_WORDS)
        text = text[:most].rstrip()
        return text + "." * max(0, least - len(text))


def _number(schema: Schema, rng: random.Random, *, whole: bool) -> int | float:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    if math.isinf(low):
        low = -OPEN_NUMBER if math.isinf(high) else high - OPEN_NUMBER
    if math.isinf(high):
        high = low + OPEN_NUMBER
    if low > high:
        raise NoInstanceError("minimum is above maximum")
    step = schema.get("multipleOf") or (1 if whole else (high - low) / 1000 or 1)
    first, last = math.ceil(low / step), math.floor(high / step)
    value = step * rng.randint(first, last) if first <= last else low
    return int(value) if whole else round(value, 12)
