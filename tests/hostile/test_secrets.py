"""Secrets in the environment: no command that Claude runs finds one in what it was given, nothing writes one down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand import soon

from channelcoder_flows import FileSessionStorage, NotLoggedIn, PlaceError, Session
from channelcoder_flows.claude_code.scrub import DURING_A_COMMAND, EXCLUDE, IN_DIRECTORY, IN_HOME, Placeholders, problem
from channelcoder_flows.cli.doctor import examine
from channelcoder_flows.testing import ScriptedModel

Start = Callable[[Any], ScriptedModel]

NAMES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_ADMIN_KEY",
    "CLAUDE_CODE_SLACK_TAG_TOKEN",
    "OPENAI_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_CLIENT_SECRET",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "GITLAB_TOKEN",
    "NPM_TOKEN",
    "PYPI_TOKEN",
    "DATABASE_URL",
    "PGPASSWORD",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "SSH_AUTH_SOCK",
    "CHANNELCODER_STORE",
)
MARKS = {name: f"canary-{number:02}-{name.lower()}" for number, name in enumerate(NAMES)}
CANARIES = {**MARKS, "CHANNELCODER_STORE": f"postgresql://me:{MARKS['CHANNELCODER_STORE']}@db/sessions"}

LOOK_AROUND = r"""
of_claude() { tr '\0' '\n' </proc/$PPID/environ; }
{
    env
    of_claude
    # Whatever else runs for this turn: what stands between the one who started it and this shell.
    for file in $(grep -lzxsF CHANNELCODER_TURN=$CHANNELCODER_TURN /proc/[0-9]*/environ); do tr '\0' '\n' <$file; done
    tr '\0' '\n' </proc/$PPID/cmdline
    timeout 1 cat /proc/$PPID/fd/$(of_claude | sed -n 's/^CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR=//p')
} 2>&1 | grep -a -e canary- -e ^CHANNELCODER_TURN= -e ^--permission-mode
"""
"""What a curious command finds: only lines with a canary, and one of each source to show that it was read."""


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch, claude_env: Any) -> None:
    """Put the canaries into our environment."""
    for name, value in {**CANARIES, "CLAUDE_CODE_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)


def found_in(text: str) -> set[str]:
    """Return the canaries that a text holds."""
    return {name for name, mark in MARKS.items() if mark in text}


async def test_no_secret_reaches_a_command(
    scripted_model: Start, canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    """Of 20 secrets, the API key among them, Claude's commands see those that `pass_env` names, and none besides."""
    look = {"tool": "Bash", "input": {"command": LOOK_AROUND}}
    model = scripted_model([{"when": "Fail", "reply": {"error": 401}}, {"reply": [look, "Looked."]}])
    session = Session("s", cwd=tmp_path, storage=FileSessionStorage(tmp_path / "store"))
    assert (await session.claude("Look around", tools="Bash")).text == "Looked."
    seen = json.dumps(model.requests[-1].messages)
    assert (seen.count("CHANNELCODER_TURN=") >= 3, "--permission-mode" in seen) == (True, True)
    assert found_in(seen) == set()
    key = hashlib.sha256(CANARIES["ANTHROPIC_API_KEY"].encode()).hexdigest()
    assert {request.auth for request in model.requests} == {key[:12]}
    with pytest.raises(NotLoggedIn) as refused:
        await session.claude("Fail")
    told = "".join(traceback.format_exception(refused.value))
    assert found_in(told + repr(refused.value.__dict__) + caplog.text + "".join(capfd.readouterr())) == set()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.is_relative_to(tmp_path / "store") for path in written)
    assert any(path.parent.parent.name == "projects" for path in written)
    assert {path for path in written if found_in(path.read_bytes().decode(errors="replace"))} == set()

    monkeypatch.setenv("CHANNELCODER_PASS_ENV", "GITHUB_TOKEN,ANTHROPIC_API_KEY")
    await Session("s", cwd=tmp_path, storage=FileSessionStorage(tmp_path / "store")).claude("Look again", tools="Bash")
    assert found_in(json.dumps(model.requests[-1].messages)) == {"GITHUB_TOKEN", "ANTHROPIC_API_KEY"}


LOOKING_FLOW = f"""
from prefect import flow
from channelcoder_flows.flow import turn

@flow
async def looking():
    return (await turn({LOOK_AROUND!r}, key="look", tools="Bash")).text
"""


@pytest.mark.torture
def test_no_secret_reaches_prefect(
    scripted_model: Start, canaries: None, claude_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a flow tells Prefect (logs, artifacts, states, parameters) holds one of the secrets."""
    home = tmp_path / "prefect"
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    scripted_model([{"reply": [{"tool": "Bash", "input": {"command": LOOK_AROUND}}, "Looked around."]}])
    (tmp_path / "looking.py").write_text(LOOKING_FLOW)
    argv = [sys.executable, "-m", "channelcoder_flows", "flow", "run", "looking.py:looking", "--store", tmp_path / "s"]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert (run.returncode, run.stdout) == (0, "Looked around.\n"), run.stderr
    told = "".join(path.read_bytes().decode(errors="replace") for path in home.rglob("*") if path.is_file())
    assert "Looked around." in told
    assert found_in(told + run.stderr) == set()


IN_ITS_SANDBOX = """
env
cat /proc/[0-9]*/environ | tr '\\0' '\\n'
echo a > made; echo b > /tmp/made-in-a-sandbox && rm /tmp/made-in-a-sandbox; cat .env; echo x > package.json
"""


def tree(*folders: Path) -> set[str]:
    """Return every path in some folders, but for what Claude Code, git and npm keep for themselves."""
    paths = {str(path) for folder in folders for path in folder.rglob("*")}
    keep = ("home/.claude/", "home/.channelcoder/", "/.config/", "/.npm/", "/objects/")
    return {path for path in paths if not any(name in f"{path}/" for name in keep)}


async def test_the_sandbox_for_commands(
    scripted_model: Start, claude_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Claude Code's sandbox, commands find no secret in any process, and none of its placeholders stays behind.

    Where it cannot work, a turn that asks for it is refused, and says why.
    """
    project = tmp_path / "project"
    subprocess.run(["git", "init", "-q", project], check=True)
    (project / ".yarnrc").touch()
    monkeypatch.setenv("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB", "1")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", MARKS["GITHUB_TOKEN"])
    look = {"tool": "Bash", "input": {"command": IN_ITS_SANDBOX}}
    wait = {"tool": "Bash", "input": {"command": "touch waiting; sleep 100"}}
    model = scripted_model([{"when": "Look", "reply": [look, "Looked."]}, {"reply": [wait, "Waited."]}])
    session = Session("s", cwd=project)
    if why := problem():
        print(f"Claude Code's sandbox cannot work on this machine: {why}")
        with pytest.raises(PlaceError, match="cannot work here"):
            await session.claude("Look", tools="Bash")
        assert model.requests == []
        return
    home, exclude = Path(claude_env["HOME"]), (project / EXCLUDE).read_bytes()
    before = tree(project, home)
    await session.claude("Look", tools="Bash")
    seen = json.dumps(model.requests[-1].messages)
    assert ("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB" in seen, found_in(seen)) == (True, set())
    assert tree(project, home) - before == {str(project / "made")}
    assert (project / EXCLUDE).read_bytes() == exclude

    task = asyncio.create_task(session.claude("Wait", tools="Bash"))
    await soon((project / "waiting").exists)
    assert (project / "package.json").exists()
    (project / ".npmrc").write_text("mine=1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree(project, home) - before == {str(project / name) for name in ("made", "waiting", ".npmrc")}
    assert (project / EXCLUDE).read_bytes() == exclude


@pytest.mark.parametrize(
    ("bwrap", "why"),
    [(None, "install bubblewrap and socat"), ("echo 'no user namespaces' >&2; exit 1", "no user names")],
)
async def test_a_sandbox_that_cannot_work(
    claude_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bwrap: str | None, why: str
) -> None:
    """Asked for in vain, the sandbox is an error that says why, before anything is spent. `doctor` says so too."""
    for name in ("bwrap", "socat") if bwrap else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{bwrap}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    session = Session("s", cwd=tmp_path)
    with pytest.raises(PlaceError, match=f"cannot work here: {why}"):
        await session.claude("Hi")
    assert session.opened.journal.intent is None
    finding = next(finding for finding in examine(None) if finding.name == "sandbox for commands")
    assert finding.status == "fail"
    assert why in finding.found


BLOCK = b"\n# claude-code scrub-mode stubs\n/.env\n/package.json\n"


def leave_placeholders(folder: Path, names: list[str]) -> None:
    """Do as Claude Code does when it starts."""
    for path in (folder / name for name in names if not (folder / name).exists()):
        if path.suffix or path.name.startswith("."):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
    if (folder / EXCLUDE).exists():
        with (folder / EXCLUDE).open("ab") as file:
            file.write(BLOCK)


@pytest.mark.parametrize("killed", [False, True])
def test_placeholders_go_and_nothing_else(tmp_path: Path, killed: bool) -> None:
    """The empty files go after the turn, or with the next one after a kill; what a person or Claude made stays."""
    folder = tmp_path / "project"
    (folder / EXCLUDE).parent.mkdir(parents=True)
    (folder / EXCLUDE).write_bytes(b"*.mine\n")
    (folder / "yarn.lock").touch()
    before = tree(folder)
    placeholders = Placeholders(folder, IN_DIRECTORY, tmp_path)
    placeholders.expect()
    leave_placeholders(folder, IN_DIRECTORY)
    placeholders.are_there()
    (folder / "package.json").write_text("{}")
    (folder / ".env").unlink()
    (folder / ".env").touch()
    (folder / "node_modules" / "left-pad").mkdir(parents=True, exist_ok=True)
    if killed:
        leave_placeholders(folder, DURING_A_COMMAND)
        os.close(placeholders._lock or 0)
        placeholders = Placeholders(folder, IN_DIRECTORY, tmp_path)
        placeholders.expect()
    placeholders.clean()
    placeholders.clean()
    made = (".env", "package.json", "node_modules", "node_modules/left-pad")
    assert tree(folder) - before == {str(folder / name) for name in made}
    assert before <= tree(folder)
    assert (folder / EXCLUDE).read_bytes() == b"*.mine\n"


def test_placeholders_stay_while_a_turn_needs_them(tmp_path: Path) -> None:
    """Of two turns in one home, the one that ends first leaves the other its placeholders; the last takes them away."""
    home = tmp_path / "home"
    home.mkdir()
    first, second = (Placeholders(home, IN_HOME, tmp_path) for _ in range(2))
    first.expect()
    leave_placeholders(home, IN_HOME)
    first.are_there()
    second.expect()
    second.are_there()
    first.clean()
    assert (home / ".bashrc").exists()
    second.clean()
    assert list(home.iterdir()) == []
