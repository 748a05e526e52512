"""Prompt files: everything they may say is understood, and everything else is an error with its line."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows import matter
from channelcoder_flows.errors import InputError, OutputInvalid, PromptError
from channelcoder_flows.prompt import Prompt, check, seconds, split_tools
from channelcoder_flows.prompt_file import KEYS
from channelcoder_flows.turn import RetryPolicy, TurnOptions

DOCS = Path(__file__).parents[2] / "docs" / "prompts.md"


def parse(frontmatter: str, body: str = "Do it", path: Path | None = None) -> Prompt:
    """Return the prompt of a frontmatter and a body."""
    return Prompt.parse(f"---\n{frontmatter}\n---\n{body}\n", path=path)


def refused(frontmatter: str, body: str = "Do it", path: Path | None = None) -> str:
    """Return what the prompt is refused with."""
    with pytest.raises(PromptError) as caught:
        parse(frontmatter, body, path)
    return str(caught.value)


def test_a_whole_prompt_is_read(tmp_path):
    """Every key lands where it belongs, and only what the file says counts as given."""
    (tmp_path / "style.txt").write_text("Be brief.\n")
    (tmp_path / "servers.json").write_text('{"mcpServers": {}}')
    path = tmp_path / "plan.md"
    path.write_text(
        """---
name: planner
description: Plans it.
systemPrompt: You plan.
appendSystemPrompt: style.txt
model: opus
effort: high
fallbackModel: sonnet
tools: [Read, Edit]
allowedTools: Read, Bash(git log:*)
disallowedTools: ["Bash(rm *)"]
permissionMode: acceptEdits
permissionPromptTool: mcp__auth__ask
mcpConfig: servers.json
settingSources: [project]
maxTurns: 7
maxBudgetUsd: 1.5
timeout: 30m
idleTimeout: 90
retry: {attempts: 2, delay: 5s}
recovery: continue
session: {required: true, name: feature, mode: fork, from: base}
input: {ticket: string}
output: {steps: "string[]"}
x-owner: [me]
---

Plan {ticket}.
"""
    )
    prompt = Prompt.load(path)
    assert prompt.options == TurnOptions(
        system_prompt="You plan.",
        append_system_prompt="Be brief.",
        model="opus",
        effort="high",
        fallback_model="sonnet",
        tools=("Read", "Edit"),
        allowed_tools=("Read", "Bash(git log:*)"),
        disallowed_tools=("Bash(rm *)",),
        permission_mode="acceptEdits",
        permission_prompt_tool="mcp__auth__ask",
        mcp_config=str(tmp_path / "servers.json"),
        setting_sources=("project",),
        max_turns=7,
        max_budget_usd=1.5,
        timeout=1800,
        idle_timeout=90,
        retry=RetryPolicy(attempts=2, delay=5),
        recovery="continue",
    )
    assert prompt.options.model_fields_set == {key.option for key in KEYS.values() if key.option}
    assert (prompt.name, prompt.description, prompt.path) == ("planner", "Plans it.", path)
    assert (prompt.session.required, prompt.session.mode, prompt.session.from_) == (True, "fork", "base")
    assert prompt.bind({"ticket": "Search"}) == "Plan Search."
    assert prompt.validate_output({"steps": ["a"]}) == {"steps": ["a"]}


def test_a_plain_markdown_file_is_a_prompt(tmp_path):
    """Without frontmatter the text is the prompt, the file's stem its name, and nothing is set."""
    (tmp_path / "hello.md").write_text("    indented\n\ntext  \n\n")
    prompt = Prompt.load(tmp_path / "hello.md")
    assert (prompt.name, prompt.bind()) == ("hello", "    indented\n\ntext")
    assert not prompt.options.model_fields_set


def test_kebab_case_is_an_alias_but_not_twice():
    """Both spellings of a key work; the two together are an error."""
    assert parse("max-turns: 3\nallowed-tools: [Read]").options == parse("maxTurns: 3\nallowedTools: [Read]").options
    assert refused("max-turns: 3\nmaxTurns: 3") == "prompt:3: maxTurns: is given twice: as max-turns and as maxTurns"


@pytest.mark.parametrize(
    ("frontmatter", "message"),
    [
        ("alowedTools: [Read]", "prompt:2: alowedTools: is not a key of a prompt file; did you mean 'allowedTools'?"),
        ("argument-hint: x", "a key of your own is called x-argument-hint"),
        ("\nargument-hint: [file] [opts]", "prompt:3: argument-hint: cannot be read; put the value in quotes: "),
        (
            "name: x\ndescription: Fix: all",
            "prompt:3: description: cannot be read; put the value in quotes: 'Fix: all'",
        ),
        ("allowedTools: *", "prompt:2: allowedTools: cannot be read; put the value in quotes: '*'"),
        ("docker: true", "prompt:2: docker: is not in this version yet"),
        ("worktree: x", "prompt:2: worktree: is not in this version yet"),
        ("checks: []", "prompt:2: checks: is not in this version yet"),
        ("model: a\nmodel: b", "prompt:3: model: is given twice (first on line 2)"),
        ("model:", "prompt:2: model: has no value"),
        ("maxTurns: yes", "prompt:2: maxTurns: must be a whole number"),
        ("maxTurns: true", "prompt:2: maxTurns: must be a whole number"),
        ("maxTurns: 0", "prompt:2: maxTurns: must be greater than or equal to 1"),
        ("timeout: soon", "prompt:2: timeout: must be a number of seconds, or a duration"),
        ("timeout: .inf", "prompt:2: timeout: .inf is not a number"),
        ("effort: huge", "prompt:2: effort: must be 'low', "),
        ("retry:\n  attempts: -1", "prompt:3: retry.attempts: must be greater"),
        ("retry: {attemps: 1}", "prompt:2: retry: has no 'attemps'; did you mean 'attempts'?"),
        ("session: main", "prompt:2: session: must be a mapping of required"),
        ("session: {required: yes}", "prompt:2: session: required must be true or false"),
        ("session:\n  mode: forks", "prompt:3: session.mode: must be 'continue', 'new' or 'fork'"),
        ('allowedTools: ["Read,Bash"]', "prompt:2: allowedTools.0: 'Read,Bash' is not a tool name"),
        ("tools: --version", "prompt:2: tools.0: '--version' is not a tool name"),
        ("tools: [1]", "prompt:2: tools: must be a list of texts"),
        ("input:\n  a?: string\n  b:\n    c?: strng", "prompt:5: input.b.c: 'strng' is not a type"),
        ("input: {a?: string}", 'prompt:2: input: inside { } a name that ends in ? needs quotes: {"name?": string}'),
        ("output:\n  type: array\n  items: {type: string}", "prompt:2: output: the outermost schema has type: object"),
        ("mcpConfig: {a: 1}", "prompt:2: mcpConfig: has no mcpServers"),
        ("- a", "prompt:2: the frontmatter is a list"),
        ("just text", "prompt:2: the frontmatter is a plain value"),
        ("a: &x 1", "prompt:2: a: anchors and aliases are not read"),
        ("<<: *x", "anchors and aliases are not read"),
        ("model: !!python/name:os.system x", "prompt:2: model: tags are not read"),
        ("model: 'x", "cannot be read"),
        ("session:\n\trequired: true", "there is a tab; indent with spaces"),
        ('name: "\\ud800"', "prompt:2: name: has half a character"),
        ("? [a]\n: b", "a key is a text"),
        ("x-a: \x07", "prompt:2: has a character that YAML refuses"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(frontmatter, message):
    """A wrong line is named, with what to do; no part of a prompt file is ever skipped."""
    assert message in refused(frontmatter)


def test_frontmatter_is_never_lost():
    """A file that seems to have limits never becomes a prompt without them."""
    for text, problem in [
        ("---\nmodel: x\nDo it\n", "f.md:1: the frontmatter has no end"),
        ("----\nmodel: x\n----\nDo it", "f.md:1: frontmatter is YAML between two lines of exactly three dashes"),
        ("+++\nmodel = 'x'\n+++\nDo it", "f.md:1: frontmatter is YAML between"),
        ("---\nmodel: x\n---\n", "f.md:4: there is no text under the frontmatter"),
        ("---\nx-a: " + "a" * 70_000 + "\n---\nDo it", "f.md:1: the frontmatter is over 64 KB"),
        ("---\nx-a: " + "[" * 500 + "\n---\nDo it", "f.md:2: x-a: is nested deeper than 32 levels"),
    ]:
        with pytest.raises(PromptError, match=re.escape(problem)):
            Prompt.parse(text, path="f.md")


@pytest.mark.parametrize("prefix", ["", "\ufeff", "\n\n", "\ufeff\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_bom_blank_lines_and_line_ends_change_nothing(tmp_path, prefix, newline):
    """A file saved by any editor is the same prompt."""
    path = tmp_path / "p.md"
    text = prefix + "---\nmodel: opus\ntools: [Read]\n---\n\nOne\nTwo\n"
    path.write_bytes(text.replace("\n", newline).encode())
    prompt = Prompt.load(path)
    assert (prompt.options.model, prompt.options.tools, prompt.body) == ("opus", ("Read",), "One\nTwo")


def test_scalars_mean_what_they_say():
    """YAML 1.2: `on` and dates are texts, 010 is ten, and a text key keeps `1.10` as it was written."""
    data = matter.split(
        "---\na: on\nb: no\nc: 010\nd: 1.10\ne: 2026-01-02\nf: ~\ng: 0x1F\nh: TRUE\n---\n", file="f"
    ).data
    assert data == {"a": "on", "b": "no", "c": 10, "d": 1.1, "e": "2026-01-02", "f": None, "g": 31, "h": True}
    assert parse("model: 1.10\nname: 010").options.model == "1.10"
    assert parse("model: 1.10\nname: 010").name == "010"
    assert parse("output: {a: {type: string, enum: [yes, no, on]}}").validate_output({"a": "on"}) == {"a": "on"}


yaml_keys = st.text(min_size=1, max_size=80)  # in YAML a key has at most 1024 characters, escapes as written
yaml_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(yaml_keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(yaml_keys, yaml_data, max_size=3))
def test_json_in_frontmatter_comes_back(data):
    """Any JSON data (JSON is YAML) is read as exactly that data."""
    assert matter.split(f"---\n{json.dumps(data)}\n---\n", file="f").data == data


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_any_text_is_a_prompt_or_a_prompt_error(text):
    """No file, however odd, gives anything but a prompt or an error with its place."""
    for source in (text, f"---\n{text}\n---\nDo it"):
        try:
            Prompt.parse(source)
        except PromptError as exc:
            assert exc.file == "prompt" and "\n" not in str(exc)


def test_odd_files_are_refused_without_hanging(tmp_path):
    """A pipe, a device, a folder, a binary or a huge file is an error at once."""
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "nul.md").write_bytes(b"a\nb\0")
    (tmp_path / "latin.md").write_bytes("a\n\nä".encode("latin-1"))
    with (tmp_path / "huge.md").open("wb") as huge:
        huge.truncate(50 * 1024 * 1024)
    for name, problem in [
        ("pipe.md", "is not a regular file"),
        ("nul.md", "has a NUL byte"),
        ("latin.md", "is not UTF-8"),
        ("huge.md", "is over 1 MB"),
        ("", "is a folder"),
        ("none.md", "there is no such file"),
    ]:
        with pytest.raises(PromptError, match=problem):
            Prompt.load(tmp_path / name)
    with pytest.raises(PromptError, match="is not a regular file"):
        Prompt.load("/dev/zero")
    with pytest.raises(PromptError, match=r"latin\.md:3: "):
        Prompt.load(tmp_path / "latin.md")


def test_files_a_prompt_names_are_found_beside_it(tmp_path, monkeypatch):
    """Paths are relative to the prompt file wherever it is run from; a missing one is an error, not a text."""
    monkeypatch.chdir("/")
    (tmp_path / "system.md").write_text("---\nnot: frontmatter\n---\nYou {plan}.\n")
    path = tmp_path / "p.md"
    assert (
        parse("systemPrompt: ./system.md", path=path).options.system_prompt
        == (tmp_path / "system.md").read_text().strip()
    )
    assert "systemPrompt: " in refused("systemPrompt: gone.md", path=path)
    assert "gone.md: there is no such file" in refused("systemPrompt: gone.md", path=path)
    assert "gone.json: there is no such file" in refused("mcpConfig: gone.json", path=path)
    assert parse("systemPrompt: |\n  Read\n  notes.md", path=path).options.system_prompt == "Read\nnotes.md"
    inline = parse("mcpConfig: {mcpServers: {a: {command: b}}}").options.mcp_config
    assert json.loads(inline or "") == {"mcpServers": {"a": {"command": "b"}}}


def test_inputs_are_checked_before_anything_is_spent():
    """A missing, misspelled or wrong input names the field and the nearest name."""
    prompt = parse("input: {ticket: string, count: {type: integer, default: 2}}", "Do {ticket} {count} {return}")
    assert prompt.bind({"ticket": "{count}"}) == "Do {count} 2 {return}"
    with pytest.raises(InputError, match="did you mean 'ticket'") as caught:
        prompt.bind({"tickt": "x"})
    assert caught.value.field == "ticket"
    with pytest.raises(InputError, match="count: must be a whole number"):
        prompt.bind({"ticket": "x", "count": "3"})
    with pytest.raises(InputError, match="the prompt is empty"):
        parse("input: {a: string}", "{a}").bind({"a": " "})


def test_json_schema_inputs_are_closed_unless_they_say_otherwise():
    """An input that nothing declares is a mistake, in JSON Schema too."""
    schema = '{"type": "object", "properties": {"a": {"type": "string"}}}'
    with pytest.raises(InputError, match="b: is not declared"):
        parse(f"input: {schema}", "Do {a}").bind({"b": 1})
    opened = schema[:-1] + ', "additionalProperties": true}'
    assert parse(f"input: {opened}", "Do {a}{b}").bind({"a": "x", "b": 1}) == "Do x{b}"


def test_typed_text_is_sent_as_it_is():
    """Text without data keeps its braces; with data it is a template like any other."""
    assert Prompt.inline("why {return}?").bind() == "why {return}?"
    assert Prompt.inline("Hi {name}").bind({"name": "Ada"}) == "Hi Ada"
    assert Prompt.inline("---\nnot: frontmatter\n---\n").body == "---\nnot: frontmatter\n---\n"
    for blank in (" \n", "\ufeff", "\u2003\ufeff\n"):
        with pytest.raises(PromptError, match="is empty"):
            Prompt.inline(blank)


def test_values_typed_as_text_are_json_unless_a_text_is_declared():
    """`-d ticket=123` is the text 123 where a text is declared, and a number elsewhere."""
    prompt = parse("input: {ticket: string, tags: 'string[]'}", "Do {ticket} {tags}")
    assert prompt.read_value("ticket", "123") == "123"
    assert prompt.read_value("tags", '["a"]') == ["a"]
    assert prompt.read_value("other", "plain text") == "plain text"
    assert prompt.read_value("other", "NaN") == "NaN"


def test_an_output_that_does_not_fit_is_named_place_by_place():
    """Every place that is wrong is told, so that one more turn can put all of it right."""
    prompt = parse("output: {ok: boolean, items: [{name: string}]}")
    with pytest.raises(OutputInvalid, match=r"ok: is missing; items\[0\]\.name: must be a text, not 1"):
        prompt.validate_output({"items": [{"name": 1}]})
    assert parse("name: x").validate_output("anything") == "anything"
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(OutputInvalid, match="is nested too deep"):
        parse("output: {any: any}").validate_output({"any": deep})


def test_check_finds_every_error_of_every_file(tmp_path):
    """One call shows all there is to put right, in files and folders, hidden folders left out."""
    (tmp_path / "a").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("---\n")
    (tmp_path / "a" / "one.md").write_text("---\nmodle: x\nmaxTurns: no\ninput: {t: {a: string}}\n---\n\nDo {t.b}\n")
    (tmp_path / "two.md").write_text("---\ntools: [\n---\nDo it")
    (tmp_path / "good.md").write_text("Do it")
    (tmp_path / "none").mkdir()
    found = [str(error).removeprefix(f"{tmp_path}/") for error in check([tmp_path, tmp_path / "none", "gone.md"])]
    assert [line.partition(" ")[0] for line in found] == [
        "two.md:3:",
        *["a/one.md:2:", "a/one.md:3:", "a/one.md:7:"],
        "none:",
        "gone.md:",
    ]
    assert found[3] == "a/one.md:7: {t.b}: 'b' is not declared"


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("Read Write", ["Read", "Write"]),
        ("Read, Bash(git log:*)", ["Read", "Bash(git log:*)"]),
        ("Read,Write , Edit", ["Read", "Write", "Edit"]),
        ("Bash(npm run test, lint) mcp__a__b", ["Bash(npm run test, lint)", "mcp__a__b"]),
        ("", []),
    ],
)
def test_tool_lists_in_one_text(text, tools):
    """Both of ChannelCoder's forms are split, never inside parentheses."""
    assert split_tools(text) == tools


@given(st.text("RB(),: *\n"))
def test_splitting_tools_loses_nothing(text):
    """Whatever is typed, no character but commas and blanks is dropped, so nothing slips past the tool check."""
    kept = "".join(split_tools(text))
    assert re.sub(r"[\s,]", "", kept) == re.sub(r"[\s,]", "", text)


def test_durations():
    """Durations are seconds, or numbers with units."""
    assert [seconds(value) for value in (5, 1.5, "90s", "30m", "1h30m", "2d")] == [5, 1.5, 90, 1800, 5400, 172800]
    for wrong in (True, None, "", "5", "m", "1h 30m", "-5s", "1w"):
        with pytest.raises(ValueError, match="must be a number of seconds"):
            seconds(wrong)


def test_errors_survive_pickling():
    """An error that crosses a process keeps its file, line and key."""
    with pytest.raises(PromptError) as caught:
        parse("modle: x")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.file, again.line, again.key, str(again)) == ("prompt", 2, "modle", str(caught.value))


def test_every_key_is_in_the_docs():
    """docs/prompts.md explains each key, in the order of the table, and its examples are valid prompts."""
    text = DOCS.read_text()
    keys = text.partition("## Keys")[2].partition("## Templates")[0]
    assert re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE) == list(KEYS)
    examples = re.findall(r"^```markdown\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        Prompt.parse(example)


def test_importing_prompts_is_light():
    """Reading prompts loads neither Prefect, the Claude SDK, git, docker nor jsonschema."""
    code = (
        "import sys; from channelcoder_flows.prompt import Prompt;"
        "Prompt.parse('---\\ninput: {a: string}\\n---\\n{a}').bind({'a': 'x'});"
        "print([m for m in ('prefect', 'claude_agent_sdk', 'git', 'docker', 'jsonschema') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "frontmatter",
    [
        "a: [x] " + " " * 60_000 + "[",
        "x-a: [" + "[" * 60_000,
        "? " * 30_000,
        "x-a: [" + "1," * 30_000 + "]",
        "a: " * 20_000,
    ],
)
def test_hostile_frontmatter_costs_little(frontmatter):
    """The worst 64 KB of frontmatter is read or refused within a second or two of CPU, in a short message."""
    start = time.process_time()
    try:
        parse(frontmatter)
    except PromptError as exc:
        assert len(str(exc)) < 500
    assert time.process_time() - start < 4
