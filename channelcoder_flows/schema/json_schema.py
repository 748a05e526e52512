"""JSON Schema as declarations use it: recognised, checked, and never fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, cast
from urllib.parse import unquote

from channelcoder_flows.errors import SchemaError

JsonSchema = dict[str, Any]

_LONG_WORD = 100
"""Characters of a word that is no misspelling of another: comparing it would take long."""

_LONG_MESSAGE = 400

TYPES = ("string", "number", "integer", "boolean", "array", "object", "any")


_DATA = ("enum", "const", "default", "examples")
NOTES = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$defs", "definitions"}


ALLOWS: dict[str, set[str]] = {
    "string": {"minLength", "maxLength"},
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
"""The words that pydantic can say, by type."""
_KEYWORDS = (
    *NOTES,
    *_DATA,
    *(word for words in ALLOWS.values() for word in words),
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


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word that is nearest to `word`, or nothing."""
    from difflib import get_close_matches

    if len(word) > _LONG_WORD:
        return ""
    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def path_problem(schema: JsonSchema, path: str) -> str:
    """Return why `path` (`ticket.titel`) can never have a value under `schema`, or nothing."""
    here = schema
    for part in path.split("."):
        if here.get("additionalProperties") is not False:
            return ""
        known = as_mapping(here.get("properties"))
        if part not in known:
            return f"{part!r} is not declared{nearest(part, known)}"
        here = as_mapping(known[part])
    return ""


def as_mapping(value: Any) -> JsonSchema:
    """Return a mapping as it is, and an empty one for anything else."""
    return cast("JsonSchema", value) if isinstance(value, dict) else {}


def is_type(value: Any) -> bool:
    """Whether a value is a type of the short notation, such as `string[]`."""
    name = value.strip().lower().rstrip("[]") if isinstance(value, str) else ""
    return name == "bool" or name in TYPES


def is_json_schema(given: Mapping[str, Any], *, root: bool = True) -> bool:
    """Whether a mapping is JSON Schema, and not a short notation with fields of those names."""
    if any(isinstance(given.get(key), str) for key in ("$schema", "$ref")) or isinstance(given.get("$defs"), dict):
        return True
    if any(isinstance(given.get(key), list) for key in ("anyOf", "oneOf", "allOf")):
        return True
    kind = given.get("type")
    if isinstance(kind, str) and root and kind != "object" and not (kind == "array" and "items" in given):
        return False
    others = {key: value for key, value in given.items() if key != "type"}
    return (isinstance(kind, list) or kind in ALLOWS) and all(
        key in _KEYWORDS and not is_type(value) for key, value in others.items()
    )


def check_schema(schema: JsonSchema) -> JsonSchema:
    """Return a whole declaration that is JSON Schema, with an outermost $ref replaced by what it names.

    Raises:
        SchemaError: it is not JSON Schema, not of `type: object`, or a $ref leads out of it or nowhere.
    """
    for place, reference in references(schema):
        _resolve(schema, reference, place)
    if isinstance(schema.get("$ref"), str):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**as_mapping(_resolve(schema, schema["$ref"], ("$ref",))), **rest}
    check_keywords(schema)
    # Claude answers by calling a tool with it, and the API takes only an object there.
    if schema.get("type") != "object":
        raise SchemaError("the outermost schema has type: object; put other types into a property")
    if choice := next((key for key in ("anyOf", "oneOf", "allOf") if key in schema), ""):
        raise SchemaError(f"the outermost schema cannot have {choice}; put the choice into a property")
    return schema


def check_keywords(schema: JsonSchema, path: str = "") -> None:
    """Check that a schema's keywords have values they can have.

    Raises:
        SchemaError: one has not; `path` is where the schema itself stands.
    """
    from jsonschema import SchemaError as Invalid
    from pydantic_core import SchemaError as NotLinear

    try:
        validator_class(schema).check_schema(schema)
    except Invalid as exc:
        inside = dotted(tuple(exc.absolute_path))
        problem = f"is not JSON Schema: {_cut(exc.message)}"
        raise SchemaError(problem, path=".".join(filter(None, (path, inside)))) from exc
    for place, pattern in _patterns(schema):
        try:
            _matcher(pattern)
        except NotLinear as exc:
            problem = "cannot be matched in linear time: no looking ahead or behind, no reference back, no \\Z"
            raise SchemaError(problem, path=".".join(filter(None, (path, dotted(place))))) from exc


def validator_class(schema: JsonSchema) -> Any:
    """Return jsonschema's validator class for the version that the schema names; 2020-12 where it names none."""
    from jsonschema import Draft202012Validator, validators

    version = schema.get("$schema", Draft202012Validator.META_SCHEMA["$schema"])
    found: Any = validators.validator_for({"$schema": version}, default=cast("Any", None))
    if found is None:
        raise SchemaError(f"{version!r} is not a version of JSON Schema that is known", path="$schema")
    return found


def first_error(schema: JsonSchema, data: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Return the place and text of what is most wrong with `data` under a checked schema, or None."""
    from jsonschema import FormatChecker, exceptions
    from referencing import Registry

    # With a registry of its own, jsonschema never fetches what a schema refers to.
    nothing: Any = cast("Any", Registry)()
    validator = _in_linear_time(validator_class(schema))(schema, registry=nothing, format_checker=FormatChecker())
    worst = cast("Any", exceptions).best_match(validator.iter_errors(data))
    return None if worst is None else (tuple(worst.absolute_path), _cut(worst.message))


@cache
def _in_linear_time(validator: Any) -> Any:
    """Return a validator class whose patterns take time linear in the value, whatever they are.

    With Python's own expressions, 30 characters and `^(a+)+$` keep a process busy for minutes, and deaf to every limit.
    """
    from jsonschema import ValidationError, validators

    def pattern(_: Any, expression: str, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not _matcher(expression).isinstance_python(instance):
            yield ValidationError(f"{instance[:100]!r} does not match {expression!r}")

    def pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
        for expression, inner in patterns.items() if validator.is_type(instance, "object") else ():
            for key, value in instance.items():
                if _matcher(expression).isinstance_python(key):
                    yield from validator.descend(value, inner, path=key, schema_path=expression)

    def additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            matchers = [_matcher(expression) for expression in schema.get("patternProperties", ())]
            known = schema.get("properties", {})
            fits = [key for key in instance if key in known or any(each.isinstance_python(key) for each in matchers)]
            yield from others(validator, wanted, {k: v for k, v in instance.items() if k not in fits}, {})

    others = validator.VALIDATORS["additionalProperties"]
    linear = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
    return cast("Any", validators).extend(validator, linear)


@cache
def _matcher(pattern: str) -> Any:
    """Return a validator of texts that match. Raises pydantic_core's `SchemaError` for what is not linear."""
    from pydantic_core import SchemaValidator, core_schema

    return SchemaValidator(core_schema.str_schema(pattern=pattern))


def _patterns(schema: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield the place and text of each pattern in a schema, of texts and of names."""
    if isinstance(schema, dict):
        for key, value in as_mapping(schema).items():
            if key == "pattern" and isinstance(value, str):
                yield (*place, key), value
            elif key == "patternProperties" and isinstance(value, dict):
                for name, inner in as_mapping(value).items():
                    yield (*place, key, name), name
                    yield from _patterns(inner, (*place, key, name))
            elif key not in _DATA:
                yield from _patterns(value, (*place, key))
    elif isinstance(schema, list):
        for position, value in enumerate(cast("list[Any]", schema)):
            yield from _patterns(value, (*place, position))


def _cut(message: str) -> str:
    """Return a message of jsonschema's, which has the whole value in it, at a length to read."""
    return message if len(message) <= _LONG_MESSAGE else f"{message[: _LONG_MESSAGE // 2]} … {message[-60:]}"


def references(schema: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield the place and text of each reference in a schema."""
    if isinstance(schema, dict):
        for key, value in as_mapping(schema).items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield (*place, key), value
            elif key == "$id" and isinstance(value, str) and place:
                raise SchemaError("$id belongs to the outermost schema only", path=dotted((*place, key)))
            elif key not in _DATA:
                yield from references(value, (*place, key))
    elif isinstance(schema, list):
        for position, value in enumerate(cast("list[Any]", schema)):
            yield from references(value, (*place, position))


def _resolve(schema: JsonSchema, reference: str, place: tuple[Any, ...]) -> Any:
    """Follow a reference, and those it leads to, to what is none.

    Nothing is ever fetched: a schema that another machine can change is no promise.
    """
    seen: set[str] = set()
    while True:
        if reference != "#" and not reference.startswith("#/"):
            raise SchemaError(
                f"$ref {reference!r} is refused; only #/… of this declaration is read", path=dotted(place)
            )
        if reference in seen:
            raise SchemaError(f"$ref {reference!r} leads back to itself", path=dotted(place))
        seen.add(reference)
        found: Any = schema
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            inner: dict[Any, Any] = (
                dict(enumerate(cast("list[Any]", found))) if isinstance(found, list) else as_mapping(found)
            )
            key = int(name) if isinstance(found, list) and name.isdecimal() else name
            if key not in inner:
                raise SchemaError(f"$ref {reference!r} leads nowhere", path=dotted(place))
            found = inner[key]
        following = as_mapping(found).get("$ref")
        if not isinstance(following, str):
            return found
        reference = following


def names_at(schema: JsonSchema, place: tuple[Any, ...]) -> list[str]:
    """Return the property names that a schema has at a place."""
    here = schema
    for part in place:
        here = as_mapping(here.get("items") if isinstance(part, int) else as_mapping(here.get("properties")).get(part))
    return list(as_mapping(here.get("properties")))


def dotted(place: tuple[Any, ...]) -> str:
    """Return a place as text: `config.ports[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
