"""What a prompt file may say: the table `KEYS`, and the reader that keeps every error it meets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from channelcoder_flows import matter, schema, template
from channelcoder_flows.errors import PromptError, SchemaError
from channelcoder_flows.turn import Frozen, TurnOptions


class SessionSpec(Frozen):
    """Which session a prompt goes on from."""

    required: bool = Field(default=False, description="Refuse to run without a session to continue.")
    name: str | None = Field(default=None, min_length=1, max_length=200, description="The session's name.")
    mode: Literal["continue", "new", "fork"] = "continue"
    from_: str | None = Field(default=None, alias="from", min_length=1, description="The session a fork starts from.")


def text_or_file(value: str, folder: Path) -> str:
    """Return `value`, or where it is one line that ends in `.md` or `.txt`, the text of that file in `folder`.

    Raises:
        ValueError: the file cannot be read.
    """
    if "\n" in value or not value.endswith((".md", ".txt")):
        return value.strip()
    try:
        return matter.read_text(folder / value).strip()
    except PromptError as exc:
        raise ValueError(f"{exc.file}: {exc.problem}") from exc


def split_tools(text: str) -> list[str]:
    """Split ChannelCoder's text forms of a tool list, `Read Write` and `Read, Bash(git log:*)`."""
    return [rule.strip() for rule in _TOOL.findall(text)]


_TOOL = re.compile(r"(?:[^\s,(]++(?:\([^)]*\)?)?|\([^)]*\)?)++")
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?[dhms])+")
_PATH_PART = re.compile(r"[^.\[\]]+")
_PYDANTIC_SUBJECT = re.compile(r"^\w+ should")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(value: Any) -> float:
    """Return a duration in seconds: a number of them, or `90s`, `30m`, `1h30m`, `2d`.

    Raises:
        ValueError: it is none.
    """
    match value:
        case bool():
            pass
        case int() | float():
            return float(value)
        case str() if _DURATION.fullmatch(value):
            return sum(float(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"[\d.]+[dhms]", value))
        case _:
            pass
    raise ValueError("must be a number of seconds, or a duration such as 90s, 30m or 1h30m")


class _Context(NamedTuple):
    folder: Path
    written: str | None
    """The value as the file has it, where it is a scalar."""


def _text(value: Any, context: _Context) -> str:
    if isinstance(value, (dict, list)) or context.written is None:
        raise ValueError("must be a text")
    if not context.written.strip():
        raise ValueError("is empty")
    if "\0" in context.written:
        raise ValueError("has a NUL, which no program can be told")
    return context.written


def _line(value: Any, context: _Context) -> str:
    text = _text(value, context)
    if len(text) > 200 or not text.isprintable():
        raise ValueError("must be one line of up to 200 characters")
    return text


def _system(value: Any, context: _Context) -> str:
    return text_or_file(_text(value, context), context.folder)


def _words(value: Any, context: _Context) -> list[str]:
    if isinstance(value, str):
        return split_tools(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value)):
        return cast("list[str]", value)
    raise ValueError("must be a list of texts, such as [Read, Edit]")


def _mcp(value: Any, context: _Context) -> str:
    if isinstance(value, dict):
        config, result = cast("dict[str, Any]", value), json.dumps(value, ensure_ascii=False)
    else:
        path = (context.folder / _text(value, context)).resolve()
        try:
            config, result = json.loads(matter.read_text(path)), str(path)
        except PromptError as exc:
            raise ValueError(f"{exc.file}: {exc.problem}") from exc
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"{path} is not JSON: {exc}") from exc
    if not (isinstance(config, dict) and isinstance(cast("dict[str, Any]", config).get("mcpServers"), dict)):
        raise ValueError("has no mcpServers; it is {mcpServers: {name: {…}}} or the path of a JSON file with it")
    return result


def _whole(value: Any, context: _Context) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value


def _number(value: Any, context: _Context) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    return value


def _duration(value: Any, context: _Context) -> float:
    return seconds(value)


def _retry(value: Any, context: _Context) -> dict[str, Any]:
    given = _fields(value, ("attempts", "delay"), "a number of further attempts, or {attempts, delay}")
    read = {"attempts": _whole(given["attempts"], context)} if "attempts" in given else {}
    return read | ({"delay": seconds(given["delay"])} if "delay" in given else {})


def _input(value: Any, context: _Context) -> schema.JsonSchema:
    # An input that the text cannot name is a mistake, unless the declaration says that it is welcome.
    closed: schema.JsonSchema = {"properties": {}, "additionalProperties": False}
    return closed | schema.json_schema(value)


def _output(value: Any, context: _Context) -> schema.JsonSchema:
    return schema.json_schema(value)


def _session(value: Any, context: _Context) -> SessionSpec:
    given = _fields(value, ("required", "name", "mode", "from"), "a mapping of required, name, mode and from")
    if not isinstance(given.get("required", False), bool):
        raise ValueError("required must be true or false")
    return SessionSpec.model_validate(given)


def _fields(value: Any, known: tuple[str, ...], what: str) -> dict[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool) and "attempts" in known:
        return {"attempts": value}
    if not isinstance(value, dict):
        raise ValueError(f"must be {what}")
    given = cast("dict[str, Any]", value)
    for name in given:
        if name not in known:
            raise ValueError(f"has no {name!r}{schema.nearest(name, known)}")
    return given


class Key(NamedTuple):
    """A frontmatter key: how its value is read, and the field of `TurnOptions` it sets, if it sets one."""

    read: Callable[[Any, _Context], Any]
    option: str = ""


KEYS: Mapping[str, Key] = {
    "name": Key(_line),
    "description": Key(_text),
    "systemPrompt": Key(_system, "system_prompt"),
    "appendSystemPrompt": Key(_system, "append_system_prompt"),
    "model": Key(_line, "model"),
    "effort": Key(_line, "effort"),
    "fallbackModel": Key(_line, "fallback_model"),
    "tools": Key(_words, "tools"),
    "allowedTools": Key(_words, "allowed_tools"),
    "disallowedTools": Key(_words, "disallowed_tools"),
    "permissionMode": Key(_line, "permission_mode"),
    "permissionPromptTool": Key(_line, "permission_prompt_tool"),
    "mcpConfig": Key(_mcp, "mcp_config"),
    "settingSources": Key(_words, "setting_sources"),
    "maxTurns": Key(_whole, "max_turns"),
    "maxBudgetUsd": Key(_number, "max_budget_usd"),
    "timeout": Key(_duration, "timeout"),
    "idleTimeout": Key(_duration, "idle_timeout"),
    "retry": Key(_retry, "retry"),
    "recovery": Key(_line, "recovery"),
    "session": Key(_session),
    "input": Key(_input),
    "output": Key(_output),
}
"""Every key a prompt file may have, in the order docs/prompts.md explains them."""

_LATER = {
    "worktree": "a step runs in the directory it is called from",
    "docker": "a step runs on the host, not in a container",
    "checks": "a step is done when Claude has answered",
}
_MAX_PLACEHOLDERS = 1000
_FIELDS = {"session": "session", "input": "input_schema", "output": "output_schema"}


class PromptReader:
    """Reads one prompt file into the fields of `Prompt`, and keeps every error it meets."""

    def __init__(self, text: str, path: str | Path | None) -> None:
        self.errors: list[PromptError] = []
        self._file = str(path or "prompt")
        self._folder = Path(path).parent if path else Path()
        self._matter = matter.split(text, file=self._file)
        self.fields: dict[str, Any] = {
            "name": Path(path).stem if path else "prompt",
            "path": Path(path).resolve() if path else None,
            "body": self._matter.body,
        }
        options: dict[str, Any] = {}
        for key, spelling in self._known().items():
            value = self._read(key, spelling)
            if value is None:
                continue
            if KEYS[key].option:
                options[KEYS[key].option] = value
            else:
                self.fields[_FIELDS.get(key, key)] = value
        self.fields["options"] = self._options(options)
        if not self._matter.body:
            self._refuse("", "there is no text under the frontmatter; say what Claude shall do")
        self._check_placeholders()

    def _known(self) -> dict[str, str]:
        """Return the keys of the file that are known, each with its spelling there."""
        found: dict[str, str] = {}
        for spelling in self._matter.data:
            key = _camel(spelling)
            if key in found:
                self._refuse(spelling, f"is given twice: as {found[key]} and as {spelling}")
            elif key in KEYS:
                found[key] = spelling
            elif key in _LATER:
                self._refuse(spelling, f"is not in this version yet: {_LATER[key]}; remove the key")
            elif not spelling.startswith("x-"):
                hint = schema.nearest(key, KEYS) or f"; a key of your own is called x-{spelling}"
                self._refuse(spelling, f"is not a key of a prompt file{hint}")
        return found

    def _read(self, key: str, spelling: str) -> Any:
        value = self._matter.data[spelling]
        if value is None:
            self._refuse(spelling, "has no value; give one or remove the key")
            return None
        try:
            return KEYS[key].read(value, _Context(self._folder, self._matter.written.get((spelling,))))
        except SchemaError as exc:
            self._refuse(spelling, exc.message, *_PATH_PART.findall(exc.path))
        except ValidationError as exc:
            self._refuse(spelling, *_said(exc.errors()[0]))
        except ValueError as exc:
            self._refuse(spelling, str(exc))
        return None

    def _options(self, given: dict[str, Any]) -> TurnOptions:
        spellings = {KEYS[key].option: spelling for key, spelling in self._spelled()}
        while True:
            try:
                return TurnOptions.model_validate(given)
            except ValidationError as exc:
                for error in exc.errors():
                    option = str(error["loc"][0])
                    if given.pop(option, None) is not None:
                        problem, *place = _said(error)
                        self._refuse(spellings[option], problem, *place[1:])

    def _spelled(self) -> Iterator[tuple[str, str]]:
        return ((_camel(spelling), spelling) for spelling in self._matter.data if _camel(spelling) in KEYS)

    def _check_placeholders(self) -> None:
        declared = self.fields.get("input_schema")
        if declared is None:
            return
        for count, (offset, path) in enumerate(template.placeholders(self._matter.body, declared["properties"])):
            problem = schema.path_problem(declared, path)
            if count == _MAX_PLACEHOLDERS:
                self._refuse(
                    "", f"there are more than {_MAX_PLACEHOLDERS} different placeholders under the frontmatter"
                )
                break
            if problem:
                line = self._matter.body_line + self._matter.body.count("\n", 0, offset)
                self.errors.append(PromptError.at(self._file, line, f"{{{path}}}", problem))

    def _refuse(self, spelling: str, problem: str, *inside: str) -> None:
        """Keep an error; `inside` is the way from the key's value to what is wrong."""
        line = self._matter.lines.get((spelling,), self._matter.body_line)
        place: matter.KeyPath = (spelling,)
        for part in inside:
            options = ((*place, end) for end in (part, f"{part}?", int(part) if part.isdecimal() else part))
            place = next((option for option in options if option in self._matter.lines), (*place, part))
            line = self._matter.lines.get(place, line)
        self.errors.append(PromptError.at(self._file, line, ".".join((spelling, *inside))[:100], problem))


def _camel(key: str) -> str:
    head, *rest = key.split("-")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _said(error: ErrorDetails) -> list[str]:
    """Return what pydantic says, and the way to where it says it."""
    message = error["msg"].removeprefix("Value error, ")
    return [_PYDANTIC_SUBJECT.sub("must", message), *map(str, error["loc"])]
