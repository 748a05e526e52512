"""Splits a prompt file into its frontmatter and its body, strictly.

Frontmatter holds a step's limits, so what cannot be read for certain is an error and never skipped. Scalars follow
the core schema of YAML 1.2: `on`, `no` and `2024-01-01` are texts, `010` is ten. Aliases, tags and repeated keys are
refused.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, cast

import yaml
from frontmatter.default_handlers import YAMLHandler

from channelcoder_flows.errors import PromptError, PromptNotFound

MAX_FILE = 1024 * 1024
MAX_MATTER = 64 * 1024
MAX_VALUES = 1000
"""Keys and values of a frontmatter: with more of them, reading costs more than running a small program."""
MAX_DEPTH = 32

_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"

KeyPath = tuple[str | int, ...]

_HANDLER = YAMLHandler(fm_boundary=re.compile(r"^---[ \t]*$", re.MULTILINE))
_OTHER_FENCE = re.compile(r"-{3}|\+{3}[ \t]*$|;{3}[ \t]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)*+")
_NEEDS_QUOTES = re.compile(r"\s*(?:- +)?(?P<key>[\w.?-]+):[ \t]+(?P<value>[^\"'\s#|>].*)")
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(?P<true>true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Matter:
    """A file taken apart. `lines` and `written` are by key path, such as `("retry", "attempts")`."""

    data: dict[str, Any] = field(default_factory=dict[str, Any])
    body: str = ""
    body_line: int = 1
    lines: Mapping[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    written: Mapping[KeyPath, str] = field(default_factory=dict[KeyPath, str])
    """Each scalar as the file has it: `1.10` where `data` has 1.1."""


def read_text(path: str | Path) -> str:
    """Return the text of a regular file: UTF-8, without BOM, lines ended by a line feed.

    Raises:
        PromptNotFound: there is no such file.
        PromptError: it is no regular file, over 1 MB, not UTF-8, or has a NUL byte.
    """
    file = str(path)
    if "\0" in file:
        raise PromptError.at(file.replace("\0", "\\0"), 0, "", "a path cannot have a NUL in it")
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise PromptNotFound.at(file, 0, "", "there is no such file") from exc
    except (OSError, UnicodeEncodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "no file can be called that"
        raise PromptError.at(file, 0, "", f"cannot be read: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PromptError.at(file, 0, "", f"is {kind}; a prompt is a text file")
        # A file of /proc says that it is empty, and one that grows has been smaller: both are read up to the limit.
        content = b"" if status.st_size > MAX_FILE else _read(descriptor)
    except OSError as exc:
        raise PromptError.at(file, 0, "", f"cannot be read: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    if max(status.st_size, len(content)) > MAX_FILE:
        raise PromptError.at(file, 0, "", "is over 1 MB; let Claude read what is long from a file of its own")
    if (position := content.find(b"\0")) >= 0:
        raise PromptError.at(file, _line_at(content, position), "", "has a NUL byte; a prompt is a text file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise PromptError.at(file, _line_at(content, exc.start), "", "is not UTF-8; save it as UTF-8") from exc
    return _unify(text)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as opened:
        return opened.read(MAX_FILE + 1)


def split(text: str, *, file: str) -> Matter:
    """Take a prompt file's text apart; `file` is named in errors.

    Raises:
        PromptError: the frontmatter has no end, is over 64 KB or 1000 keys and values, or is not a mapping that can be
            read for certain.
    """
    text = _unify(text.removeprefix("\ufeff"))
    text, blank = _without_blank_lines(text)
    first = blank + 1
    if not _HANDLER.detect(text):
        if _OTHER_FENCE.match(text):
            raise PromptError.at(file, first, "", "frontmatter is YAML between two lines of exactly three dashes (---)")
        return Matter(body=text.rstrip(), body_line=first)
    try:
        matter, body = _HANDLER.split(text)
    except ValueError as exc:
        raise PromptError.at(file, first, "", "the frontmatter has no end; close it with a line of ---") from exc
    if len(matter.encode("utf-8", "surrogatepass")) > MAX_MATTER:
        raise PromptError.at(file, first, "", "the frontmatter is over 64 KB")
    builder = _Builder(matter, file, first)
    data = builder.build()
    end = first + matter.count("\n") + 1
    body, blank = _without_blank_lines(body.removeprefix("\n"))
    return Matter(
        data=data,
        body=body.rstrip(),
        body_line=end + blank,
        lines=builder.lines,
        written=builder.written,
    )


def _unify(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _without_blank_lines(text: str) -> tuple[str, int]:
    """Return the text without the blank lines it begins with, and how many there were."""
    end = cast("re.Match[str]", _BLANK_LINES.match(text)).end()
    return text[end:], text.count("\n", 0, end)


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


class _Builder:
    """Builds plain data from YAML's events, without recursion."""

    def __init__(self, text: str, file: str, first: int) -> None:
        self._text = text
        self._file = file
        self._first = first
        self._open: list[_Open] = []
        self._root: Any = None
        self._values = 0
        self.lines: dict[KeyPath, int] = {}
        self.written: dict[KeyPath, str] = {}

    def build(self) -> dict[str, Any]:
        documents = 0
        try:
            for event in _events(self._text):
                documents += isinstance(event, yaml.DocumentStartEvent)
                if documents > 1:
                    raise self._error(event.start_mark.line, "", "the frontmatter has more than one document")
                self._take(event)
        except _TooDeepError as exc:
            raise self._error(exc.line, _dotted(self._path()[:1]), _TOO_DEEP) from None
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            raise self._unreadable(mark.line if mark else 0, exc) from exc
        except yaml.YAMLError as exc:
            position = getattr(exc, "position", 0)
            raise self._error(self._text.count("\n", 0, position), "", "has a character that YAML refuses") from exc
        if self._root is None:
            return {}
        if not _is_mapping(self._root):
            kind = "a list" if self.lines and () not in self.written else "a plain value"
            raise self._error(1, "", f"the frontmatter is {kind}; it is lines of `key: value`")
        return self._root

    def _take(self, event: yaml.Event) -> None:
        line = event.start_mark.line
        self._values += isinstance(event, yaml.NodeEvent)
        if self._values > MAX_VALUES:
            raise self._error(line, "", f"the frontmatter has more than {MAX_VALUES} keys and values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases are not read; quote a value that begins with * or &"
            raise self._error(line, self._key(), problem)
        if getattr(event, "tag", None):
            raise self._error(line, self._key(), "tags are not read; quote a value that begins with !")
        match event:
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.MappingStartEvent():
                self._start({}, line)
            case yaml.SequenceStartEvent():
                self._start([], line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self._open.pop()
                self._add(closed.value)
            case _:
                pass

    def _start(self, value: dict[str, Any] | list[Any], line: int) -> None:
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            raise self._error(line, self._key(), "a key is a text; quote one that begins with [ or {")
        path = self._path()
        if len(self._open) >= MAX_DEPTH:
            raise self._error(line, _dotted(path[:1]), _TOO_DEEP)
        self.lines.setdefault(path, self._line(line))
        self._open.append(_Open(value, path))

    def _scalar(self, event: Any, line: int) -> None:
        text = self._joined(event.value, line)
        top = self._open[-1] if self._open else None
        if top and isinstance(top.value, dict) and top.key is None:
            if not text:
                raise self._error(line, self._key(), "has a value without a key")
            if text in top.value:
                path = (*top.path, text)
                first = self.lines[path]
                raise self._error(line, _dotted(path), f"is given twice (first on line {first})")
            top.key = text
            self.lines[(*top.path, text)] = self._line(line)
            return
        path = self._path()
        self.lines.setdefault(path, self._line(line))
        self.written[path] = text
        self._add(self._value(text, line) if event.implicit[0] else text)

    def _joined(self, text: str, line: int) -> str:
        """Return a text with each pair of JSON's surrogate escapes as the character it stands for."""
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as exc:
            raise self._error(line, self._key(), "has half a character (a lone surrogate)") from exc

    def _value(self, text: str, line: int) -> Any:
        if _NULL.fullmatch(text):
            return None
        if boolean := _BOOL.fullmatch(text):
            return bool(boolean["true"])
        if _INT.fullmatch(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            number = math.inf if "n" in text.lower() else float(text)
            if math.isinf(number):
                raise self._error(line, self._key(), f"{text[:40]} is not a number that can be used here")
            return number
        return text

    def _add(self, value: Any) -> None:
        if not self._open:
            self._root = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None

    def _path(self) -> KeyPath:
        if not self._open:
            return ()
        top = self._open[-1]
        return (*top.path, len(top.value) if isinstance(top.value, list) else top.key or "")

    def _key(self) -> str:
        return _dotted(self._path())

    def _line(self, line: int) -> int:
        return self._first + line

    def _error(self, line: int, key: str, problem: str) -> PromptError:
        return PromptError.at(self._file, self._line(line), key.rstrip(".")[:100], problem)

    def _unreadable(self, line: int, exc: yaml.MarkedYAMLError) -> PromptError:
        problem = exc.problem or "it is not YAML"
        in_brackets = (exc.context or "").startswith("while parsing a flow")
        if in_brackets and problem.endswith("'?'"):
            return self._error(line, self._key(), 'inside { } a name that ends in ? needs quotes: {"name?": string}')
        text = "".join(self._text.split("\n")[line : line + 1])
        if "\t" in text[: len(text) - len(text.lstrip())]:
            return self._error(line, self._key(), "cannot be read: there is a tab; indent with spaces")
        suspect = None if in_brackets else _NEEDS_QUOTES.fullmatch(text)
        if suspect:
            value = suspect["value"].rstrip().replace("'", "''")
            example = f": '{value}'" if len(value) <= 100 else ""
            return self._error(line, suspect["key"], f"cannot be read; put the value in quotes{example}")
        return self._error(line, self._key(), f"cannot be read: {problem}")


class _TooDeepError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


class _Loader(yaml.SafeLoader):
    """Stops at the bracket that is too deep, before it looks ahead.

    It looks up to 1024 characters ahead for the end of a key, and each of them costs a step for each open bracket.
    """

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > MAX_DEPTH:  # pyright: ignore
            raise _TooDeepError(self.line)  # pyright: ignore
        super().fetch_flow_collection_start(TokenClass)  # pyright: ignore


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=_Loader)  # pyright: ignore


def _is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
