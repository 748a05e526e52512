"""The Messages API as it is spoken: what a request says, and an answer as blocks, stream events and errors.

Source: https://docs.anthropic.com/en/api/messages-streaming and https://docs.anthropic.com/en/api/errors, and what
Claude Code really sends.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from channelcoder_flows.testing.script import Said

OUTPUT_TOOL = "StructuredOutput"
"""The tool by which Claude Code takes structured output."""

_NOT_HUMAN = re.compile(r"<system-reminder>.*?</system-reminder>|\A\[structured-output-enforce\].*", re.DOTALL)
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Call(BaseModel):
    """What a model call must say, and what of it counts here; the rest is let pass."""

    messages: tuple[dict[str, Any], ...]
    model: str = ""
    system: str | tuple[dict[str, Any], ...] = ""
    tools: tuple[dict[str, Any], ...] = ()
    stream: bool = False


def texts(content: Any) -> list[str]:
    """Return the texts of a message's or a system prompt's content: a string, or a list of blocks."""
    if isinstance(content, str):
        return [content]
    blocks = cast("list[dict[str, Any]]", content or [])
    return [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]


def last_prompt(messages: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """Return the last text a human (or the step) wrote, and how many answers came after it.

    Claude Code speaks in the user's name too: tool results, `<system-reminder>` texts, and the reminder that
    structured output is still missing. An interrupted prompt stays in the same message, before the one that counts.
    """
    answers = 0
    for message in reversed(messages):
        answers += message.get("role") == "assistant"
        if message.get("role") == "user":
            for text in reversed(texts(message.get("content"))):
                if prompt := _NOT_HUMAN.sub("", text).strip():
                    return prompt, answers
    return "", answers


def error(status: int, message: str | None) -> dict[str, Any]:
    """Return the body of an HTTP error."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message or f"A scripted {status}"}}


def message(said: Said, *, model: str, tools: Sequence[str]) -> dict[str, Any]:
    """Return the whole answer, as it is sent where no stream was asked for.

    `output` goes through the tool for it; without one in `tools` nobody asked for a schema, and it is JSON text.
    """
    content: list[dict[str, Any]] = []
    if said.text is not None:
        content.append({"type": "text", "text": said.text})
    calls = [(call.name, cast("Any", call.input)) for call in said.calls]
    if "output" in said.model_fields_set:
        if OUTPUT_TOOL in tools:
            calls.append((OUTPUT_TOOL, said.output))
        else:
            content.append({"type": "text", "text": json.dumps(said.output, ensure_ascii=False)})
    for name, arguments in calls:
        content.append({"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": arguments})
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": said.usage.model_dump(),
    }


def events(whole: Mapping[str, Any], *, chunks: int) -> Iterator[dict[str, Any]]:
    """Yield the stream events of a whole answer, each block's content in `chunks` pieces or fewer."""
    usage = whole["usage"]
    opening: dict[str, Any] = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    yield {"type": "message_start", "message": opening}
    for index, block in enumerate(whole["content"]):
        is_text = block["type"] == "text"
        empty: dict[str, Any] = {**block, "text": ""} if is_text else {**block, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for piece in _pieces(block["text"] if is_text else json.dumps(block["input"]), chunks):
            delta = (
                {"type": "text_delta", "text": piece}
                if is_text
                else {"type": "input_json_delta", "partial_json": piece}
            )
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ending = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}


def encode(event: Mapping[str, Any]) -> bytes:
    """Return a stream event as server-sent-event text."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _pieces(text: str, count: int) -> Iterator[str]:
    size = max(1, -(-len(text) // count))
    for start in range(0, len(text), size):
        yield text[start : start + size]
