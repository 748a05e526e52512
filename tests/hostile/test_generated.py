"""Generated names, values and flag-like inputs: what is accepted arrives as it is, all else is refused by its name."""

from __future__ import annotations

import json
import os
import signal
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import texts
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from channelcoder_flows import cli
from channelcoder_flows.claude_code import command, sdk_options
from channelcoder_flows.errors import InputError, SessionError, UsageError
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.step import check_texts
from channelcoder_flows.storage.base import check_name
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.turn import TurnRequest, options_from

LONG = {"names": 2000, "values": 4000, "flags": 3000, "command line": 1000}
"""Examples of the long form: 10,000."""

DECLARED = Prompt.parse("---\ninput: {x: string, y: any}\n---\n[{x}] {y} {return} ${z} {{x}}")
PLAIN = Prompt.inline("[{x}] {y}")


def a_name(name: str) -> bool:
    """A name is refused, or a directory of the store's own that no other name leads to, on any file system."""
    try:
        check_name(name)
    except SessionError as exc:
        assert not name.strip() or len(name) > 200 or "\0" in name
        assert str(exc).isprintable() and exc.name == name
        return False
    directory = directory_name(name)
    assert Path("/store", directory).parent == Path("/store") and directory not in ("", ".", "..")
    assert not directory.startswith(".") and directory.isprintable() and len(os.fsencode(directory)) <= 255
    twins = [name.upper(), name.lower(), name + ".", name + " ", directory, *(f"{name}{c}" for c in "/\n\u200b")]
    twins += [unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    for twin in twins:
        if twin != name:
            assert directory_name(twin).casefold() != directory.casefold()
    return True


def a_value(value: str, other: str) -> bool:
    """A value is in the prompt as it is, once, and never read as a template; or refused by its name."""
    for prompt, kept in ((DECLARED, " {return} ${z} {{x}}"), (PLAIN, "")):
        try:
            text = prompt.bind({"x": value, "y": [other]})
        except InputError as exc:
            assert exc.field in ("x", "y") and "\0" in value + other and str(exc).isprintable()
            continue
        listed = json.dumps([other], ensure_ascii=False, separators=(",", ":"))
        assert text == f"[{value}] {listed}{kept}"
        assert "\0" not in value
    assert DECLARED.read_value("x", value) == value
    return "\0" not in value + other


def a_flag(given: Mapping[str, Any]) -> bool:
    """What a turn is told adds no flag to the CLI's, takes none away, and is found again as it was."""
    request = TurnRequest(prompt="p", output_schema={"type": "object", "title": given.get("model", "")})
    try:
        request = check_texts(request.model_copy(update={"options": options_from(**given)}))
    except UsageError as exc:
        assert str(exc).isprintable() and str(exc).startswith(tuple(given))
        return False
    argv = argv_of(request)
    harmless = {name: ["Read"] if isinstance(value, list) else "x" for name, value in given.items()}
    expected = argv_of(request.model_copy(update={"options": options_from(**harmless)}))
    assert flags_in(argv) == flags_in(expected)
    words = [word.partition("=")[2] if word.startswith("--") else word for word in argv]
    for name, value in given.items():
        if isinstance(value, str) and name not in ("system_prompt", "append_system_prompt"):
            assert value in words
    for name in ("allowed_tools", "disallowed_tools"):
        if name in given:
            assert ",".join(given[name]) in words
    if given.get("system_prompt"):
        assert given["system_prompt"] in words
    return True


def a_command_line(text: str, value: str) -> bool:
    """What is typed after -p, -d and -s is text, whatever it looks like; nothing of it is a flag of ours."""
    if "\0" in text + value or os.path.isfile(value):
        return False  # no program can be called with the one; -s reads the other, as its help says
    argv = ["run", "--json", "-p", f"{text}", "-s", f"{value}", "--dry-run"]
    code, told = run(argv)
    if code:
        blank = not text.strip()
        assert blank or told["error"]["kind"] in ("usage", "prompt-not-found", "prompt"), told
        return False
    assert told["prompt"] == text
    assert told["options"]["system_prompt"] in (value, value.strip())
    assert told["options"]["tools"] is None
    code, told = run(["run", "--json", "-p", "[{x}]", "-d", f"x={value}", "--dry-run"])
    assert code == 0
    read = Prompt.inline("[{x}]").bind({"x": PLAIN.read_value("x", value)})
    assert told["prompt"] == read
    return True


RULES = st.sampled_from(["Read", "Bash(git log:*)", "mcp__a__b"]) | texts.map("Bash({})".format) | texts
OPTIONS = {
    **dict.fromkeys(("system_prompt", "append_system_prompt", "model", "fallback_model"), texts.filter(bool)),
    **dict.fromkeys(("mcp_config", "permission_prompt_tool"), texts.filter(bool)),
    **dict.fromkeys(("tools", "allowed_tools", "disallowed_tools"), st.lists(RULES, min_size=1, max_size=2)),
}
FORMS: dict[str, tuple[Callable[..., bool], tuple[st.SearchStrategy[Any], ...]]] = {
    "names": (a_name, (texts | texts.map(lambda text: (text * 200)[:201]),)),
    "values": (a_value, (texts, texts)),
    "flags": (a_flag, (st.one_of(*(st.fixed_dictionaries({name: kind}) for name, kind in OPTIONS.items())),)),
    "command line": (a_command_line, (texts, texts)),
}


def generate(form: str, examples: int, seeded: int | None = None) -> Counter[bool]:
    """Try so many generated examples of a form; return how many were accepted (True) and refused (False)."""
    outcome: Counter[bool] = Counter()
    check, strategies = FORMS[form]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*strategies))
    def each(args: tuple[Any, ...]) -> None:
        outcome[check(*args)] += 1

    (each if seeded is None else seed(seeded)(each))()
    assert outcome[True] > examples // 4, "hardly any was accepted: this showed little"
    return outcome


@pytest.mark.parametrize(("form", "examples"), [("names", 150), ("values", 200), ("flags", 100), ("command line", 25)])
def test_generated(form: str, examples: int, project: Path) -> None:
    """Names stay in the store, values in the text, flags in their place: a few hundred of each."""
    assert generate(form, examples).total() >= examples


@pytest.mark.torture
@pytest.mark.parametrize("form", LONG)
def test_ten_thousand_generated(form: str, seed: int, project: Path) -> None:
    """The same, 10,000 in all."""
    outcome = generate(form, LONG[form], seed)
    print(f"{form}: {outcome.total()} generated, {outcome[True]} accepted, {outcome[False]} refused")


@pytest.fixture
def project(tmp_path: Path, claude_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; what a command does to the process's signals is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def run(argv: list[str]) -> tuple[int, Any]:
    """Run our command line in this process; return its exit code and the JSON it printed."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = cli.main(argv)
    out.flush()
    return code, json.loads(out.buffer.getvalue())  # pyright: ignore


def argv_of(request: TurnRequest) -> list[str]:
    """Return the CLI's argv for a request."""
    options = sdk_options(request, cwd=Path("/w"), env={}, session_id="0-0", resume=True)
    return command(Path("claude"), options)


def flags_in(argv: list[str]) -> list[str]:
    """Return every word that the CLI could take for a flag, without its value."""
    return [word.partition("=")[0] for word in argv[1:] if word.startswith("-")]
