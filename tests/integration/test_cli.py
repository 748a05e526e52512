"""The command line as scripts and people use it: the real console script, the real CLI, the scripted model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import SCRIPT, channelcoder, start

from channelcoder_flows import Session
from channelcoder_flows.testing.model import ScriptedModel

Start = Callable[[Any], ScriptedModel]

HELLO = [{"when": "Start", "reply": "Started."}, {"when": "Go on", "reply": "Went on."}]
OWN_TOOLS = {"DeferredToolPlaceholder"}
"""What Claude Code adds by itself, and does nothing."""
RESULT = {"text", "output", "outcome", "session", "cost_usd", "usage", "duration_s", "replayed"}


@pytest.fixture
def project(tmp_path: Path, claude_env: dict[str, str]) -> Path:
    """Return an empty project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def read(run: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """Return the one JSON document on stdout."""
    assert run.returncode == code, run.stderr
    return json.loads(run.stdout)


def test_run_and_continue(project: Path, scripted_model: Start) -> None:
    """`--session` begins a session and never wipes it; `--load-session` in another process goes on with it."""
    model = scripted_model(HELLO)
    first = channelcoder("run", "Start project", "--session", "my-project", cwd=project)
    assert (first.returncode, first.stdout) == (0, "Started.\n")
    for flag in ("--session", "--load-session"):
        again = channelcoder("run", "-p", "Go on", flag, "my-project", cwd=project)
        assert (again.returncode, again.stdout) == (0, "Went on.\n")
    shown = read(channelcoder("session", "show", "my-project", "--json", cwd=project))
    said = ["Start project", "Started.", "Go on", "Went on.", "Go on", "Went on."]
    assert [message["content"] for message in shown["messages"]] == said
    assert "Start project" in json.dumps(model.requests[-1].messages)
    assert model.paid() == 3


def test_run_as_json(project: Path, scripted_model: Start) -> None:
    """`run --json` prints exactly one object with exactly the documented keys, and says nothing on stderr."""
    scripted_model(HELLO)
    run = channelcoder("run", "Start", "--session", "s", "--json", cwd=project)
    result = read(run)
    assert set(result) == RESULT
    assert set(result["session"]) == {"name", "id", "seq"}
    assert (result["text"], result["output"], result["outcome"]) == ("Started.", None, "done")
    assert (result["session"]["name"], result["replayed"]) == ("s", False)
    assert result["cost_usd"] > 0
    assert result["usage"]["input_tokens"] == 100
    assert run.stderr == ""


def test_without_a_session_nothing_is_kept(project: Path, scripted_model: Start) -> None:
    """A run without `--session` leaves no session; its Claude session id is still told, on stderr."""
    scripted_model(HELLO)
    run = channelcoder("run", "Start", cwd=project)
    assert run.stdout == "Started.\n"
    assert "not kept · Claude session " in run.stderr
    result = read(channelcoder("run", "Start", "--json", cwd=project))
    assert result["session"]["name"] is None
    assert result["session"]["id"]
    assert read(channelcoder("session", "list", "--json", cwd=project)) == []


def test_a_prompt_file(project: Path, scripted_model: Start) -> None:
    """A file's inputs come from `-d` (JSON where it parses, text where text is declared), its output goes to stdout."""
    output = {"answer": 42}
    model = scripted_model([{"when": "Count", "reply": {"output": output}}])
    matter = "input: {what: string, n: number}\noutput: {answer: number}"
    (project / "count.md").write_text(f"---\n{matter}\n---\nCount {{what}} to {{n}}\n")
    run = channelcoder("run", "count.md", "-d", "what=007", "-d", "n=3", cwd=project)
    assert json.loads(run.stdout) == output
    assert model.requests[0].prompt.strip() == "Count 007 to 3"
    assert read(channelcoder("run", "count.md", "-d", "what=x", "-d", "n=3", "--json", cwd=project))["output"] == output
    streamed = channelcoder("stream", "count.md", "-d", "what=x", "-d", "n=3", cwd=project)
    assert json.loads(streamed.stdout) == output


def test_a_text_is_a_text(project: Path, scripted_model: Start) -> None:
    """`-p` and standard input are never taken for a file, and a brace in them is left alone."""
    model = scripted_model([{"reply": "Done."}])
    (project / "plan.md").write_text("From the file\n")
    channelcoder("run", "plan.md", cwd=project)
    channelcoder("run", "-p", "plan.md", cwd=project)
    channelcoder("run", "-", cwd=project, stdin="--model {opus}\n")
    channelcoder("run", "-p", "--dry-run", cwd=project)
    asked = [request.prompt.strip() for request in model.requests]
    assert asked == ["From the file", "plan.md", "--model {opus}", "--dry-run"]


def test_what_the_flags_say_reaches_the_api(project: Path, scripted_model: Start) -> None:
    """Tools, model and system prompt are those of this command, also on a session that began with others."""
    model = scripted_model([{"reply": "Done."}])
    (project / "reviewer.txt").write_text("You review.\n")
    channelcoder("run", "a", "--session", "s", "-s", "You plan.", "-t", "Read", cwd=project)
    flags = ("-s", "reviewer.txt", "-t", "Glob Grep", "--model", "haiku")
    channelcoder("run", "b", "--session", "s", *flags, cwd=project)
    first, second = model.requests
    assert "You plan." in first.system
    assert "You review." in second.system
    assert "You plan." not in second.system
    assert {"Read"} == set(first.tools) - OWN_TOOLS
    assert {"Glob", "Grep"} == set(second.tools) - OWN_TOOLS
    assert "haiku" in second.model


def test_stream(project: Path, scripted_model: Start) -> None:
    """`stream` prints the text as it comes and keeps the session as `run` does; `--json` gives a line a piece."""
    scripted_model([{"reply": {"text": "one two three four", "chunks": 4}}])
    run = channelcoder("stream", "Count", "--session", "s", cwd=project)
    assert (run.returncode, run.stdout) == (0, "one two three four\n")
    run = channelcoder("stream", "Count", "--session", "s", "--json", cwd=project)
    *pieces, last = [json.loads(line) for line in run.stdout.splitlines()]
    assert "".join(piece["content"] for piece in pieces if piece["type"] == "text") == "one two three four"
    assert set(last) == {"type", *RESULT}
    assert (last["type"], last["text"]) == ("result", "one two three four")
    assert read(channelcoder("session", "show", "s", "--json", cwd=project))["turns"] == 2


def test_dry_run_spends_nothing(project: Path, scripted_model: Start) -> None:
    """`--dry-run` shows the rendered prompt, options, place and session, makes no session and asks no model."""
    model = scripted_model(HELLO)
    (project / "plan.md").write_text("---\ntools: Read\nmaxTurns: 3\ninput: {ticket: string}\n---\nPlan {ticket}\n")
    argv = ("run", "plan.md", "-d", "ticket=T-1", "--session", "s", "--max-turns", "5", "--dry-run")
    shown = read(channelcoder(*argv, "--json", cwd=project))
    assert set(shown) == {"prompt", "options", "place", "session"}
    assert shown["prompt"].strip() == "Plan T-1"
    assert (shown["options"]["tools"], shown["options"]["max_turns"]) == (["Read"], 5)
    assert shown["place"] == {"kind": "host", "cwd": str(project)}
    assert shown["session"] == {"name": "s", "id": None, "seq": 0}
    argv_shown = read(channelcoder(*argv, "--json", "--verbose", cwd=project))["argv"]
    assert "--max-turns" in argv_shown
    assert "Plan T-1" in channelcoder(*argv, cwd=project).stdout
    assert read(channelcoder("session", "list", "--json", cwd=project)) == []
    assert model.requests == []


def test_sessions_as_json(project: Path, scripted_model: Start) -> None:
    """`session list --json` and `show --json` have exactly the documented keys; the path can be shown too."""
    scripted_model(HELLO)
    channelcoder("run", "Start", "--session", "old project", cwd=project)
    (listed,) = read(channelcoder("session", "list", "--json", cwd=project))
    keys = {"name", "path", "created", "lastActive", "messageCount", "turns", "cost_usd"}
    assert set(listed) == keys
    assert (listed["name"], listed["messageCount"], listed["turns"]) == ("old project", 2, 1)
    shown = read(channelcoder("session", "show", "old project", "--json", cwd=project))
    assert set(shown) == keys | {"sessionChain", "currentSessionId", "messages"}
    assert {name: shown[name] for name in keys} == listed
    by_path = read(channelcoder("session", "show", listed["path"], "--json", cwd=project))
    assert by_path == shown


def test_one_session_is_shown_without_looking_at_others(project: Path, scripted_model: Start) -> None:
    """`show` reads what it shows: not a damaged neighbour, and not the session of that name in another store."""
    scripted_model(HELLO)
    for store in ("here", "there"):
        assert channelcoder("run", "Start", "--session", "s", "--store", store, cwd=project).returncode == 0
    (project / "here" / "damaged").mkdir()
    (project / "here" / "damaged" / "journal.jsonl").write_text("this is no journal\n")
    there = str(project / "there" / "s")
    for name, store, path in (("s", "here", str(project / "here" / "s")), (there, "here", there)):
        run = channelcoder("session", "show", name, "--store", store, "--json", cwd=project)
        assert (read(run)["path"], run.stderr) == (path, "")


def test_fork_rewind_remove(project: Path, scripted_model: Start) -> None:
    """A fork has the turns up to `--at`, a rewind keeps those up to `--to`, a removed session is gone."""
    scripted_model(HELLO)
    channelcoder("run", "Start", "--session", "a", cwd=project)
    channelcoder("run", "Go on", "--session", "a", cwd=project)
    assert read(channelcoder("session", "fork", "a", "b", "--at", "1", "--json", cwd=project))["turns"] == 1
    assert channelcoder("session", "fork", "a", "b", cwd=project).returncode == 4
    assert read(channelcoder("session", "rewind", "a", "--to", "0", "--json", cwd=project))["turns"] == 0
    assert channelcoder("session", "rewind", "a", "--to", "7", cwd=project).returncode == 2
    missing = channelcoder("session", "remove", "a", "c", cwd=project)
    assert missing.returncode == 4
    assert len(read(channelcoder("session", "list", "--json", cwd=project))) == 2, "all of them or none"
    assert read(channelcoder("session", "remove", "a", "b", "--json", cwd=project)) == {"removed": ["a", "b"]}
    assert read(channelcoder("session", "list", "--json", cwd=project)) == []


@pytest.mark.parametrize("name", ["../../victim", "a/b", "naïve — 会话", "-p", "--json", "x\ny"])
async def test_any_name(name: str, project: Path) -> None:
    """A session may have any name: none leads out of the store, and each is listed, on one line, and removed."""
    await Session(name).save()
    (listed,) = read(channelcoder("session", "list", "--json", cwd=project))
    assert listed["name"] == name
    assert Path(listed["path"]).parent == Path(os.environ["CHANNELCODER_SESSION_DIR"])
    assert len(channelcoder("session", "list", cwd=project).stdout.splitlines()) == 2
    assert channelcoder("session", "remove", "--", name, cwd=project).returncode == 0
    assert not await Session.exists(name)


def test_errors_as_json(project: Path, scripted_model: Start) -> None:
    """With `--json` an error is an object on stdout, of the same shape for all, with the exit code it ends with."""
    scripted_model([{"reply": {"error": 400, "message": "no such model", "times": 99}}])
    for argv, kind, code in (
        (("run", "Start"), "api/400", 1),
        (("run", "Start", "--load-session", "x"), "session-not-found", 4),
        (("run", "x.md"), "prompt-not-found", 3),
        (("run",), "usage", 2),
        (("session", "show", "--jsno", "x"), "usage", 2),
    ):
        run = channelcoder(*argv, "--json", cwd=project)
        error = read(run, code)["error"]
        assert set(error) >= {"kind", "message", "exit_code", "retryable", "retry_after"}
        assert (error["kind"], error["exit_code"], error["retryable"]) == (kind, code, False)
        assert run.stderr == f"channelcoder: {error['message']}\n"


def test_an_answer_that_cannot_be_kept_is_printed(project: Path, scripted_model: Start) -> None:
    """When the store fails after Claude has answered, the answer that was paid for is on stdout all the same."""
    model = scripted_model([{"reply": {"hold": "gate", "text": "Paid for."}}])
    process = start("run", "Start", "--session", "s", cwd=project)
    model.wait_for("Start")
    store = Path(os.environ["CHANNELCODER_SESSION_DIR"])
    store.rename(store.with_name("gone"))
    store.write_text("in the way")
    model.release("gate")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert stdout == "Paid for.\n"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_turn_is_taken_back(signal_number: int, project: Path, scripted_model: Start) -> None:
    """Ctrl-C and SIGTERM leave the session as it was; the same command then runs the turn."""
    model = scripted_model([{"when": "Start", "reply": "Started."}, {"reply": {"hold": "gate", "text": "Went on."}}])
    channelcoder("run", "Start", "--session", "s", cwd=project)
    process = start("stream", "Go on", "--session", "s", "--json", cwd=project)
    model.wait_for("Go on")
    process.send_signal(signal_number)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal_number
    assert json.loads(stdout.splitlines()[-1])["error"]["kind"] == "interrupted"
    assert read(channelcoder("session", "show", "s", "--json", cwd=project))["turns"] == 1
    model.release("gate")
    assert channelcoder("run", "Go on", "--session", "s", cwd=project).stdout == "Went on.\n"
    assert read(channelcoder("session", "show", "s", "--json", cwd=project))["turns"] == 2


def test_a_command_in_the_background(project: Path, scripted_model: Start) -> None:
    """A script's background command is not met by Ctrl-C, as shells have it, and ends on SIGTERM all the same."""
    model = scripted_model([{"reply": {"hold": "gate", "text": "never"}}])
    shell = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("run", "Start", "--session", "s", "--json", cwd=project)
    finally:
        signal.signal(signal.SIGINT, shell)
    model.wait_for("Start")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(stdout)["error"]["kind"]) == (143, "interrupted")


def test_a_busy_session(project: Path, scripted_model: Start) -> None:
    """A second turn of a session waits and says so; with `--no-wait` it fails at once, as an error of its own."""
    model = scripted_model([{"when": "Start", "reply": {"hold": "gate", "text": "Started."}}, {"reply": "Went on."}])
    first = start("run", "Start", "--session", "s", cwd=project)
    model.wait_for("Start")
    refused = channelcoder("run", "Go on", "--session", "s", "--no-wait", "--json", cwd=project)
    assert read(refused, 4)["error"]["kind"] == "session-busy"
    second = start("run", "Go on", "--session", "s", cwd=project)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    model.release("gate")
    assert first.communicate(timeout=60)[0] == "Started.\n"
    assert second.communicate(timeout=60)[0] == "Went on.\n"
    assert read(channelcoder("session", "show", "s", "--json", cwd=project))["turns"] == 2


def test_a_closed_pipe_is_no_error(project: Path, scripted_model: Start) -> None:
    """`channelcoder … | head` ends without a word on stderr."""
    scripted_model(HELLO)
    channelcoder("run", "Start", "--session", "s", cwd=project)
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([SCRIPT, "session", "show", "s"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert run.stderr == ""


DOUBLE = """
from prefect import flow


@flow
async def double(n: int, note: str) -> dict:
    return {"n": 2 * n, "note": note, "share": 1 / n}
"""


def test_flow_run(project: Path) -> None:
    """`flow run` prints what the flow returns, with `--json` also its run key; one that fails ends in one line."""
    (project / "double.py").write_text(DOUBLE)
    argv = ("flow", "run", "double.py:double", "-d", "note=007", "--run-key", "k")
    report = read(channelcoder(*argv, "-d", "n=2", "--json", cwd=project))
    result = {"n": 4, "note": "007", "share": 0.5}
    assert report == {"result": result, "run_key": "k", "sessions": [], "cost_usd": 0.0}
    failed = channelcoder(*argv, "-d", "n=0", cwd=project)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = (line for line in failed.stderr.splitlines() if line.startswith("channelcoder: "))
    assert "ZeroDivisionError: division by zero" in line


def test_doctor(project: Path) -> None:
    """`doctor` finds what is needed, never prints a key, and fails where something necessary is missing."""
    run = channelcoder("doctor", "--json", cwd=project, ANTHROPIC_API_KEY="sk-secret")
    findings = {finding["name"]: finding for finding in read(run)}
    assert {"Python", "Claude Code", "login", "store", "git", "Docker", "Prefect"} <= set(findings)
    assert findings["login"]["status"] == "ok"
    assert "sk-secret" not in run.stdout + run.stderr
    run = channelcoder("doctor", "--json", cwd=project, CHANNELCODER_CLAUDE_PATH="/nowhere/claude")
    assert {f["name"] for f in read(run, 1) if f["status"] == "fail"} == {"Claude Code"}
    run = channelcoder("doctor", "--json", cwd=project, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert {f["name"] for f in read(run, 1) if f["status"] == "fail"} == {"Prefect server"}


def test_as_a_module(project: Path) -> None:
    """`python -m channelcoder_flows` is the same command."""
    python = SCRIPT.with_name("python")
    run = subprocess.run([python, "-m", "channelcoder_flows", "--version"], capture_output=True, text=True, timeout=60)
    assert run.stdout == channelcoder("--version", cwd=project).stdout
