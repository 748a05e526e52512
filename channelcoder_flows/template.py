r"""Fills the placeholders of a prompt: pure, in one pass, in time linear in the text.

    {name} ${name} {ticket.title}     a value
    {cond ? "yes" : "no"}             a choice; each side is a quoted text, a name, or plain words
    {a == "x" ? … : …}                == and === are equal, != and !== are not; ! negates the condition
    \{                                an opening brace that is only a brace

A value is never read again as a template, and braces that come doubled (`{{name}}`) are left as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, cast

from channelcoder_flows.errors import InputError

# Between the braces there is no bare brace, so no character is looked at twice.
_BRACES = re.compile(r"(?P<escaped>\\\$?\{)|\$?(?<!\{)\{(?P<expression>(?:[^{}\\]++|\\.)*+)\}", re.DOTALL)
_PATH = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*", re.ASCII)
_PLAIN_PATH = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,300}(?:\.\d{1,300})?", re.ASCII)
# An escape is a part of its own outside quotes too, so a quote that never closes is searched for only once.
_PART = re.compile(r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|\\.|===|==|!==|!=|\?|:|[^"'?:=!\\]++|.""", re.DOTALL)
_ESCAPE = re.compile(r"""\\([{}"'])""")
_ESCAPED_BRACE = re.compile(r"\\(\$?\{)")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "undefined": None}
_MISSING: Any = object()


def render(text: str, values: Mapping[str, Any], *, declared: Collection[str] | None = None) -> str:
    """Return `text` with its placeholders filled from `values`.

    With `declared`, only names that start at a declared one are placeholders and every other brace is left exactly
    as it is. Without it, ChannelCoder's rules hold: any name is a placeholder, and one without a value is empty.
    In what is left, an escaped brace loses its backslash wherever it stands.

    A text is put in as it is, `None` and what is missing as nothing, `True` as `true`, mappings and lists as
    compact JSON. In a condition an empty text, 0, `False` and `None` are false; an empty list is true.

    Raises:
        InputError: a value that is asked for is no text and no JSON; `field` is its name.
    """

    def fill(match: re.Match[str]) -> str:
        if escaped := match["escaped"]:
            return escaped[1:]
        filled = _evaluate(match["expression"].strip(), values, declared)
        return _ESCAPED_BRACE.sub(r"\1", match[0]) if filled is None else filled

    return _BRACES.sub(fill, text)


def placeholders(text: str, declared: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the offset and path (`ticket.title`) of each declared name that `render` would fill in or ask about.

    What stands in braces is looked at where it stands first.
    """
    seen: set[str] = set()
    for match in _BRACES.finditer(text):
        expression = (match["expression"] or "").strip()
        if expression in seen:
            continue
        seen.add(expression)
        choice = None if _PATH.fullmatch(expression) else _choice(expression)
        for operand in (*choice.operands, choice.yes, choice.no) if choice else (expression,):
            if _PATH.fullmatch(operand) and operand.partition(".")[0] in declared:
                yield match.start(), operand


class _Choice(NamedTuple):
    negated: bool
    operands: tuple[str, ...]
    """The two sides of a comparison, or the one name that is asked about."""
    equal: bool
    yes: str
    no: str


def _evaluate(expression: str, values: Mapping[str, Any], declared: Collection[str] | None) -> str | None:
    """Return what the expression stands for, or None when it is none."""
    if _PATH.fullmatch(expression):
        root = expression.partition(".")[0]
        known = root in (values if declared is None else declared)
        if not known and (declared is not None or not _PLAIN_PATH.fullmatch(expression)):
            return None
        return _filled(expression, values)
    choice = _choice(expression)
    if choice is None:
        return None
    names = [operand.partition(".")[0] for operand in choice.operands if _is_name(operand)]
    if declared is not None and not (names and all(name in declared for name in names)):
        return None
    return _branch(choice.yes if _holds(choice, values) else choice.no, values)


def _choice(expression: str) -> _Choice | None:
    parts = [part.group() for part in _PART.finditer(expression)]
    if "?" not in parts or ":" not in parts:
        return None
    ask = parts.index("?")
    colon = parts.index(":")
    yes, no = "".join(parts[ask + 1 : colon]).strip(), "".join(parts[colon + 1 :]).strip()
    condition = [part.strip() for part in parts[:ask] if part.strip()]
    negations = next((i for i, part in enumerate(condition) if part != "!"), len(condition))
    match condition[negations:]:
        case [operand]:
            operands, equal = (operand,), True
        case [left, ("==" | "===" | "!=" | "!==") as operator, right]:
            operands, equal = (left, right), operator[0] == "="
        case _:
            return None
    if not (yes and no and all(map(_is_operand, operands))):
        return None
    return _Choice(negations % 2 == 1, operands, equal, yes, no)


def _is_name(text: str) -> bool:
    return text not in _WORDS and _PATH.fullmatch(text) is not None


def _is_operand(text: str) -> bool:
    return _is_quoted(text) or bool(_PATH.fullmatch(text) or _NUMBER.fullmatch(text))


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in "\"'" and _PART.fullmatch(text) is not None


def _holds(choice: _Choice, values: Mapping[str, Any]) -> bool:
    found = [_operand(operand, values) for operand in choice.operands]
    if len(found) == 1:
        holds = found[0] not in (None, "", 0) or isinstance(found[0], (list, dict))
    else:
        holds = _same(found[0], found[1]) is choice.equal
    return holds is not choice.negated


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) is isinstance(right, bool) and left == right


def _operand(text: str, values: Mapping[str, Any]) -> Any:
    if _is_quoted(text):
        return _unquote(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if text in _WORDS:
        return _WORDS[text]
    found = _look_up(text, values)
    return None if found is _MISSING else found


def _branch(text: str, values: Mapping[str, Any]) -> str:
    if _is_quoted(text):
        return _unquote(text)
    known = _PATH.fullmatch(text) and _look_up(text, values) is not _MISSING
    return _filled(text, values) if known else text


def _unquote(text: str) -> str:
    return _ESCAPE.sub(r"\1", text[1:-1])


def _look_up(path: str, values: Mapping[str, Any]) -> Any:
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return _MISSING
        found = cast("Mapping[str, Any]", found).get(part, _MISSING)
    return found


def _filled(path: str, values: Mapping[str, Any]) -> str:
    try:
        text = _text(_look_up(path, values))
        text.encode()
    except UnicodeEncodeError as exc:
        problem = "has half a character (a lone surrogate): read what it comes from as UTF-8"
        raise InputError(f"{path}: {problem}", field=path) from exc
    except (ValueError, TypeError, RecursionError) as exc:
        raise InputError(f"{path}: cannot be put into a text: {exc}", field=path) from exc
    if "\0" in text:
        raise InputError(f"{path}: has a NUL, which is no text: take it out", field=path)
    return text


def _text(value: Any) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is no number of JSON")
        case Mapping() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        case _:
            return "" if value is _MISSING else str(value)


def _plain(value: object) -> Any:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else str(value)
