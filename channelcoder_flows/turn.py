"""What goes into a turn and what comes out of it: frozen data, JSON both ways."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from channelcoder_flows.errors import UsageError

Outcome = Literal["done", "blocked", "no_change", "failed"]
PermissionMode = Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
Recovery = Literal["rollback", "continue"]
SettingSource = Literal["user", "project", "local"]


class Frozen(BaseModel):
    """The base of all data here: immutable, and no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CamelFrozen(Frozen):
    """Frozen data whose JSON keys are ChannelCoder's camelCase; both spellings are read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True)


def check_tool(item: str) -> str:
    """Return `item` when it is one tool rule: `Name`, or `Name(what it may do)`.

    The CLI joins rules with commas and reads a leading dash as a flag, so an item that is more than one
    rule would grant more than it says (`Read,Bash`). It parts a list at each comma and blank that the last
    parenthesis before it does not open, nested or not: `Bash(a(b), Write, c)` grants Write.

    Raises:
        ValueError: the item is not exactly one rule.
    """
    name, paren, rest = item.partition("(")
    plain = name.replace("_", "").replace("-", "").replace("*", "")
    if not (plain.isascii() and plain.isalnum() and name[0].isalpha()):
        raise ValueError(f"{item!r} is not a tool name such as Read, Bash(git log:*) or mcp__server__tool")
    if paren:
        depth, closed = 1, False
        for position, character in enumerate(rest):
            depth += (character == "(") - (character == ")")
            closed = character == ")" or (closed and character != "(")
            if character in "\0\n\r":
                break
            if closed and character in ", ":
                raise ValueError(f"{item!r} is several rules to Claude Code: nothing may be parted after a )")
            if depth == 0:
                if position == len(rest) - 1:
                    return item
                break
        raise ValueError(f"{item!r} needs one pair of parentheses that ends the rule")
    return item


Tools = Annotated[tuple[Annotated[str, AfterValidator(check_tool)], ...], Field(fail_fast=True)]
"""Tool rules. The first that is none is told: telling of 60,000 would take longer than reading them."""


class Usage(Frozen):
    """Tokens of one turn."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f: getattr(self, f) + getattr(other, f) for f in Usage.model_fields})


class RetryPolicy(Frozen):
    """How often a failed turn is tried again, where its error says that a retry can help."""

    attempts: int = Field(default=0, ge=0, le=100, description="Further attempts after the first.")
    delay: float = Field(default=10.0, ge=0, description="Seconds before the next attempt.")


class TurnOptions(Frozen):
    """How a turn is run. A field that was not given never wins over one that was: see `over`."""

    system_prompt: str | None = None
    append_system_prompt: str | None = None
    model: str | None = None
    effort: Effort | None = None
    fallback_model: str | None = None
    tools: Tools | None = Field(
        default=None, description="The only tools there are, allowed as named; None: the CLI's own set."
    )
    allowed_tools: Tools = Field(default=(), description="Further tools that need no permission.")
    disallowed_tools: Tools = ()
    mcp_config: str | None = Field(default=None, description="JSON text, or the absolute path of a JSON file.")
    permission_prompt_tool: str | None = None
    permission_mode: PermissionMode = "dontAsk"
    setting_sources: tuple[SettingSource, ...] = Field(
        default=(),
        description="Which of Claude Code's own settings are read; none by default: they run hooks.",
    )
    max_turns: int | None = Field(default=None, ge=1, description="Model calls inside the turn.")
    max_budget_usd: float | None = Field(default=None, gt=0, description="US dollars of this turn alone.")
    timeout: float = Field(default=7200.0, gt=0, description="Seconds for the whole turn.")
    idle_timeout: float = Field(default=900.0, gt=0, description="Seconds without a sign of life.")
    recovery: Recovery = "rollback"
    retry: RetryPolicy = RetryPolicy()

    def over(self, base: TurnOptions) -> TurnOptions:
        """Lay these options over `base`: what was given here wins, what was not given does not count."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return base.model_copy(update=given)


class TurnRequest(Frozen):
    """One turn, with nothing left open: what `claude` is told, in full."""

    prompt: str
    options: TurnOptions = TurnOptions()
    output_schema: dict[str, Any] | None = None

    def digest(self) -> dict[str, str]:
        """Return a short hash of each part that makes this the same request: no paths, no secrets."""
        options = self.options
        parts: dict[str, Any] = {
            "prompt": self.prompt,
            "systemPrompt": [options.system_prompt, options.append_system_prompt],
            "model": [options.model, options.effort, options.fallback_model],
            "tools": [options.tools, options.allowed_tools, options.disallowed_tools],
            "output": self.output_schema,
        }
        return {name: _short_hash(value) for name, value in parts.items()}


def _short_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class SessionRef(Frozen):
    """Where a turn stands: the session's name, its store and its place in the journal."""

    name: str
    store: str = Field(default="", description="The store's URL; empty: a store without one.")
    seq: int = Field(default=0, ge=0)
    id: str = Field(default="", description="The Claude session id.")


class TurnResult(Frozen):
    """What a turn left: the answer, and the session to go on from."""

    text: str
    output: Any = Field(default=None, description="The validated output, as JSON data; None without a schema.")
    outcome: Outcome = "done"
    session: SessionRef
    turn: int = Field(description="The turn's number in its session, from 1.")
    step: str = Field(default="", description="The step key.")
    cost_usd: float = Field(default=0.0, description="US dollars of this turn alone.")
    cost_estimated: bool = False
    usage: Usage = Usage()
    duration_s: float = 0.0
    model_calls: int = 0
    denials: tuple[str, ...] = Field(default=(), description="Tools that Claude asked for and did not get.")
    commit: str | None = None
    replayed: bool = Field(default=False, description="Taken from the journal: nothing was spent.")
    adopted: bool = Field(
        default=False, description="Found finished in the transcript: its process died before it said so."
    )

    def __str__(self) -> str:
        return self.text


class StreamChunk(Frozen):
    """One piece of a stream: text as it comes, a tool call, or (last) the result."""

    type: Literal["text", "thinking", "tool_use", "tool_result", "retry", "notice", "result"]
    content: str = ""
    tool: str | None = None
    input: dict[str, Any] | None = None
    result: TurnResult | None = None


class Message(CamelFrozen):
    """One side of an exchange, in ChannelCoder's shape."""

    role: Literal["user", "assistant"]
    content: str
    timestamp: datetime
    session_id: str


def options_from(**given: Any) -> TurnOptions:
    """Build options from keyword arguments, leaving out those that are None (not given).

    Raises:
        UsageError: a value does not fit; the message names the argument.
    """
    from pydantic import ValidationError

    try:
        return TurnOptions(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        raise UsageError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from exc
