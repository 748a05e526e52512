"""How help is laid out: a heading and two columns, without boxes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

WIDTH = 100
"""Columns, at most: longer lines are hard to read."""


class TwoColumns:
    """Formats one panel of help: what to type, and what it does."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print the panel."""
        # Whoever reads this has found --help.
        entries = [entry for entry in panel.entries if "--help" not in entry.names]
        if not entries:
            return
        console.print(_text(f"\n{panel.title}", "bold"))
        indent = 4 + max(len(_label(entry)) for entry in entries)
        width = max(20, min(WIDTH, console.width) - indent)
        for entry in entries:
            first, *rest = textwrap.wrap(_description(entry), width) or [""]
            label = _text("  ").append(_label(entry).ljust(indent - 2), "bold")
            console.print(label.append(first), soft_wrap=True)
            for line in rest:
                console.print(_text(" " * indent + line), soft_wrap=True)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: RenderableType) -> None:
        """Print the usage line."""
        console.print(_text(str(usage).strip(), "bold"))

    def render_description(self, console: Console, options: ConsoleOptions, description: RenderableType) -> None:
        """Print what the command does."""
        for paragraph in _plain(description).split("\n\n"):
            text = paragraph if paragraph.startswith(" ") else textwrap.fill(paragraph, min(WIDTH, console.width))
            console.print(_text(f"\n{text}"), soft_wrap=True)


def _label(entry: HelpEntry) -> str:
    if entry.positional_label:
        return entry.positional_label
    names = ", ".join((*entry.positive_shorts, *entry.positive_names))
    return f"{names} {entry.metavar}" if entry.metavar else names


def _description(entry: HelpEntry) -> str:
    text = _plain(entry.description)
    return f"{text} ({' | '.join(entry.choices)})" if entry.choices else text


def _plain(described: object) -> str:
    return str(getattr(described, "primary_renderable", described) or "").strip("\n").rstrip()


def _text(text: str, style: str = "") -> Text:
    """Return text that is printed as it is; only help needs `rich`, so only help loads it."""
    from rich.text import Text

    return Text(text, style)
