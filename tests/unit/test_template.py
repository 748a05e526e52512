"""Templates: what is filled, what is left alone, and that a value is only ever a value."""

import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
    ],
)
def test_values(value, text):
    """A value is written as a reader of the prompt expects it, collections as JSON."""
    assert render("{v}", {"v": value}) == text


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
