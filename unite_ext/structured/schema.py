"""JSON schemas as xgrammar can hold them: exactly, or refused by name.

xgrammar leaves out what it does not know. Here a schema is written again with nothing but what its grammars enforce,
and a keyword that would be left out raises ValueError with its place. The result may allow less than the schema (no
further properties, properties in the order of the schema), but every text that follows it is valid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

from .patterns import portable_pattern

MAX_DEPTH = 64
MAX_PARTS = 2000  # properties, values and alternatives: the time to compile grows faster than their number

_OBJECT = {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
_ARRAY = {"items", "prefixItems", "additionalItems", "minItems", "maxItems"}
_STRING = {"minLength", "maxLength", "pattern", "format"}
_NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OF_TYPE: dict[str, set[str]] = {
    "object": _OBJECT, "array": _ARRAY, "string": _STRING, "number": _NUMBER, "integer": _NUMBER,
    "boolean": set(), "null": set(),
}  # fmt: skip
_TYPED = {"type", *_OBJECT, *_ARRAY, *_STRING, *_NUMBER}
_WHOLE = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const")  # each stands for a schema by itself
_REFUSED = {
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "patternProperties", "propertyNames",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef",
    "$recursiveRef",
}  # fmt: skip
_TYPE_OF = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip


def portable_schema(schema: object) -> str:
    """A JSON schema, written again with nothing but what xgrammar enforces.

    Parameters
    ----------
    schema : mapping, str or a pydantic model
        A schema, its JSON text, or a class that has one (`model_json_schema`).

    Returns
    -------
    str
        The JSON text of the schema, or of one that allows less.

    Raises
    ------
    TypeError, ValueError
        It is no schema, or one that cannot be enforced: says what and where.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"json_schema must be a JSON schema, got text that is not JSON: {error}") from None
    elif isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, (Mapping, bool)):
        raise TypeError(f"json_schema must be a JSON schema, got {type(schema).__name__}")
    try:
        return json.dumps(_Writer(schema).write(schema, "$", 0), allow_nan=False)
    except TypeError as error:
        raise TypeError(f"json_schema must hold JSON values, got another: {error}") from None


def _are_names(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)


class _Writer:
    """Writes one schema again."""

    def __init__(self, root: Mapping[str, object] | bool) -> None:
        self._root = root
        self._parts = 0

    def write(self, schema: object, place: str, depth: int) -> dict[str, object]:
        """A schema at a place of the whole, such as `$.properties.a`."""
        if schema is True:
            return {}
        if schema is False:
            raise _wrong(place, "must allow something, got false")
        if not isinstance(schema, Mapping):
            raise _wrong(place, f"must be a schema, got {type(schema).__name__}")
        if depth > MAX_DEPTH:
            raise _wrong(place, f"must be at most {MAX_DEPTH} levels deep")
        for name in schema:
            if name in _REFUSED or (name == "uniqueItems" and schema[name]):
                raise _wrong(place, f"must not use {name!r}, which cannot be enforced token by token")
        definitions = {
            name: {key: self.write(each, f"{place}.{name}.{key}", depth + 1) for key, each in schema[name].items()}
            for name in ("$defs", "definitions")
            if isinstance(schema.get(name), Mapping)
        }
        return {**definitions, **self._body(schema, place, depth)}

    def _body(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        whole = [name for name in _WHOLE if name in schema]
        beside = {name for name in schema if name in _TYPED}
        if not whole:
            return self._typed(schema, place, depth)
        kind = whole[0]
        if len(whole) > 1 or beside - ({"type"} if kind in ("enum", "const") else set()):
            others = sorted({*whole[1:], *beside})
            raise _wrong(place, f"must not have {others[0]!r} beside {kind!r}: the two cannot be enforced together")
        if kind == "$ref":
            return self._reference(schema["$ref"], place)
        if kind in ("enum", "const"):
            return self._values(schema, place)
        branches = schema[kind]
        if not isinstance(branches, Sequence) or isinstance(branches, str) or not branches:
            raise _wrong(place, f"must have a list of schemas as {kind!r}, got {branches!r}")
        self._count(len(branches), place)
        if kind == "allOf" and len(branches) > 1:
            raise _wrong(place, f"must have one schema in 'allOf', got {len(branches)}: write them as one")
        if kind == "oneOf" and not self._disjoint(branches):
            raise _wrong(
                place,
                "must have schemas in 'oneOf' that exclude each other by type or by a constant property: use 'anyOf'",
            )
        written = [self.write(each, f"{place}.{kind}[{i}]", depth + 1) for i, each in enumerate(branches)]
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _reference(self, target: object, place: str) -> dict[str, object]:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")) or {"~", "%"} & set(target):
            raise _wrong(place, f"must refer to a part of the schema as '#/$defs/NAME', got {target!r}")
        self._resolve(target, place)
        return {"$ref": target}

    def _resolve(self, target: str, place: str) -> object:
        found: object = self._root
        for part in target.split("/")[1:]:
            if not isinstance(found, Mapping) or part not in found:
                raise _wrong(place, f"must refer to a part of the schema, got {target!r}, which is not there")
            found = found[part]
        return found

    def _values(self, schema: Mapping[str, object], place: str) -> dict[str, object]:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise _wrong(place, f"must have a list of values as 'enum', got {values!r}")
        types = self._types(schema, place)
        kept = [value for value in values if not types or _type_of(value) & set(types)]
        if not kept:
            raise _wrong(place, f"must allow a value, got none of type {schema.get('type')!r} among {list(values)!r}")
        self._count(len(kept), place)
        return {"enum": kept}

    def _types(self, schema: Mapping[str, object], place: str) -> list[str]:
        given = schema.get("type", [])
        types = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        found = [each for each in types if isinstance(each, str) and each in _OF_TYPE]
        for each in types:
            if each not in found:
                raise _wrong(place, f"must have a 'type' among {', '.join(_OF_TYPE)}, got {each!r}")
        return found

    def _typed(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        types = self._types(schema, place)
        if not types:  # the types that its keywords speak of; others would be allowed, too
            types = [t for t in ("object", "array", "string", "number") if _OF_TYPE[t] & schema.keys()]
        if not types:
            return {}
        makers: dict[str, Callable[[Mapping[str, object], str, int], dict[str, object]]] = {
            "object": self._object, "array": self._array, "string": self._string, "number": self._number,
            "integer": self._number,
        }  # fmt: skip
        written = [{"type": t, **(makers[t](schema, place, depth) if t in makers else {})} for t in types]
        # An integer is a number: one of the two is enough, and its bounds are written in its own way.
        if "number" in types:
            written = [each for each in written if each["type"] != "integer"]
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _object(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        given = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(given, Mapping):
            raise _wrong(place, f"must have an object as 'properties', got {given!r}")
        if not _are_names(required):
            raise _wrong(place, f"must have a list of names as 'required', got {required!r}")
        self._count(len(given), place)
        properties: dict[str, object] = {
            name: self.write(each, f"{place}.properties.{name}", depth + 1)
            for name, each in given.items()
            if each is not False or name in required
        }
        more = schema.get("additionalProperties", not given)
        for name in required:
            if name not in properties:
                if schema.get("additionalProperties") is False:
                    raise _wrong(place, f"must have {name!r} in 'properties', because it is required")
                properties[name] = self.write(more or {}, f"{place}.additionalProperties", depth + 1)
        written: dict[str, object] = {"properties": properties, "required": list(required)}
        if {"minProperties", "maxProperties"} & schema.keys():
            raise _wrong(place, "must not use 'minProperties' or 'maxProperties': name the properties in 'required'")
        if properties:
            # A further property could repeat the name of one that is there.
            if more not in (False, True) and "additionalProperties" in schema:
                raise _wrong(place, "must not have a schema in 'additionalProperties' beside 'properties'")
            written["additionalProperties"] = False
            return written
        if more is False:
            return {"properties": {}, "additionalProperties": False}
        more = self.write(more, f"{place}.additionalProperties", depth + 1)
        return {"additionalProperties": more} if more else {}

    def _array(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        items, prefix = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, Sequence):  # as it was written until draft 2019-09
            items, prefix = schema.get("additionalItems", True), items
        if not isinstance(prefix, Sequence) or isinstance(prefix, str):
            raise _wrong(place, f"must have a list of schemas as 'prefixItems', got {prefix!r}")
        self._count(len(prefix), place)
        low = self._whole_number(schema, "minItems", place, 0)
        high = self._whole_number(schema, "maxItems", place, None)
        if high is not None and high < (low or 0):
            raise _wrong(place, f"must have 'minItems' of at most 'maxItems', got {low} and {high}")
        written: dict[str, object] = {
            "items": False if items is False else self.write(items, f"{place}.items", depth + 1)
        }
        if prefix:
            written["prefixItems"] = [
                self.write(each, f"{place}.prefixItems[{i}]", depth + 1) for i, each in enumerate(prefix)
            ]
        if low:
            written["minItems"] = low
        if high is not None:
            written["maxItems"] = high
        return written

    def _string(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        used = [name for name in ("pattern", "format") if name in schema]
        bounded = [name for name in ("minLength", "maxLength") if name in schema]
        if len(used) + bool(bounded) > 1:
            first, second = [*used, *bounded][:2]
            raise _wrong(place, f"must not have {second!r} beside {first!r}: the two cannot be enforced together")
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                raise _wrong(place, f"must have a regular expression as 'pattern', got {schema['pattern']!r}")
            return {"pattern": portable_pattern(schema["pattern"], f"json_schema: {place}.pattern")}
        if "format" in schema:
            return {"format": schema["format"]}
        if not bounded:
            return {}
        low = self._whole_number(schema, "minLength", place, 0)
        high = self._whole_number(schema, "maxLength", place, None)
        if high is not None and high < (low or 0):
            raise _wrong(place, f"must have 'minLength' of at most 'maxLength', got {low} and {high}")
        # As a pattern: xgrammar's own bounded strings may hold control characters, which JSON does not allow.
        return {"pattern": f'^[^\\x00-\\x1f"\\\\]{{{low},{"" if high is None else high}}}$'}

    def _number(self, schema: Mapping[str, object], place: str, depth: int) -> dict[str, object]:
        written: dict[str, object] = {}
        for name in _NUMBER & schema.keys():
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise _wrong(place, f"must have a number as {name!r}, got {value!r}")
            written[name] = value
        if "multipleOf" in written and (len(written) > 1 or schema.get("type") != "integer"):
            raise _wrong(place, "must have 'multipleOf' in integers only, and no bound beside it")
        return written

    def _whole_number(self, schema: Mapping[str, object], name: str, place: str, default: int | None) -> int | None:
        value = schema.get(name, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise _wrong(place, f"must have a whole number as {name!r}, got {value!r}")
        return value

    def _count(self, parts: int, place: str) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise _wrong(place, f"must have at most {MAX_PARTS} properties, values and alternatives in all")

    def _disjoint(self, branches: Sequence[object]) -> bool:
        """Whether no value follows two of these schemas, as far as types and constants tell."""
        known = [self._followed(each) for each in branches]
        return all(_exclude(a, b) for i, a in enumerate(known) for b in known[:i])

    def _followed(self, schema: object) -> object:
        """A schema behind its references; properties' schemas likewise."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
                break
            schema = self._resolve(schema["$ref"], "$")
        return schema


def _exclude(a: object, b: object) -> bool:
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return False
    first, second = _values_of(a), _values_of(b)
    if first is not None and second is not None:
        return not set(first) & set(second)
    types = [_type_names(each) for each in (a, b)]
    if types[0] and types[1] and not types[0] & types[1]:
        return True
    shared = set(a.get("required", ())) & set(b.get("required", ()))
    for name in shared:
        own = [_values_of(each.get("properties", {}).get(name, {})) for each in (a, b)]
        if own[0] is not None and own[1] is not None and not set(own[0]) & set(own[1]):
            return types[0] == types[1] == {"object"}
    return False


def _values_of(schema: object) -> list[str] | None:
    """The only values that a schema allows, as JSON; None where it does not list them."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [json.dumps(schema["const"], sort_keys=True)]
    values = schema.get("enum")
    return None if not isinstance(values, list) else [json.dumps(value, sort_keys=True) for value in values]


def _type_names(schema: Mapping[str, object]) -> set[str]:
    """The types that a schema allows, an integer being a number; empty where it does not say."""
    given = schema.get("type", [])
    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    types = {each for each in listed if isinstance(each, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not types and isinstance(values, Sequence):
        types = types.union(*map(_type_of, values))
    return {"number" if t == "integer" else t for t in types}


def _type_of(value: object) -> set[str]:
    own = _TYPE_OF.get(type(value))
    if own is None:
        raise ValueError(f"json_schema must hold JSON values, got {type(value).__name__}")
    whole = isinstance(value, float) and value.is_integer()
    return {own, "number"} if own == "integer" else {"number", "integer"} if whole else {own}


def _wrong(place: str, what: str) -> ValueError:
    return ValueError(f"json_schema: {place} {what}")
