"""A flow of four turns in a directory of its own: started, resumed, and looked at from outside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from channelcoder_flows.journal import Journal
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing.model import ScriptedModel

FLOW = Path(__file__).parent / "four_turns" / "flow.py"
PARTS = range(1, 5)
LIMIT = 300.0
"""Seconds until a flow that must end has not."""


class Trial:
    """One run of the flow."""

    def __init__(self, folder: Path, name: str, model: ScriptedModel, env: Mapping[str, str]) -> None:
        self.folder, self.name, self.model = folder, name, model
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.env = {
            **os.environ,
            **env,
            "HOME": str(folder / "home"),
            "CLAUDE_CONFIG_DIR": str(folder / "claude"),
            "CHANNELCODER_SESSION_DIR": str(folder / "sessions"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }

    def run(self) -> subprocess.Popen[bytes]:
        """Start the flow."""
        self.began = time.time()
        return self._start("run", f"{FLOW}:four_turns", "-d", f"name={self.name}", "--json")

    def resume(self) -> subprocess.Popen[bytes]:
        """Start it again, from the journal alone."""
        return self._start("resume", self.name, "--json")

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "out.txt").open("wb") as out, (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "channelcoder_flows", "flow", *command],
                cwd=self.work,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        return self.process

    def end(self) -> None:
        """End what was started last, where it has not ended by itself."""
        self.process.kill()
        self.process.wait()

    def journal(self) -> Journal:
        """Return what is in the session's journal by now. Raises `JournalDamaged`."""
        store = FileSessionStorage(self.folder / "sessions")
        return Journal(asyncio.run(store.read(self.name)) if asyncio.run(store.exists(self.name)) else [])

    def log(self) -> str:
        """Return all that was said on stderr."""
        return (self.folder / "log.txt").read_text()

    def error(self) -> dict[str, Any]:
        """Return the error that the last command ended with."""
        return json.loads((self.folder / "out.txt").read_text() or "{}").get("error", {})

    def outcome(self) -> dict[str, Any]:
        """Return what has to be the same however often the flow was killed."""
        journal = self.journal()
        return {
            "open": journal.intent,
            "messages": [(m.role, m.content.replace(self.name, "NAME")) for m in journal.messages],
            "outputs": [turn.output for turn in journal.turns],
            "steps": [str(turn.step) for turn in journal.turns],
            "files": {file.name: file.read_text() for file in sorted(self.work.iterdir()) if file.is_file()},
        }

    def calls(self) -> list[float]:
        """Return when each model call arrived, in seconds since the epoch."""
        return [request.time for request in self.model.requests if self._asked(request.prompt)]

    def wait_for_call(self, number: int) -> None:
        """Wait until so many model calls have arrived."""
        self.model.wait_for(lambda request: self._asked(request.prompt), count=number, timeout=LIMIT)

    def paid(self) -> Counter[int]:
        """Count the model calls that were answered in full, by the part of the work they were for."""
        prompts = [request.prompt for request in self.model.requests if request.paid]
        return Counter(number for number in PARTS for prompt in prompts if f"part {number} of {self.name}." in prompt)

    def _asked(self, prompt: str) -> bool:
        return f" of {self.name}." in prompt


def script(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the model answers, part by part; each run meets its own overloaded API once."""

    def bash(command: str) -> dict[str, Any]:
        return {"tool": "Bash", "input": {"command": command, "description": "work"}}

    twice = [bash("printf 'one\\n' > one.txt"), bash("cat one.txt one.txt > two.txt"), {"text": "wrote both"}]
    output = {"output": {"verdict": "go", "score": 3}}
    return [
        {"when": "part 1 of", "reply": [{"text": "planned the work", "slow": 0.1, "chunks": 4}]},
        {"when": "part 2 of", "reply": twice},
        *({"when": f"part 3 of {name}.", "reply": [{"error": 529}, output]} for name in names),
        {"when": "part 4 of", "reply": [bash("printf 'done\\n' > done.txt"), {"text": "finished", "delay": 0.2}]},
    ]
