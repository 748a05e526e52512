"""Declarations: the short notation and JSON Schema say the same, and are obeyed exactly."""

import json
import math
import subprocess
import sys
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from channelcoder_flows.errors import SchemaError
from channelcoder_flows.schema import Misfit, fit, json_schema, model_from, nearest, path_problem, problems


def said(declaration, value):
    """Return the problems of a value as `path: problem`."""
    model = model_from(declaration)
    with pytest.raises(ValidationError) as caught:
        model.model_validate(value)
    return [f"{path}: {problem}" for path, problem in problems(model, caught.value)]


def read(declaration, value):
    """Return the value as the model gives it back."""
    return model_from(declaration).model_validate(value).model_dump(mode="json")


def test_short_notation_is_json_schema():
    """Each form of the short notation has the JSON Schema that the docs show."""
    declaration = {
        "title": "string",
        "note?": "string",
        "files": "string[]",
        "grid": "number[][]",
        "done": "bool",
        "data": "any",
        "kind": {"type": "string", "enum": ["bug", "feature"], "default": "bug", "description": "what it is"},
        "size": {"type": "integer", "min": 1, "max": 9, "nullable": True},
        "name": {"type": "string", "min": 1, "optional": True},
        "config": {"port": "integer", "host?": "string"},
        "items": [{"name": "string"}],
    }
    schema = json_schema(declaration)
    assert schema["required"] == ["title", "files", "grid", "done", "data", "size", "config", "items"]
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "title": {"type": "string"},
        "note": {"type": "string"},
        "files": {"type": "array", "items": {"type": "string"}},
        "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "done": {"type": "boolean"},
        "data": {},
        "kind": {"type": "string", "enum": ["bug", "feature"], "default": "bug", "description": "what it is"},
        "size": {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
        "name": {"type": "string", "minLength": 1},
        "config": {
            "type": "object",
            "properties": {"port": {"type": "integer"}, "host": {"type": "string"}},
            "required": ["port"],
            "additionalProperties": False,
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        ("integer", "3", 'a: must be a whole number, not "3"'),
        ("integer", True, "a: must be a whole number, not true"),
        ("integer", 1.5, "a: must be a whole number, not 1.5"),
        ("number", "1.5", 'a: must be a number, not "1.5"'),
        ("number", False, "a: must be a number, not false"),
        ("string", 3, "a: must be a text, not 3"),
        ("boolean", "true", 'a: must be true or false, not "true"'),
        ("boolean", 1, "a: must be true or false, not 1"),
        ("string[]", "x", 'a: must be a list, not "x"'),
        ("string[]", ["x", 1], "a[1]: must be a text, not 1"),
        ("object", [], "a: must be a mapping, not []"),
        ("string", None, "a: must be a text, not null"),
        ("string", {1}, 'a: must be a text, not "{1}"'),
        ("number", math.nan, "a: must be a number, not NaN"),
        ("integer", math.inf, "a: must be a whole number, not Infinity"),
        ("array", {}, "a: must be a list, not {}"),
        ("object", 3, "a: must be a mapping, not 3"),
        ({"b": "string"}, 3, "a: must be a mapping, not 3"),
        ({"type": "null", "title": "none"}, 3, "a: must be null, not 3"),
        ({"enum": [True]}, 1, "a: must be one of true, not 1"),
        ({"enum": ["x", 1]}, True, 'a: must be one of "x", 1, not true'),
        ({"enum": ["x", 1]}, [], 'a: must be one of "x", 1, not []'),
        ("string", ["é" * 57], f'a: must be a text, not ["{"é" * 57}…'),
        ("string", ["é" * 56], f'a: must be a text, not ["{"é" * 56}"]'),
    ],
)
def test_nothing_is_coerced(kind, value, problem):
    """A value of another type is an error that names the place, never a guess."""
    assert said({"a": kind}, {"a": value}) == [problem]


def test_missing_and_extra_are_named_with_the_nearest():
    """A misspelled name is answered with the one that was meant, also deep inside."""
    declaration = {"ticket": "string", "config": {"port": "integer"}}
    assert said(declaration, {"tickt": "x", "config": {"prot": 1}}) == [
        "ticket: is missing",
        "config.port: is missing",
        "config.prot: is not declared; did you mean 'port'?",
        "tickt: is not declared; did you mean 'ticket'?",
    ]
    assert said({"items": [{"name": "string"}]}, {"items": [{"name": "x", "nmae": "x"}]}) == [
        "items[0].nmae: is not declared; did you mean 'name'?"
    ]


@pytest.mark.parametrize(
    ("kind", "value", "back"),
    [
        ("integer", 2.0, 2),
        ("number", 2, 2),
        ("number", 1.5, 1.5),
        ("string" + "[]" * 8, [], []),
        ({"type": "bool", "default": True}, False, False),
        ("object", MappingProxyType({"b": 1}), {"b": 1}),
        ("array", (1, 2), [1, 2]),
        ({"enum": ["x", 1]}, 1.0, 1.0),
        ({"type": "null", "title": "none"}, None, None),
        ({"enum": ["x"], "nullable": True}, None, None),
        ({"type": "any", "nullable": True}, None, None),
        ({"type": "string", "min": 0}, "", ""),
        ({"type": "array", "items": "string", "min": 1, "max": 1}, ["x"], ["x"]),
        ({"type": "string", "pattern": "^a"}, "ab", "ab"),
        (" String ", "x", "x"),
    ],
)
def test_what_fits_comes_back_as_json(kind, value, back):
    """A whole number may be written with a point and a list be a tuple; what comes back is plain JSON data."""
    found = read({"a": kind}, {"a": value})
    assert (found, type(found["a"])) == ({"a": back}, type(back))


def test_a_field_may_be_json_schema():
    """In the short notation a field that is JSON Schema is taken as it is; with a default it may be left out."""
    declaration = {"a": {"type": "string", "pattern": "^a", "default": "ab"}, "b": {"type": "string", "pattern": "^b"}}
    schema = json_schema(declaration)
    assert (schema["properties"], schema["required"]) == (declaration, ["b"])
    assert read(declaration, {"b": "b"}) == {"a": "ab", "b": "b"}
    assert said(declaration, {"b": "a"}) == ["b: 'a' does not match '^b'"]


@pytest.mark.parametrize(
    ("declaration", "names"),
    [
        ({"type": "string"}, ["type"]),
        ({"type": "string", "note": "string"}, ["type", "note"]),
        ({"type": "array"}, ["type"]),
        ({"type": "array", "items": "string"}, ["type", "items"]),
        ({"type": "boolean", "items": "bool"}, ["type", "items"]),
    ],
)
def test_a_field_may_be_called_like_a_keyword(declaration, names):
    """`type` and `items` are ordinary names as long as their values are types."""
    assert list(json_schema(declaration)["properties"]) == names
    assert list(json_schema({"a": {**declaration, "b": "string"}})["properties"]["a"]["properties"]) == [*names, "b"]


@pytest.mark.parametrize(
    "sign", [{"$schema": "https://json-schema.org/draft/2020-12/schema"}, {"$ref": "#/$defs/a"}, {"$defs": {}}]
)
def test_a_sign_of_json_schema_is_enough(sign):
    """What names its version or refers to a definition is JSON Schema, whatever else it holds."""
    given = {"type": "object", "ours": {"type": "string"}, "$defs": {"a": {"type": "object"}}, **sign}
    if "$schema" in sign:
        del given["$defs"]
    assert json_schema(given)["ours"] == {"type": "string"}
    if "$ref" in sign:
        assert json_schema({"$ref": "#/place", "place": {"type": "object"}})["type"] == "object"


def test_references_are_followed_inside_the_declaration():
    """A $ref may name any place of its own declaration, in JSON Pointer's writing, through other references too."""
    schema = {
        "$ref": "#/$defs/whole",
        "$defs": {
            "whole": {"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y~0z/anyOf/1"}}, "required": ["a"]},
            "x/y~z": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a%20b"}]},
            "a b": {"type": "integer"},
        },
        "title": "ours",
    }
    found = json_schema(schema)
    assert (found["type"], found["title"], "$ref" in found) == ("object", "ours", False)
    assert read(schema, {"a": 3}) == {"a": 3}
    assert said(schema, {"a": "x"}) == ["a: 'x' is not of type 'integer'"]
    assert json_schema({"type": "object", "properties": {"a": {"$ref": "#"}}})
    assert json_schema({"type": "object", "properties": {"a": {"enum": [{"$ref": "x"}]}}})


def test_the_version_that_a_schema_names_is_the_one_it_is_read_by():
    """`items` may be a list in draft 7, and may not in 2020-12, which is taken where nothing is said."""
    schema = {"type": "object", "properties": {"a": {"items": [{"type": "string"}]}}}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    assert said(draft, {"a": [1]}) == ["a[0]: 1 is not of type 'string'"]
    with pytest.raises(SchemaError) as caught:
        json_schema(schema)
    assert caught.value.path == "properties.a.items"


def test_a_misfit_tells_the_first_fifty():
    """However much is wrong, an error stays readable, and says how much it left out."""
    model = model_from({"a": "integer[]"})
    with pytest.raises(Misfit) as caught:
        fit(model, {"a": ["x"] * 53})
    assert len(caught.value.problems) == 50
    assert caught.value.problems[0] == ("a[0]", 'must be a whole number, not "x"')
    assert str(caught.value).startswith('a[0]: must be a whole number, not "x"; a[1]: must be')
    assert str(caught.value).endswith('a[49]: must be a whole number, not "x"; and 3 more')
    with pytest.raises(Misfit, match=r'a\[49\]: must be a whole number, not "x"$'):
        fit(model, {"a": ["x"] * 50})
    with pytest.raises(Misfit, match="aa: is not declared; did you mean 'a'"):
        fit(model, {"a": [], "aa": 1})
    with pytest.raises(Misfit) as caught:
        fit(model, [])
    assert (str(caught.value), caught.value.problems) == (
        "must be a mapping, not []",
        [("", "must be a mapping, not []")],
    )


def test_a_long_list_is_read_to_its_first_misfit():
    """A million wrong items cost one problem, not a million; a list of a thousand is told in full."""
    model = model_from({"a": "integer[]"})
    for length, told in ((1000, 50), (1001, 1)):
        with pytest.raises(Misfit) as caught:
            fit(model, {"a": ["x"] * length})
        assert len(caught.value.problems) == told
    assert fit(model, {"a": [1] * 1001}) == {"a": [1] * 1001}


def test_what_is_no_json_is_refused_by_name():
    """A value that JSON cannot say, or that never ends, is an error that names it."""
    loop = []
    loop.append(loop)
    for value in (object(), loop):
        with pytest.raises(Misfit) as caught:
            fit(model_from({"a": "any", "b": "any"}), {"a": 1, "b": value})
        assert caught.value.problems == [("b", "is nested too deep, or is not plain JSON data")]
        assert str(caught.value) == "b: is nested too deep, or is not plain JSON data"
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    tree = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    with pytest.raises(Misfit, match="is nested too deep to be checked"):
        fit(model_from(tree), deep)


def test_a_long_place_is_cut():
    """The place of a problem stays readable however deep it is."""
    names = [letter * 66 for letter in "ab"]
    for last, place in (("c", "c" * 66), ("d", "d" * 65 + "…")):
        name = last * (66 if last == "c" else 67)
        schema = {"type": "string"}
        for part in [name, *reversed(names)]:
            schema = {"type": "object", "properties": {part: schema}}
        value = {names[0]: {names[1]: {name: 3}}}
        assert said(schema, value) == [f"{names[0]}.{names[1]}.{place}: must be a text, not 3"]


def test_a_long_message_is_cut():
    """What jsonschema says has the value in it: the beginning and the end of it are enough."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    longest, longer = ["x" * 184] * 2, ["x" * 185] * 2
    assert said(schema, {"a": longest}) == [f"a: {longest} has non-unique elements"]
    whole = f"{longer} has non-unique elements"
    assert said(schema, {"a": longer}) == [f"a: {whole[:200]} … {whole[-60:]}"]


def test_a_model_has_attributes():
    """What is declared can be read as an attribute: its name made one of Python's, and told apart from all others."""
    names = {
        "first-name": "first_name",
        "first_name": "first_name_",
        "class": "class_",
        "json": "json_",
        "_x": "x",
        "1st": "field_1st",
        "$": "field",
        "a b": "a_b",
        "X": "X",
    }
    declared = {name: {"type": "string", "description": f"the {name}"} for name in names}
    model = model_from({"type": "object", "properties": declared})
    data = model.model_validate({name: name for name in names})
    assert {name: getattr(data, attribute) for name, attribute in names.items()} == {name: name for name in names}
    assert list(model.model_fields) == list(names.values())
    assert [field.description for field in model.model_fields.values()] == [f"the {name}" for name in names]


@pytest.mark.parametrize(
    ("schema", "value", "problem"),
    [
        ({"minProperties": 2}, {"a": "x"}, ": {'a': 'x'} does not have enough properties"),
        ({"required": ["b"]}, {"a": "x"}, ": 'b' is a required property"),
        ({"additionalProperties": False}, {"b": "x"}, "b: is not declared"),
        ({"properties": {"a": False}}, {"a": 1}, ": False schema does not allow 1"),
        ({"properties": {"a": {"required": ["b"]}}}, {"a": {}}, "a: 'b' is a required property"),
        ({"properties": {"a": {"type": "object", "required": ["b"]}}}, {"a": {}}, "a: 'b' is a required property"),
        (
            {"properties": {"a": {"type": "object", "additionalProperties": False}}},
            {"a": {"b": 1}},
            "a.b: is not declared",
        ),
        (
            {"properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}}},
            {"a": {"b": 1}},
            "a.b: 1 is not of type 'string'",
        ),
    ],
)
def test_every_word_of_a_schema_holds(schema, value, problem):
    """Each word about an object is obeyed at the outermost and inside, whichever of the two checkers can say it."""
    assert said({"type": "object", "properties": {"a": {"type": "string"}}, **schema}, value) == [problem]


def test_an_object_is_open_unless_it_says_otherwise():
    """JSON Schema lets extra properties be; they come back, also from inside and from lists."""
    inner = {"type": "object", "properties": {"b": {"type": "string"}}}
    schema = {"type": "object", "properties": {"a": inner, "list": {"type": "array", "items": inner}}}
    value = {"a": {"b": "x", "more": [1]}, "list": [{"more": 2}], "most": None}
    assert read(schema, value) == value


def test_words_that_are_no_patterns():
    """Only `pattern` holds a pattern: what a text about it says is not tried."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": "not (?=x", "default": "(?=x"}}}
    assert json_schema(schema) == schema


def test_all_modifiers_at_once():
    """The modifiers of a field can be combined freely, and each of them is in its JSON Schema."""
    field = {"type": "array", "items": "string", "enum": [["x"]], "default": ["x"], "min": 1, "max": 2}
    field |= {"optional": True, "nullable": True, "description": "what"}
    assert json_schema({"a": field})["properties"]["a"] == {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": 2,
        "enum": [["x"], None],
        "description": "what",
        "default": ["x"],
    }
    with pytest.raises(SchemaError) as caught:
        json_schema({"a": {"type": "integer", "default": "3"}})
    assert caught.value.message == """default '3' does not fit: must be a whole number, not "3\""""


def test_modifiers_are_obeyed():
    """Limits, choices, null and defaults mean what they say."""
    declaration = {
        "kind": {"type": "string", "enum": ["bug", "feature"], "default": "bug"},
        "size": {"type": "integer", "min": 1, "nullable": True},
        "tags": {"type": "string[]", "max": 1, "optional": True},
    }
    assert read(declaration, {"size": None}) == {"kind": "bug", "size": None}
    assert said(declaration, {"kind": "bugs", "size": 0, "tags": ["a", "b"]}) == [
        """kind: must be one of "bug", "feature", not "bugs"; did you mean 'bug'?""",
        "size: must be greater than or equal to 1",
        "tags: must have at most 1 item after validation, not 2",
    ]


def test_what_is_left_out_stays_out():
    """An optional field that was not given is not turned into null."""
    declaration = {"a?": "string", "b": {"c?": "integer"}, "d": {"type": "string", "nullable": True, "default": None}}
    assert read(declaration, {"b": {}}) == {"b": {}, "d": None}


def test_any_property_name_can_be_declared():
    """Names that Python or pydantic keep for themselves are ordinary names here."""
    declared = {"class": "string", "model_config": "string", "json": "string", "_x": "any", "first-name": "string"}
    value = dict.fromkeys(declared, "v")
    assert read(declared, value) == value


@pytest.mark.parametrize(
    ("declaration", "path", "problem"),
    [
        ([], "", "must be a mapping"),
        ({"a": "strng"}, "a", "did you mean 'string'?"),
        ({"a": {"b": 3}}, "a.b", "is a type"),
        ({"a": "string" + "[]" * 20_000}, "a", "more than 8 deep"),
        ({"a": "string", "a?": "string"}, "a", "declared twice"),
        ({"a b": "string"}, "a b", "letters, digits"),
        ({"a": {"type": "string", "min": 3, "max": 1}}, "a", "min 3 is over max 1"),
        ({"a": {"type": "boolean", "min": 1}}, "a", "goes with"),
        ({"a": {"type": "string", "min": 1.5}}, "a", "min is a length"),
        ({"a": {"type": "array", "max": -1}}, "a", "max is a length"),
        ({"a": {"type": "integer", "min": True}}, "a", "min is a number"),
        ({"a": {"type": "integer", "max": "3"}}, "a", "max is a number"),
        ({"a": {"type": "number", "min": math.inf}}, "a", "min is a number"),
        ({"a": {"type": "any", "max": 1}}, "a", "max goes with"),
        ({"a": {"type": "integer", "default": "x"}}, "a", "default 'x' does not fit"),
        ({"a": {"type": "string", "enum": [1.1]}}, "a", "put it in quotes"),
        ({"a": {"type": "string", "enum": []}}, "a", "enum is a list"),
        ({"a": {"type": "string", "enum": "x"}}, "a", "enum is a list"),
        ({"a": {"type": "string", "enum": ["x", 3]}}, "a", "enum 3 does not fit: must be a text, not 3; put it"),
        ({"a": {"type": "string", "optional": "yes"}}, "a", "optional is true or false"),
        ({"a": {"type": "string", "nullable": "no"}}, "a", "nullable is true or false"),
        ({"a": {"type": "string", "description": 3}}, "a", "description is a text"),
        ({"a": {"type": "string", "default": 3}}, "a", "default 3 does not fit: must be a text, not 3; put it"),
        ({"a": {"type": "integer", "min": 2, "default": 1}}, "a", "default 1 does not fit"),
        ({"a": {"type": "string", "items": "string"}}, "a", "items goes with type: array"),
        ({"a": {"type": "string[]", "items": "string"}}, "a", "items goes with type: array"),
        ({"a": {"type": "array", "items": {"b": "strin"}}}, "a.b", "did you mean 'string'?"),
        ({"a": [{"b": {"c": "strin"}}]}, "a.b.c", "did you mean 'string'?"),
        ({"a": {"type": "strng"}}, "a.type", "did you mean 'string'?"),
        ({"a": "xyz"}, "a", "'xyz' is not a type; the types are string, number"),
        ({"a": "strin[]"}, "a", "did you mean 'string'?"),
        ({"a": {"type": "string" + "[]" * 9}}, "a", "more than 8 deep"),
        ({"a": []}, "a", "is a type (string, number"),
        ({"a": ["string", "string"]}, "a", "is a type"),
        ({"x" * 65: "string"}, "x" * 65, "letters, digits"),
        ({"a": {"type": "string", "pattern": 3}}, "a.pattern", "3 is not of type 'string'"),
        ({"a": {"type": "string", "pattern": "(?=x)"}}, "a.pattern", "linear time"),
        ({"type": "object", "patternProperties": {"(?=x)": {}}}, "patternProperties.(?=x)", "linear time"),
        ({"a": {"type": "object", "properties": {"b": {"$ref": "#/x"}}}}, "a", "$ref needs the whole"),
        ({"type": "object", "properties": {"a": {"$id": "x"}}}, "properties.a.$id", "the outermost schema only"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "x"}]}}}, "properties.a.anyOf[0].$ref", "refused"),
        ({"type": "object", "properties": {"a": {"$dynamicRef": "x"}}}, "properties.a.$dynamicRef", "refused"),
        ({"type": "object", "properties": {"a": {"$recursiveRef": "x"}}}, "properties.a.$recursiveRef", "refused"),
        (
            {"type": "object", "properties": {"a": {"anyOf": [{"pattern": "(?=x)"}]}}},
            "properties.a.anyOf[0].pattern",
            "no",
        ),
        ({"type": "object", "properties": {"a": {"$ref": "#/allOf/1"}}, "allOf": [{}]}, "properties.a.$ref", "nowhere"),
        ({"type": "object", "properties": {"a": {"$ref": "#/allOf/x"}}, "allOf": [{}]}, "properties.a.$ref", "nowhere"),
        ({"type": "object", "required": "a"}, "required", "is not JSON Schema: 'a' is not of type 'array'"),
        ({"type": ["object", "null"]}, "", "type: object"),
        *(({word: [{"type": "object"}]}, "", "has type: object") for word in ("anyOf", "oneOf", "allOf")),
        ({"type": "object", "oneOf": [{}]}, "", "cannot have oneOf"),
        ({"type": "object", "allOf": [{}]}, "", "cannot have allOf"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "properties.a.type", "is not JSON Schema"),
        ({"type": "object", "properties": {"a": {"$ref": "https://x/y"}}}, "properties.a.$ref", "is refused"),
        ({"type": "object", "properties": {"a": {"$ref": "other.json"}}}, "properties.a.$ref", "is refused"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}, "properties.a.$ref", "leads nowhere"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$ref", "leads back to itself"),
        ({"type": "array", "items": {"type": "string"}}, "", "type: object"),
        ({"anyOf": [{"type": "object"}], "type": "object"}, "", "cannot have anyOf"),
        ({"$schema": "https://example.org/mine", "type": "object"}, "$schema", "not a version"),
    ],
)
def test_a_wrong_declaration_says_where(declaration, path, problem):
    """What cannot be used is refused with its place and a reason."""
    with pytest.raises(SchemaError) as caught:
        json_schema(declaration)
    assert caught.value.path == path
    assert problem in caught.value.message


SCHEMA = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "pattern": "^[a-z]+$"},
        "tree": {"$ref": "#/$defs/node"},
        "when": {"type": "string", "format": "date"},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer", "multipleOf": 2}]},
        "count": {"type": ["integer", "null"], "minimum": 1},
    },
    "patternProperties": {"^x-": {"type": "boolean"}},
    "if": {"required": ["count"]},
    "then": {"required": ["when"]},
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/node"}},
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize(
    "value",
    [{"id": "a"}, {"id": "a", "tree": {"left": {"left": {}}}}, {"id": "a", "either": 4, "x-y": True, "more": [1]}],
)
def test_json_schema_is_taken_as_it_is(value):
    """What the schema allows comes back unchanged, extras too."""
    assert json_schema(SCHEMA) == SCHEMA
    assert read(SCHEMA, value) == value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"id": "A"}, "id"),
        ({}, ""),
        ({"id": "a", "tree": {"left": {"right": {}}}}, "tree.left"),
        ({"id": "a", "when": "tomorrow"}, "when"),
        ({"id": "a", "either": 3}, "either"),
        ({"id": "a", "x-y": 1}, "x-y"),
        ({"id": "a", "count": 1}, ""),
        ({"id": "a", "count": 0, "when": "2026-01-01"}, "count"),
    ],
)
def test_json_schema_is_enforced_where_pydantic_has_no_word_for_it(value, place):
    """Patterns, references, conditions and alternatives are not merely shown to Claude: they hold."""
    assert said(SCHEMA, value)[0].partition(":")[0] == place


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
short_types = st.recursive(
    st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "any", "string[]"])
    | st.sampled_from(
        [
            {"type": "string", "enum": ["a", "b"], "optional": True},
            {"type": "integer", "min": 0, "max": 2, "nullable": True},
            {"type": "number", "min": -1},
            {"type": "array", "min": 1},
            {"enum": ["a", 1, True, None]},
            {"type": "string", "max": 1, "nullable": True, "optional": True},
        ]
    ),
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", "b?"]), inner, min_size=1, max_size=2).filter(
            lambda fields: not {"b", "b?"} <= set(fields)
        )
        | inner.map(lambda item: [item])
    ),
    max_leaves=3,
)


@given(short_types, json_values)
@example({"b?": {"a": "string"}}, {})
def test_the_model_and_the_schema_agree(kind, value):
    """What the CLI is told and what is checked afterwards are the same, for any type and any value."""
    schema = json_schema({"v": kind})
    model = model_from({"v": kind})
    Draft202012Validator.check_schema(schema)
    try:
        back = model.model_validate({"v": value}).model_dump(mode="json")
    except ValidationError:
        assert not Draft202012Validator(schema).is_valid({"v": value})
    else:
        assert Draft202012Validator(schema).is_valid({"v": value})
        assert back == {"v": value}


def test_no_value_keeps_a_pattern_busy():
    """A pattern that Python would try for years is matched at once; one that cannot be is refused where it stands."""
    declaration = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    assert said(declaration, {"a": "a" * 60 + "!"}) == [f"a: '{'a' * 60}!' does not match '^(a+)+$'"]
    inner = {"type": "object", "patternProperties": {"^(a+)+$": {"type": "string"}}, "additionalProperties": False}
    names = {"type": "object", "properties": {"a": inner}}
    assert read(names, {"a": {"aaa": "x"}}) == {"a": {"aaa": "x"}}
    assert "not of type 'string'" in said(names, {"a": {"aaa": 3}})[0]
    assert "unexpected" in said(names, {"a": {"a" * 60 + "!": "x"}})[0]
    assert read(declaration, {"a": "a" * 60}) == {"a": "a" * 60}
    declaration["properties"]["a"]["pattern"] = "^(?!b)"
    with pytest.raises(SchemaError, match="no looking ahead") as caught:
        json_schema(declaration)
    assert caught.value.path == "properties.a.pattern"


def test_a_path_that_can_never_have_a_value_is_found():
    """`{ticket.titel}` in a prompt is caught before it is rendered as nothing."""
    schema = json_schema({"ticket": {"title": "string"}, "free": "object"})
    assert path_problem(schema, "ticket.titel") == "'titel' is not declared; did you mean 'title'?"
    assert path_problem(schema, "ticket.title") == path_problem(schema, "free.any") == ""
    assert path_problem(schema, "tickt.title") == "'tickt' is not declared; did you mean 'ticket'?"
    assert path_problem(schema, "ticket.title.more") == ""
    assert nearest("x", ["abc"]) == ""
    assert nearest("titel", {"title": 1, "tilte": 2, "titles": 3}) == "; did you mean 'title'?"
    assert nearest("a" * 100, ["a" * 99]) == f"; did you mean {'a' * 99!r}?"
    assert nearest("a" * 101, ["a" * 101]) == ""


def test_the_short_notation_needs_no_jsonschema():
    """A prompt in the short notation starts fast: the heavy validator stays unloaded."""
    code = (
        "import sys; from channelcoder_flows.schema import model_from;"
        "model_from({'a': 'string', 'b?': {'c': 'integer'}}).model_validate({'a': 'x'});"
        "print([m for m in ('jsonschema', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
