"""An error becomes one line on stderr, an object on stdout where `--json` was asked for, and an exit code."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from channelcoder_flows.cli import output
from channelcoder_flows.errors import ChannelCoderError, InputError, TurnError, UsageError

BROKEN_PIPE = 141
"""What a shell reports of a program that wrote to a closed pipe."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; the message says what became of the work."""


def report(exc: BaseException, argv: Sequence[str], *, interrupted: int) -> int:
    """Tell the user, and return the exit code; `interrupted` is that of Ctrl-C or SIGTERM."""
    match exc:
        case BrokenPipeError():
            output.close()
            return BROKEN_PIPE
        case SystemExit():
            return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        case KeyboardInterrupt() | Interrupted():
            data = _data("interrupted", str(exc) or "interrupted", interrupted, retryable=True)
        case InputError():
            data = _data_of(exc)
            data["message"] += f" (inputs are given as -d {exc.field or 'NAME'}=VALUE)"
        case ChannelCoderError():
            data = _data_of(exc)
        case Exception() if usage := usage_error(exc):
            data = _data_of(usage)
        case Exception():
            what = " ".join(f"{type(exc).__name__}: {exc}".split())
            where = "" if "--verbose" in argv else "; run the command again with --verbose for the traceback"
            data = _data("internal", f"unexpected {what}{where}", 1)
        case _:
            raise exc
    if "--verbose" in argv and not isinstance(exc, KeyboardInterrupt | Interrupted):
        _print_traceback(exc)
    print(f"channelcoder: {output.plain(data['message'])}", file=sys.stderr)
    _print_on_stdout(exc, data, as_json="--json" in argv)
    return data["exit_code"]


def _print_on_stdout(exc: BaseException, data: dict[str, Any], *, as_json: bool) -> None:
    answer: str = getattr(exc, "answer", "")
    text: str = answer or getattr(exc, "text", "")
    try:
        if as_json:
            output.line({"error": data | ({"text": text} if text else {})})
        elif answer:
            # Paid for and complete: not to be lost.
            output.answer(answer)
        sys.stdout.flush()
    except BrokenPipeError:
        output.close()


def _data(kind: str, message: str, exit_code: int, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "message": message, "exit_code": exit_code, "retryable": False, "retry_after": None} | more


def _data_of(exc: ChannelCoderError) -> dict[str, Any]:
    if isinstance(exc, TurnError):
        return _data(exc.kind, exc.message, exc.exit_code, retryable=exc.retryable, retry_after=exc.retry_after)
    words = re.findall("[A-Z][a-z]+", type(exc).__name__)
    kind = "-".join(word.lower() for word in words if word != "Error")
    return _data(kind, exc.message, exc.exit_code)


def _print_traceback(exc: BaseException) -> None:
    import traceback

    traceback.print_exception(exc)


def usage_error(exc: Exception) -> UsageError | None:
    """Return what the parser of the command line found wrong, naming the nearest; None: it is no error of its."""
    from cyclopts.exceptions import (
        CoercionError,
        CycloptsError,
        MissingArgumentError,
        UnknownCommandError,
        UnknownOptionError,
        UnusedCliTokensError,
    )

    if not isinstance(exc, CycloptsError):
        return None
    command = " ".join(exc.command_chain or ())
    see = f"`{f'channelcoder {command}'.strip()} --help` shows what there is"
    match exc:
        case UnknownCommandError() if exc.unused_tokens and exc.app:
            word, names = exc.unused_tokens[0], [name for name in exc.app if not name.startswith("-")]
            said = f"there is no command {word!r}{_nearest(word, names, see)}"
        case UnknownOptionError():
            flag = (exc.token.keyword or exc.token.value).partition("=")[0]
            flags = [name for argument in exc.argument_collection for name in argument.names]
            said = f"{command or 'channelcoder'} has no flag {flag}{_nearest(flag, flags, see)}"
        case UnusedCliTokensError() if exc.unused_tokens:
            said = f"{command} cannot use {exc.unused_tokens[0]!r}: put a text of several words in quotes"
        case MissingArgumentError() if exc.argument:
            said = f"{exc.keyword} needs a value" if exc.keyword else f"{command} needs a {exc.argument.name}"
            said = f"{said}: {see}"
        case CoercionError() if exc.token and exc.target_type in _NUMBERS:
            said = f"{exc.token.keyword} {exc.token.value}: this must be {_NUMBERS[exc.target_type]}"
        case _:
            said = " ".join(str(exc).split())
    return UsageError(said)


_NUMBERS: dict[type | None, str] = {int: "a whole number", float: "a number"}


def _nearest(word: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else f": {otherwise}"
