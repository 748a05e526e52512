"""How the demo looks: short lines, colours on a terminal, plain text in a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from channelcoder_flows.exchange import as_object
from channelcoder_flows.journal import Turn

WIDTH = 100
"""Columns, at most."""
STEP_WIDTH = 12
"""Columns of a step's name."""


class Screen:
    """Where the demo is shown.

    Args:
        console: what it is written to.
        program: how the reader runs this command line.
        verbose: show what the processes say, too.
        spin: show on a terminal that something is under way.
    """

    def __init__(self, console: Console, *, program: str, verbose: bool = False, spin: bool = True) -> None:
        self.program = program
        self.verbose = verbose
        self._console = console
        self._spin = spin and console.is_terminal
        self._width = min(WIDTH, console.width) if console.is_terminal else WIDTH

    def say(self, text: str = "", style: str = "", *, indent: int = 1) -> None:
        """Print one line."""
        self._print(Text(" " * indent if text else "").append(text, style))

    def act(self, heading: str) -> None:
        """Begin another part."""
        self._console.print()
        self._print(Text(f" {heading}", style="bold cyan"))

    def command(self, words: Sequence[str], said: str = "") -> None:
        """Show a command that is run, and the gist of what it says."""
        line = Text("   ").append("$ ", "dim").append(shlex.join(words), "bold")
        self._print(line.append(f"   {said}" if said else ""))

    def turn(self, turn: Turn) -> None:
        """Show a turn that has just ended, and as much of its answer as the line holds."""
        figures = f"{_count(turn.model_calls, 'model call')}   ${turn.cost_usd:.4f}   "
        said = str(as_object(turn.output).get("summary", turn.text))
        answer = Text(" ".join(said.split()), style="dim")
        answer.truncate(self._width - len(figures) - STEP_WIDTH - 6, overflow="ellipsis")
        self._step("✓", "green", str(turn.step), Text(figures).append(answer))

    def kept(self, turn: Turn) -> None:
        """Show a turn that is taken from the journal."""
        self._step("↺", "blue", str(turn.step), Text("from the journal: nothing is paid again"))

    def under_way(self, step: str, what: str) -> None:
        """Show a turn that has not ended."""
        self._step("…", "yellow", step, Text(what))

    def killed(self, what: str) -> None:
        """Show what is left after the kill."""
        self._print(Text("   ").append("✗ ", "bold red").append(what, "red"))

    def table(self, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show columns of figures: the first to the left, the last to the left, those between to the right."""
        for number, (first, *figures, last) in enumerate((heading, *rows)):
            cells = "".join(f"{figure:>17}" for figure in figures)
            self.say(f"{first:<{STEP_WIDTH}}{cells}   {last}".rstrip(), "dim" if number == 0 else "", indent=3)

    def change(self, diff: str) -> None:
        """Show the changed lines of a diff."""
        for line in diff.splitlines():
            if line.startswith(("+", "-")) and not line.startswith(("+++", "---")):
                self.say(line, "green" if line.startswith("+") else "red", indent=5)

    def heard(self, line: str) -> None:
        """Show what a process says, where all is wanted."""
        if self.verbose:
            self._console.print(Text(f"   │ {line}", style="dim"), soft_wrap=True)

    @contextmanager
    def waiting(self, what: str) -> Generator[None]:
        """Show that something is under way."""
        if not self._spin:
            yield
            return
        with self._console.status(Text(what, style="dim")):
            yield

    def _step(self, mark: str, style: str, step: str, what: Text) -> None:
        self._print(
            Text("   ").append(f"{mark} ", f"bold {style}").append(f"{step:<{STEP_WIDTH}}", "bold").append(what)
        )

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
