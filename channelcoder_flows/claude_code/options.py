"""Which CLI is run, and with which flags: everything a turn is told, stated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from claude_agent_sdk import ClaudeAgentOptions
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
from claude_agent_sdk.types import SystemPromptCustom, SystemPromptPreset

from channelcoder_flows.errors import ClaudeNotFound, UsageError
from channelcoder_flows.turn import TurnRequest

ARGUMENT_LIMIT = 120_000
"""Bytes of one command-line argument (Linux allows 128 KiB)."""
LINE_LIMIT = 64 << 20
"""Bytes of one line of the CLI's output."""
_WITH_VALUE = frozenset(
    (
        *("--output-format", "--input-format", "--json-schema", "--mcp-config"),
        *("--system-prompt", "--append-system-prompt", "--model", "--fallback-model", "--effort"),
        *("--tools", "--allowedTools", "--disallowedTools", "--permission-prompt-tool", "--permission-mode"),
        *("--max-turns", "--max-budget-usd"),
    )
)
"""The flags after which the SDK puts their value as a word of its own."""


def find_claude(configured: str | None = None) -> Path:
    """Return the CLI to run: the configured one, else the one bundled with the SDK, else the one on the PATH.

    Raises:
        ClaudeNotFound: there is none, or the configured one is no program.
    """
    if configured:
        path = shutil.which(Path(configured).expanduser())
        if path is None:
            raise ClaudeNotFound(
                f"{configured} is not a program that can be run: set claude_path (CHANNELCODER_CLAUDE_PATH) to the "
                "claude command, or unset it to use the bundled one"
            )
        return Path(path)

    spec = find_spec("claude_agent_sdk")
    bundled = Path(spec.origin).parent / "_bundled" / "claude" if spec and spec.origin else None
    if bundled and bundled.is_file():
        return bundled
    if path := shutil.which("claude"):
        return Path(path)
    raise ClaudeNotFound(
        "the Claude Code CLI was not found: reinstall claude-agent-sdk (its wheel bundles it), or install claude and "
        "set CHANNELCODER_CLAUDE_PATH"
    )


def log_in() -> str:
    """Return how to log in, with a command that is there."""
    return f"run {'claude' if shutil.which('claude') else find_claude()} once and type /login"


def sdk_options(
    request: TurnRequest, *, cwd: Path, env: Mapping[str, str], session_id: str, resume: bool
) -> ClaudeAgentOptions:
    """State the whole request as SDK options.

    Whatever is left open, a resumed conversation silently takes from its earlier turns (system prompt, model, tools).

    Raises:
        UsageError: a value does not fit on a command line.
    """
    options = request.options
    system: SystemPromptCustom | SystemPromptPreset
    if options.system_prompt is not None:
        text = "\n\n".join(part for part in (options.system_prompt, options.append_system_prompt) if part)
        system = {"type": "custom", "prompt": text, "snapshot": False}
    else:
        system = {"type": "preset", "preset": "claude_code", "snapshot": False}
        if options.append_system_prompt:
            system["append"] = options.append_system_prompt
    schema = json.dumps(request.output_schema) if request.output_schema else ""
    for name, value in {"systemPrompt": str(system), "output": schema, "mcpConfig": options.mcp_config or ""}.items():
        if len(value.encode()) > ARGUMENT_LIMIT:
            raise UsageError(f"{name} is longer than {ARGUMENT_LIMIT // 1000} KB: move the bulk of it into the prompt")
    names = [item.partition("(")[0] for item in options.tools or ()]
    built_in = list(dict.fromkeys(name for name in names if not name.startswith("mcp__")))
    return ClaudeAgentOptions(
        cwd=str(cwd),
        env=dict(env),
        system_prompt=system,
        model=options.model or "default",
        fallback_model=options.fallback_model,
        effort=options.effort,
        tools={"type": "preset", "preset": "claude_code"} if options.tools is None else built_in,
        allowed_tools=[*(options.tools or ()), *options.allowed_tools],
        disallowed_tools=list(options.disallowed_tools),
        permission_mode=options.permission_mode,
        permission_prompt_tool_name=options.permission_prompt_tool,
        mcp_servers=options.mcp_config or {},
        strict_mcp_config=True,
        setting_sources=list(options.setting_sources),
        max_turns=options.max_turns,
        max_budget_usd=options.max_budget_usd,
        output_format={"type": "json_schema", "schema": request.output_schema} if request.output_schema else None,
        resume=session_id if resume else None,
        session_id=None if resume else session_id,
        include_partial_messages=True,
        verbatim_prompts=True,
        max_buffer_size=LINE_LIMIT,
    )


def command(claude: Path, options: ClaudeAgentOptions) -> list[str]:
    """Return the argv that the SDK would run for these options, its values out of the way of the CLI's flags.

    The CLI looks for some flags (`--handle-uri`, `--agent-teams`) among all its words, and so finds them in a model's
    name or a system prompt as well. A value that begins with a dash is therefore one word with its flag: `--model=-x`.
    """
    transport = SubprocessCLITransport(prompt="", options=options)
    transport._cli_path = str(claude)  # pyright: ignore[reportPrivateUsage]
    words = iter(transport._build_command())  # pyright: ignore[reportPrivateUsage]
    argv: list[str] = []
    for word in words:
        value = next(words, None) if word in _WITH_VALUE else None
        if value is not None and value.startswith("-"):
            argv.append(f"{word}={value}")
        else:
            argv.extend((word,) if value is None else (word, value))
    return argv


def process_environment(options: ClaudeAgentOptions) -> dict[str, str]:
    """Return the whole environment of the CLI's process."""
    return {
        **options.env,
        "PWD": str(options.cwd),
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        # As the SDK's own transport sets it: it reads the CLI's session-state messages.
        "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
