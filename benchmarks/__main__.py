"""`make bench`: what turns, flows and sessions cost, beside the bare CLI and beside other tools.

make bench ARGS="flows turns --rounds 5"
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path

from benchmarks import flows, light, sessions, turns
from benchmarks.report import Section, write_into_readme
from benchmarks.stage import Stage, install_peers, new_stage

SECTIONS: dict[str, Callable[[Stage, int], Section]] = {
    "light": light.measure_all,
    "turns": turns.measure_all,
    "flows": flows.measure_all,
    "sessions": sessions.measure_all,
}


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="|".join(SECTIONS), help="what to measure; all unless given")
    parser.add_argument("--rounds", type=int, default=10, help="how often each command runs (10)")
    parser.add_argument("--peers", action="store_true", help="install what we are measured against first")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md as well")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(unknown)}: choose from {', '.join(SECTIONS)}")
    if options.peers:
        install_peers()
    print(f"{machine()}; {options.rounds} rounds\n", flush=True)
    for name in options.sections or SECTIONS:
        with new_stage() as stage:
            section = SECTIONS[name](stage, options.rounds)
        print(f"{section}\n", flush=True)
        if options.write:
            write_into_readme(name, f"\n{machine()}; {options.rounds} rounds.\n\n{section}\n")


def machine() -> str:
    """Return what this was measured on."""
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores ({cpu}), {system}, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


if __name__ == "__main__":
    main()
