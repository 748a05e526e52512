"""Declarations of inputs and outputs: a short notation or JSON Schema, as JSON Schema and as pydantic models. Pure.

    title: string               files: string[]             config: {port: integer, host?: string}
    note?: string               kind: {type: string, enum: [bug, feature], default: bug}
    items: [{name: string}]     size: {type: integer, min: 1, max: 9, nullable: true, description: "in cm"}

The short notation is ChannelCoder's. Everything becomes JSON Schema first, since that is what the CLI is given.
A model says the same as the schema: nothing is coerced, and what pydantic cannot say is left to `jsonschema`.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, cast
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from channelcoder_flows.errors import SchemaError

JsonSchema = dict[str, Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_TYPES = ("string", "number", "integer", "boolean", "array", "object", "any")
_MODIFIERS = ("type", "enum", "default", "min", "max", "optional", "nullable", "description", "items")
_LIMITS = {
    "string": ("minLength", "maxLength"),
    "number": ("minimum", "maximum"),
    "integer": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}
_DATA = ("enum", "const", "default", "examples")
_NOTES = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$defs", "definitions"}
_ALLOWS = {
    "string": {"minLength", "maxLength"},
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_ARGUMENTS = {
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "minimum": "ge",
    "maximum": "le",
}
_KEYWORDS = (
    *_NOTES,
    *_DATA,
    *_ARGUMENTS,
    "items",
    "prefixItems",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "unevaluatedItems",
    "properties",
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
    "required",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "pattern",
    "format",
    "contentEncoding",
    "contentMediaType",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "$id",
    "$anchor",
    "readOnly",
    "writeOnly",
)
_SAID = {"string": "a text", "number": "a number", "integer": "a whole number", "boolean": "true or false"} | {
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}


def json_schema(declaration: Any) -> JsonSchema:
    """Return a declaration as JSON Schema.

    Raises:
        SchemaError: it cannot be used; `path` says where (`config.port`).
    """
    if not isinstance(declaration, Mapping):
        raise SchemaError("is a mapping of names to types, such as {title: string}")
    given = cast("Mapping[str, Any]", declaration)
    return _checked(dict(given)) if _is_json_schema(given) else _object(given, "")


def model_from(declaration: Mapping[str, Any], *, name: str = "Data") -> type[Declared]:
    """Return the pydantic model of a declaration. It takes JSON data and dumps JSON data.

    Raises:
        SchemaError: the declaration cannot be used.
    """
    schema = json_schema(declaration)
    fields, whole = _fields(schema, name)
    base = Declared if schema.get("additionalProperties", True) is False else _Open
    model = create_model(name, __base__=base if whole else (_Exact, base), **fields)
    model.declared = schema
    return model


def problems(model: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """Return what is wrong as (path, problem), such as `("config.port", "is missing")`."""
    schema: JsonSchema = getattr(model, "declared", {})
    found: list[tuple[str, str]] = []
    for each in error.errors(include_url=False):
        place = tuple(each.get("ctx", {}).get("place", each["loc"]))
        match each["type"]:
            case "missing":
                problem = "is missing"
            case "extra_forbidden":
                problem = "is not declared" + nearest(str(place[-1]), _names_at(schema, place[:-1]))
            case _:
                problem = each["msg"].removeprefix("Input should ").removeprefix("be ")
                problem = problem if each["type"] in ("mismatch", "json_schema") else f"should be {problem}"
        found.append((_dotted(place), problem))
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word that is nearest to `word`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def path_problem(schema: JsonSchema, path: str) -> str:
    """Return why `path` (`ticket.titel`) can never have a value under `schema`, or nothing."""
    here: Any = schema
    for part in path.split("."):
        known = here.get("properties") if isinstance(here, dict) else None
        if not isinstance(known, dict) or cast("JsonSchema", here).get("additionalProperties") is not False:
            return ""
        if part not in known:
            return f"{part!r} is not declared{nearest(part, cast('JsonSchema', known))}"
        here = cast("JsonSchema", known)[part]
    return ""


# ---- the short notation


def _object(fields: Mapping[str, Any], path: str) -> JsonSchema:
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
            if _is_json_schema(fields, root=False):
                return _checked(dict(fields), path, root=False), "default" in fields
            return _object(fields, path), False
        case _:
            raise SchemaError(f"is a type ({', '.join(_TYPES)}, or one with []), or a mapping", path=path)


def _named_type(text: str, path: str) -> JsonSchema:
    name = text.strip().lower()
    if name.endswith("[]"):
        return {"type": "array", "items": _named_type(name[:-2], path)}
    name = "boolean" if name == "bool" else name
    if name not in _TYPES:
        known = f"; the types are {', '.join(_TYPES)}, each also with []"
        raise SchemaError(f"{text!r} is not a type{nearest(name, _TYPES) or known}", path=path)
    return {} if name == "any" else {"type": name}


def _is_modified(fields: Mapping[str, Any]) -> bool:
    """Whether this is one field with modifiers, and not a nested map that has a field named `type` or `enum`."""
    if not set(fields) <= set(_MODIFIERS):
        return False
    kind, choices = fields.get("type"), fields.get("enum")
    return _is_type(kind) if "type" in fields else isinstance(choices, list)


def _is_type(value: Any) -> bool:
    name = value.strip().lower().rstrip("[]") if isinstance(value, str) else ""
    return name == "bool" or name in _TYPES


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
        for choice in cast("list[Any]", choices):
            _check_value(schema, choice, "enum", path)
        schema["enum"] = list(cast("list[Any]", choices))
    if fields.get("nullable"):
        schema = _nullable(schema)
    if "description" in fields:
        if not isinstance(fields["description"], str):
            raise SchemaError("description is a text", path=path)
        schema["description"] = fields["description"]
    if "default" in fields:
        _check_value(schema, fields["default"], "default", path)
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


def _check_value(schema: JsonSchema, value: Any, what: str, path: str) -> None:
    kind, _ = _type_of(schema, "Value")
    try:
        TypeAdapter[Any](kind).validate_python(value)
    except ValidationError as exc:
        reason = exc.errors(include_url=False)[0]["msg"]
        raise SchemaError(f"{what} {value!r} does not fit: {reason}", path=path) from exc


# ---- JSON Schema


def _is_json_schema(given: Mapping[str, Any], *, root: bool = True) -> bool:
    """Whether a mapping is JSON Schema, and not a short notation with fields of those names."""
    if any(isinstance(given.get(key), str) for key in ("$schema", "$ref")) or isinstance(given.get("$defs"), dict):
        return True
    if any(isinstance(given.get(key), list) for key in ("anyOf", "oneOf", "allOf")):
        return True
    kind = given.get("type")
    if isinstance(kind, str) and root and kind != "object" and not (kind == "array" and "items" in given):
        return False
    others = {key: value for key, value in given.items() if key != "type"}
    return (isinstance(kind, list) or kind in _ALLOWS) and all(
        key in _KEYWORDS and not _is_type(value) for key, value in others.items()
    )


def _checked(schema: JsonSchema, path: str = "", *, root: bool = True) -> JsonSchema:
    from jsonschema import SchemaError as Invalid

    if root:
        for place, reference in _references(schema, ()):
            _resolve(schema, reference, place)
        schema = _inlined(schema)
        if schema.get("type") != "object":
            raise SchemaError("the outermost schema has `type: object`; put other types into a property", path=path)
        if choice := next((key for key in ("anyOf", "oneOf", "allOf") if key in schema), ""):
            raise SchemaError(f"the outermost schema cannot have {choice}; put the choice into a property", path=path)
    elif any(_references(schema, ())):
        raise SchemaError("$ref needs the whole declaration to be JSON Schema (type: object, properties)", path=path)
    try:
        _draft(schema).check_schema(schema)
    except Invalid as exc:
        inside = _dotted(tuple(exc.absolute_path))
        raise SchemaError(f"is not JSON Schema: {exc.message}", path=".".join(filter(None, (path, inside)))) from exc
    return schema


def _draft(schema: JsonSchema) -> Any:
    """Return jsonschema's validator class for the version that the schema names; 2020-12 where it names none."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for  # pyright: ignore[reportUnknownVariableType]

    found: Any = validator_for(schema, None) if "$schema" in schema else Draft202012Validator
    if found is None:
        raise SchemaError(f"{schema['$schema']!r} is not a version of JSON Schema that is known", path="$schema")
    return found


def _references(schema: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(schema, dict):
        for key, value in cast("JsonSchema", schema).items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield (*place, key), value
            elif key == "$id" and isinstance(value, str) and place:
                raise SchemaError("$id belongs to the outermost schema only", path=_dotted((*place, key)))
            elif key not in _DATA:
                yield from _references(value, (*place, key))
    elif isinstance(schema, list):
        for position, value in enumerate(cast("list[Any]", schema)):
            yield from _references(value, (*place, position))


def _resolve(schema: JsonSchema, reference: str, place: tuple[Any, ...]) -> Any:
    """Follow a reference, and those it leads to, to what is none.

    Nothing is ever fetched: a schema that another machine can change is no promise.
    """
    seen: set[str] = set()
    while True:
        if reference != "#" and not reference.startswith("#/"):
            raise SchemaError(
                f"$ref {reference!r} is refused; only #/… of this declaration is read", path=_dotted(place)
            )
        if reference in seen:
            raise SchemaError(f"$ref {reference!r} leads back to itself", path=_dotted(place))
        seen.add(reference)
        found: Any = schema
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(cast("list[Any]", found)):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = cast("JsonSchema", found)[name]
            else:
                raise SchemaError(f"$ref {reference!r} leads nowhere", path=_dotted(place))
        following = cast("JsonSchema", found).get("$ref") if isinstance(found, dict) else None
        if not isinstance(following, str):
            return found
        reference = following


def _inlined(schema: JsonSchema) -> JsonSchema:
    """Return the schema with an outermost $ref replaced by what it names: the API takes no $ref there."""
    if not isinstance(schema.get("$ref"), str):
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    target = _resolve(schema, schema["$ref"], ("$ref",))
    return {**target, **rest} if isinstance(target, dict) else schema


# ---- pydantic


class Declared(BaseModel):
    """The base of every model made here: immutable, nothing coerced, dumped under the declared names."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, protected_namespaces=())
    declared: ClassVar[JsonSchema] = {}

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        for name, field in type(self).model_fields.items():
            if _ABSENT in field.metadata and name not in self.model_fields_set:
                data.pop(field.alias or name, None)
        return data


class _Open(Declared):
    model_config = ConfigDict(extra="allow")


class _Exact(Declared):
    """A model whose schema says more than pydantic can."""

    @model_validator(mode="before")
    @classmethod
    def _obey(cls, data: Any) -> Any:
        from jsonschema import FormatChecker
        from jsonschema.exceptions import best_match
        from referencing import Registry

        validator = _draft(cls.declared)(cls.declared, registry=Registry(), format_checker=FormatChecker())
        try:
            worst = best_match(validator.iter_errors(data))
        except RecursionError:
            raise PydanticCustomError("json_schema", "is nested too deep to be checked") from None
        if worst is not None:
            place = tuple(worst.absolute_path)
            raise PydanticCustomError("json_schema", "{problem}", {"problem": worst.message, "place": place})
        return data


_ABSENT = "absent"


def _fields(schema: JsonSchema, name: str) -> tuple[dict[str, Any], bool]:
    """Return the fields of an object's model, and whether their types say all that the schema does."""
    fields: dict[str, Any] = {}
    whole = not _beyond(schema)
    for key, declared in schema.get("properties", {}).items():
        kind, exact = _type_of(declared, f"{name}_{key}")
        whole = whole and exact
        notes: dict[str, Any] = {"alias": key}
        if isinstance(declared, dict) and isinstance(declared.get("description"), str):
            notes["description"] = declared["description"]
        if key in schema.get("required", ()):
            fields[_attribute(key, fields)] = (kind, Field(**notes))
        elif isinstance(declared, dict) and "default" in declared:
            fields[_attribute(key, fields)] = (kind, Field(**notes, default=declared["default"]))
        else:
            fields[_attribute(key, fields)] = (Annotated[kind, _ABSENT], Field(**notes, default=None))
    whole = whole and set(schema.get("required", ())) <= set(schema.get("properties", {}))
    return fields, whole


def _attribute(key: str, taken: Mapping[str, Any]) -> str:
    name = re.sub(r"\W", "_", key).strip("_") or "field"
    name = f"field_{name}" if name[0].isdigit() else name
    while keyword.iskeyword(name) or hasattr(Declared, name) or name in taken:
        name += "_"
    return name


def _beyond(schema: JsonSchema) -> bool:
    """Whether the schema has a word that the types made here do not say."""
    kind = schema.get("type", "any")
    if not isinstance(kind, str):
        return True
    return not set(schema) <= _NOTES | {"type", "enum"} | _ALLOWS.get(kind, set()) or not isinstance(
        schema.get("additionalProperties", True), bool
    )


def _type_of(schema: Any, name: str) -> tuple[Any, bool]:
    """Return the type of a schema's values, and whether it says all that the schema does."""
    if not isinstance(schema, dict):
        return Any, False
    schema = cast("JsonSchema", schema)
    kind = schema.get("type", "any")
    if isinstance(kind, list) and len(cast("list[Any]", kind)) == 2 and kind[1] == "null":
        inner, whole = _type_of(schema | {"type": kind[0]}, name)
        return inner | None if isinstance(inner, type) else Annotated[Any, BeforeValidator(_or_null(inner))], whole
    if _beyond(schema):
        return Any, False
    whole = True
    found: Any = _PLAIN.get(kind, Any)
    if kind == "array" and "items" in schema:
        item, whole = _type_of(schema["items"], name)
        found = list[item]
    elif kind == "object" and ("properties" in schema or "additionalProperties" in schema or "required" in schema):
        fields, whole = _fields(schema, name)
        found = create_model(name, __base__=_Open if schema.get("additionalProperties", True) else Declared, **fields)
    limits = {_ARGUMENTS[word]: schema[word] for word in _ARGUMENTS if word in schema}
    if limits:
        found = Annotated[found, Field(**limits)]
    if kind in _SAID:
        found = Annotated[found, BeforeValidator(_expect(kind))]
    if "enum" in schema:
        found = Annotated[found, BeforeValidator(_one_of(schema["enum"]))]
    return found, whole


_PLAIN: dict[str, Any] = {
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
    "null": None,
    "array": list[Any],
    "object": dict[str, Any],
}


def _or_null(kind: Any) -> Callable[[Any], Any]:
    adapter = TypeAdapter[Any](kind)
    return lambda value: None if value is None else adapter.validate_python(value)


def _expect(kind: str) -> Callable[[Any], Any]:
    def expect(value: Any) -> Any:
        match value:
            case bool():
                fits = kind == "boolean"
            case str():
                fits = kind == "string"
            case int():
                fits = kind in ("integer", "number")
            case float():
                if kind == "integer" and value.is_integer():
                    return int(value)
                fits = kind == "number" and math.isfinite(value)
            case None:
                fits = kind == "null"
            case list() | tuple():
                fits = kind == "array"
            case Mapping():
                fits = kind == "object"
            case _:
                fits = False
        if not fits:
            raise PydanticCustomError(
                "mismatch", "is {wanted}, not {found}", {"wanted": _SAID[kind], "found": _short(value)}
            )
        return value

    return expect


def _one_of(choices: list[Any]) -> Callable[[Any], Any]:
    def one_of(value: Any) -> Any:
        if not any(value == choice and isinstance(value, bool) is isinstance(choice, bool) for choice in choices):
            known = ", ".join(map(_short, choices))
            hint = (
                nearest(value, [choice for choice in choices if isinstance(choice, str)])
                if isinstance(value, str)
                else ""
            )
            raise PydanticCustomError(
                "mismatch", "{problem}", {"problem": f"is one of {known}, not {_short(value)}{hint}"}
            )
        return value

    return one_of


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _names_at(schema: JsonSchema, place: tuple[Any, ...]) -> list[str]:
    here: Any = schema
    for part in place:
        here = here.get("items") if isinstance(part, int) else here.get("properties", {}).get(part)
        if not isinstance(here, dict):
            return []
    return list(here.get("properties", ()))


def _dotted(place: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
