"""What goes into a turn: options lie over each other, tool rules are exactly one rule, requests have a digest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows.errors import UsageError
from channelcoder_flows.turn import TurnOptions, TurnRequest, Usage, check_tool, options_from

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "system_prompt": st.none() | st.text(max_size=5),
    "model": st.none() | st.sampled_from(["a", "b"]),
    "tools": st.none() | st.lists(st.sampled_from(["Read", "Edit"])).map(tuple),
    "disallowed_tools": st.lists(st.sampled_from(["Bash"])).map(tuple),
    "max_turns": st.none() | st.integers(1, 9),
    "timeout": st.floats(1, 100),
    "recovery": st.sampled_from(["rollback", "continue"]),
}
OPTIONS = st.fixed_dictionaries({}, optional=FIELDS)


@given(OPTIONS, OPTIONS, OPTIONS)
def test_what_was_given_wins(low: dict[str, Any], middle: dict[str, Any], high: dict[str, Any]) -> None:
    """The topmost layer that says something decides, also when it says None; what nobody said has its default."""
    laid = TurnOptions(**high).over(TurnOptions(**middle).over(TurnOptions(**low)))
    assert laid == TurnOptions(**{**low, **middle, **high})
    assert laid.model_fields_set == low.keys() | middle.keys() | high.keys()
    grouped = TurnOptions(**high).over(TurnOptions(**middle)).over(TurnOptions(**low))
    assert grouped == laid


@pytest.mark.parametrize(
    "rule",
    [
        "Read",
        "Bash(git log:*)",
        "Bash(echo, a (b))",
        "mcp__server__tool",
        "mcp__server__*",
        "mcp__a-b__c",
        "Read(//x/**)",
    ],
)
def test_a_rule_is_taken_as_it_is(rule: str) -> None:
    """What Claude Code calls a rule is one."""
    assert check_tool(rule) == rule


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "Read,Bash",
        "Read Bash",
        "--dangerously-skip-permissions",
        "-Bash",
        "_x",
        "*",
        "Bash(",
        "Bash)",
        "Bash(a)Read",
        "Bash(a),Read",
        "Bash(a)(b)",
        "Bash(echo (a) (b))",
        "Bash(a(b), Write, c(d))",
        "Bash(a\nb)",
        "Bash(a\0b)",
        "Bäsh",
        "1Bash",
        " Bash",
    ],
)
def test_more_than_one_rule_is_refused(rule: str) -> None:
    """What the CLI would read as another flag or as several rules is no rule."""
    with pytest.raises(ValueError, match=r"tool name|parentheses|several rules"):
        check_tool(rule)
    with pytest.raises(UsageError, match="tools"):
        options_from(tools=[rule])


@given(st.text(alphabet="Ab-_*(), \n\0:", max_size=12))
def test_no_accepted_rule_can_be_split(text: str) -> None:
    """A rule that is accepted has no comma, blank or dash where the CLI would part it."""
    try:
        check_tool(text)
    except ValueError:
        return
    name, paren, rest = text.partition("(")
    assert name[0].isalpha()
    assert not set(name) & set(", \n\0()")
    if paren:
        depths = [1]
        for character in rest:
            depths.append(depths[-1] + (character == "(") - (character == ")"))
        assert depths[-1] == 0
        assert 0 not in depths[:-1]
    assert parted(text) == [text]


def parted(rules: str) -> list[str]:
    """Return the rules of a list as Claude Code 2.1.330 parts it."""
    found, rule, inside = [], "", False
    for character in rules:
        if character in "()":
            inside = character == "("
        if character in ", " and not inside:
            found, rule = [*found, rule.strip()], ""
        else:
            rule += character
    return [rule for rule in [*found, rule.strip()] if rule]


def test_arguments_that_do_not_fit() -> None:
    """A wrong value is an error that names the argument; None is not given."""
    assert options_from(model=None, timeout=5).model_fields_set == {"timeout"}
    for wrong in ({"timeout": 0}, {"max_turns": 0}, {"effort": "huge"}, {"permission_mode": "yolo"}, {"colour": "red"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            options_from(**wrong)


PARTS = {
    "prompt": {"prompt": "other"},
    "output": {"output_schema": {"type": "object"}},
    "systemPrompt": {"options": TurnOptions(append_system_prompt="other")},
    "model": {"options": TurnOptions(fallback_model="other")},
    "tools": {"options": TurnOptions(disallowed_tools=("Bash",))},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_digest_names_what_changed(part: str) -> None:
    """A changed part changes its own hash and no other; limits are no part of what was asked."""
    base = TurnRequest(prompt="p").digest()
    changed = TurnRequest(**{"prompt": "p", **PARTS[part]}).digest()
    assert [name for name in base if base[name] != changed[name]] == [part]
    limits = TurnOptions(timeout=1, max_turns=1, retry={"attempts": 2})  # pyright: ignore[reportArgumentType]
    assert TurnRequest(prompt="p", options=limits).digest() == base


def test_a_digest_is_the_same_tomorrow() -> None:
    """Digests stand in journals: a change of how they are made would make every finished step diverge."""
    assert TurnRequest(prompt="Plan the work", options=TurnOptions(model="m", tools=("Read",))).digest() == {
        "prompt": "5e23641a1f80e301",
        "systemPrompt": "95cb9b4f84ceff13",
        "model": "0683a50f0d2adbe6",
        "tools": "2b2d6d72084dd0a6",
        "output": "74234e98afe7498f",
    }


def test_usage_adds_up() -> None:
    """Tokens of several calls are summed field by field."""
    one = Usage(input_tokens=1, output_tokens=2, cache_read_input_tokens=3, cache_creation_input_tokens=4)
    assert one + one + Usage() == Usage(
        input_tokens=2, output_tokens=4, cache_read_input_tokens=6, cache_creation_input_tokens=8
    )
