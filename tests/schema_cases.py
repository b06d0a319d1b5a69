"""Random JSON schemas of every kind that can be enforced, small enough for a small model to finish."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["a", "b", "name", "total", "x y", "é", 'quo"te', "back\\slash", "日本"]
PATTERNS = ["^[a-c]{1,3}$", "x+y?", "^(yes|no)$", r"\d{2,4}", "[^a-z]{1,2}", "^.{0,3}$", r"\w\s\w", "é|ü{1,2}"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]
VALUES: list[Any] = [
    0,
    1,
    -3,
    2.5,
    1e-3,
    "",
    "a",
    'é\n"',
    "日本",
    None,
    True,
    False,
    [],
    [1, "a"],
    {},
    {"a": {"b": [None]}},
]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema; what follows it is finite in length but for unbounded strings, numbers and arrays, which are rare."""
    simple = [_integer, _number, _string, _values, _constant, _boolean]
    nested = [_object, _object, _array, _tuple, _any_of, _one_of, _reference, _types, _all_of]
    make = rng.choice(simple if depth >= 3 else simple + nested * 2)
    schema = make(rng, depth)
    if rng.random() < 0.2:
        schema |= {"title": "a title", "description": "what it is", "x-own": 1, "default": None}
    return schema


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.choice([-1000, -7, 0, 3, 98])
    names = rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    if rng.random() < 0.15:
        return {"type": "integer", "multipleOf": rng.choice([2, 3, 7, 25])}
    return {"type": "integer", names[0]: low, names[1]: low + rng.choice([2, 5, 123, 4567])}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.choice([-3.25, -1, 0, 0.001, 12.5])
    names = rng.choice(
        [("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum", "exclusiveMaximum")]
    )
    return {"type": "number", names[0]: low, names[1]: low + rng.choice([0.5, 1, 7.75, 1000])}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": rng.choice(FORMATS)}
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(8)}


def _values(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(VALUES, rng.randint(1, 5))}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(VALUES)}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null"])}


def _types(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": rng.sample(["boolean", "null", "string", "integer"], 2),
        "maxLength": 5,
        "minimum": 1,
        "maximum": 77,
    }


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.1:
        return {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}}
    names = rng.sample(NAMES, rng.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.random() < 0.3
    if rng.random() < 0.1 and schema.get("additionalProperties") is not False:
        schema["required"] = [*schema["required"], "late"]
    if rng.random() < 0.3:
        del schema["type"]
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(3)
    return {
        "type": "array",
        "items": random_schema(rng, depth + 1),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    prefix = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        return {"type": "array", "prefixItems": prefix, "items": False}
    return {"type": "array", "prefixItems": prefix, "items": random_schema(rng, depth + 1), "maxItems": len(prefix) + 2}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [random_schema(rng, depth + 1)]}


def _one_of(rng: random.Random, depth: int) -> dict[str, Any]:
    branches = []
    for kind in rng.sample(["cat", "dog", "eel"], 2):
        branch = _object(rng, depth)
        branch |= {"type": "object", "properties": {"kind": {"const": kind}, **branch.get("properties", {})}}
        branch["required"] = ["kind", *branch.get("required", [])]
        branch.pop("additionalProperties", None)
        branches.append(branch)
    return {"oneOf": branches}


def _reference(rng: random.Random, depth: int) -> dict[str, Any]:
    """Only at the top: a part of the schema is named from there."""
    if depth:
        return _boolean(rng, depth)
    node: dict[str, Any] = {"value": random_schema(rng, 2)}
    return {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {**node, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": list(node),
            }
        },
        "type": "object",
        "properties": {"head": {"$ref": "#/$defs/node"}, "other": {"$ref": "#/$defs/node"}},
    }
