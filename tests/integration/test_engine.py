"""One turn on the real CLI: everything is stated, nothing leaks in or out, and it always ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand import events_of, files_of, nothing_runs, said, soon, transcript_of

from channelcoder_flows import (
    ClaudeNotFound,
    OutputInvalid,
    PlaceError,
    Prompt,
    Session,
    TurnDied,
    TurnStalled,
    TurnTimeout,
    UsageError,
)
from channelcoder_flows.claude_code import command, sdk_options
from channelcoder_flows.journal import Check, Turn
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.turn import TurnOptions, TurnRequest

Start = Callable[[Any], ScriptedModel]
REPORT = "---\noutput:\n  status: string\n---\n{what}"


def report(what: str) -> Prompt:
    """Return a prompt that declares an output."""
    return Prompt.parse(REPORT.replace("{what}", what), path="report.md")


class TestEverythingIsStated:
    """Nothing is carried over from an earlier turn, nothing is taken from the surroundings."""

    async def test_each_turn_has_its_own_options(self, scripted_model: Start, tmp_path: Path) -> None:
        """System prompt, model and tools of each step reach the API, and none of them the next step."""
        model = scripted_model([{"reply": "Well."}])
        session = Session("s", cwd=tmp_path)
        await session.claude("One", system="You are Alpha.", model="claude-haiku-5-5", tools="Read")
        await session.claude("Two", system="You are Bravo.", tools=["Bash(ls:*)", "Edit"], effort="low")
        await session.claude("Three", append_system="You are Charlie.", disallowed_tools="Bash")
        await session.claude("Four")
        await session.claude("Five", tools=[])
        one, two, three, four, five = model.requests
        names = ("Alpha", "Bravo", "Charlie")
        systems = [[name for name in names if name in request.system] for request in model.requests]
        assert systems == [["Alpha"], ["Bravo"], ["Charlie"], [], []]
        assert not any(name in said(five) for name in names)
        assert one.model == "claude-haiku-5-5"
        assert one.model != two.model == three.model == four.model
        built_in = {"Read", "Edit", "Bash", "Write"}
        assert [set(r.tools) & built_in for r in model.requests] == [
            {"Read"},
            {"Bash", "Edit"},
            {"Read", "Edit", "Write"},
            built_in,
            set(),
        ]
        assert "One" in said(five) and "Four" in said(five)

    def test_the_argv_of_the_pinned_sdk(self) -> None:
        """Each option is on the command line, also where it was left open: what is not said is carried over."""
        options = TurnOptions(
            system_prompt="--version",
            append_system_prompt="--help",
            model="m",
            fallback_model="f",
            effort="high",
            tools=("Read", "Bash(git log:*)", "mcp__x__y"),
            allowed_tools=("Edit",),
            disallowed_tools=("WebFetch",),
            mcp_config='{"mcpServers": {}}',
            permission_prompt_tool="mcp__x__ask",
            permission_mode="acceptEdits",
            setting_sources=("project",),
            max_turns=3,
            max_budget_usd=1.5,
        )
        request = TurnRequest(prompt="--print", options=options, output_schema={"type": "object"})
        argv = command(Path("claude"), sdk_options(request, cwd=Path("/w"), env={}, session_id="0-0", resume=True))
        pairs = {flag: argv[at + 1] for at, flag in enumerate(argv[:-1]) if flag.startswith("--")}
        pairs |= {flag: value for flag, joined, value in (word.partition("=") for word in argv) if joined}
        assert argv[0] == "claude"
        assert "--print" not in argv
        expected = {
            "--system-prompt": "--version\n\n--help",
            "--model": "m",
            "--fallback-model": "f",
            "--effort": "high",
            "--tools": "Read,Bash",
            "--allowedTools": "Read,Bash(git log:*),mcp__x__y,Edit",
            "--disallowedTools": "WebFetch",
            "--mcp-config": '{"mcpServers": {}}',
            "--permission-prompt-tool": "mcp__x__ask",
            "--permission-mode": "acceptEdits",
            "--max-turns": "3",
            "--max-budget-usd": "1.5",
            "--json-schema": '{"type": "object"}',
            "--input-format": "stream-json",
            "--output-format": "stream-json",
        }
        assert {flag: pairs.get(flag) for flag in expected} == expected
        assert {"--resume=0-0", "--setting-sources=project", "--strict-mcp-config"} <= set(argv)
        bare = command(
            Path("claude"),
            sdk_options(TurnRequest(prompt="x"), cwd=Path("/w"), env={}, session_id="0-0", resume=False),
        )
        assert {"--session-id=0-0", "--setting-sources=", "--strict-mcp-config", "--model", "--tools"} <= set(bare)
        assert (bare[bare.index("--model") + 1], bare[bare.index("--tools") + 1]) == ("default", "default")

    async def test_text_is_text(self, scripted_model: Start, tmp_path: Path) -> None:
        """What looks like a flag, a file or a command is what Claude reads: nothing is sent along, nothing runs."""
        model = scripted_model([{"reply": "Well."}])
        session = Session("s", cwd=tmp_path)
        await session.claude("Look at @/etc/passwd", system="--version", append_system="--help")
        for text in ("/clear", "--version", "!touch pwned", "# remember this"):
            await session.claude(text)
        assert [r.prompt for r in model.requests] == [
            "Look at @/etc/passwd",
            "/clear",
            "--version",
            "!touch pwned",
            "# remember this",
        ]
        assert "--version\n\n--help" in model.requests[0].system
        last = said(model.requests[-1])
        assert "root:" not in last
        assert all(json.dumps(r.prompt)[1:-1] in last for r in model.requests)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.jsonl"]
        assert [m.content for m in session.messages[::2]] == [r.prompt for r in model.requests]

    @pytest.mark.parametrize("options", [{"system": "a\0b"}, {"system": "\udce4"}, {"model": "a\0b"}])
    async def test_what_is_no_text_is_refused(self, tmp_path: Path, claude_env: Any, options: Any) -> None:
        """What no program can be given is an error of one line, before anything is written or spent."""
        with pytest.raises(UsageError, match="no text"):
            await Session("s", cwd=tmp_path).claude("Hi", **options)
        with pytest.raises(UsageError, match="no text"):
            await Session("s", cwd=tmp_path).claude("Hi \ud800")
        assert not await Session.exists("s")

    async def test_surroundings_stay_outside(self, scripted_model: Start, tmp_path: Path) -> None:
        """Hooks and servers that a repository brings do not run, and Claude's commands find the user's home."""
        ran = tmp_path / "ran"
        hook = [{"hooks": [{"type": "command", "command": f"touch {ran}"}]}]
        (tmp_path / ".claude").mkdir()
        (tmp_path / ".claude" / "settings.json").write_text(
            json.dumps({"hooks": {"SessionStart": hook, "UserPromptSubmit": hook, "PreToolUse": hook}})
        )
        (tmp_path / ".mcp.json").write_text(json.dumps({"mcpServers": {"m": {"command": "touch", "args": [str(ran)]}}}))
        scripted_model([{"reply": [{"tool": "Bash", "input": {"command": "env > env.txt"}}, "Done."]}])
        await Session("s", cwd=tmp_path).claude("Look around", tools="Bash")
        assert f"HOME={os.environ['HOME']}" in (tmp_path / "env.txt").read_text().splitlines()
        assert not ran.exists()


class TestOutput:
    """A declared output is what the caller gets, or an error that says why not."""

    async def test_output(self, scripted_model: Start, tmp_path: Path) -> None:
        """A fitting answer comes as data; prose is sent back once, as another turn of the same step."""
        model = scripted_model(
            [
                {"when": "Report one", "reply": {"output": {"status": "done"}}},
                {"when": "Report two", "reply": "All is done."},
                {"when": "does not fit the form", "reply": {"output": {"status": "late"}}},
            ]
        )
        session = Session("s", cwd=tmp_path)
        first = await session.claude(report("Report one"))
        assert (first.output, first.step, first.turn) == ({"status": "done"}, "report", 1)
        second = await session.claude(report("Report two"))
        assert (second.output, second.step, second.turn) == ({"status": "late"}, "report~2", 3)
        (check,) = events_of(session, Check)
        assert (str(check.step), check.passed) == ("report", False)
        assert model.requests[-1].prompt.startswith("Your answer does not fit")
        plain = await session.claude("Plain")
        assert (plain.output, session.turns) == (None, 4)

    async def test_output_that_never_fits(self, scripted_model: Start, tmp_path: Path) -> None:
        """Twice wrong is `OutputInvalid` with exit code 7; what was paid for stays in the session."""
        scripted_model([{"when": "/Report|does not fit/", "reply": "All is done."}, {"reply": "Well."}])
        session = Session("s", cwd=tmp_path)
        with pytest.raises(OutputInvalid) as caught:
            await session.claude(report("Report"))
        assert (caught.value.exit_code, caught.value.session) == (7, "s")
        assert [str(turn.step) for turn in events_of(session, Turn)] == ["report", "report~2"]
        assert (await session.claude("Go on")).turn == 3


class TestFailures:
    """Every failure is an error of its own class; the session is as it was, and no process is left."""

    async def test_a_failed_turn_leaves_no_trace(self, scripted_model: Start, tmp_path: Path) -> None:
        """Timeout, silence, cancellation and a killed CLI in the middle of a tool: as if it had not been asked.

        The transcript has the same bytes, every process is gone (also what ignores TERM, or left its session), the
        attempt is recorded with its cost (of an answer that had arrived; an estimate when the CLI cannot tell any
        more), and the next turn's request knows nothing of it.
        """
        plain = {"tool": "Bash", "input": {"command": "touch running; sleep 300"}}
        stubborn = "trap '' TERM; (setsid nohup sleep 300 &) ; touch running; sleep 300"
        model = scripted_model(
            [
                {"when": "Begin", "reply": "Begun."},
                {"when": "End", "reply": "Ended."},
                {"when": "/^Work hard/", "reply": [{"tool": "Bash", "input": {"command": stubborn}}, "Done."]},
                {"when": "/^Work/", "reply": [plain, "Done."]},
            ]
        )
        session = Session("s", cwd=tmp_path)
        await session.claude("Begin")
        before, running = files_of(session), tmp_path / "running"

        async def work(how: str = "Work", **options: Any) -> Any:
            return await session.claude(how, tools="Bash", **options)

        async def cancelled() -> Any:
            task = asyncio.create_task(work("Work hard"))
            await soon(running.exists)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # impatience must not leave anything behind
            return await task

        async def killed() -> Any:
            task = asyncio.create_task(work())
            await soon(running.exists)
            # Once it has written down the answer, it was paid for in the eyes of whoever comes later.
            await soon(lambda: b"touch running" in transcript_of(session).read_bytes())
            os.kill(int(session.opened.journal.process.id), signal.SIGKILL)
            return await task

        for failure, error, kind in (
            (work(timeout=5), TurnTimeout, "timeout"),
            (work(idle_timeout=5), TurnStalled, "stalled"),
            (cancelled(), asyncio.CancelledError, "interrupted"),
            (killed(), TurnDied, "died"),
        ):
            with pytest.raises(error):
                await failure
            failed = session.opened.journal.events[-1]
            assert (failed.kind, failed.error) == ("failed", kind)
            assert files_of(session) == before, kind
            assert nothing_runs(session), kind
            assert session.opened.journal.intent is None
            if running.exists():  # the model's call of the tool had arrived
                assert failed.cost_usd > 0 or failed.cost_estimated, kind
                running.unlink()
        assert (await session.claude("End")).turn == 2
        assert '"Work' not in said(model.requests[-1])
        assert "Begin" in said(model.requests[-1])
        assert len(session.messages) == 4

    async def test_what_cannot_start(self, tmp_path: Path, claude_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory or program that is not there is an error before anything is spent, and no turn hangs on it."""
        with pytest.raises(PlaceError, match="does not exist"):
            await Session("s", cwd=tmp_path / "none").claude("Hi")
        monkeypatch.setenv("CHANNELCODER_CLAUDE_PATH", str(tmp_path / "claude"))
        with pytest.raises(ClaudeNotFound):
            await Session("s", cwd=tmp_path).claude("Hi")
        no_cli = tmp_path / "claude"
        no_cli.write_text("#!/bin/sh\necho 'not today' >&2\nexit 3\n")
        no_cli.chmod(0o700)
        session = Session("s", cwd=tmp_path)
        with pytest.raises(TurnDied, match="not today"):
            await session.claude("Hi")
        assert session.opened.journal.intent is None
