"""Where things are said: stdout has the answer (or only JSON), stderr all else."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from datetime import datetime
from typing import Any, Final

_STEERING: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
"""What a terminal obeys instead of showing it; line ends and tabs are welcome."""
_HIDDEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What is not seen in a line, ends it, or turns it round. The joiners that emoji and some scripts need may stay."""

_DIM: Final = "\x1b[2m"
_NOT_DIM: Final = "\x1b[22m"


def prepare() -> None:
    """Make sure that an answer is printed whatever the terminal's encoding: what it lacks is escaped."""
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")


def answer(text: str) -> None:
    """Print the answer, ended by a newline. A file or pipe gets it as it is; a terminal is not steered by it."""
    piece(text if text.endswith("\n") else f"{text}\n")


def document(data: Any) -> None:
    """Print one JSON document."""
    answer(json.dumps(data, ensure_ascii=False, indent=2))


def line(data: Any) -> None:
    """Print one line of JSON, at once."""
    answer(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def piece(text: str) -> None:
    """Print a piece of an answer, at once."""
    sys.stdout.write(_STEERING.sub(_escaped, text) if sys.stdout.isatty() else text)
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
    """Return `text` as one line in which every character is seen: others are escaped, as in `\\x1b`."""
    return _HIDDEN.sub(_escaped, text)


def word(text: str) -> str:
    """Return `text` as one word of a command line that can be copied from a terminal, whatever it holds."""
    if not _HIDDEN.search(text):
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{plain(quoted)}'"


def columns(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; the first row is the heading."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    padded = ([cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def dollars(amount: float) -> str:
    """Return US dollars, with enough digits for a small turn."""
    return f"${amount:.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def local_time(moment: datetime) -> str:
    """Return a moment in the time zone of the machine, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def count(number: int, noun: str) -> str:
    """Return `1 turn`, `2 turns`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    if char in "\t\n\r":
        return repr(char)[1:-1]
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _width(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    seen = (char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in seen)
