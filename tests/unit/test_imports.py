"""What starts fast stays fast: the heavy libraries are loaded by what needs them and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

HEAVY = ("prefect", "docker", "git", "claude_agent_sdk", "sqlalchemy")

LIGHT = [
    ["-c", "import channelcoder_flows"],
    ["-c", "import channelcoder_flows.config as config; config.load_settings()"],
    ["-m", "channelcoder_flows", "--help"],
    ["-m", "channelcoder_flows", "session", "list"],
    ["-m", "channelcoder_flows", "run", "Start", "--dry-run"],
    ["-m", "channelcoder_flows", "prompt", "check", "README.md"],
]
"""What must load none of them, as arguments of Python."""


def loaded_modules(argv: Sequence[str]) -> set[str]:
    """Run `python ARGV` and return the names of all modules it loaded, however it ended."""
    run = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, timeout=60)
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("argv", LIGHT, ids=lambda argv: " ".join(argv[-2:]))
def test_light_start(argv: list[str]) -> None:
    """A command that runs no turn does not make anyone wait for Prefect or the Claude SDK to load."""
    loaded = loaded_modules(argv)
    assert "channelcoder_flows" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}


def test_import_does_no_work() -> None:
    """`import channelcoder_flows` loads its errors and nothing else, not even pydantic."""
    loaded = loaded_modules(["-c", "import channelcoder_flows"])
    assert {name for name in loaded if name.startswith("channelcoder_flows.")} == {"channelcoder_flows.errors"}
    assert "pydantic" not in loaded


def test_the_measure_sees_what_is_loaded() -> None:
    """The check above would notice: a module loaded late and a program that fails are still seen."""
    loaded = loaded_modules(["-c", "import channelcoder_flows, colorsys; raise SystemExit(3)"])
    assert {"channelcoder_flows", "colorsys"} <= loaded
