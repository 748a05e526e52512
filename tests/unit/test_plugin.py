"""The pytest plugin costs nothing until it is used, and then lets nothing of the user's in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOREIGN = ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK", "ANTHROPIC_AUTH_TOKEN", "CHANNELCODER_STORE")


@pytest.fixture
def foreign() -> Iterator[None]:
    """A developer's own environment, put back as it was."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.setenv(name, "mine")
        yield


def test_the_plugin_costs_nothing() -> None:
    """Every pytest run of everybody who has this package installed loads it: it brings nothing but pytest."""
    code = (
        "import sys, pytest; before = set(sys.modules); import channelcoder_flows.testing.plugin; "
        "print(sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == str(
        [
            "channelcoder_flows",
            "channelcoder_flows.errors",
            "channelcoder_flows.testing",
            "channelcoder_flows.testing.plugin",
        ]
    )


def test_nothing_of_the_users_gets_in(
    foreign: None, claude_env: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a test Claude Code has no login, settings, sessions or API but the test's own."""
    assert not any(name in os.environ for name in FOREIGN)
    assert {name: os.environ[name] for name in claude_env} == claude_env
    for name in ("HOME", "CLAUDE_CONFIG_DIR", "CHANNELCODER_SESSION_DIR"):
        assert Path(claude_env[name]).is_dir()
        assert Path(claude_env[name]).is_relative_to(tmp_path)
    assert claude_env["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")
    assert Path(claude_env["PREFECT_HOME"]).is_relative_to(tmp_path_factory.getbasetemp())
