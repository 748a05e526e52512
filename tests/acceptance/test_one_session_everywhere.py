"""One session, continued through every door: each of them sees what the others said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows import Session
from channelcoder_flows.claude_code import find_claude
from channelcoder_flows.testing.model import ScriptedModel

pytestmark = pytest.mark.xdist_group("prefect")

FLOW = """
from prefect import flow
from channelcoder_flows.flow import turn

@flow
async def go_on(name: str):
    return (await turn("From the flow", session=name)).text
"""


def run(*argv: str, cwd: Path, env: dict[str, str]) -> str:
    """Run a command as a person would, and return what it printed."""
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


async def test_each_door_sees_what_was_said_through_the_others(
    tmp_path: Path, scripted_model: Any, claude_env: dict[str, str], prefect_api: str
) -> None:
    """`claude`, `stream`, the command line, a flow and `claude --resume` by hand share one conversation."""
    said = ["From claude", "From stream", "From the command line", "From the flow", "By hand", "And back"]
    model: ScriptedModel = scripted_model([{"when": text, "reply": f"heard: {text}"} for text in said])
    work = tmp_path / "work"
    work.mkdir()
    (work / "flow.py").write_text(FLOW)
    env = {**os.environ, **claude_env, "PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "WARNING"}
    channelcoder = (sys.executable, "-m", "channelcoder_flows")

    session = Session("everywhere", cwd=work)
    await session.claude(said[0])
    async for _ in session.stream(said[1]):
        pass
    run(*channelcoder, "run", "-p", said[2], "--load-session", "everywhere", cwd=work, env=env)
    run(*channelcoder, "flow", "run", "flow.py:go_on", "-d", "name=everywhere", cwd=work, env=env)
    claude_id = json.loads(run(*channelcoder, "session", "show", "everywhere", "--json", cwd=work, env=env))
    run(str(find_claude()), "-p", f"--resume={claude_id['currentSessionId']}", said[4], cwd=work, env=env)
    last = await (await Session.load("everywhere", cwd=work)).claude(said[5])

    for number, text in enumerate(said):
        request = model.wait_for(text)[0]
        heard = json.dumps(request.messages, ensure_ascii=False)
        assert [before for before in said[:number] if f"heard: {before}" not in heard] == [], text
    messages = (await Session.load("everywhere", cwd=work)).messages
    assert [m.content for m in messages] == [part for text in said for part in (text, f"heard: {text}")]
    assert last.turn == 5, "what was typed by hand is part of the session, and no turn of ours"
