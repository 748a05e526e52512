"""pytest fixtures: the real Claude Code CLI on a scripted model, cut off from the user's own settings and keys.

Loaded by every pytest run where this package is installed, so it imports nothing until a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from channelcoder_flows.testing.model import ScriptedModel

_FOREIGN = ("ANTHROPIC_", "CLAUDE", "CHANNELCODER_")
"""What begins so may lead Claude Code to another account or API."""


@pytest.fixture
def claude_env(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment that keeps Claude Code, our sessions and Prefect inside the test's own directory.

    It is set for the test already; the mapping is for processes that get an environment of their own.
    Nothing listens at its `ANTHROPIC_BASE_URL` until `scripted_model` is called.
    """
    env = {
        "HOME": str(tmp_path / "home"),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "home" / ".claude"),
        "CHANNELCODER_SESSION_DIR": str(tmp_path / "sessions"),
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "ANTHROPIC_API_KEY": "dummy",
        "NO_PROXY": "127.0.0.1,localhost",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # One for all tests: a new one costs Prefect its migrations each time.
        "PREFECT_HOME": str(tmp_path_factory.getbasetemp() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "CLAUDE_CONFIG_DIR", "CHANNELCODER_SESSION_DIR"):
        Path(env[name]).mkdir(parents=True, exist_ok=True)
    return env


@pytest.fixture
def scripted_model(
    tmp_path: Path, claude_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], ScriptedModel]]:
    """Start a scripted model: `model = scripted_model(script)`, a file or rules as in the script format.

    It is what Claude Code talks to from then on, its ledger is `model.jsonl` in `tmp_path`, and it ends with the test.
    """
    from channelcoder_flows.testing.model import ScriptedModel

    running: list[ScriptedModel] = []

    def start(script: Any) -> ScriptedModel:
        model = ScriptedModel(script, log=tmp_path / "model.jsonl").start()
        running.append(model)
        claude_env["ANTHROPIC_BASE_URL"] = model.url
        monkeypatch.setenv("ANTHROPIC_BASE_URL", model.url)
        return model

    yield start
    for model in running:
        model.stop()
