"""The light commands: those that run no turn."""

from __future__ import annotations

import sys

from benchmarks.measure import Command, alternate
from benchmarks.report import Bound, Section, costs_table
from benchmarks.stage import OURS, Stage

PYTHON, HELP, LIST, DRY = (
    "`python -c pass`",
    "`channelcoder --help`",
    "`channelcoder session list`",
    "`channelcoder run --dry-run`",
)


def measure_all(stage: Stage, rounds: int) -> Section:
    """Measure each of them beside a Python that does nothing."""
    commands = {
        PYTHON: Command([sys.executable, "-c", "pass"]),
        HELP: Command([*OURS, "--help"]),
        LIST: Command([*OURS, "session", "list"]),
        DRY: Command([*OURS, "run", "-p", "say fine", "--dry-run"]),
    }
    costs = alternate(commands, rounds, env=stage.env(), cwd=stage.work)
    bounds = [
        Bound(f"{HELP}: CPU", costs[HELP].cpu, 0.20, "s"),
        Bound(f"{LIST} of an empty store: CPU", costs[LIST].cpu, 0.25, "s"),
        Bound(f"{DRY}: CPU", costs[DRY].cpu, 0.25, "s"),
    ]
    return Section([costs_table("Light commands", costs, to=PYTHON)], bounds)
