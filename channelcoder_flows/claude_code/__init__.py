"""Runs one turn in an opened place: one Claude Code process, everything stated, always ended.

The only package that knows the Claude Agent SDK and the CLI's flags. What it knows of the CLI was measured on 2.1.330;
the SDK's transport is an internal interface, so its version is pinned and its argv is tested.
"""

from channelcoder_flows.claude_code.cli import Cli
from channelcoder_flows.claude_code.listener import Answer
from channelcoder_flows.claude_code.live import LiveClis, can_stay
from channelcoder_flows.claude_code.options import command, find_claude, log_in, sdk_options
from channelcoder_flows.claude_code.turn import run_turn

__all__ = [
    "Answer",
    "Cli",
    "LiveClis",
    "can_stay",
    "command",
    "find_claude",
    "log_in",
    "run_turn",
    "sdk_options",
]
