"""ChannelCoder's short notation of a declaration, as JSON Schema."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from channelcoder_flows.errors import SchemaError
from channelcoder_flows.schema.json_schema import (
    TYPES,
    JsonSchema,
    check_keywords,
    is_json_schema,
    is_type,
    nearest,
    references,
)
from channelcoder_flows.schema.model import type_of

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MODIFIERS = ("type", "enum", "default", "min", "max", "optional", "nullable", "description", "items")
_MAX_LISTS = 8
_LIMITS = {
    "string": ("minLength", "maxLength"),
    "number": ("minimum", "maximum"),
    "integer": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}


def from_short(fields: Mapping[str, Any], path: str = "") -> JsonSchema:
    """Return a mapping of names to types as JSON Schema; `path` is where it stands.

    Raises:
        SchemaError: a name or a type cannot be used.
    """
    properties: JsonSchema = {}
    required: list[str] = []
    for key, value in fields.items():
        name = key.removesuffix("?")
        where = f"{path}.{name}" if path else name
        if not _NAME.fullmatch(name):
            raise SchemaError("a name has letters, digits, _ and -, and begins with a letter", path=where)
        if name in properties:
            raise SchemaError(f"is declared twice: {name} and {name}?", path=where)
        properties[name], optional = _field(value, where)
        if not (optional or key.endswith("?")):
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _field(value: Any, path: str) -> tuple[JsonSchema, bool]:
    """Return a field's schema, and whether it may be left out."""
    match value:
        case str():
            return _named_type(value, path), False
        case [item]:
            return {"type": "array", "items": _field(item, path)[0]}, False
        case Mapping():
            fields = cast("Mapping[str, Any]", value)
            if _is_modified(fields):
                return _modified(fields, path)
            if is_json_schema(fields, root=False):
                return _nested(fields, path), "default" in fields
            return from_short(fields, path), False
        case _:
            raise SchemaError(f"is a type ({', '.join(TYPES)}, or one with []), or a mapping", path=path)


def _nested(fields: Mapping[str, Any], path: str) -> JsonSchema:
    schema = dict(fields)
    if any(references(schema)):
        raise SchemaError("$ref needs the whole declaration to be JSON Schema (type: object, properties)", path=path)
    check_keywords(schema, path)
    return schema


def _named_type(text: str, path: str) -> JsonSchema:
    name = text.strip().lower()
    if name.count("[]") > _MAX_LISTS:
        raise SchemaError(f"is a list of lists more than {_MAX_LISTS} deep", path=path)
    if name.endswith("[]"):
        return {"type": "array", "items": _named_type(name[:-2], path)}
    name = "boolean" if name == "bool" else name
    if name not in TYPES:
        known = f"; the types are {', '.join(TYPES)}, each also with []"
        raise SchemaError(f"{text!r} is not a type{nearest(name, TYPES) or known}", path=path)
    return {} if name == "any" else {"type": name}


def _is_modified(fields: Mapping[str, Any]) -> bool:
    """Whether this is one field with modifiers, and not a nested map that has a field named `type` or `enum`."""
    if not set(fields) <= set(_MODIFIERS):
        return False
    kind, choices = fields.get("type"), fields.get("enum")
    return is_type(kind) if "type" in fields else isinstance(choices, list)


def _modified(fields: Mapping[str, Any], path: str) -> tuple[JsonSchema, bool]:
    schema = _named_type(fields["type"], path) if "type" in fields else {}
    kind = schema.get("type", "any")
    if "items" in fields:
        if kind != "array" or "items" in schema:
            raise SchemaError("items goes with type: array", path=path)
        schema["items"] = _field(fields["items"], path)[0]
    for limit, position in (("min", 0), ("max", 1)):
        if limit in fields:
            if kind not in _LIMITS:
                raise SchemaError(f"{limit} goes with string, number, integer or array", path=path)
            schema[_LIMITS[kind][position]] = _limit(fields[limit], limit, kind, path)
    if "min" in fields and "max" in fields and fields["min"] > fields["max"]:
        raise SchemaError(f"min {fields['min']} is over max {fields['max']}", path=path)
    for flag in ("optional", "nullable"):
        if not isinstance(fields.get(flag, False), bool):
            raise SchemaError(f"{flag} is true or false", path=path)
    if "enum" in fields:
        choices = fields["enum"]
        if not isinstance(choices, list) or not choices:
            raise SchemaError("enum is a list of values", path=path)
        _check_values(schema, cast("list[Any]", choices), "enum", path)
        schema["enum"] = list(cast("list[Any]", choices))
    if fields.get("nullable"):
        schema = _nullable(schema)
    if "description" in fields:
        if not isinstance(fields["description"], str):
            raise SchemaError("description is a text", path=path)
        schema["description"] = fields["description"]
    if "default" in fields:
        _check_values(schema, [fields["default"]], "default", path)
        schema["default"] = fields["default"]
    return schema, fields.get("optional", False) or "default" in fields


def _limit(value: Any, limit: str, kind: str, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SchemaError(f"{limit} is a number", path=path)
    if kind in ("string", "array") and (not isinstance(value, int) or value < 0):
        raise SchemaError(f"{limit} is a length: a whole number from 0", path=path)
    return value


def _nullable(schema: JsonSchema) -> JsonSchema:
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema


def _check_values(schema: JsonSchema, values: list[Any], what: str, path: str) -> None:
    kind, _ = type_of(schema, "Value")
    adapter = TypeAdapter[Any](kind)
    for value in values:
        try:
            adapter.validate_python(value)
        except ValidationError as exc:
            reason = exc.errors(include_url=False)[0]["msg"]
            hint = "; put it in quotes" if schema.get("type") == "string" else ""
            raise SchemaError(f"{what} {value!r:.60} does not fit: {reason}{hint}", path=path) from exc
