"""A script says what it means: its format, its errors, and which reply a model call gets."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows import testing
from channelcoder_flows.errors import ConfigError
from channelcoder_flows.testing import wire
from channelcoder_flows.testing.model import ScriptedModel
from channelcoder_flows.testing.playback import Playback
from channelcoder_flows.testing.script import Answer, Break, Refusal, Rule, Script, ToolCall, matches

YAML = """
- when: "Plan the work"
  reply:
    - tool: Write
      input: {file_path: plan.md, content: "…"}
    - text: "The plan is in plan.md."
- when: "/implement .*search/"
  reply:
    - error: 529
      times: 1
    - output: {status: done}
- reply: Hello.
"""


def test_yaml_json_and_python_are_one_format(tmp_path: Path) -> None:
    """The same script can be written as YAML, as JSON and in Python."""
    objects = Script(
        rules=(
            Rule(
                when="Plan the work",
                reply=(
                    Answer(tool="Write", input={"file_path": "plan.md", "content": "…"}),
                    Answer(text="The plan is in plan.md."),
                ),
            ),
            Rule(
                when="/implement .*search/",
                reply=(Refusal(error=529, times=1), Answer(output={"status": "done"})),
            ),
            Rule(reply=(Answer(text="Hello."),)),
        )
    )
    plain = [rule.model_dump(exclude_unset=True) for rule in objects.rules]
    (tmp_path / "script.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "script.json").write_text(json.dumps(plain), encoding="utf-8")
    for script in (
        Script.load(tmp_path / "script.yaml"),
        Script.load(str(tmp_path / "script.json")),
        Script.of(plain),
        Script.of(objects.rules),
    ):
        assert script == objects


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- reply: [{txt: hi}]", "[0].reply[0].txt: there is no such key; did you mean text?"),
        ("- {whn: x, reply: hi}", "[0].whn: there is no such key; did you mean when?"),
        ("- when: x", "[0].reply: Field required"),
        ("- reply: []", "[0].reply: "),
        ("- reply: hi\n- {when: '/(/', reply: hi}", "[1].when: is no regular expression: "),
        ("- reply: [{delay: 1}]", "[0].reply[0]: says nothing: needs one of text, tool, tools, output"),
        ("- reply: [{text: hi, input: {a: 1}}]", "[0].reply[0].input: belongs to `tool`, which is missing"),
        ("- reply: [{text: hi, times: 2}]", "[0].reply[0].times: does not belong here"),
        ("- reply: [{error: 200}]", "[0].reply[0].error: Input should be greater than or equal to 400"),
        ("- reply: [{error: 429, retry_after: soon}]", "[0].reply[0].retry_after: "),
        ("- reply: [{drop: end}]", "[0].reply[0].drop: Input should be 'start' or 'mid'"),
        ("- reply: [{drop: mid, stall: mid}]", "[0].reply[0]: needs exactly one of drop, stall, malformed"),
        ("- reply: [{text: a, usage: {output: 5}}]", "[0].reply[0].usage.output: does not belong here"),
        ("- reply: [{delay: .nan, text: a}]", "[0].reply[0].delay: "),
        ("reply: hi", "a script is a list of rules"),
        ("- [", "is no yaml: "),
    ],
)
def test_a_wrong_script_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    """Whoever mistypes a script reads in one line where and what, not a traceback of pydantic's."""
    file = tmp_path / "script.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Script.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: {says}")
    assert "\n" not in message


def test_yaml_values_mean_what_they_say(tmp_path: Path) -> None:
    """A tool's input is what stands in the file: no word becomes a boolean, no date an object, no time a number."""
    said = "[no, on, y, 2026-01-01, 010, 1:30, true, 12, -3, 1.5, null, truely, '7']"
    (tmp_path / "script.yaml").write_text(f"- reply: {{tool: Ask, input: {{said: {said}}}}}", encoding="utf-8")
    reply = Script.load(tmp_path / "script.yaml").rules[0].reply[0]
    assert isinstance(reply, Answer)
    texts = ["no", "on", "y", "2026-01-01", "010", "1:30"]
    assert reply.input == {"said": [*texts, True, 12, -3, 1.5, None, "truely", "7"]}


def test_a_script_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A missing file is an error that names it."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        ScriptedModel(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("when", "prompt", "meant"),
    [
        (None, "anything", True),
        ("the work", "Plan the work.", True),
        ("The work", "Plan the work.", False),
        ("a.c", "abc", False),
        ("/a.c/", "xabcx", True),
        ("/^b/", "abc", False),
        ("/", "and/or", True),
        ("/usr/", "/etc and /lib", False),
    ],
)
def test_when(when: str | None, prompt: str, meant: bool) -> None:
    """`when` is a part of the prompt, or a regular expression between slashes; without it every prompt is meant."""
    assert matches(when, prompt) is meant


def test_first_rule_wins() -> None:
    """Rules are tried in order, so that a general one can stand last."""
    playback = Playback(Script.of([{"when": "plan", "reply": "A"}, {"when": "plan it", "reply": "B"}, {"reply": "C"}]))
    assert [picked(playback, prompt) for prompt in ("plan it", "plan", "other")] == ["A", "A", "C"]


def test_nothing_scripted_is_recognised() -> None:
    """A prompt without a rule gets an answer that quotes it, and is marked in the ledger."""
    kind, reply = Playback(Script.of([{"when": "x", "reply": "X"}])).pick("Do that", 0)
    assert kind == "unscripted"
    assert isinstance(reply, Answer)
    assert reply.text == "Nothing was scripted for this prompt: Do that"


def test_when_replies_run_out() -> None:
    """The last text is repeated; after a last tool call or output the turn comes to an end instead of looping."""
    playback = Playback(
        Script.of(
            [{"when": "text", "reply": ["one", "two"]}, {"when": "tool", "reply": [{"tool": "Read", "input": {}}]}]
        )
    )
    assert [picked(playback, "text", call) for call in range(4)] == ["one", "two", "two", "two"]
    assert [picked(playback, "tool", call) for call in range(3)] == [None, "Done.", "Done."]


def test_an_answer_that_repeats() -> None:
    """`repeat` gives a last answer for as long as Claude asks; before the last it is refused."""
    read = {"tool": "Read", "input": {}, "repeat": True}
    playback = Playback(Script.of([{"reply": ["one", read]}]))
    assert [playback.pick("tool", call)[0] for call in range(5)] == ["text", "tool", "tool", "tool", "tool"]
    with pytest.raises(ConfigError, match=r"script: \[0\].reply: only the last one can have `repeat`"):
        Script.of([{"reply": [read, "one"]}])


def test_a_last_fault_lasts_unless_it_says_times() -> None:
    """`error: 401` alone means every time; with `times` it passes."""
    playback = Playback(
        Script.of([{"when": "always", "reply": {"error": 401}}, {"when": "twice", "reply": {"error": 500, "times": 2}}])
    )
    assert [playback.pick("always", 0)[0] for _ in range(5)] == ["error"] * 5
    assert [playback.pick("twice", 0)[0] for _ in range(4)] == ["error", "error", "text", "text"]


faults = st.builds(Refusal, error=st.sampled_from([429, 500, 529]), times=st.none() | st.integers(1, 3)) | st.builds(
    Break, drop=st.sampled_from(["start", "mid"]), times=st.none() | st.integers(1, 3)
)
answers = st.builds(Answer, text=st.text(max_size=5)) | st.just(Answer(tool="Read"))


@given(replies=st.lists(faults | answers, max_size=6), last=answers, again=st.booleans())
def test_every_answer_comes_in_order_and_every_fault_first(
    replies: list[Answer | Refusal | Break], last: Answer, again: bool
) -> None:
    """A client that repeats what failed gets each answer once, in order, after the faults before it.

    Asking for a turn again, as a resumed flow does, gives the same answers from the start.
    """
    script = [*replies, last]
    playback = Playback(Script(rules=(Rule(reply=tuple(script)),)))
    got: list[Any] = []
    for call in range(sum(isinstance(reply, Answer) for reply in script)):
        got.append(playback.pick("p", call)[1])
        while not isinstance(got[-1], Answer):
            got.append(playback.pick("p", call)[1])
    assert got == [each for reply in script for each in [reply] * (getattr(reply, "times", 1) or 1)]
    if again:
        wanted = [reply for reply in script if isinstance(reply, Answer)]
        assert [playback.pick("p", call)[1] for call in range(len(wanted))] == wanted


def picked(playback: Playback, prompt: str, call: int = 0) -> str | None:
    """Return the text of the answer a model call gets."""
    reply = playback.pick(prompt, call)[1]
    assert isinstance(reply, Answer)
    return reply.text


noise = st.sampled_from(
    [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "read"}]},
        {"role": "user", "content": "<system-reminder>\nMind this.\n</system-reminder>"},
        {"role": "user", "content": [{"type": "text", "text": "[structured-output-enforce] You MUST call it."}]},
        {"role": "system", "content": "# Environment"},
    ]
)
answer = st.just({"role": "assistant", "content": [{"type": "text", "text": "Earlier words"}]})


@given(
    before=st.lists(noise | answer, max_size=4),
    after=st.lists(noise | answer, max_size=6),
    prompt=st.text(min_size=1).map(str.strip).filter(lambda text: text and not text.startswith(("<", "["))),
)
def test_the_prompt_is_what_the_step_said(before: list[Any], after: list[Any], prompt: str) -> None:
    """Rules see the step's own words, whatever Claude Code adds around them, and count the answers since."""
    reminded = [{"type": "text", "text": "<system-reminder>x</system-reminder>"}, {"type": "text", "text": prompt}]
    messages = [*before, {"role": "user", "content": reminded}, *after]
    said = sum(message["role"] == "assistant" for message in after)
    assert wire.last_prompt(messages) == (prompt, said)


def test_the_last_of_two_prompts_counts() -> None:
    """A prompt after an interrupted one, which Claude Code sends in one message, is the one that is answered."""
    texts = [{"type": "text", "text": text} for text in ("first", "[Request interrupted by user]", "second")]
    assert wire.last_prompt([{"role": "user", "content": texts}]) == ("second", 0)


@given(
    text=st.text(),
    inputs=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans(), max_size=3), max_size=3),
    chunks=st.integers(1, 20),
)
def test_a_stream_adds_up_to_the_answer(text: str, inputs: list[dict[str, Any]], chunks: int) -> None:
    """However finely an answer is cut, its pieces are the answer, and no more pieces than were asked for."""
    said = Answer(text=text, tools=tuple(ToolCall(name="Edit", input=each) for each in inputs))
    whole = wire.message(said, model="m", tools=["Edit"])
    events = list(wire.events(whole, chunks=chunks))
    parts: dict[int, list[str]] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            parts.setdefault(event["index"], []).append(
                "".join(event["delta"][k] for k in event["delta"] if k != "type")
            )
    assert "".join(parts.get(0, [])) == text
    assert [json.loads("".join(parts[index + 1])) for index in range(len(inputs))] == inputs
    assert all(len(pieces) <= chunks for pieces in parts.values())
    assert [event["type"] for event in events][-2:] == ["message_delta", "message_stop"]
    opened = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert all(later == earlier + 1 for earlier, later in pairwise(opened))
    assert wire.encode(events[0]).endswith(b"\n\n")


def test_output_without_a_schema_is_json_text() -> None:
    """A scripted output still reads well where the step asked for none."""
    said = Answer(output={"status": "done"})
    asked = wire.message(said, model="m", tools=["StructuredOutput"])
    not_asked = wire.message(said, model="m", tools=["Read"])
    assert (asked["content"][0]["name"], asked["content"][0]["input"]) == ("StructuredOutput", {"status": "done"})
    assert not_asked["content"] == [{"type": "text", "text": '{"status": "done"}'}]


def test_public_names_are_there() -> None:
    """Each public name of `channelcoder_flows.testing` can be fetched, and a misspelt one is refused."""
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'ScriptedModle'"):
        _ = testing.ScriptedModle
