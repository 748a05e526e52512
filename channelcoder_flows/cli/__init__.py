"""The command line: thin commands over sessions, prompts and flows. docs/cli.md is its page.

app.py       the tree of commands; each is imported when it is called
options.py   the flags that commands share; turn_flags.py has those of a turn
output.py    stdout has the answer, stderr all else
failure.py   an error becomes one line and an exit code
help.py      how help is laid out
loading.py   modules are loaded without searching them for garbage
run.py session.py prompt.py flow.py demo.py doctor.py   the commands
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

__all__ = ["main"]

STDIN = "/dev/stdin"
"""What `-` stands for."""
_TEXTS = frozenset({"-p", "--prompt", "-d", "--data", "-s", "--system", "--append-system"})
"""Flags whose value may look like a flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (by default the process's own arguments) and return its exit code."""
    from channelcoder_flows.cli import failure, loading, output

    loading.load_calmly()
    words = list(_words(sys.argv[1:] if argv is None else argv))
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # One way out for both: what Ctrl-C takes back, a polite kill takes back too.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's background command: Ctrl-C is not for it. Ignored, SIGINT would be no way out for SIGTERM either.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, signal.default_int_handler)
    output.prepare()
    try:
        from channelcoder_flows.cli.app import app

        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BaseException as exc:
        return failure.report(exc, words, interrupted=128 + (signal.SIGTERM if terminated else signal.SIGINT))
    return code if isinstance(code, int) else 0


def _words(argv: Sequence[str]) -> Iterator[str]:
    """Yield the words as the parser is to see them.

    A lone dash looks like a flag to it. And it looks for `--help` and `--version` among all words, texts included, so a
    text that begins with a dash is one word with its flag.
    """
    words = iter(argv)
    for word in words:
        if word == "--":
            yield from (word, *words)
            return
        text = next(words, None) if word in _TEXTS else None
        if text is not None and text != "-" and text.startswith("-"):
            yield f"{word}={text}"
        else:
            yield from (STDIN if each == "-" else each for each in (word, text) if each is not None)
