"""Secrets in the environment: no command that Claude runs finds one in what it was given, nothing writes one down."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows import FileSessionStorage, NotLoggedIn, Session
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
