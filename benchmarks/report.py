"""What was measured, as Markdown: tables, and the bounds they are held to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Cost

README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Table:
    """A title over columns; the first column is text, the others figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Bound:
    """A figure and what it may be at most."""

    what: str
    measured: float
    limit: float
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.measured <= self.limit


@dataclass(frozen=True)
class Section:
    """What one module has measured."""

    tables: Sequence[Table]
    bounds: Sequence[Bound]
    missing: Sequence[str] = ()
    """What could not be measured here, and why."""

    def __str__(self) -> str:
        head = ["promise", "at most", "measured", ""]
        rows = [
            [
                bound.what,
                f"{bound.limit:.2f} {bound.unit}",
                f"{bound.measured:.2f} {bound.unit}",
                "met" if bound.met else "**not met**",
            ]
            for bound in self.bounds
        ]
        return "\n\n".join([*map(str, self.tables), str(Table("Bounds", head, rows)), *self.missing])


def costs_table(title: str, costs: Mapping[str, Cost], *, to: str) -> Table:
    """Return a table of what commands took, with ratios to the command `to`."""
    base = costs[to]
    rows = [
        [
            name,
            f"{cost.cpu:.2f}",
            f"{cost.cpu / base.cpu:.2f}",
            f"{cost.wall:.2f}",
            f"{cost.wall / base.wall:.2f}",
            f"{cost.memory / 1e6:.0f}",
            f"{cost.written / 1e3:.0f}",
        ]
        for name, cost in costs.items()
    ]
    return Table(title, ["", "CPU s", "ratio", "wall s", "ratio", "memory MB", "written KB"], rows)


def write_into_readme(name: str, text: str) -> None:
    """Put a section's figures between its marks in the README."""
    begin, end = f"<!-- figures: {name} -->", "<!-- end of figures -->"
    page = README.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{README} has no place for the figures of {name!r}: write {begin} and {end} into it")
    README.write_text(pattern.sub(lambda found: f"{begin}\n{text}\n{end}", page))
