import random
import unicodedata
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.sandbox.instances import Instances, NoInstanceError

Schema = dict[str, Any]


def sized(low: str, high: str, most: int) -> st.SearchStrategy[Schema]:
    return st.tuples(st.integers(0, most), st.integers(0, most)).map(lambda pair: {low: min(pair), high: max(pair)})


def some(bounds: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    """All of the bounds, one of them or none."""
    return bounds.flatmap(
        lambda full: st.sets(st.sampled_from(sorted(full))).map(lambda keys: {k: full[k] for k in keys})
    )


def joined(first: Schema, *more: Schema) -> Schema:
    for part in more:
        first = {**first, **part}
    return first


values = st.none() | st.booleans() | st.integers(-50, 50) | st.text(max_size=5)
strings = st.builds(joined, st.just({"type": "string"}), some(sized("minLength", "maxLength", 30)))
integers = st.builds(
    joined,
    st.just({"type": "integer"}),
    st.tuples(st.integers(-99, 99), st.integers(20, 99)).map(lambda p: {"minimum": p[0], "maximum": p[0] + p[1]}),
    st.sampled_from([{}, {"multipleOf": 1}, {"multipleOf": 2}, {"multipleOf": 7}]),
)
numbers = st.builds(
    joined,
    st.just({"type": "number"}),
    some(st.floats(-9, 9).map(lambda low: {"minimum": low, "maximum": low + 1.5})),
    st.sampled_from([{}, {"multipleOf": 0.25}]),
)
enums = st.lists(values, min_size=1, max_size=6).map(lambda choices: {"enum": choices})
consts = values.map(lambda value: {"const": value})
simple = st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null", "integer"]}, {}])
leaves = st.one_of(strings, integers, numbers, enums, consts, simple)


def containers(parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    arrays = st.builds(
        joined,
        parts.map(lambda part: {"type": "array", "items": part}),
        some(sized("minItems", "maxItems", 5)),
    )
    objects = st.dictionaries(st.text(min_size=1, max_size=6), parts, max_size=4).flatmap(
        lambda members: st.builds(
            lambda required, extra: {
                "type": "object",
                "properties": members,
                "required": sorted(required),
                "additionalProperties": extra,
            },
            st.sets(st.sampled_from(sorted(members))) if members else st.just(set()),
            st.booleans() | parts,
        )
    )
    anyof = st.lists(parts, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    return st.one_of(arrays, objects, anyof)


schemas = st.recursive(leaves, containers, max_leaves=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas, seed=st.integers(0, 2**32), wild=st.booleans())
def test_every_instance_drawn_is_valid_under_its_schema(schema: Schema, seed: int, *, wild: bool) -> None:
    instance = Instances(schema, wild=wild).draw(random.Random(seed))
    assert jsonschema_rs.is_valid(schema, instance)


@pytest.mark.parametrize("wild", [False, True])
def test_the_same_seed_draws_the_same_instance(*, wild: bool) -> None:
    schema = {
        "type": "array",
        "minItems": 3,
        "items": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    one, other = (Instances(schema, wild=wild).draw(random.Random(7)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("wild", [False, True])
def test_recursive_schemas_come_to_an_end(*, wild: bool) -> None:
    schema = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "required": ["name", "next"],
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                    "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
            }
        },
    }
    instances = Instances(schema, wild=wild)
    for seed in range(20):
        assert jsonschema_rs.is_valid(schema, instances.draw(random.Random(seed)))


def test_what_is_not_drawn_is_still_checked() -> None:
    schema = {"type": "integer", "minimum": 0, "maximum": 9, "not": {"multipleOf": 2}}
    assert {Instances(schema).draw(random.Random(seed)) for seed in range(50)} == {1, 3, 5, 7, 9}


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "array", "minItems": 3, "uniqueItems": True, "items": {"type": "boolean"}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "string", "pattern": "^[0-9]{40}$"},
        {"type": "string", "enum": [1, 2]},
        {"$ref": "#"},
    ],
)
def test_a_schema_without_an_instance_is_said_to_have_none(schema: Any) -> None:
    with pytest.raises(NoInstanceError):
        Instances(schema).draw(random.Random(1))


def test_wild_strings_reach_both_bounds_and_many_scripts() -> None:
    instances = Instances({"type": "string", "minLength": 2, "maxLength": 9}, wild=True)
    rng = random.Random(3)
    drawn = [instances.draw(rng) for _ in range(300)]
    assert {len(text) for text in drawn} == set(range(2, 10))
    names = {unicodedata.name(char).split()[0] for char in "".join(drawn)}
    assert {"LATIN", "CYRILLIC", "CJK", "QUOTATION", "REVERSE"} <= names


def test_wild_arrays_are_empty_where_that_is_allowed() -> None:
    instances = Instances({"type": "array", "maxItems": 3, "items": {"type": "null"}}, wild=True)
    rng = random.Random(1)
    assert {len(instances.draw(rng)) for _ in range(100)} == {0, 1, 2, 3}


def test_wild_objects_carry_members_that_nobody_asked_for() -> None:
    instances = Instances({"type": "object", "properties": {"a": {"const": 1}}}, wild=True)
    rng = random.Random(1)
    drawn = [set(instances.draw(rng)) for _ in range(50)]
    assert any("a" not in names for names in drawn)
    assert any(names - {"a"} for names in drawn)
