"""A prompt: one Markdown file that says what Claude is asked, and with which tools, limits, inputs and output.

    prompt = Prompt.load("prompts/plan.md")
    text = prompt.bind({"ticket": "Search is slow"})

docs/prompts.md explains each key of such a file; `prompt_file.KEYS` is the table of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

from channelcoder_flows import matter, schema, template
from channelcoder_flows.errors import InputError, OutputInvalid, PromptError
from channelcoder_flows.prompt_file import PromptReader, SessionSpec, seconds, split_tools, text_or_file
from channelcoder_flows.turn import TurnOptions

__all__ = ["Prompt", "SessionSpec", "check", "seconds", "split_tools", "text_or_file"]


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
    input_schema: dict[str, Any] | None = None
    """The declared inputs as JSON Schema; None: any input is taken."""
    output_schema: dict[str, Any] | None = None
    """The declared output as JSON Schema, as the CLI is given it; None: plain text."""

    plain: bool = False
    """Text that was typed, not a file: without data it is sent as it is, braces and all."""

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
        reader = PromptReader(text, path)
        if reader.errors:
            raise reader.errors[0]
        return cls(**reader.fields)

    @classmethod
    def inline(cls, text: str) -> Self:
        """Return the prompt that is just `text`: no frontmatter is looked for.

        Raises:
            PromptError: the text is blank.
        """
        if _is_blank(text):
            raise PromptError.at("prompt", 0, "", "is empty; say what Claude shall do")
        return cls(name="prompt", body=text, plain=True)

    @cached_property
    def input_model(self) -> type[schema.Declared] | None:
        """The pydantic model of the declared inputs."""
        return None if self.input_schema is None else schema.model_of(self.input_schema, "Input")

    @cached_property
    def output_model(self) -> type[schema.Declared] | None:
        """The pydantic model of the declared output."""
        return None if self.output_schema is None else schema.model_of(self.output_schema, "Output")

    def bind(self, data: Mapping[str, Any] | None = None) -> str:
        """Return the body with its placeholders filled.

        A prompt of plain text (`inline`) that is given no data is returned as it is.

        Raises:
            InputError: an input is missing, not declared, or of another type; or nothing is left to ask.
        """
        values = dict(data or {})
        try:
            if self.input_model is None:
                text = self.body if self.plain and not values else template.render(self.body, values)
            else:
                text = template.render(self.body, schema.fit(self.input_model, values), declared=self.inputs)
        except schema.Misfit as exc:
            raise InputError(f"{self.name}: {exc}", field=exc.problems[0][0]) from exc
        except InputError as exc:
            raise InputError(f"{self.name}: {exc}", field=exc.field) from exc
        if _is_blank(text):
            raise InputError(f"{self.name}: the prompt is empty once its placeholders are filled")
        return text

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the declared inputs."""
        return tuple(self.input_schema["properties"]) if self.input_schema else ()

    def read_value(self, name: str, text: str) -> Any:
        """Return what `-d name=text` means: JSON where it parses, and the text where a text is declared."""
        declared = (self.input_schema or {"properties": {}})["properties"].get(name)
        if isinstance(declared, dict) and cast("schema.JsonSchema", declared).get("type") == "string":
            return text
        try:
            return json.loads(text, parse_constant=_not_json)
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
            return schema.fit(self.output_model, value)
        except schema.Misfit as exc:
            raise OutputInvalid(f"{self.name}: the output does not fit: {exc}") from exc


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def check(paths: Iterable[str | Path]) -> list[PromptError]:
    """Return everything that is wrong with these prompt files; a folder stands for all `.md` files under it."""
    errors: list[PromptError] = []
    for path in paths:
        files = list(_prompts_in(Path(path))) if _is_folder(Path(path)) else [Path(path)]
        if not files:
            errors.append(PromptError.at(str(path), 0, "", "there is no prompt file (.md) in this folder"))
        for file in files:
            try:
                errors.extend(PromptReader(matter.read_text(file), file).errors)
            except PromptError as exc:
                errors.append(exc)
    return errors


def _is_blank(text: str) -> bool:
    """Whether there is nothing to ask, as Claude Code sees it: to it a byte order mark is a blank, too."""
    return not text.replace("\ufeff", "").strip()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # a name that is too long, for one: to be said when it is read


def _prompts_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".md"))
