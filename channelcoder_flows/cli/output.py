"""Where things are said: stdout has the answer (or only JSON), stderr all else."""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import datetime
from typing import Any, Final

_DIM: Final = "\x1b[2m"
_NOT_DIM: Final = "\x1b[22m"


def prepare() -> None:
    """Make sure that an answer is printed whatever the terminal's encoding: what it lacks is escaped."""
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")


def answer(text: str) -> None:
    """Print the answer, ended by a newline."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def document(data: Any) -> None:
    """Print one JSON document."""
    answer(json.dumps(data, ensure_ascii=False, indent=2))


def line(data: Any) -> None:
    """Print one line of JSON, at once."""
    answer(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    sys.stdout.flush()


def piece(text: str) -> None:
    """Print a piece of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Tell the person at the terminal something beside the answer: one dim line."""
    said = plain(text)
    can_dim = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    print(f"{_DIM}{said}{_NOT_DIM}" if can_dim else said, file=sys.stderr)


def close() -> None:
    """Stop writing to stdout: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(text: str) -> str:
    """Return `text` as one line without control characters, which could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def columns(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def dollars(amount: float) -> str:
    """Return US dollars, with enough digits for a small turn."""
    return f"${amount:.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def local_time(moment: datetime) -> str:
    """Return a moment in the time zone of the machine, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def count(number: int, noun: str) -> str:
    """Return `1 turn`, `2 turns`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
