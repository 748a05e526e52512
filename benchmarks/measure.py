"""Runs commands and says what each cost: CPU and wall seconds of the process and all it waited for."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    cpu: float
    """Seconds, user and system, of the process and all it waited for."""
    wall: float
    """Seconds."""


def measure(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Cost:
    """Run a command to its end and return what it took. Raises `RuntimeError` when it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {process.returncode}: {said.decode()[-500:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began)


def alternate(commands: Mapping[str, Sequence[str]], rounds: int, *, env: Mapping[str, str], cwd: Path) -> None:
    """Run the commands in turn, `rounds` times, and print the medians and their ratios to the first."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for each in range(rounds + 1):
        for name, argv in commands.items():
            cost = measure([part.replace("{round}", str(each)) for part in argv], env=env, cwd=cwd)
            if each:  # the first round warms the caches
                costs[name].append(cost)
    print(f"{'':34}{'CPU s':>8}{'ratio':>8}{'wall s':>8}{'ratio':>8}")
    first: tuple[float, float] | None = None
    for name, measured in costs.items():
        cpu, wall = (statistics.median(getattr(cost, field) for cost in measured) for field in ("cpu", "wall"))
        first = first or (cpu, wall)
        print(f"{name:34}{cpu:8.2f}{cpu / first[0]:8.2f}{wall:8.2f}{wall / first[1]:8.2f}")
