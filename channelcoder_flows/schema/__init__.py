"""Declarations of inputs and outputs, as JSON Schema and as pydantic models. Pure.

    title: string               files: string[]             config: {port: integer, "host?": string}
    note?: string               kind: {type: string, enum: [bug, feature], default: bug}
    items: [{name: string}]     size: {type: integer, min: 1, max: 9, nullable: true, description: in cm}

The short notation is ChannelCoder's (`notation`); JSON Schema is taken as it is (`json_schema`). Everything becomes
JSON Schema first, since that is what the CLI is given; a model (`model`) says the same as its schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from channelcoder_flows.errors import SchemaError
from channelcoder_flows.schema.json_schema import JsonSchema, check_schema, is_json_schema, nearest, path_problem
from channelcoder_flows.schema.model import Declared, Misfit, fit, model_of, problems
from channelcoder_flows.schema.notation import from_short

__all__ = [
    "Declared",
    "JsonSchema",
    "Misfit",
    "fit",
    "json_schema",
    "model_from",
    "model_of",
    "nearest",
    "path_problem",
    "problems",
]


def json_schema(declaration: Any) -> JsonSchema:
    """Return a declaration, in the short notation or JSON Schema, as JSON Schema of `type: object`.

    Raises:
        SchemaError: it cannot be used; `path` says where (`config.port`).
    """
    if not isinstance(declaration, Mapping):
        raise SchemaError("must be a mapping of names to types, such as {title: string}")
    given = cast("Mapping[str, Any]", declaration)
    return check_schema(dict(given)) if is_json_schema(given) else from_short(given)


def model_from(declaration: Mapping[str, Any], *, name: str = "Data") -> type[Declared]:
    """Return the pydantic model of a declaration: it takes JSON data, coerces nothing, and dumps JSON data.

    Raises:
        SchemaError: the declaration cannot be used.
    """
    return model_of(json_schema(declaration), name)
