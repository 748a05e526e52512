"""CLIs that wait for their session's next turn: an optimisation that must not be noticed in anything but time.

A process that stays knows more than a transcript says. So it stays only after a turn that left nothing in it, and it
takes only a turn that is told the same, in the same place, in a conversation that nobody else touched. Everything else
gets a new process. What the tools and the CLI leave behind was read off Claude Code 2.1.330: a command in the
background makes it call the model by itself, `cd` in a command holds for the commands after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from channelcoder_flows.claude_code.cli import Cli
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.turn import TurnOptions

MOST = 4
"""Idle CLIs of one owner: each takes about 200 MB. The one that has waited longest makes room."""

LEAVES_NOTHING = frozenset(
    {"Bash", "Edit", "Glob", "Grep", "NotebookEdit", "Read", "StructuredOutput", "WebSearch", "Write"}
)
"""The tools after which a process is as good as a new one, unless they go on in the background.

(It keeps the pages that WebFetch got for a while, and would not see that they have changed.)
"""
STEADY_MODES = frozenset({None, "default", "acceptEdits", "dontAsk", "bypassPermissions"})
"""The permission modes that a turn leaves as they were: a plan may be accepted, and `auto` counts what it denied."""


def can_stay(options: TurnOptions) -> bool:
    """Return whether a process that is told this can take a second turn just like a first one.

    A budget counts a process and not a turn, a fallback model may stick, MCP servers keep state; and settings, with all
    they load, are read when a process starts.
    """
    apart = (options.max_budget_usd, options.fallback_model, options.mcp_config, options.permission_prompt_tool)
    return not any(apart) and not options.setting_sources and options.permission_mode in STEADY_MODES


def leaves_nothing(tool: str, given: Mapping[str, Any]) -> bool:
    """Return whether a tool call leaves the process as it was."""
    return tool in LEAVES_NOTHING and not given.get("run_in_background")


class LiveClis:
    """The idle CLIs of one owner, which has to close it: a session's `async with` block, or a flow run."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Cli, object]] = {}
        self.closed = False
        self._loop = asyncio.get_running_loop()

    async def take(self, like: Cli, stand: object) -> Cli | None:
        """Return the CLI that waits for the next turn of a session, where it is as good as a new one, `like`.

        `stand` says where the conversation stands; the one that waits counts only where it left it so. It is ended
        when it does not, and is the caller's when it does.
        """
        if asyncio.get_running_loop() is not self._loop:
            return None
        kept, left = self._kept.pop(like.session_id, (None, None))
        if kept is None:
            return None
        as_good = False
        try:
            as_good = kept.idle and kept.told == like.told and left == stand and await kept.alone()
        finally:
            if not as_good:
                await to_the_end(kept.kill())
        return kept if as_good else None

    async def keep(self, cli: Cli, stand: object) -> None:
        """Let an idle CLI wait for the next turn of its session; `stand` is where it leaves the conversation."""
        if self.closed or asyncio.get_running_loop() is not self._loop:
            await to_the_end(cli.kill())
            return
        before, _ = self._kept.pop(cli.session_id, (None, None))
        self._kept[cli.session_id] = (cli, stand)
        if before is None and len(self._kept) > MOST:
            before, _ = self._kept.pop(next(iter(self._kept)))
        if before is not None:
            await to_the_end(before.kill())

    async def close(self) -> None:
        """End all of them, and whatever would wait from now on."""
        self.closed = True
        waiting = [cli for cli, _ in self._kept.values()]
        self._kept.clear()
        await to_the_end(_kill(waiting))


async def _kill(clis: list[Cli]) -> None:
    await asyncio.gather(*(cli.kill() for cli in clis))
