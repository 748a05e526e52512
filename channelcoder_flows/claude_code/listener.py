"""Hears the CLI, and judges how the turn ended by the result's own fields."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from channelcoder_flows.claude_code.live import leaves_nothing
from channelcoder_flows.claude_code.options import log_in
from channelcoder_flows.errors import (
    ApiError,
    LimitReached,
    NotLoggedIn,
    OutputInvalid,
    TurnDied,
    TurnError,
)
from channelcoder_flows.exchange import as_object, usage_of
from channelcoder_flows.places.base import Process
from channelcoder_flows.turn import StreamChunk, TurnRequest, Usage

REFUSED_STATUS = frozenset({401, 403})
RETRYABLE_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504, 529})

OnChunk = Callable[[StreamChunk], None]


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


class Listener:
    """Hears the CLI's messages: passes them on as chunks, and judges the result by its own fields."""

    def __init__(self, on_chunk: OnChunk) -> None:
        self.on_chunk = on_chunk
        self.result: ResultMessage | None = None
        self.pieces: list[str] = []
        self._unfinished: int | None = None
        """Where in `pieces` the answer begins that is still coming."""
        self.model = ""
        self.calls: set[str] = set()
        self.retry_after: float | None = None
        self._went_on = False
        """Something of the turn may go on in the CLI after its result."""

    @property
    def left_nothing(self) -> bool:
        """Whether the turn ended well, and left the CLI as it was."""
        result = self.result
        return result is not None and not result.is_error and result.subtype == "success" and not self._went_on

    def text(self) -> str:
        """Return what Claude has said so far."""
        return "".join(self.pieces)

    def take(self, message: Message) -> None:
        """Hear one message.

        Raises:
            NotLoggedIn: the key is refused for good.
        """
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
                        self._went_on |= not leaves_nothing(block.name, block.input)
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
            case SystemMessage() if message.subtype.startswith(("task_", "background_", "compact_")):
                self._went_on = True
            case _:
                pass

    def _take_stream(self, event: dict[str, Any]) -> None:
        delta = as_object(event.get("delta"))
        if event.get("type") == "message_start":
            # An answer that broke off is given again from its start.
            if self._unfinished is not None:
                del self.pieces[self._unfinished :]
            self._unfinished = len(self.pieces)
        elif event.get("type") == "message_delta":
            # Not `message_stop`: the CLI says that of its own accord when a stream ends too early.
            self._unfinished = None
        elif event.get("type") == "content_block_delta" and delta.get("type") == "text_delta":
            self.pieces.append(str(delta.get("text") or ""))
            self.on_chunk(StreamChunk(type="text", content=self.pieces[-1]))
        elif event.get("type") == "content_block_delta" and delta.get("type") == "thinking_delta":
            self.on_chunk(StreamChunk(type="thinking", content=str(delta.get("thinking") or "")))

    def _take_retry(self, data: dict[str, Any]) -> None:
        status, attempt, most = (data.get(name) for name in ("error_status", "attempt", "max_retries"))
        self.retry_after = _asked_for(data.get("retry_delay_ms"), attempt)
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
            raise died(None, self, process)
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
        said = " ".join(said.split()).rstrip(".")
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


def _asked_for(delay_ms: Any, attempt: Any) -> float | None:
    """Return the seconds that the API asked to be left alone, None where the CLI waits of its own accord.

    That is half a second, twice as long with each attempt, and up to a quarter more.
    """
    if not isinstance(delay_ms, int | float) or not isinstance(attempt, int):
        return None
    return delay_ms / 1000 if delay_ms > 625 * 2 ** (attempt - 1) else None


def _not_logged_in(said: str, status: int | None) -> NotLoggedIn:
    if status is None:
        return NotLoggedIn(f"Claude Code has no key and no login: set ANTHROPIC_API_KEY, or {log_in()}")
    return NotLoggedIn(
        f"the API refused the key or login ({said}): correct ANTHROPIC_API_KEY, or unset it and {log_in()}",
        status=status,
    )


def died(cause: Exception | None, listener: Listener, process: Process | None) -> TurnError:
    """Return the error of a CLI that ended without a result: its own last words say why."""
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
