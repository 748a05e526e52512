"""A prompt: one Markdown file that says what Claude is asked, and with which tools, limits, inputs and output.

    prompt = Prompt.load("prompts/plan.md")
    text = prompt.bind({"ticket": "Search is slow"})

What a file may say is the table `KEYS`; docs/prompts.md explains each key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, Field, ValidationError

from channelcoder_flows import matter, schema, template
from channelcoder_flows.errors import InputError, OutputInvalid, PromptError, SchemaError
from channelcoder_flows.turn import Frozen, TurnOptions


class SessionSpec(Frozen):
    """Which session a prompt goes on from."""

    required: bool = Field(default=False, description="Refuse to run without a session to continue.")
    name: str | None = Field(default=None, min_length=1, max_length=200, description="The session's name.")
    mode: Literal["continue", "new", "fork"] = "continue"
    from_: str | None = Field(default=None, alias="from", min_length=1, description="The session a fork starts from.")


@dataclass(frozen=True)
class Prompt:
    """A prompt file, read and checked. Build one with `load`, `parse` or `inline`."""

    name: str
    body: str
    """The text under the frontmatter, its placeholders not yet filled."""
    description: str = ""
    path: Path | None = None
    options: TurnOptions = field(default_factory=TurnOptions)
    """Only what the file says is set, so that `TurnOptions.over` lets nothing else win."""
    session: SessionSpec = field(default_factory=SessionSpec)
    input_schema: Mapping[str, Any] | None = None
    """The declared inputs as JSON Schema; None: any input is taken."""
    output_schema: dict[str, Any] | None = None
    """The declared output as JSON Schema, as the CLI is given it; None: plain text."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a prompt file.

        Raises:
            PromptError: the file cannot be read, or says what cannot be used (the first such place).
        """
        return cls.parse(matter.read_text(path), path=path)

    @classmethod
    def parse(cls, text: str, *, path: str | Path | None = None) -> Self:
        """Read a prompt from its text. Files it names are looked for beside `path`, or in the working directory.

        Raises:
            PromptError: the text says what cannot be used (the first such place).
        """
        reader = _Reader(text, path)
        if reader.errors:
            raise reader.errors[0]
        return cls(**reader.fields)

    @classmethod
    def inline(cls, text: str) -> Self:
        """Return the prompt that is just `text`: no frontmatter is looked for.

        Raises:
            PromptError: the text is blank.
        """
        if not text.strip():
            raise PromptError.at("prompt", 0, "", "is empty; say what Claude shall do")
        return cls(name="prompt", body=text)

    @cached_property
    def input_model(self) -> type[BaseModel] | None:
        """The pydantic model of the declared inputs."""
        return None if self.input_schema is None else schema.model_from(self.input_schema, name="Input")

    @cached_property
    def output_model(self) -> type[BaseModel] | None:
        """The pydantic model of the declared output."""
        return None if self.output_schema is None else schema.model_from(self.output_schema, name="Output")

    def bind(self, data: Mapping[str, Any] | None = None) -> str:
        """Return the body with its placeholders filled.

        A prompt of plain text (`inline`) that is given no data is returned as it is.

        Raises:
            InputError: an input is missing, not declared, or of another type; or nothing is left to ask.
        """
        values = dict(data or {})
        if self.input_model is None:
            if not values and self.path is None and self.options == TurnOptions():
                return self.body
            text = template.render(self.body, values)
        else:
            try:
                bound = self.input_model.model_validate(values)
            except ValidationError as exc:
                problems = schema.problems(self.input_model, exc)
                message = "; ".join(f"{path}: {problem}" for path, problem in problems)
                raise InputError(f"{self.name}: {message}", field=problems[0][0]) from exc
            text = template.render(self.body, bound.model_dump(), declared=self.inputs)
        if not text.strip():
            raise InputError(f"{self.name}: the prompt is empty once its placeholders are filled")
        return text

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the declared inputs."""
        return tuple((self.input_schema or {}).get("properties", ()))

    def read_value(self, name: str, text: str) -> Any:
        """Return what `-d name=text` means: JSON where it parses, and the text where a text is declared."""
        declared = (self.input_schema or {}).get("properties", {}).get(name, {})
        if isinstance(declared, dict) and cast("dict[str, Any]", declared).get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def validate_output(self, value: Any) -> Any:
        """Return `value` as JSON data with the declared defaults filled in; as it is where no output is declared.

        Raises:
            OutputInvalid: the value does not fit; the message names every place.
        """
        if self.output_model is None:
            return value
        try:
            return self.output_model.model_validate(value).model_dump(mode="json")
        except ValidationError as exc:
            problems = schema.problems(self.output_model, exc)
            message = "; ".join(f"{path}: {problem}" if path else problem for path, problem in problems)
            raise OutputInvalid(f"{self.name}: the output does not fit: {message}") from exc


def check(paths: Iterable[str | Path]) -> list[PromptError]:
    """Return everything that is wrong with these prompt files; a folder stands for all `.md` files under it."""
    errors: list[PromptError] = []
    for path in paths:
        files = list(_prompts_in(Path(path))) if Path(path).is_dir() else [Path(path)]
        if not files:
            errors.append(PromptError.at(str(path), 0, "", "there is no prompt file (.md) in this folder"))
        for file in files:
            try:
                errors.extend(_Reader(matter.read_text(file), file).errors)
            except PromptError as exc:
                errors.append(exc)
    return errors


def _prompts_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".md"))


def text_or_file(value: str, folder: Path) -> str:
    """Return `value`, or where it is one line that ends in `.md` or `.txt`, the text of that file in `folder`.

    Raises:
        ValueError: the file cannot be read.
    """
    if "\n" in value or not value.endswith((".md", ".txt")):
        return value
    try:
        return matter.read_text(folder / value).strip()
    except PromptError as exc:
        raise ValueError(f"{exc.file} {exc.problem}") from exc


def split_tools(text: str) -> list[str]:
    """Split ChannelCoder's text forms of a tool list, `Read Write` and `Read, Bash(git log:*)`."""
    return [rule.strip() for rule in _TOOL.findall(text)]


_TOOL = re.compile(r"(?:[^\s,(]++(?:\([^)]*\)?)?|\([^)]*\)?)++")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
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
    raise ValueError("is a number of seconds, or a duration such as 90s, 30m or 1h30m")


class _Context(NamedTuple):
    folder: Path
    written: str | None
    """The value as the file has it, where it is a scalar."""


def _text(value: Any, context: _Context) -> str:
    if isinstance(value, (dict, list)) or context.written is None:
        raise ValueError("is a text")
    if not context.written.strip():
        raise ValueError("is empty")
    return context.written


def _line(value: Any, context: _Context) -> str:
    text = _text(value, context)
    if len(text) > 200 or not text.isprintable():
        raise ValueError("is one line of up to 200 characters")
    return text


def _system(value: Any, context: _Context) -> str:
    return text_or_file(_text(value, context), context.folder)


def _words(value: Any, context: _Context) -> list[str]:
    if isinstance(value, str):
        return split_tools(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value)):
        return cast("list[str]", value)
    raise ValueError("is a list of texts, such as [Read, Edit]")


def _mcp(value: Any, context: _Context) -> str:
    if isinstance(value, dict):
        config, result = cast("dict[str, Any]", value), json.dumps(value, ensure_ascii=False)
    else:
        path = (context.folder / _text(value, context)).resolve()
        try:
            config, result = json.loads(matter.read_text(path)), str(path)
        except PromptError as exc:
            raise ValueError(f"{exc.file} {exc.problem}") from exc
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"{path} is not JSON: {exc}") from exc
    if not (isinstance(config, dict) and isinstance(cast("dict[str, Any]", config).get("mcpServers"), dict)):
        raise ValueError("has no mcpServers; it is {mcpServers: {name: {…}}} or the path of a JSON file with it")
    return result


def _whole(value: Any, context: _Context) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is a whole number")
    return value


def _number(value: Any, context: _Context) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("is a number")
    return value


def _duration(value: Any, context: _Context) -> float:
    return seconds(value)


def _retry(value: Any, context: _Context) -> dict[str, Any]:
    given = _fields(value, ("attempts", "delay"), "a number of further attempts, or {attempts, delay}")
    read = {"attempts": _whole(given["attempts"], context)} if "attempts" in given else {}
    return read | ({"delay": seconds(given["delay"])} if "delay" in given else {})


def _declaration(value: Any, context: _Context) -> schema.JsonSchema:
    return schema.json_schema(value)


def _session(value: Any, context: _Context) -> SessionSpec:
    given = _fields(value, ("required", "name", "mode", "from"), "a mapping of required, name, mode and from")
    if not isinstance(given.get("required", False), bool):
        raise ValueError("required is true or false")
    return SessionSpec.model_validate(given)


def _fields(value: Any, known: tuple[str, ...], what: str) -> dict[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool) and "attempts" in known:
        return {"attempts": value}
    if not isinstance(value, dict):
        raise ValueError(f"is {what}")
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
    "input": Key(_declaration),
    "output": Key(_declaration),
}
"""Every key a prompt file may have, in the order docs/prompts.md explains them."""

_LATER = {
    "worktree": "a step runs in the directory it is called from",
    "docker": "a step runs on the host, not in a container",
    "checks": "a step is done when Claude has answered",
}
_FIELDS = {"session": "session", "input": "input_schema", "output": "output_schema"}


class _Reader:
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
        if not self._matter.body.strip():
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
                hint = schema.nearest(key, KEYS) or f"; a key of your own is called x-{spelling.removeprefix('x')}"
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
            self._refuse(spelling, exc.message, path=exc.path)
        except ValidationError as exc:
            self._refuse(spelling, _first_problem(exc))
        except ValueError as exc:
            self._refuse(spelling, str(exc))
        return None

    def _options(self, given: dict[str, Any]) -> TurnOptions:
        spellings = {KEYS[key].option: spelling for key, spelling in self._spelled()}
        while True:
            try:
                return TurnOptions.model_validate(given)
            except ValidationError as exc:
                for option in {str(error["loc"][0]): None for error in exc.errors()}:
                    self._refuse(spellings[option], _first_problem(exc, option))
                    del given[option]

    def _spelled(self) -> Iterator[tuple[str, str]]:
        return ((_camel(spelling), spelling) for spelling in self._matter.data if _camel(spelling) in KEYS)

    def _check_placeholders(self) -> None:
        declared = self.fields.get("input_schema")
        if declared is None:
            return
        for offset, path in template.placeholders(self._matter.body, declared["properties"]):
            problem = schema.path_problem(declared, path)
            if problem:
                line = self._matter.body_line + self._matter.body.count("\n", 0, offset)
                self.errors.append(PromptError.at(self._file, line, f"{{{path}}}", problem))

    def _refuse(self, spelling: str, problem: str, *, path: str = "") -> None:
        place = [spelling, *path.split(".")] if path else [spelling]
        lines = (self._matter.lines.get(tuple(place[:length])) for length in range(len(place), 0, -1))
        line = next((line for line in lines if line), self._matter.body_line)
        self.errors.append(PromptError.at(self._file, line, ".".join(place), problem))


def _camel(key: str) -> str:
    head, *rest = key.split("-")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _first_problem(error: ValidationError, option: str = "") -> str:
    first = next(found for found in error.errors() if not option or found["loc"][0] == option)
    message = first["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
