"""A script for the scripted model: which prompt gets which replies. Frozen data, the same in YAML, JSON and Python.

    - when: "Plan the work"               # part of the prompt, or /a regular expression/; absent: every prompt
      reply:
        - tool: Write                     # the turn's first model call
          input: {file_path: plan.md, content: "…"}
        - text: "The plan is in plan.md." # its second
    - when: "/implement .*search/"
      reply:
        - error: 529                      # a fault is met once (`times`: more often) …
        - output: {status: done}          # … and then comes the answer it stood before

The first rule that matches the prompt wins. A turn's i-th answer is picked by counting the answers that the
request already holds, so a turn that was killed and is started anew is answered from the start; only how often
a fault was met is remembered. When the answers run out, a last text is repeated, and whatever says `repeat`; else the
reply is "Done.". A fault at the end of the list lasts, unless it says `times`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from channelcoder_flows.errors import ConfigError
from channelcoder_flows.turn import Frozen, Usage

Stage = Literal["start", "mid"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ToolCall(Frozen):
    """One use of a tool: its name as Claude Code knows it, and its input."""

    name: str
    input: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


class Reply(Frozen):
    """What every reply may say: `hold` (wait for `release(name)`), then `delay` (seconds), then the rest."""

    hold: str | None = None
    delay: Seconds = 0.0


class Said(Reply):
    """The content of an answer and how it is sent.

    `text`, `tool` with its `input`, several `tools`, and `output` (structured output) may stand together.
    `chunks` is into how many pieces the text is cut, `slow` the seconds before each of them.
    """

    text: str | None = None
    tool: str | None = None
    input: dict[str, JsonValue] | None = None
    tools: tuple[ToolCall, ...] = ()
    output: JsonValue = None
    slow: Seconds = 0.0
    chunks: int = Field(default=1, ge=1)
    usage: Usage = Usage(input_tokens=100, output_tokens=20)

    @field_validator("input")
    @classmethod
    def _input_of_a_tool(cls, value: Any, info: Any) -> Any:
        if value is not None and info.data.get("tool") is None:
            raise ValueError("belongs to `tool`, which is missing")
        return value

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All tools used, `tool` first."""
        first = (ToolCall(name=self.tool, input=self.input or {}),) if self.tool is not None else ()
        return first + self.tools

    @property
    def says_something(self) -> bool:
        """Whether there is any content."""
        return self.text is not None or bool(self.calls) or "output" in self.model_fields_set


class Answer(Said):
    """A whole answer. With `repeat`, the last of a list is given again for as long as Claude asks."""

    repeat: bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.says_something:
            raise ValueError(f"says nothing: needs one of {', '.join(_SAYS)}")
        return self

    @property
    def kind(self) -> str:
        """What the log calls it: `output`, `tool` or `text`."""
        return "output" if "output" in self.model_fields_set else "tool" if self.calls else "text"


class Refusal(Reply):
    """An HTTP error instead of an answer; `retry_after` is in seconds."""

    error: int = Field(ge=400, le=599)
    message: str | None = None
    retry_after: Seconds | None = None
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    times: int | None = Field(default=None, ge=1)

    @property
    def kind(self) -> str:
        """What the log calls it: `error`."""
        return "error"


class Break(Said):
    """An answer that does not arrive: exactly one of `drop`, `stall`, `malformed`.

    `drop` closes the connection, `stall` keeps it open and silent until the client leaves or the server stops;
    each at the `start` or in the `mid` of what is said. `malformed: garbage` sends what is no JSON, `truncated`
    ends the stream properly but too early.
    """

    drop: Stage | None = None
    stall: Stage | None = None
    malformed: Literal["garbage", "truncated"] | None = None
    times: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_fault(self) -> Self:
        if sum(fault is not None for fault in (self.drop, self.stall, self.malformed)) != 1:
            raise ValueError("needs exactly one of drop, stall, malformed")
        return self

    @property
    def kind(self) -> str:
        """What the log calls it: `drop`, `stall`, `garbage` or `truncated`."""
        return self.malformed or ("drop" if self.drop else "stall")


_SAYS = ("text", "tool", "tools", "output")
_FAULTS = {"error": "refusal", "drop": "break", "stall": "break", "malformed": "break"}
_TAGS = {"answer", "refusal", "break"}


def _tag(value: Any) -> str:
    if isinstance(value, Refusal):
        return "refusal"
    if isinstance(value, Break):
        return "break"
    if isinstance(value, Mapping):
        keys = cast("Mapping[Any, Any]", value)
        return next((tag for key, tag in _FAULTS.items() if key in keys), "answer")
    return "answer"


def _text_alone(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


def _one_alone(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping, Reply)) else value


AnyReply = Annotated[
    Annotated[Answer, Tag("answer")] | Annotated[Refusal, Tag("refusal")] | Annotated[Break, Tag("break")],
    Discriminator(_tag),
    BeforeValidator(_text_alone),
]


def matches(when: str | None, prompt: str) -> bool:
    """Whether a rule's `when` means this prompt: None is every one, `/…/` a regular expression, else a part of it."""
    if when is None:
        return True
    if len(when) > 1 and when[0] == when[-1] == "/":
        return re.search(when[1:-1], prompt) is not None
    return when in prompt


class Rule(Frozen):
    """Replies for the prompts that `when` means. A lone reply needs no list, and a plain string is a text."""

    when: str | None = None
    reply: Annotated[tuple[AnyReply, ...], BeforeValidator(_one_alone), Field(min_length=1)]

    @field_validator("reply")
    @classmethod
    def _repeats_at_the_end(cls, value: tuple[Answer | Refusal | Break, ...]) -> Any:
        if any(isinstance(reply, Answer) and reply.repeat for reply in value[:-1]):
            raise ValueError("only the last one can have `repeat`: those after it would never be given")
        return value

    @field_validator("when")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            matches(value, "")
        except re.error as exc:
            raise ValueError(f"is no regular expression: {exc}") from exc
        return value


class _Loader(yaml.SafeLoader):
    """Scalars as in prompt files, by YAML 1.2: `on`, `no`, `010`, `1:30` and `2026-01-01` are texts."""


# PyYAML has no types for its tables.
_scalars: Any = _Loader
_scalars.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "float", "merge")]
    for first, resolvers in _scalars.yaml_implicit_resolvers.items()
}
_scalars.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)\Z"), list("tTfF"))
_scalars.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), list("-+0123456789"))


class Script(Frozen):
    """Rules, in the order in which they are tried."""

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule | Mapping[str, Any]], *, name: str = "script") -> Self:
        """Build a script from rules, as objects or as the plain data of a file.

        Raises:
            ConfigError: the rules do not fit; the message names `name` and the key.
        """
        try:
            return cls(rules=_RULES.validate_python(rules))
        except ValidationError as exc:
            raise ConfigError(f"{name}: {_explain(exc)}") from exc

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `.yaml` or `.json` file.

        Raises:
            ConfigError: the file cannot be read, or a rule in it does not fit; the message names file and key.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
        except (ValueError, yaml.YAMLError) as exc:
            raise ConfigError(
                f"{path}: is no {path.suffix.lstrip('.') or 'yaml'}: {' '.join(str(exc).split())}"
            ) from exc
        return cls.of(data, name=str(path))


_RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(tuple[Rule, ...])


def _explain(exc: ValidationError) -> str:
    """Say in one line where the first problem is and what it is."""
    first = exc.errors()[0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in _TAGS:
            where += f".{part}" if where else part
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known_keys()
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        problem = "there is no such key here"
        if first["loc"][-1] in known:
            problem = "does not belong here"
        elif nearest:
            problem = f"there is no such key; did you mean {nearest[0]}?"
    elif not where and first["type"] == "tuple_type":
        problem = "a script is a list of rules, each with `reply` and mostly `when`"
    return f"{where}: {problem}" if where else problem


def _known_keys() -> list[str]:
    models: tuple[type[Frozen], ...] = (Rule, Answer, Refusal, Break, ToolCall, Usage)
    return [key for model in models for key in model.model_fields]
