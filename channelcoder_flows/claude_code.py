"""Runs one turn in an opened place: one Claude Code process, everything stated, always ended.

The only module that knows the Claude Agent SDK and the CLI's flags. What it knows of the CLI was measured on 2.1.330;
the SDK's transport is an internal interface, so its version is pinned and its argv is tested.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ClaudeSDKError,
    CLIConnectionError,
    CLIJSONDecodeError,
    Message,
    ProcessError,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    ToolResultBlock,
    ToolUseBlock,
    Transport,
    UserMessage,
)
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
from claude_agent_sdk.types import SystemPromptCustom, SystemPromptPreset

from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import (
    ApiError,
    ClaudeNotFound,
    LimitReached,
    NotLoggedIn,
    OutputInvalid,
    PlaceError,
    TurnDied,
    TurnError,
    TurnStalled,
    TurnTimeout,
    UsageError,
)
from channelcoder_flows.exchange import as_object, usage_of
from channelcoder_flows.places.base import Place, Process
from channelcoder_flows.turn import StreamChunk, TurnOptions, TurnRequest, Usage

ARGUMENT_LIMIT = 120_000
"""Bytes of one command-line argument (Linux allows 128 KiB)."""
LINE_LIMIT = 64 << 20
"""Bytes of one line of the CLI's output."""
INTERRUPT_WAIT = 3.0
"""Seconds the CLI has to save its partial answer when it is interrupted."""
REFUSED_STATUS = frozenset({401, 403})
RETRYABLE_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504, 529})

OnChunk = Callable[[StreamChunk], None]
OnStarted = Callable[[Process], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the CLI reported of a turn that ended well."""

    text: str
    output: Any
    total_cost_usd: float
    """US dollars of the whole conversation, as the CLI counts it."""
    usage: Usage
    model_calls: int
    model: str
    denials: tuple[str, ...]


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
    from importlib.util import find_spec

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
    """Return the argv that the SDK would run for these options."""
    transport = SubprocessCLITransport(prompt="", options=options)
    transport._cli_path = str(claude)  # pyright: ignore[reportPrivateUsage]
    return transport._build_command()  # pyright: ignore[reportPrivateUsage]


async def run_turn(
    place: Place,
    request: TurnRequest,
    *,
    claude: Path,
    env: Mapping[str, str],
    session_id: str,
    turn_id: str,
    resume: bool,
    on_chunk: OnChunk,
    on_started: OnStarted,
) -> Answer:
    """Run one turn and return Claude's answer. When this returns or raises, no process of the turn is left.

    Args:
        place: where it runs.
        request: everything the turn is told.
        claude: the CLI's path, as the place sees it.
        env: the whole environment of the CLI.
        session_id: the Claude session id (a UUID).
        turn_id: the uuid of the user message, found again in the transcript.
        resume: whether the conversation has been laid, or begins here.
        on_chunk: called with each piece as it comes.
        on_started: awaited once the process runs, before anything is sent to it.

    Raises:
        TurnError: the turn ended badly; the class says how, `retryable` whether another attempt can help.
        PlaceError: the process could not be started.
    """
    options = sdk_options(request, cwd=place.cwd, env=env, session_id=session_id, resume=resume)
    transport = _PlaceTransport(place, command(claude, options), _process_environment(options), on_started)
    client = ClaudeSDKClient(options, transport=transport)
    listener = _Listener(on_chunk)
    clock = _Clock(request.options)
    limit = asyncio.timeout(clock.left())
    try:
        async with limit:
            await _exchange(client, request.prompt, turn_id, listener, clock, limit)
    except TimeoutError as exc:
        if not limit.expired():
            raise _died(exc, listener, transport.process) from exc
        await _interrupt(client)
        raise clock.error(listener) from None
    except asyncio.CancelledError:
        await to_the_end(_interrupt(client))
        raise
    except ClaudeSDKError as exc:
        if listener.result is None:
            raise _died(exc, listener, transport.process) from exc
    except Exception as exc:
        # The SDK says so with a bare Exception when the CLI does not answer its first words (within a minute).
        if not str(exc).startswith("Control request timeout"):
            raise
        raise TurnStalled(
            "Claude Code started and said nothing for a minute: try again", retryable=True, text=listener.text()
        ) from exc
    finally:
        await to_the_end(_close(client, transport.process))
    return listener.answer(request, transport.process)


async def _exchange(
    client: ClaudeSDKClient,
    prompt: str,
    turn_id: str,
    listener: _Listener,
    clock: _Clock,
    limit: asyncio.Timeout,
) -> None:
    await client.connect()

    async def message() -> AsyncIterator[dict[str, Any]]:
        content = {"role": "user", "content": prompt}
        yield {"type": "user", "message": content, "parent_tool_use_id": None, "uuid": turn_id}

    await client.query(message())
    async for received in client.receive_response():
        listener.take(received)
        clock.sign_of_life()
        limit.reschedule(asyncio.get_running_loop().time() + clock.left())


async def _interrupt(client: ClaudeSDKClient) -> None:
    """Ask the CLI to stop: it saves the partial answer, and ends at once instead of after seconds."""
    with suppress(Exception):
        async with asyncio.timeout(INTERRUPT_WAIT):
            await client.interrupt()
            async for _ in client.receive_response():
                pass


async def _close(client: ClaudeSDKClient, process: Process | None) -> None:
    try:
        await client.disconnect()
    finally:
        if process is not None:
            await process.end()


class _Clock:
    """The two limits of a turn: its whole time, and the time without a sign of life."""

    def __init__(self, options: TurnOptions) -> None:
        self.total, self.idle = options.timeout, options.idle_timeout
        self.began = self.heard = time.monotonic()

    def sign_of_life(self) -> None:
        self.heard = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        return max(0.0, min(self.began + self.total - now, self.heard + self.idle - now))

    def error(self, listener: _Listener) -> TurnError:
        if time.monotonic() - self.began >= self.total:
            return TurnTimeout(
                f"the turn took longer than its {self.total:g} s: raise timeout, or make the step smaller",
                retryable=True,
                text=listener.text(),
            )
        return TurnStalled(
            f"Claude said nothing for {self.idle:g} s: try again, or raise idle_timeout if a tool takes that long",
            retryable=True,
            text=listener.text(),
        )


class _Listener:
    """Hears the CLI's messages: passes them on as chunks, and judges the result by its own fields."""

    def __init__(self, on_chunk: OnChunk) -> None:
        self.on_chunk = on_chunk
        self.result: ResultMessage | None = None
        self.pieces: list[str] = []
        self.model = ""
        self.calls: set[str] = set()
        self.retry_after: float | None = None

    def text(self) -> str:
        return "".join(self.pieces)

    def take(self, message: Message) -> None:
        match message:
            case ResultMessage():
                self.result = message
            case StreamEvent() if message.parent_tool_use_id is None:
                self._take_stream(message.event)
            case AssistantMessage() if message.parent_tool_use_id is None:
                self.model = message.model
                self.calls.add(message.message_id or "")
                for block in message.content:
                    if isinstance(block, ToolUseBlock):
                        self.on_chunk(StreamChunk(type="tool_use", tool=block.name, input=block.input))
            case UserMessage() if isinstance(message.content, list) and message.parent_tool_use_id is None:
                for block in message.content:
                    if isinstance(block, ToolResultBlock):
                        self.on_chunk(StreamChunk(type="tool_result", content=_tool_text(block.content)))
            case RateLimitEvent() if message.rate_limit_info.status == "rejected":
                if message.rate_limit_info.resets_at:
                    self.retry_after = max(0.0, message.rate_limit_info.resets_at - time.time())
            case SystemMessage() if message.subtype == "api_retry":
                self._take_retry(message.data)
            case _:
                pass

    def _take_stream(self, event: dict[str, Any]) -> None:
        delta = as_object(event.get("delta"))
        if event.get("type") == "content_block_delta" and delta.get("type") == "text_delta":
            self.pieces.append(str(delta.get("text") or ""))
            self.on_chunk(StreamChunk(type="text", content=self.pieces[-1]))
        elif event.get("type") == "content_block_delta" and delta.get("type") == "thinking_delta":
            self.on_chunk(StreamChunk(type="thinking", content=str(delta.get("thinking") or "")))

    def _take_retry(self, data: dict[str, Any]) -> None:
        delay = data.get("retry_delay_ms")
        self.retry_after = delay / 1000 if isinstance(delay, int | float) else None
        status, attempt, most = (data.get(name) for name in ("error_status", "attempt", "max_retries"))
        said = f"the API answered {status}" if status else "the API cannot be reached"
        if status in REFUSED_STATUS and attempt != 1:
            # Once, the CLI may have an old login that it renews; ten times, someone waits minutes for nothing.
            raise _not_logged_in(said, status)
        self.on_chunk(StreamChunk(type="retry", content=f"{said}: trying again ({attempt} of {most})"))

    def answer(self, request: TurnRequest, process: Process | None) -> Answer:
        """Return the answer.

        Raises:
            TurnError: the result is an error, or there is none.
        """
        result = self.result
        if result is None:
            raise _died(None, self, process)
        if result.is_error or result.subtype != "success":
            raise self._error(result)
        return Answer(
            text=result.result or "",
            output=result.structured_output if request.output_schema else None,
            total_cost_usd=result.total_cost_usd or 0.0,
            usage=usage_of(result.usage),
            model_calls=len(self.calls),
            model=self.model,
            denials=tuple(_denied(denial) for denial in result.permission_denials or ()),
        )

    def _error(self, result: ResultMessage) -> TurnError:
        said = "; ".join(result.errors or ()) or result.result or result.subtype
        said = " ".join(said.split())
        status = result.api_error_status
        kind = result.terminal_reason or result.subtype
        if result.subtype == "error_max_turns":
            return LimitReached(
                "the turn used all its model calls: raise maxTurns, or make the step smaller", kind="max-turns"
            )
        if result.subtype == "error_max_budget_usd":
            return LimitReached(
                "the turn spent its budget: raise maxBudgetUsd, or make the step smaller", kind="max-budget"
            )
        if result.subtype == "error_max_structured_output_retries":
            return OutputInvalid(f"Claude gave no answer that fits the declared output: {said}", retryable=True)
        if status in REFUSED_STATUS or (status is None and "login" in said.lower()):
            return _not_logged_in(said, status)
        retryable = status in RETRYABLE_STATUS or (status is None and kind == "api_error")
        what = "the API cannot be reached" if status is None and retryable else "the API refused the turn"
        advice = "run it again later" if retryable else "change what the message says"
        return ApiError(
            f"{what}: {said} ({advice})",
            kind=kind if status is None else f"api/{status}",
            status=status,
            retryable=retryable,
            retry_after=self.retry_after,
            text=self.text(),
        )


def _not_logged_in(said: str, status: int | None) -> NotLoggedIn:
    if status is None:
        return NotLoggedIn(f"Claude Code has no key and no login: set ANTHROPIC_API_KEY, or {log_in()}")
    return NotLoggedIn(
        f"the API refused the key or login ({said}): correct ANTHROPIC_API_KEY, or unset it and {log_in()}",
        status=status,
    )


def log_in() -> str:
    """Return how to log in, with a command that is there."""
    return f"run {'claude' if shutil.which('claude') else find_claude()} once and type /login"


def _died(cause: Exception | None, listener: _Listener, process: Process | None) -> TurnError:
    tail = process.stderr_tail() if process else ""
    said = (tail.strip().splitlines() or [str(cause or "no output")])[-1][:300]
    if "login" in said.lower():
        return _not_logged_in(said, None)
    return TurnDied(
        f"the Claude Code CLI ended without a result ({said}): try again",
        retryable=True,
        text=listener.text(),
    )


def _tool_text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content)
    return content or ""


def _denied(denial: object) -> str:
    return str(as_object(denial).get("tool_name", denial))


def _process_environment(options: ClaudeAgentOptions) -> dict[str, str]:
    return {
        **options.env,
        "PWD": str(options.cwd),
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        # As the SDK's own transport sets it: it reads the CLI's session-state messages.
        "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
        "DISABLE_AUTOUPDATER": "1",
    }


class _PlaceTransport(Transport):
    """The SDK's transport over a place's process: JSON lines each way."""

    def __init__(self, place: Place, argv: list[str], env: Mapping[str, str], on_started: OnStarted) -> None:
        self._place, self._argv, self._env, self._on_started = place, argv, env, on_started
        self.process: Process | None = None

    async def connect(self) -> None:
        self.process = await self._place.start(self._argv, self._env)
        await self._on_started(self.process)

    async def write(self, data: str) -> None:
        assert self.process is not None
        try:
            await self.process.write(data.encode())
        except PlaceError as exc:
            raise CLIConnectionError(str(exc)) from exc

    async def end_input(self) -> None:
        if self.process is not None:
            await self.process.close_stdin()

    def is_ready(self) -> bool:
        return self.process is not None

    async def close(self) -> None:
        if self.process is not None:
            await self.process.end()

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        return self._read()

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        assert self.process is not None
        async for line in _lines(self.process.stdout()):
            # What is no JSON object is a stray word of some tool's, and not for us.
            if line.startswith(b"{"):
                try:
                    yield json.loads(line)
                except ValueError as exc:
                    raise CLIJSONDecodeError(line[:200].decode(errors="replace"), exc) from exc
        status = await self.process.wait()
        if status != 0:
            raise ProcessError("the CLI failed", exit_code=status, stderr=self.process.stderr_tail())


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end]).strip()
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > LINE_LIMIT:
            raise CLIJSONDecodeError("", ValueError(f"a line of more than {LINE_LIMIT >> 20} MiB"))
    if size:
        yield b"".join(parts).strip()
