"""A flow killed at any instant goes on from its saved session, and nothing that was finished is paid for again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows.journal import Journal
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing.model import ScriptedModel

from .conftest import wait_until_gone

FLOW = Path(__file__).parent / "eight_turns" / "flow.py"
pytestmark = pytest.mark.xdist_group("prefect")


def script(names: list[str]) -> list[dict[str, Any]]:
    """Return what the model answers, part by part; each run meets its own overloaded API once."""
    rules: list[dict[str, Any]] = []
    for name in names:

        def rule(number: int, *reply: Any, name: str = name) -> None:
            rules.append({"when": f"part {number} of {name}.", "reply": list(reply)})

        def bash(command: str) -> dict[str, Any]:
            return {"tool": "Bash", "input": {"command": command, "description": "work"}}

        rule(1, {"text": "planned", "slow": 0.02, "chunks": 4})
        rule(2, bash("printf 'one\\n' > one.txt"), {"text": "wrote one"})
        rule(3, {"output": {"verdict": "go", "score": 3}})
        rule(4, {"error": 529}, {"text": "recovered"})
        rule(5, bash("printf 'two\\n' > two.txt"), bash("cat one.txt two.txt > both.txt"), {"text": "wrote two"})
        rule(6, {"text": "looked around", "delay": 0.2})
        rule(7, {"output": {"verdict": "stop", "score": 7}})
        rule(8, bash("printf 'done\\n' > done.txt"), {"text": "finished"})
    return rules


@dataclass
class Trial:
    """One run of the flow in a directory of its own."""

    folder: Path
    name: str
    api: str
    base_env: dict[str, str]
    work: Path = field(init=False)
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.folder / "work"
        self.work.mkdir(parents=True)
        self.env = {
            **os.environ,
            **self.base_env,
            "HOME": str(self.folder / "home"),
            "CLAUDE_CONFIG_DIR": str(self.folder / "claude"),
            "CHANNELCODER_SESSION_DIR": str(self.folder / "sessions"),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "channelcoder_flows", "flow", *command],
                cwd=self.work,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self) -> subprocess.Popen[bytes]:
        return self.start("run", f"{FLOW}:eight_turns", "-d", f"name={self.name}", "--json")

    def resume(self) -> subprocess.Popen[bytes]:
        return self.start("resume", self.name, "--json")

    def journal(self) -> Journal:
        store = FileSessionStorage(self.folder / "sessions")
        return Journal(asyncio.run(store.read(self.name)) if asyncio.run(store.exists(self.name)) else [])

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def outcome(self) -> dict[str, Any]:
        """Return what has to be the same however often the run was killed."""
        journal = self.journal()
        assert journal.intent is None
        return {
            "messages": [(m.role, m.content.replace(self.name, "NAME")) for m in journal.messages],
            "outputs": [turn.output for turn in journal.turns],
            "steps": [str(turn.step) for turn in journal.turns],
            "files": {file.name: file.read_text() for file in sorted(self.work.iterdir()) if file.is_file()},
        }


def paid(model: ScriptedModel, name: str) -> Counter[int]:
    """Count the model calls that were answered in full, by the part of the work they were for."""
    return Counter(
        number for number in range(1, 9) for r in model.requests if r.paid and f"part {number} of {name}." in r.prompt
    )


def check_kills(count: int, seed: int, tmp_path: Path, scripted_model: Any, env: dict[str, str], api: str) -> None:
    """Kill `count` runs at random moments, resume each, and compare them with one that was left alone."""
    chance = random.Random(seed)
    names = ["whole", *(f"killed-{number}" for number in range(count))]
    model: ScriptedModel = scripted_model(script(names))
    whole = Trial(tmp_path / "whole", "whole", api, env)
    began = time.monotonic()
    assert whole.run().wait(timeout=120) == 0, whole.log()
    length = time.monotonic() - began
    expected, price = whole.outcome(), paid(model, "whole")
    assert len(expected["steps"]) == 8

    for name in names[1:]:
        trial = Trial(tmp_path / name, name, api, env)
        moment = chance.uniform(0.2, 1.0) * length
        flow = trial.run()
        try:
            flow.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            flow.send_signal(signal.SIGKILL)
            flow.wait()
        told = f"seed {seed}, {name}, killed after {moment:.2f} s of {length:.2f} s"
        assert wait_until_gone(trial.folder) == [], told
        before = trial.journal()
        finished = {number for number, _ in enumerate(before.turns, start=1)}
        if before.run is None:
            assert trial.run().wait(timeout=120) == 0, told + trial.log()
        else:
            assert trial.resume().wait(timeout=120) == 0, told + trial.log()
        assert trial.outcome() == expected, told
        spent = paid(model, name)
        assert {part: spent[part] for part in finished} == {part: price[part] for part in finished}, told
        in_flight = len(before.turns) + 1
        assert spent[in_flight] <= 2 * price[in_flight], told
        later = range(in_flight + 1, 9)
        assert {part: spent[part] for part in later} == {part: price[part] for part in later}, told
        assert wait_until_gone(trial.folder) == [], told


def test_a_killed_flow_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, scripted_model: Any, claude_env: dict[str, str], prefect_api: str
) -> None:
    """Five kills at random moments: the same session, the same files, no finished turn paid for twice, nothing left."""
    check_kills(5, 20261122, tmp_path, scripted_model, claude_env, prefect_api)


@pytest.mark.torture
def test_forty_kills(tmp_path: Path, scripted_model: Any, claude_env: dict[str, str], prefect_api: str) -> None:
    """Forty kills, at moments that the printed seed brings back."""
    seed = int(os.environ.get("CHANNELCODER_SEED") or time.time())
    print(json.dumps({"seed": seed}))
    check_kills(40, seed, tmp_path, scripted_model, claude_env, prefect_api)
