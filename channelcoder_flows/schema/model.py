"""Pydantic models of JSON Schema: nothing coerced, and what pydantic cannot say is left to `jsonschema`."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticSerializationError, to_jsonable_python

from channelcoder_flows.schema.json_schema import (
    ALLOWS,
    NOTES,
    JsonSchema,
    as_mapping,
    dotted,
    first_error,
    names_at,
    nearest,
)

_PYDANTIC_SUBJECT = re.compile(r"^\w+ should")
_ARGUMENTS = {
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "minimum": "ge",
    "maximum": "le",
}


_SAID = {"string": "a text", "number": "a number", "integer": "a whole number", "boolean": "true or false"} | {
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}


def model_of(schema: JsonSchema, name: str) -> type[Declared]:
    """Return the model of a checked JSON Schema of `type: object`."""
    fields, whole = _fields(schema, name)
    base = Declared if schema.get("additionalProperties", True) is False else _Open
    model = create_model(name, __base__=base if whole else (_Exact, base), **fields)
    model.declared = schema
    return model


MAX_TOLD = 50
"""Problems that are told one by one."""
_LONG_PLACE = 200
"""Characters."""
_LONG_LIST = 1000
"""Items."""


class Misfit(ValueError):
    """Data does not fit its declaration: `problems` says where and why, of the first `MAX_TOLD` places."""

    def __init__(self, found: list[tuple[str, str]], count: int = 1) -> None:
        told = "; ".join(f"{path}: {problem}" if path else problem for path, problem in found)
        super().__init__(told + (f"; and {count - len(found)} more" if count > len(found) else ""))
        self.problems = found


def fit(model: type[Declared], value: Any) -> dict[str, Any]:
    """Return `value` as JSON data with the declared defaults filled in.

    Raises:
        Misfit: it does not fit the model.
    """
    try:
        return model.model_validate(value).model_dump(mode="json")
    except ValidationError as exc:
        raise Misfit(problems(model, exc), exc.error_count()) from exc
    except (PydanticSerializationError, RecursionError) as exc:
        raise Misfit([(_not_plain(value), "is nested too deep, or is not plain JSON data")]) from exc


def _not_plain(data: Any) -> str:
    """Return the name of the first value of a mapping that is no plain JSON data."""
    for name, value in as_mapping(data).items():
        try:
            to_jsonable_python(value)
        except (ValueError, RecursionError):
            return _place((name,))
    return ""


def problems(model: type[Declared], error: ValidationError) -> list[tuple[str, str]]:
    """Return what is wrong as (path, problem), such as `("config.port", "is missing")`; the first `MAX_TOLD` of it."""
    found: list[tuple[str, str]] = []
    for each in error.errors(include_url=False)[:MAX_TOLD]:
        place = tuple(each.get("ctx", {}).get("place", each["loc"]))
        match each["type"]:
            case "missing":
                problem = "is missing"
            case "extra_forbidden":
                problem = "is not declared" + nearest(str(place[-1]), names_at(model.declared, place[:-1]))
            case "model_type":
                problem = f"must be {_SAID['object']}, not {_short(each['input'])}"
            case _:
                problem = _PYDANTIC_SUBJECT.sub("must", each["msg"])
        found.append((_place(place), problem))
    return found


def _place(place: tuple[Any, ...]) -> str:
    text = dotted(place)
    return text if len(text) <= _LONG_PLACE else text[: _LONG_PLACE - 1] + "…"


class Declared(BaseModel):
    """The base of every model made here: immutable, nothing coerced, dumped under the declared names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )
    declared: ClassVar[JsonSchema] = {}

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | None:
        # Pydantic asks for the None, too, that stands where an optional mapping was left out.
        if self is None:  # pyright: ignore[reportUnnecessaryComparison]
            return None
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
        try:
            found = first_error(cls.declared, data)
        except RecursionError:
            raise PydanticCustomError("json_schema", "is nested too deep to be checked") from None
        if found is not None:
            place, problem = found
            raise PydanticCustomError("json_schema", "{problem}", {"problem": problem, "place": place})
        return data


_ABSENT = "absent"


def _fields(schema: JsonSchema, name: str) -> tuple[dict[str, Any], bool]:
    """Return the fields of an object's model, and whether their types say all that the schema does."""
    fields: dict[str, Any] = {}
    properties, required = as_mapping(schema.get("properties")), schema.get("required", [])
    whole = not _beyond(schema) and set(required) <= set(properties)
    for key, declared in properties.items():
        kind, said = type_of(declared, f"{name}_{key}")
        whole = whole and said
        notes = as_mapping(declared)
        rest: dict[str, Any] = {"alias": key, "description": notes.get("description")}
        if key not in required:
            rest["default"] = notes.get("default")
            if "default" not in notes:
                kind = Annotated[kind, _ABSENT]
        fields[_attribute(key, fields)] = (kind, Field(**rest))
    return fields, whole


def _attribute(key: str, taken: Mapping[str, Any]) -> str:
    name = re.sub(r"\W", "_", key).strip("_") or "field"
    name = f"field_{name}" if name[0].isdigit() else name
    while keyword.iskeyword(name) or hasattr(Declared, name) or name in taken:
        name += "_"
    return name


def _beyond(schema: JsonSchema) -> bool:
    """Whether the schema has a word that the types made here do not say."""
    said = NOTES | {"type", "enum"} | ALLOWS.get(schema.get("type", ""), set())
    return not said.issuperset(schema) or not isinstance(schema.get("additionalProperties", True), bool)


def type_of(schema: Any, name: str) -> tuple[Any, bool]:
    """Return the type of a schema's values, and whether it says all that the schema does."""
    if not isinstance(schema, dict):
        return Any, False
    schema = as_mapping(schema)
    match schema.get("type", "any"):
        case [str() as kind, "null"]:
            inner, whole = type_of(schema | {"type": kind}, name)
            return Annotated[inner, WrapValidator(_allow_null)], whole
        case str() as kind if not _beyond(schema):
            found, whole = _bare_type(schema, kind, name)
        case _:
            return Any, False
    limits = {_ARGUMENTS[word]: schema[word] for word in _ARGUMENTS if word in schema}
    if limits:
        found = Annotated[found, Field(**limits)]
    if kind in _SAID:
        found = Annotated[found, BeforeValidator(_expect(kind))]
    if "enum" in schema:
        found = Annotated[found, BeforeValidator(_one_of(schema["enum"]))]
    return found, whole


def _bare_type(schema: JsonSchema, kind: str, name: str) -> tuple[Any, bool]:
    if kind == "array" and "items" in schema:
        item, whole = type_of(schema["items"], name)
        return Annotated[list[item], WrapValidator(_to_the_first_misfit(item))], whole
    if kind == "object" and not {"properties", "required", "additionalProperties"}.isdisjoint(schema):
        fields, whole = _fields(schema, name)
        return create_model(
            name, __base__=_Open if schema.get("additionalProperties", True) else Declared, **fields
        ), whole
    return _PLAIN.get(kind, Any), True


def _to_the_first_misfit(item: Any) -> Callable[[Any, ValidatorFunctionWrapHandler], Any]:
    """Return a validator that reads a long list only up to its first item that does not fit."""

    @cache
    def adapter() -> TypeAdapter[Any]:
        kind: Any = Annotated[list[item], FailFast()]
        return TypeAdapter[Any](kind)

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        is_long = isinstance(value, list) and len(cast("list[Any]", value)) > _LONG_LIST
        return adapter().validate_python(value) if is_long else handler(value)

    return validate


_PLAIN: dict[str, Any] = {
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
    "null": None,
    "array": list[Any],
    "object": dict[str, Any],
}


def _allow_null(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return None if value is None else handler(value)


def _expect(kind: str) -> Callable[[Any], Any]:
    def expect(value: Any) -> Any:
        match cast("object", value):
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
                "mismatch", "must be {wanted}, not {found}", {"wanted": _SAID[kind], "found": _short(value)}
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
                "mismatch", "{problem}", {"problem": f"must be one of {known}, not {_short(value)}{hint}"}
            )
        return value

    return one_of


def _short(value: Any) -> str:
    """Return a value as JSON of at most 60 characters, without writing down the rest of it."""
    text = ""
    for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        text += piece[:61]
        if len(text) > 60:
            return text[:59] + "…"
    return text
