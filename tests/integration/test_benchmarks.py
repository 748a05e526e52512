"""The benchmarks run, and their page has a place for each table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> str:
    """Run the benchmarks as `make bench` does, and return what they print."""
    argv = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


def test_light_commands_are_measured_beside_their_bounds() -> None:
    """One round gives a row of figures for each command, and says of each bound whether it is met."""
    lines = bench("light", "--rounds", "1").splitlines()
    row = next(line for line in lines if line.startswith("| `channelcoder --help` "))
    cpu, _, wall, _, memory, _ = (float(cell) for cell in row.strip("|").split("|")[1:])
    assert 0 < cpu < 60 and wall > 0 and 5 < memory < 500
    assert sum("met" in line for line in lines if line.startswith("|")) == 3


def test_every_section_has_a_place_on_the_page() -> None:
    """What `--write` would print has somewhere to go."""
    (names,) = re.findall(r"\[(\w+\|[\w|]+) ", bench("--help"))
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert re.findall(r"<!-- figures: (\w+) -->(?s:.*?)<!-- end of figures -->", page) == names.split("|")
