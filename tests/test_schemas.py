"""JSON schemas as they are enforced: what is written of them, and what is refused with its place."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from unite_ext.structured.schema import portable_schema

WRITTEN = [
    ({"type": "string"}, {"type": "string"}),
    (True, {}),
    ({"minLength": 2}, {"type": "string", "pattern": '^[^\\x00-\\x1f"\\\\]{2,}$'}),
    (
        {"type": "object", "additionalProperties": False},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ),
    ({"type": ["integer", "number"], "maximum": 3}, {"type": "number", "maximum": 3}),
    ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ({"oneOf": [{"const": 1}, {"enum": [2, 3]}]}, {"anyOf": [{"enum": [1]}, {"enum": [2, 3]}]}),
    ({"oneOf": [{"enum": [1.0, 2]}, {"type": "string"}]}, {"anyOf": [{"enum": [1.0, 2]}, {"type": "string"}]}),
    (
        {"$defs": {"a": {"type": "null"}}, "oneOf": [{"$ref": "#/$defs/a"}, {"type": "boolean"}]},
        {"$defs": {"a": {"type": "null"}}, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "boolean"}]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "written"), WRITTEN, ids=str)
def test_what_is_enforced(schema, written):
    assert json.loads(portable_schema(schema)) == written


def test_a_pydantic_model_is_its_schema():
    class Point(BaseModel):
        x: int
        name: str = "here"

    assert portable_schema(Point) == portable_schema(Point.model_json_schema())
    assert set(json.loads(portable_schema(Point))["properties"]) == {"x", "name"}


REFUSED = [
    ({"properties": {"a": 3}}, r"\$\.properties\.a must be a schema, got int"),
    ({"anyOf": {}}, r"\$ must have a list of schemas as 'anyOf', got {}"),
    ({"enum": "abc"}, r"\$ must have a list of values as 'enum', got 'abc'"),
    ({"type": "string", "const": {1}}, "json_schema must hold JSON values, got set"),
    ({"type": "object", "properties": ["a"]}, r"must have an object as 'properties', got \['a'\]"),
    ({"type": "object", "required": [1]}, r"must have a list of names as 'required', got \[1\]"),
    ({"type": "object", "required": "ab"}, "must have a list of names as 'required', got 'ab'"),
    ({"type": "array", "prefixItems": "a"}, "must have a list of schemas as 'prefixItems', got 'a'"),
    ({"items": {"type": "string", "pattern": 3}}, r"\$\.items must have a regular expression as 'pattern', got 3"),
    ({"minLength": 3, "maxLength": 2}, "must have 'minLength' of at most 'maxLength', got 3 and 2"),
    ({"type": "number", "minimum": "3"}, "must have a number as 'minimum', got '3'"),
    ({"type": "integer", "maximum": True}, "must have a number as 'maximum', got True"),
    ({"type": "array", "minItems": -1}, "must have a whole number as 'minItems', got -1"),
    ({"type": "array", "maxItems": 1.5}, r"must have a whole number as 'maxItems', got 1\.5"),
    ({"oneOf": [True, {"type": "null"}]}, "exclude each other"),
    ({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}, "exclude each other"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED, ids=str)
def test_what_is_no_schema(schema, message):
    with pytest.raises(ValueError, match=message):
        portable_schema(schema)


@pytest.mark.parametrize("schema", [3, None, ["string"], int])
def test_what_is_not_even_an_object(schema):
    with pytest.raises(TypeError, match="json_schema must be a JSON schema, got"):
        portable_schema(schema)


def test_values_that_json_cannot_write():
    with pytest.raises(TypeError, match="json_schema must hold JSON values, got another"):
        portable_schema({"const": {1}})
