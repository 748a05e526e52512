"""What a turn is called with, in every door to it: `claude`, `run`, `stream` and a flow's `turn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from channelcoder_flows.prompt import Prompt, split_tools
from channelcoder_flows.step import Step
from channelcoder_flows.turn import Effort, PermissionMode, Recovery, RetryPolicy, SettingSource, options_from


class TurnArguments(TypedDict, total=False):
    """What `claude`, `run` and `stream` take beyond the prompt. What is left out is the prompt file's to say."""

    data: Mapping[str, Any]
    """The prompt's inputs."""
    key: str
    """The step key in a flow; the prompt's name unless given."""
    system: str
    """The system prompt: text. In a prompt file it is `systemPrompt`."""
    append_system: str
    """Text after Claude Code's own system prompt."""
    tools: str | Sequence[str]
    """The only tools there are, already allowed: `"Read Write"` or a list."""
    allowed_tools: str | Sequence[str]
    disallowed_tools: str | Sequence[str]
    model: str
    fallback_model: str
    effort: Effort
    permission_mode: PermissionMode
    permission_prompt_tool: str
    mcp_config: str
    setting_sources: Sequence[SettingSource]
    max_turns: int
    """Model calls inside the turn."""
    max_budget_usd: float
    """US dollars of this turn."""
    timeout: float
    """Seconds for the whole turn."""
    idle_timeout: float
    """Seconds without a sign of life."""
    retry: RetryPolicy
    recovery: Recovery
    wait: float
    """Seconds to wait for a busy session; 0: not at all."""
    verbose: bool
    """Say on stderr what happens."""


def prompt_of(source: str | Path | Prompt) -> Prompt:
    """Return the prompt that `source` means: a path, or a text that ends in `.md`, is a file; all else is the text.

    Raises:
        PromptError: the file cannot be used.
    """
    if isinstance(source, Prompt):
        return source
    if isinstance(source, Path) or (source.endswith(".md") and "\n" not in source):
        return Prompt.load(source)
    return Prompt.inline(source)


def step_of(prompt: Prompt, arguments: TurnArguments) -> Step:
    """Bind a prompt to what the call says.

    Raises:
        UsageError: a value does not fit.
    """
    given = {name: value for name, value in arguments.items() if name not in ("data", "key", "wait", "verbose")}
    for name in ("tools", "allowed_tools", "disallowed_tools"):
        if isinstance(tools := given.get(name), str):
            given[name] = split_tools(tools)
    options = options_from(
        system_prompt=given.pop("system", None), append_system_prompt=given.pop("append_system", None), **given
    )
    return Step(prompt, data=arguments.get("data") or {}, options=options, key=arguments.get("key"))
