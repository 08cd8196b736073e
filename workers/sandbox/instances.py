"""Valid instances of a JSON Schema, drawn by a seeded generator: what constrained decoding may say.

A schema is compiled once into drawing functions; drawing then costs microseconds. Handled: all types and
lists of types, `enum`, `const`, objects, arrays, bounds, `multipleOf`, `anyOf`, `oneOf`, `allOf`, local
`$ref`, simple `pattern`s and the common `format`s. Other keywords are not aimed at, but what is
drawn is validated.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs

from workers.sandbox.conjunction import Schema, both, identity
from workers.sandbox.scalars import ALPHABET, FORMATS, Draw, NoInstanceError, matching, never, number, words

#: Whole instances that are drawn before a schema counts as one without a reachable instance.
ATTEMPTS: Final = 40
#: Draws of one part (a branch of `oneOf`, one more unique item) before that part is given up.
PART_ATTEMPTS: Final = 400
#: Levels of nesting below which optional members and items are left out, so that recursive schemas end.
DEEP: Final = 6
#: Levels of nesting at which a draw is abandoned.
TOO_DEEP: Final = 40
#: Items that an array without `maxItems` may have beyond its minimum; the same for members of an object.
OPEN_ITEMS: Final = 4
#: Characters that a string without `maxLength` may have beyond its minimum.
OPEN_LENGTH: Final = 40
#: No bound, however generous, makes one array or string longer than its minimum plus this.
MOST: Final = 2000
TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_HINTS: Final = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


class Instances:
    """One compiled schema: draws valid instances of it and validates others.

    `wild` draws anything between the bounds: lengths, scripts, extra members, empty arrays where they are
    allowed; otherwise the draw is plain: words, every optional member, few items, the first branch that fits.

    Raises:
        ValueError: this is no JSON Schema.
    """

    def __init__(self, schema: Any, *, wild: bool = False) -> None:
        self.schema = schema
        self._wild = wild
        self._validator = jsonschema_rs.validator_for(schema)
        self._compiled: dict[str, Draw] = {}
        self._whole = self._lazy(schema)

    def is_valid(self, instance: Any) -> bool:
        """Say whether an instance is valid under the schema."""
        return self._validator.is_valid(instance)

    def draw(self, rng: random.Random) -> Any:
        """Draw a valid instance; the same generator state gives the same one.

        Raises:
            NoInstanceError: none was found in `ATTEMPTS` draws.
        """
        reason = "what was drawn was not valid"
        for _ in range(ATTEMPTS):
            try:
                instance = self._whole(rng, 0)
            except NoInstanceError as exc:
                reason = str(exc)
                continue
            if self._validator.is_valid(instance):
                return instance
        raise NoInstanceError(f"no instance found: {reason}")

    # Compiling: one drawing function for each part of the schema, made when it is first drawn.

    def _lazy(self, schema: Any) -> Draw:
        made: list[Draw] = []

        def draw(rng: random.Random, depth: int) -> Any:
            if depth > TOO_DEEP:
                raise NoInstanceError("the schema never ends")
            if not made:
                made.append(self._compile(schema))
            return made[0](rng, depth)

        return draw

    def _compile(self, schema: Any) -> Draw:
        if isinstance(schema, dict) and set(schema) == {"$ref"}:
            reference = schema["$ref"]
            if reference not in self._compiled:
                self._compiled[reference] = self._lazy({"allOf": [self._target(reference)]})
            return self._compiled[reference]
        flat = self._flatten(schema)
        if flat is None:
            return never("a part of the schema allows nothing")
        for kind in ("oneOf", "anyOf"):
            if kind in flat:
                return self._branches(flat, kind)
        if "enum" in flat:
            return self._enum(flat)
        return self._typed(flat)

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise NoInstanceError(f"only local references are followed, not {reference!r}")
        node = self.schema
        for step in filter(None, reference[1:].split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                raise NoInstanceError(f"{reference!r} leads nowhere")
        return node

    def _flatten(self, schema: Any, level: int = 0) -> Schema | None:
        """Fold `$ref`, `allOf` and `const` into one schema without them; None when nothing can satisfy it."""
        if level > TOO_DEEP:
            raise NoInstanceError("a reference leads to itself")
        if isinstance(schema, bool):
            return {} if schema else None
        flat: Schema | None = {k: v for k, v in schema.items() if k not in ("$ref", "allOf", "const")}
        parts = list(schema.get("allOf", ()))
        if "const" in schema:
            parts.append({"enum": [schema["const"]]})
        if "$ref" in schema:
            parts.append(self._target(schema["$ref"]))
        for part in parts:
            flat = both(flat, self._flatten(part, level + 1))
        return flat

    def _validator_of(self, part: Schema) -> Callable[[Any], bool]:
        """Make a check of a part; one whose references cannot be followed alone is left to the whole's."""
        definitions = {key: self.schema[key] for key in ("$defs", "definitions") if key in self.schema}
        try:
            return jsonschema_rs.validator_for({**part, **definitions}).is_valid
        except (ValueError, jsonschema_rs.ReferencingError):
            return lambda _: True

    def _branches(self, flat: Schema, kind: str) -> Draw:
        base = {key: value for key, value in flat.items() if key != kind}
        simple_first = sorted(flat[kind], key=lambda branch: "$ref" in str(branch))
        branches = [self._lazy({"allOf": [base, branch]}) for branch in flat[kind]]
        endings = [self._lazy({"allOf": [base, branch]}) for branch in simple_first]
        fits = self._validator_of({"oneOf": flat[kind]}) if kind == "oneOf" else lambda _: True

        def draw(rng: random.Random, depth: int) -> Any:
            order = endings if depth >= DEEP else branches
            if self._wild and depth < DEEP:
                order = rng.sample(branches, len(branches))
            for attempt in range(max(ATTEMPTS, len(order))):
                try:
                    instance = order[attempt % len(order)](rng, depth + 1)
                except NoInstanceError:
                    continue
                if fits(instance):
                    return instance
            raise NoInstanceError(f"no branch of {kind} can be met")

        return draw

    def _enum(self, flat: Schema) -> Draw:
        fits = self._validator_of(flat)
        choices = [value for value in flat["enum"] if fits(value)]
        if not choices:
            return never("no value of the enumeration is allowed")
        return lambda rng, _: rng.choice(choices)

    def _typed(self, flat: Schema) -> Draw:
        given = flat.get("type")
        if given is None:
            types = [name for name, keys in _HINTS.items() if any(key in flat for key in keys)]
            types = types or (list(TYPES) if self._wild else ["string"])
        else:
            types = [given] if isinstance(given, str) else list(given)
        if not self._wild:
            types.sort(key=lambda name: name == "null")
        makers: dict[str, Callable[[Schema], Draw]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "number": lambda part: number(part, whole=False),
            "integer": lambda part: number(part, whole=True),
            "boolean": lambda _: lambda rng, _depth: rng.random() < 0.5,  # noqa: PLR2004  # a fair coin
            "null": lambda _: lambda _rng, _depth: None,
        }
        draws = [makers[name](flat) for name in types]

        def draw(rng: random.Random, depth: int) -> Any:
            order = rng.sample(draws, len(draws)) if self._wild and len(draws) > 1 else draws
            for one in order[:-1]:
                try:
                    return one(rng, depth)
                except NoInstanceError:
                    continue
            return order[-1](rng, depth)

        return draw if draws else never("no type is allowed")

    def _length(self, rng: random.Random, low: int, high: int) -> int:
        """Choose a length; the bounds themselves come up often when drawing wildly."""
        high = min(high, low + MOST)
        if not self._wild:
            return rng.randint(low, max(low, min(high, low + 2)))
        edge = rng.randrange(6)
        return (low, high)[edge] if edge < 2 else rng.randint(low, high)  # noqa: PLR2004  # two of six are edges

    def _object(self, flat: Schema) -> Draw:
        required = tuple(dict.fromkeys(flat.get("required", ())))
        extra = flat.get("additionalProperties", True)
        other = self._lazy(extra)
        members = {name: self._lazy(part) for name, part in flat.get("properties", {}).items()}
        return _Members(
            members=members | {name: other for name in required if name not in members},
            required=required,
            other=None if extra is False else other,
            least=int(flat.get("minProperties", 0)),
            most=int(flat.get("maxProperties", MOST)),
            spare=2 if self._wild and "patternProperties" not in flat else 0,
            wild=self._wild,
        ).draw

    def _array(self, flat: Schema) -> Draw:
        prefix = [self._lazy(part) for part in flat.get("prefixItems", ())]
        items = flat.get("items", True)
        least = int(flat.get("minItems", 0))
        most = int(flat.get("maxItems", least + len(prefix) + OPEN_ITEMS))
        if items is False:
            most = min(most, len(prefix))
        if most < least:
            return never("minItems is above maxItems")
        rest = self._lazy(items)
        tries = PART_ATTEMPTS if flat.get("uniqueItems") else 1

        def draw(rng: random.Random, depth: int) -> Any:
            length = least if depth >= DEEP else self._length(rng, least, most)
            if not self._wild and depth < DEEP:
                length = min(most, max(length, len(prefix), 1))
            drawn: list[Any] = []
            seen: set[Any] = set()
            for at in range(length):
                one = prefix[at] if at < len(prefix) else rest
                try:
                    item = next(_unseen(one, rng, depth + 1, seen if tries > 1 else None, tries))
                except (NoInstanceError, StopIteration) as exc:
                    if len(drawn) >= least:
                        break
                    raise NoInstanceError("the items of an array cannot be met") from exc
                drawn.append(item)
            return drawn

        return draw

    def _string(self, flat: Schema) -> Draw:
        least = int(flat.get("minLength", 0))
        most = int(flat.get("maxLength", least + OPEN_LENGTH))
        if most < least:
            return never("minLength is above maxLength")
        if "pattern" in flat:
            return matching(flat["pattern"], least, most)
        example = FORMATS.get(flat.get("format", ""))

        def draw(rng: random.Random, _: int) -> str:
            if example is not None:
                text = example(rng)
                if least <= len(text) <= most:
                    return text
            if self._wild:
                return "".join(rng.choices(ALPHABET, k=self._length(rng, least, most)))
            return words(rng, least, most)

        return draw


def _unseen(one: Draw, rng: random.Random, depth: int, seen: set[Any] | None, tries: int) -> Iterator[Any]:
    """Draw items; where they must be unique, only those not seen yet."""
    for _ in range(tries):
        item = one(rng, depth)
        if seen is None:
            yield item
        elif (key := identity(item)) not in seen:
            seen.add(key)
            yield item


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """How the members of an object are drawn; `spare` is the most that are added without being asked for."""

    members: dict[str, Draw]
    required: tuple[str, ...]
    other: Draw | None
    least: int
    most: int
    spare: int
    wild: bool

    def draw(self, rng: random.Random, depth: int) -> dict[str, Any]:
        drawn = {name: self.members[name](rng, depth + 1) for name in self.required}
        for name in self._optional(rng, depth):
            if len(drawn) < self.most:
                _try(drawn, name, self.members[name], rng, depth)
        for name in (name for name in self.members if name not in drawn):
            if len(drawn) < self.least:
                _try(drawn, name, self.members[name], rng, depth)
        for name in self._new_names(rng, depth, len(drawn)):
            if self.other is not None:
                _try(drawn, name, self.other, rng, depth)
        if not self.least <= len(drawn) <= self.most:
            raise NoInstanceError("the number of members cannot be met")
        return {name: drawn[name] for name in self.members if name in drawn} | drawn

    def _optional(self, rng: random.Random, depth: int) -> list[str]:
        if depth >= DEEP:
            return []
        names = [name for name in self.members if name not in self.required]
        return [name for name in names if rng.getrandbits(1)] if self.wild else names

    def _new_names(self, rng: random.Random, depth: int, count: int) -> list[str]:
        wanted = count + (rng.randint(0, self.spare) if self.spare and depth < DEEP else 0)
        missing = min(self.most, max(self.least, wanted)) - count
        free = (name for at in itertools.count(1) if (name := f"extra_{at}") not in self.members)
        return list(itertools.islice(free, max(0, missing)))


def _try(drawn: dict[str, Any], name: str, one: Draw, rng: random.Random, depth: int) -> None:
    """Draw one more member; a member that cannot be had is left out."""
    with contextlib.suppress(NoInstanceError):
        drawn[name] = one(rng, depth + 1)
