"""What a test does to a session from outside: type into `claude` by hand, look at its files, kill its owner."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from channelcoder_flows import Session
from channelcoder_flows.claude_code import find_claude
from channelcoder_flows.journal import Event, Started
from channelcoder_flows.places.host import marked
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing import ModelRequest

LIMIT = 20.0
"""Seconds until something that must happen has not."""


def until(what: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Wait until `what` is true; return what it then is."""
    deadline = time.monotonic() + limit
    while not (result := what()):
        assert time.monotonic() < deadline, f"it did not come to be within {limit:g} s"
        time.sleep(0.02)
    return result


async def soon(what: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Wait until `what` is true, in async code."""
    return await asyncio.to_thread(until, what, limit)


def projects() -> Path:
    """Return where Claude Code keeps its transcripts."""
    return Path(os.environ["CLAUDE_CONFIG_DIR"]) / "projects"


def transcript_of(session: Session | str) -> Path:
    """Return the file of a session's conversation, as Claude Code has it."""
    session_id = session if isinstance(session, str) else session.id
    (file,) = projects().glob(f"*/{session_id}.jsonl")
    return file


def files_of(session: Session) -> dict[str, bytes]:
    """Return every byte that Claude Code has of a session."""
    found = [path for path in projects().rglob("*") if str(session.id) in str(path) and path.is_file()]
    return {str(path.relative_to(projects())): path.read_bytes() for path in found}


def claude_by_hand(text: str, session_id: str, cwd: Path) -> str:
    """Type into `claude -p --resume` as a person would, and return the answer."""
    argv = [find_claude(), "-p", "--resume", session_id, text]
    return subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def said(request: ModelRequest) -> str:
    """Return all that a request carries of the conversation."""
    return json.dumps(request.messages)


def events_of(session: Session, kind: type[Any]) -> list[Any]:
    """Return the session's events of one kind."""
    return [event for event in session.opened.journal.events if isinstance(event, kind)]


def markers(events: list[Event]) -> list[str]:
    """Return the marks by which all processes of the turns are found."""
    return [event.process.marker for event in events if isinstance(event, Started)]


def nothing_runs(session: Session) -> bool:
    """Return whether no process of any of the session's turns is left."""
    return not any(marked(marker) for marker in markers(session.opened.journal.events))


async def events_in_store(name: str) -> list[Event]:
    """Return what the store has of a session that another process works on."""
    return list(await FileSessionStorage().read(name))


OWNER = """
import asyncio, os, sys
from pathlib import Path
from channelcoder_flows import FileSessionStorage, Prompt, Session
from channelcoder_flows.journal import Turn

class Held(FileSessionStorage):
    async def append(self, name, events, **more):
        if any(isinstance(event, Turn) and sys.argv[2].endswith(event.prompt) for event in events):
            Path("answered").touch()
            await asyncio.Event().wait()
        return await super().append(name, events, **more)

async def main(name, text, hold, before):
    store = Held() if hold else FileSessionStorage()
    prompt = Prompt.parse(text, path="step.md") if text.startswith("---") else text
    async with Session(name, storage=store, live=bool(before)) as session:
        for each in before:
            await session.claude(each, tools="Bash")
        await session.claude(prompt, tools="Bash", recovery=os.environ.get("RECOVERY", "rollback"))

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "hold", sys.argv[4:]))
"""


@contextmanager
def owner(
    name: str, prompt: str, cwd: Path, *, hold: bool = False, live_after: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a turn in a process of its own; with `hold` it stops right before the turn is recorded.

    It touches `answered` in its directory then. With `live_after` one CLI runs those prompts' turns first.
    It does not outlive the block.
    """
    argv = [sys.executable, "-c", OWNER, name, prompt, "hold" if hold else "", *live_after]
    with subprocess.Popen(argv, cwd=cwd, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
