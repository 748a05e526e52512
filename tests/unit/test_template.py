"""Templates: what is filled, what is left alone, and that a value is only ever a value."""

import datetime
import string
import time
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from channelcoder_flows.errors import InputError
from channelcoder_flows.template import placeholders, render

names = st.text(string.ascii_letters, min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Hi {name}", "Hi Ada"),
        ("Hi ${name}", "Hi Ada"),
        ("Hi { name }", "Hi Ada"),
        ("{ticket.title}", "Search"),
        ('{urgent ? "now" : "later"}', "now"),
        ("{urgent ? 'now' : 'later'}", "now"),
        ('{!urgent ? "now" : "later"}', "later"),
        ('{kind == "bug" ? "fix" : "build"}', "fix"),
        ('{kind === "bug" ? "fix" : "build"}', "fix"),
        ('{kind != "bug" ? "fix" : "build"}', "build"),
        ('{kind !== "bug" ? "fix" : "build"}', "build"),
        ("{count == 2 ? two : many}", "two"),
        ('{urgent == true ? "a: b?" : c}', "a: b?"),
        ("{urgent ? ticket.title : none}", "Search"),
        (r'{urgent ? "use \{braces\} and \"quotes\"" : ""}', 'use {braces} and "quotes"'),
        ('{missing ? "x" : name}', "Ada"),
        ("{empty ? x : y}", "x"),
        (r"\{name}", "{name}"),
        (r"\${name}", "${name}"),
    ],
)
def test_expressions(text, filled):
    """Every form the docs show does what they say."""
    values = {
        "name": "Ada",
        "ticket": {"title": "Search"},
        "urgent": True,
        "kind": "bug",
        "count": 2,
        "empty": [],
    }
    assert render(text, values) == filled


VALUES = {
    "yes": True,
    "no": False,
    "zero": 0,
    "one": 1,
    "blank": "",
    "nothing": None,
    "list": [],
    "map": {},
    "kind": "bug",
    "first-name": "Ada",
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("yes", True),
        ("no", False),
        ("zero", False),
        ("one", True),
        ("blank", False),
        ("nothing", False),
        ("missing", False),
        ("list", True),
        ("map", True),
        ("!!yes", True),
        ("!!!yes", False),
        ('"x"', True),
        ('""', False),
        ("0", False),
        ("-1.5", True),
        ("true", True),
        ("null", False),
        ('kind == "feature"', False),
        ('kind != "feature"', True),
        ('! kind == "bug"', False),
        ('"bug" == kind', True),
        ("one == 1.0", True),
        ("one == 2", False),
        ("one == true", False),
        ("true == one", False),
        ("zero == false", False),
        ("no == false", True),
        ("nothing == null", True),
        ("missing == undefined", True),
        ("kind == missing", False),
    ],
)
def test_conditions(condition, holds):
    """What is true is ChannelCoder's: empty lists are, empty texts and 0 are not, and a number is no boolean."""
    assert render(f"{{{condition} ? Yes : No}}", VALUES) == ("Yes" if holds else "No")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{yes ? really? : no}", "really?"),
        ("{no ? a : b: c}", "b: c"),
        ("{yes ? Xa : b}", "Xa"),
        ("{yes ? '' : b}", ""),
        ('{yes ? " : b}', '"'),
        ("{yes ? nothing : b}", ""),
        ("{kind.deeper}", ""),
        ("{first-name}", "Ada"),
    ],
)
def test_what_a_choice_leaves(text, filled):
    """Each side is a quoted text, the value of a name that has one, or else just these words."""
    assert render(text, VALUES) == filled


@pytest.mark.parametrize(
    "text",
    [
        "{yes ? a}",
        "{yes : a}",
        "{a: b ? c}",
        "{yes ? : b}",
        "{yes ? a : }",
        "{! ? a : b}",
        "{== ? a : b}",
        "{yes no ? a : b}",
        '{kind == "a" == "b" ? a : b}',
        '{kind < "b" ? a : b}',
        "{last-name}",
    ],
)
def test_what_is_no_expression_stays(text):
    """What only looks like a choice is left as it was written."""
    assert render(text, VALUES) == text


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ('{kind == "bug" ? a : b}', "a"),
        ("{kind == true ? a : b}", "b"),
        ("{first-name}", "Ada"),
        ("{last-name}", ""),
        ("{first-name.initial}", ""),
        ("{first-name.initial == null ? a : b}", "a"),
        ('{kind == other ? "a" : "b"}', '{kind == other ? "a" : "b"}'),
        ("{true ? a : b}", "{true ? a : b}"),
    ],
)
def test_a_choice_about_declared_names_alone_is_filled(text, filled):
    """Where inputs are declared, a choice that asks about anything else is code, and stays."""
    assert render(text, VALUES, declared=["kind", "first-name", "last-name"]) == filled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        (3, "3"),
        (1.5, "1.5"),
        ([1, None, "é"], '[1,null,"é"]'),
        ({"a": {"b": True}}, '{"a":{"b":true}}'),
        ((1, 2), "[1,2]"),
        ([MappingProxyType({"a": "é"})], '[{"a":"é"}]'),
        ([datetime.date(2026, 11, 22)], '["2026-11-22"]'),
        (datetime.date(2026, 11, 22), "2026-11-22"),
    ],
)
def test_values(value, text):
    """A value is written as a reader of the prompt expects it, collections as JSON."""
    assert render("{v}", {"v": value}) == text


LOOP: list[object] = []
LOOP.append(LOOP)
DEEP: list[object] = []
for _ in range(10_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "v.x: cannot be put into a text: nan is no number of JSON"),
        ([float("inf")], "v.x: cannot be put into a text: Out of range float values are not JSON compliant"),
        ({(1, 2): 3}, "v.x: cannot be put into a text: keys must be str, int, float, bool or None, not tuple"),
        (LOOP, "v.x: cannot be put into a text: Circular reference detected"),
        (DEEP, "v.x: cannot be put into a text: maximum recursion depth exceeded"),
        ("\ud800", "v.x: has half a character (a lone surrogate): read what it comes from as UTF-8"),
        ("a\0", "v.x: has a NUL, which is no text: take it out"),
    ],
    ids=["nan", "inf", "key", "loop", "deep", "surrogate", "nul"],
)
def test_what_is_no_text_is_refused_by_name(value, problem):
    """A value that cannot be written into a prompt is an error that names it, and nothing is put in its place."""
    with pytest.raises(InputError) as caught:
        render("{v.x}", {"v": {"x": value}})
    assert caught.value.message.startswith(problem)
    assert caught.value.field == "v.x"


@pytest.mark.parametrize(
    "text",
    [
        "function f() {return}",
        '{"json": {"deep": [1, 2]}}',
        "a { color: red; }",
        "{{mustache}} and ${{ github.ref }}",
        "{other} ${other} {other.name}",
        '{other ? "x" : "y"}',
        "type T = { name?: string }",
        "if (x) { y() } else { z }",
        "{",
        "}",
        "{}",
        "{unclosed",
    ],
)
def test_with_declared_inputs_other_braces_survive(text):
    """Code in a prompt that declares its inputs arrives as it was written."""
    assert render(text, {"name": "Ada"}, declared=["name"]) == text


def test_without_declared_inputs_a_name_without_a_value_is_empty():
    """ChannelCoder's rule: an unknown bare name is nothing, and what is no expression stays."""
    assert render('[{nobody}] [{a.b}] {"json": 1} {x y}', {}) == '[] [] {"json": 1} {x y}'


def test_a_declared_input_that_was_not_given_is_empty():
    """An optional input that is left out leaves nothing behind."""
    assert render("a{note}b", {}, declared=["note"]) == "ab"


@given(texts)
def test_a_value_is_never_a_template(value):
    """Whatever a value holds, it arrives as it is: no second pass."""
    assert render("<{a}|{b}>", {"a": value, "b": "{a} ${a}", "x": "no"}) == f"<{value}|{{a}} ${{a}}>"


@given(st.text(alphabet=st.characters(exclude_characters="{\\")))
def test_text_without_braces_is_untouched(text):
    """Text that has no opening brace comes out as it went in."""
    assert render(text, {"a": "b"}) == text


@given(st.text("{}$\\\"'?:=! ab.\n", max_size=200))
@example("{\\{}")
@example("{a ? \\{b} : c}")
def test_any_text_renders(text):
    """There is no text that cannot be rendered, and with nothing declared only escapes change."""
    render(text, {"a": 1, "b": {"a": "x"}})
    assert render(text, {"a": 1}, declared=[]) == text.replace("\\${", "${").replace("\\{", "{")


@given(st.dictionaries(names, texts, max_size=4))
def test_every_declared_name_is_filled(values):
    """A text made of placeholders becomes its values, in their order."""
    text = "|".join(f"{{{name}}}" for name in values)
    assert render(text, values, declared=list(values)) == "|".join(values.values())


@pytest.mark.parametrize(
    "unit",
    ["{", "{}", "{a", "\\{", '{"', "{a ? ", "${", "{{", "}", '"', '\\"', "'", "\\", "?:", "a.", "!", "{a ? '\\"],
)
@pytest.mark.parametrize("frame", ["%s", "{%s}", '{a ? "%s : b}'])
def test_time_is_linear(unit, frame):
    """A megabyte of hostile braces costs about four times a quarter of it, not sixteen times."""

    def cost(size: int) -> float:
        text = frame % (unit * (size // len(unit)))
        start = time.process_time()
        render(text, {"a": 1})
        return time.process_time() - start

    assert cost(1_000_000) < 8 * max(cost(250_000), 0.05)


def test_placeholders_are_found_with_their_place():
    """A check can say which name stands where."""
    text = 'Do {a.b} and {c ? a.x : "y"} but not {other}'
    assert list(placeholders(text, ["a", "c"])) == [(3, "a.b"), (13, "c"), (13, "a.x")]
    assert list(placeholders(r"\{a} { a } {a} {a} {!b ? 'a' : a}", ["a", "b"])) == [(5, "a"), (19, "b"), (19, "a")]
