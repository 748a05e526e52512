"""The help texts, the page that carries them, and how errors end: without a process."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from channelcoder_flows.cli import failure, output
from channelcoder_flows.cli.app import app
from channelcoder_flows.errors import StorageError, TurnTimeout

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"```text\n(channelcoder(?P<command>[a-z ]*)(?: [-A-Z\[][^\n]*)?\n.*?)```", re.DOTALL)
COMMANDS = [
    "",
    "run",
    "stream",
    "session",
    "session list",
    "session show",
    "session load",
    "session fork",
    "session rewind",
    "session remove",
    "prompt check",
    "flow run",
    "flow resume",
    "demo",
    "doctor",
]


def help_of(command: str) -> str:
    """Return what `channelcoder COMMAND --help` prints on a terminal of 100 columns."""
    console = Console(file=io.StringIO(), width=100)
    app([*command.split(), "--help"], console=console, result_action="return_value")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip().splitlines()) + "\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_the_help_that_is_printed(command: str) -> None:
    """docs/cli.md shows each command's help word for word; UPDATE_SNAPSHOTS=1 writes it anew."""
    page = PAGE.read_text(encoding="utf-8")
    block = next((found for found in BLOCK.finditer(page) if found["command"].strip() == command), None)
    assert block is not None, f"docs/cli.md has no help of {command!r}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(page[: block.start(1)] + help_of(command) + page[block.end(1) :], encoding="utf-8")
    else:
        assert block[1] == help_of(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_says_what_it_does(command: str) -> None:
    """No flag and no command is left without a word of explanation."""
    rows = [line for line in help_of(command).splitlines() if re.match(r"  (-|[a-z]+ {2,})", line)]
    assert rows
    assert all(re.search(r"\S {2,}\S", row) for row in rows)


def test_a_defect_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody foresaw is one line, says how to see the traceback, and is exit code 1."""
    assert failure.report(RuntimeError("two\nlines"), ["run"], interrupted=130) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "channelcoder: unexpected RuntimeError: two lines; run the command again with --verbose for the traceback"
    ]
    failure.report(RuntimeError("two"), ["run", "--verbose"], interrupted=130)
    assert "RuntimeError: two" in capsys.readouterr().err


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences in what an error quotes are not passed on."""
    failure.report(TurnTimeout("\x1b[2Jgone"), ["run"], interrupted=130)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(("term", "shown"), [("xterm", "\x1b[2mbusy\x1b[22m"), ("dumb", "busy")])
def test_what_is_said_beside_the_answer(
    term: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is dim on a terminal that can do that, and plain everywhere else."""
    monkeypatch.setenv("TERM", term)
    output.say("busy")
    assert capsys.readouterr().err == "busy\n"
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        output.say("busy")
        assert os.read(ours, 100).decode() == f"{shown}\r\n"
    os.close(ours)


def test_what_was_paid_for_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A whole answer that could not be kept goes to stdout; half a one does not."""
    assert failure.report(StorageError("full", answer="42"), ["run"], interrupted=130) == 4
    assert capsys.readouterr().out == "42\n"
    failure.report(TurnTimeout("late", text="4"), ["run"], interrupted=130)
    assert capsys.readouterr().out == ""
    failure.report(TurnTimeout("late", text="4"), ["run", "--json"], interrupted=130)
    assert '"text":"4"' in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C before there is a turn is one word, and the exit code a shell expects."""
    assert failure.report(KeyboardInterrupt(), ["run"], interrupted=128 + number) == 128 + number
    assert capsys.readouterr().err == "channelcoder: interrupted\n"
