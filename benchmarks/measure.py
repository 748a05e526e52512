"""Runs commands in turn, round after round, so that the machine's mood meets all of them alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

METER = Path(__file__).with_name("meter.py")


@dataclass(frozen=True)
class Cost:
    """What one command took, with everything it started."""

    cpu: float
    """Seconds, user and system."""
    wall: float
    """Seconds until the command itself had ended."""
    memory: int
    """Bytes that all its processes held at once."""
    written: int
    """Bytes sent towards a disk; what is written twice within one page counts once."""


@dataclass(frozen=True)
class Command:
    """A command to be measured. `{round}` in it, or in its environment, is the number of the round."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Callable[[int], None] = lambda number: None
    """What makes ready for a round, unmeasured."""
    after: Callable[[int], None] = lambda number: None
    """What looks at a round's outcome, unmeasured."""


def measure(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Cost:
    """Run a command to its end and return what it took. Raises `RuntimeError` when it fails."""
    meter = [sys.executable, "-I", "-S", str(METER), *argv]
    run = subprocess.run(meter, env=dict(env), cwd=cwd, capture_output=True, text=True, check=False)
    took = json.loads(run.stdout or '{"status": "no meter"}')
    if (status := took.pop("status")) != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {status}: {run.stderr[-1500:]}")
    return Cost(**took)


def alternate(commands: Mapping[str, Command], rounds: int, *, env: Mapping[str, str], cwd: Path) -> dict[str, Cost]:
    """Run the commands in turn, `rounds` times after one to warm the caches; return the medians."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr, flush=True)
            command.before(number)
            argv = [part.replace("{round}", str(number)) for part in command.argv]
            more = {key: value.replace("{round}", str(number)) for key, value in command.env.items()}
            cost = measure(argv, env={**env, **more}, cwd=cwd)
            command.after(number)
            if number:
                costs[name].append(cost)
    return {name: median(measured) for name, measured in costs.items()}


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median of each figure."""
    return Cost(
        cpu=statistics.median(cost.cpu for cost in costs),
        wall=statistics.median(cost.wall for cost in costs),
        memory=round(statistics.median(cost.memory for cost in costs)),
        written=round(statistics.median(cost.written for cost in costs)),
    )
