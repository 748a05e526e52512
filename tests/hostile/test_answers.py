"""Answers of any size and any text: they arrive whole, are kept, listed and printed, and steer no terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeSDKError, CLIJSONDecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from channelcoder_flows import Prompt, Session
from channelcoder_flows.claude_code.options import LINE_LIMIT
from channelcoder_flows.claude_code.transport import PlaceTransport
from channelcoder_flows.cli import output
from channelcoder_flows.errors import TurnDied
from channelcoder_flows.exchange import exchanges, read_line
from channelcoder_flows.journal import Failed
from channelcoder_flows.places.host import HostPlace
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.testing.storage_conformance import a_session, a_turn

Start = Callable[[Any], ScriptedModel]
SCRIPT = Path(sys.executable).parent / "channelcoder"
ALL = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
"""Every character there is: 4.4 MB of UTF-8, with NUL, escapes, every end of a line, marks that turn text round."""
FIVE_MB = ALL + "x" * (5_000_000 - len(ALL.encode()))
TRAPS = "one\rtwo\r\nthree\x0bfour\x0cfive\x1csix\x1dseven\x1eeight\x85nine\u2028ten\u2029\ufeffend"
"""What `str.splitlines` takes for ends of lines, and JSON Lines does not."""
STEERING = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b31m\x08\x7f\rover\u202eturned\u2066\u200b"


def channelcoder(*argv: str, cwd: Path) -> str:
    """Run the console script, and return what it prints; it must end well."""
    done = subprocess.run([SCRIPT, *argv], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def on_a_terminal(*argv: str, cwd: Path) -> str:
    """Run the console script with a terminal for its output and errors, and return what the terminal got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([SCRIPT, *argv], cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
        process.wait(60)
    os.close(ours)
    return re.sub("\r+\n", "\n", shown.decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # the last writer has gone
        return b""


def test_five_megabytes_of_every_character(scripted_model: Start, tmp_path: Path):
    """An answer of 5 MB that holds every character is printed, kept and shown to the last byte, and listed."""
    model = scripted_model([{"when": "All", "reply": {"text": FIVE_MB, "chunks": 40}}])
    assert channelcoder("run", "All of it", "--session", "s", cwd=tmp_path) == FIVE_MB + "\n"
    (turn,) = asyncio.run(Session.load("s")).opened.journal.turns
    assert turn.text == FIVE_MB
    assert model.paid() == 1
    assert channelcoder("session", "show", "s", cwd=tmp_path).endswith(f"\n{FIVE_MB}\n")
    (info,) = asyncio.run(Session.list())
    assert (info.name, info.turns, info.message_count) == ("s", 1, 2)


async def test_large_outputs_and_tool_results(scripted_model: Start, tmp_path: Path):
    """A structured output of 4 MB, after a tool's result of 5 MB, is kept whole; what is no text in it is replaced."""
    said = [{"name": f"{TRAPS}\ud800", "text": "é𝄞" * 500} for _ in range(1200)]
    rows = [{**row, "name": f"{TRAPS}\ufffd"} for row in said]
    print_much = "yes 'forty characters of it, again and again' | head -c 5000000"
    reply = [{"tool": "Bash", "input": {"command": print_much}}, {"output": {"rows": said}}]
    model = scripted_model([{"when": "Rows", "reply": reply}])
    prompt = Prompt.parse("---\noutput:\n  rows: [{name: string, text: string}]\n---\nRows", path="rows.md")
    result = await Session("s", cwd=tmp_path).claude(prompt, tools="Bash")
    assert result.output == {"rows": rows}
    assert (await Session.load("s")).opened.journal.turns[0].output == {"rows": rows}
    assert model.paid() == 2


@pytest.mark.torture
async def test_half_a_surrogate_pair(scripted_model: Start, tmp_path: Path):
    """What no file can hold is replaced in an answer that was paid for; the rest is kept, and the next turn runs."""
    model = scripted_model([{"when": "Half", "reply": f"a\ud800b {TRAPS}"}])
    session = Session("s", cwd=tmp_path)
    for turn in (1, 2):
        assert (await session.claude("Half")).text == f"a\ufffdb {TRAPS}"
        assert (await Session.load("s")).opened.journal.turns[-1].text == f"a\ufffdb {TRAPS}"
        assert model.paid() == turn


PRINTER = """
import sys
line = b'{"type":"system","subtype":"big","pad":"' + b"x" * (int(sys.argv[1]) - 42) + b'"}'
assert len(line) == int(sys.argv[1])
sys.stdout.buffer.write(b"a stray word\\n" + line + b"\\n" + b'{"type":"after"}\\n')
"""


async def heard(tmp_path: Path, size: int) -> list[int]:
    """Return how long the messages are of a process that prints a line of that size, and a short one."""
    transport = PlaceTransport(HostPlace(tmp_path, tmp_path), [sys.executable, "-c", PRINTER, str(size)], os.environ)
    await transport.connect()
    try:
        return [len(message.get("pad", "")) async for message in transport.read_messages()]
    finally:
        await transport.close()


async def test_a_line_of_64_mb(tmp_path: Path):
    """A line of the CLI's of just 64 MiB is heard whole; one byte more is an error that says so."""
    assert await heard(tmp_path, LINE_LIMIT) == [LINE_LIMIT - 42, 0]
    with pytest.raises(ClaudeSDKError, match="more than 64 MiB"):
        await heard(tmp_path, LINE_LIMIT + 1)


@pytest.mark.parametrize("garbage", ['b"{" * 100000 + b"\\n"', 'b"{\\xff\\n"', 'b\'{"a":\' + b"[" * 100000 + b"\\n"'])
async def test_lines_that_are_no_json(tmp_path: Path, garbage: str):
    """A line that looks like a message and is none is the transport's own error, however deep it goes."""
    argv = [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({garbage})"]
    transport = PlaceTransport(HostPlace(tmp_path, tmp_path), argv, os.environ)
    await transport.connect()
    with pytest.raises(CLIJSONDecodeError):
        [message async for message in transport.read_messages()]
    await transport.close()


async def test_a_turn_that_says_too_much_is_recorded_as_failed(
    claude_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A CLI that prints a line of more than 64 MiB ends the turn with a typed error; the session says what happened."""
    claude = tmp_path / "claude"
    size = LINE_LIMIT + 1
    claude.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[1:] = ['{size}']\n{PRINTER}\nsys.stdin.read()\n")
    claude.chmod(0o755)
    monkeypatch.setenv("CHANNELCODER_CLAUDE_PATH", str(claude))
    session = Session("s", cwd=tmp_path)
    with pytest.raises(TurnDied, match="a line of more than 64 MiB"):
        await asyncio.wait_for(session.claude("Say it"), 60)
    journal = (await Session.load("s")).opened.journal
    (failed,) = [event for event in journal.events if isinstance(event, Failed)]
    assert (failed.error, failed.prompt, journal.intent, journal.turns) == ("died", "Say it", None, [])


class TestAnyText:
    """Texts that hypothesis makes up."""

    @given(st.text(max_size=300), st.text(max_size=300), st.recursive(st.none() | st.text(), st.lists, max_leaves=5))
    @settings(deadline=None, max_examples=25)
    def test_a_turn_is_kept_as_it_was_said(self, prompt: str, text: str, data: Any):
        """Whatever text a turn is made of, the journal gives it back, and it is one line of it."""
        store = FileSessionStorage(self.root)
        turn = a_turn("s", 1).model_copy(update={"prompt": prompt + TRAPS, "text": text + TRAPS, "output": data})
        name = f"s{len(os.listdir(self.root)) if self.root.exists() else 0}"
        asyncio.run(store.append(name, (*a_session(name, turns=0), turn), expect=0))
        assert asyncio.run(store.read(name))[1] == turn
        assert (self.root / name / "journal.jsonl").read_bytes().count(b"\n") == 1

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> Iterator[None]:
        type(self).root = tmp_path / "sessions"
        yield

    @given(st.text(st.characters(codec=None), max_size=60))
    def test_a_line_is_read_as_text(self, text: str):
        """However a line spells a text, half a surrogate pair is all that changes in it."""
        expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert read_line(json.dumps({"a": text, text: [text]}).encode()) == {"a": expected, expected: [expected]}
        raw = json.dumps({"a": text}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        assert read_line(raw) == {"a": expected}

    @given(st.text(max_size=200))
    def test_an_exchange_is_found_whatever_was_typed(self, text: str):
        """A transcript's lines end where Claude Code ends them, and nowhere inside a text."""
        message = {"type": "user", "uuid": "u1", "message": {"role": "user", "content": text + TRAPS}}
        line = json.dumps(message, ensure_ascii=False).encode() + b"\n"
        assert [exchange.prompt for exchange in exchanges(line * 2)] == [text + TRAPS] * 2

    @given(st.text(st.characters(codec=None), max_size=60))
    def test_a_name_is_one_line_of_visible_text(self, name: str):
        """A name in a list or an error neither ends its line nor steers the terminal nor turns it round."""
        shown = output.plain(name + STEERING + TRAPS)
        assert len(shown.splitlines()) == 1
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)

    def test_names_that_people_use_are_shown_as_they_are(self):
        """Scripts, accents and emoji are no reason to escape anything."""
        for name in (
            "café",
            "cafe\u0301",
            "日本語\u3000の名前",
            "می\u200cخواهم",
            "👩\u200d💻 ❤️",
            "naïve – “quotes”",
            "\U0001fae8",
        ):
            assert output.plain(name) == name


def test_columns_are_aligned():
    """Wide and combining characters take the columns that a terminal gives them."""
    table = output.columns([("NAME", "N"), ("日本", "1"), ("cafe\u0301", "2"), ("abcd", "3")])
    assert table.splitlines() == ["NAME  N", "日本  1", "cafe\u0301  2", "abcd  3"]


def test_a_word_can_be_copied():
    """The command that goes on with a session names it so that a shell reads that very name, whatever it is."""
    names = ["plain", "two words", "it's", "-rf", TRAPS, STEERING, "\\x41\x1b'\"$(id)`id`", "日本\u200b"]
    script = "".join(f"printf '%s\\0' {output.word(name)}\n" for name in names)
    assert script.isprintable() or not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", script)
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env=env).stdout.decode()
    assert told.split("\0")[:-1] == names


def test_no_terminal_is_steered(claude_env: Any, tmp_path: Path):
    """On a terminal, answers, names and errors show what they hold instead of doing it."""
    name = f"odd {STEERING}"
    turn = a_turn(name, 1, text=f"answer {STEERING}\n\ttabs and\r\nlines stay")
    asyncio.run(FileSessionStorage().append(name, (*a_session(name, turns=0), turn), expect=0))
    (info,) = asyncio.run(Session.list())
    listed = on_a_terminal("session", "list", cwd=tmp_path)
    shown = on_a_terminal("session", "show", info.path, cwd=tmp_path)
    refused = on_a_terminal("session", "show", f"not {STEERING}", cwd=tmp_path)
    for text in (listed, shown, refused):
        assert r"\x1b]0;title\x07\x1b[2J\x1b[31mred" in text
        # What dims a line beside the answer is our own.
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.sub("\x1b\\[2?2m", "", text))
    assert "\n\ttabs and\nlines stay" in shown
