"""`make bench`: what a turn costs beside the bare CLI, and what the light commands cost."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import alternate
from channelcoder_flows.claude_code import find_claude
from channelcoder_flows.testing import ScriptedModel


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each command runs")
    rounds = parser.parse_args().rounds
    ours, claude = [sys.executable, "-m", "channelcoder_flows"], str(find_claude())
    with tempfile.TemporaryDirectory() as folder, ScriptedModel([{"reply": "fine"}]) as model:
        root = Path(folder)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
        }
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}; {rounds} rounds\n")
        print("One turn")
        turn = {
            "claude -p": [claude, "-p", "--setting-sources=", "--strict-mcp-config", "say fine"],
            "channelcoder run --session": [*ours, "run", "-p", "say fine", "--session", "turn-{round}"],
            "  of that, loading Python modules": [
                *(sys.executable, "-c"),
                "import channelcoder_flows.session, channelcoder_flows.claude_code, channelcoder_flows.cli.run",
            ],
        }
        alternate(turn, rounds, env=env, cwd=root)
        print("\nThe light commands")
        light = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "channelcoder --help": [*ours, "--help"],
            "channelcoder session list": [*ours, "session", "list"],
            "channelcoder run --dry-run": [*ours, "run", "-p", "say fine", "--dry-run"],
        }
        alternate(light, rounds, env=env, cwd=root)


main()
