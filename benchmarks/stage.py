"""Where the measurements run: a home of their own, a scripted model, a stand-in for the CLI, a warm Prefect server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.transcript import slug

PEERS = Path(__file__).with_name("peers")
INSTALLED = Path(__file__).with_name(".peers")
OURS = [sys.executable, "-m", "channelcoder_flows"]

QUIET = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1,localhost",
}
"""Nothing leaves this machine."""


class Stage:
    """A folder that is gone afterwards, and what runs in it."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.home = home
        self.work = home / "work"
        self.work.mkdir()

    def env(self) -> dict[str, str]:
        """Return the whole environment of a command."""
        return {**QUIET, "PATH": os.environ["PATH"], "HOME": str(self.home)}

    def model_env(self) -> dict[str, str]:
        """Return the environment in which the real CLI talks to a model that answers at once."""
        return {
            **self.env(),
            "PATH": f"{self.claude.parent}:{os.environ['PATH']}",
            "ANTHROPIC_BASE_URL": self._model.url,
            "ANTHROPIC_API_KEY": "none",
        }

    def flow_env(self) -> dict[str, str]:
        """Return the environment of a flow on a running Prefect server, with a CLI that answers at once."""
        return {
            **self.env(),
            "PREFECT_API_URL": self._prefect,
            "PREFECT_HOME": str(self.home / "prefect"),
            "CHANNELCODER_CLAUDE_PATH": str(PEERS / "claude"),
            "CLAUDE_CODE_STAND_IN_TRANSCRIPTS": str(self.transcripts),
        }

    @cached_property
    def claude(self) -> Path:
        """The real CLI, as everything here runs it."""
        from channelcoder_flows.claude_code import find_claude  # loads the SDK

        command = self.home / "bin" / "claude"
        command.parent.mkdir()
        command.symlink_to(find_claude())
        return command

    @cached_property
    def transcripts(self) -> Path:
        """Where the CLI's transcripts are, for work in `self.work`."""
        folder = self.home / ".claude" / "projects" / slug(self.work)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def _model(self) -> ScriptedModel:
        return self._stack.enter_context(ScriptedModel([{"reply": "fine"}]))

    @cached_property
    def _prefect(self) -> str:
        env = {**self.env(), "PREFECT_HOME": str(self.home / "prefect-server")}
        server = subprocess.Popen(
            [sys.executable, "-m", "channelcoder_flows.flow.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        assert server.stdin and server.stdout
        self._stack.callback(server.wait)
        self._stack.callback(server.stdin.close)
        return server.stdout.readline().strip()


@contextmanager
def new_stage() -> Iterator[Stage]:
    """Give a stage that is gone after the block."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield Stage(Path(folder).resolve(), stack)


def channelcoder() -> Path | None:
    """Return where ChannelCoder 3.0.2 is, or None when it is not installed or there is no Node.js."""
    package = INSTALLED / "node" / "node_modules" / "channelcoder"
    return package if shutil.which("node") and package.is_dir() else None


def peers_python() -> str | None:
    """Return the Python that has DBOS and LangGraph, or None."""
    python = INSTALLED / "python" / "bin" / "python"
    return str(python) if python.is_file() else None


def install_peers() -> None:
    """Install what we are measured against, out of the way of our own packages."""
    python, node = INSTALLED / "python", INSTALLED / "node"
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
    packages = ["--requirement", str(PEERS / "requirements.txt")]
    subprocess.run([python / "bin" / "pip", "install", "--quiet", *packages], check=True)
    if not shutil.which("npm"):
        print("npm is missing, so ChannelCoder 3.0.2 is left out", file=sys.stderr)
        return
    node.mkdir(parents=True, exist_ok=True)
    (node / "package.json").write_text(json.dumps({"private": True, "dependencies": {"channelcoder": "3.0.2"}}))
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=node, check=True)
