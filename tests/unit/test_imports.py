"""What starts fast stays fast: the heavy libraries are loaded by what needs them and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

HEAVY = {"prefect", "claude_agent_sdk", "sqlalchemy", "docker", "git", "fastapi", "httpx", "mcp"}
TURNS = {"channelcoder_flows.session", "channelcoder_flows.step", "channelcoder_flows.claude_code"}

LIGHT: dict[str, tuple[list[str], set[str]]] = {
    "import": (["-c", "import channelcoder_flows"], {"pydantic", "asyncio", "rich", "yaml", "cyclopts"}),
    "settings": (
        ["-c", "import channelcoder_flows.config as config; config.load_settings()"],
        {"asyncio", "rich", "yaml", "cyclopts"},
    ),
    "--help": (["-m", "channelcoder_flows", "--help"], {"pydantic", "asyncio", "yaml"} | TURNS),
    "--version": (["-m", "channelcoder_flows", "--version"], {"pydantic", "asyncio", "yaml"} | TURNS),
    "session list": (
        ["-m", "channelcoder_flows", "session", "list"],
        {"rich", "yaml", "channelcoder_flows.prompt"} | TURNS,
    ),
    "prompt check": (
        ["-m", "channelcoder_flows", "prompt", "check", "README.md"],
        {"rich", "asyncio", "channelcoder_flows.journal"} | TURNS,
    ),
    "run --dry-run": (
        ["-m", "channelcoder_flows", "run", "Start", "--dry-run"],
        {"rich", "channelcoder_flows.claude_code"},
    ),
}
"""The light starts, as arguments of Python, and what each does without beside all that is heavy."""


def loaded_modules(argv: Sequence[str]) -> set[str]:
    """Run `python ARGV` and return the names of all modules it loaded, however it ended."""
    run = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, timeout=60)
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("command", LIGHT)
def test_light_start(command: str) -> None:
    """A command that runs no turn does not make anyone wait for what only turns, flows or other commands need."""
    argv, spared = LIGHT[command]
    loaded = loaded_modules(argv)
    assert "channelcoder_flows" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    assert loaded & spared == set()


def test_import_does_no_work() -> None:
    """`import channelcoder_flows` loads its errors and nothing else, not even pydantic."""
    loaded = loaded_modules(["-c", "import channelcoder_flows"])
    assert {name for name in loaded if name.startswith("channelcoder_flows.")} == {"channelcoder_flows.errors"}
    assert "pydantic" not in loaded


def test_the_measure_sees_what_is_loaded() -> None:
    """The check above would notice: a module loaded late and a program that fails are still seen."""
    loaded = loaded_modules(["-c", "import channelcoder_flows, colorsys; raise SystemExit(3)"])
    assert {"channelcoder_flows", "colorsys"} <= loaded
