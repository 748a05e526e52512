"""Flows on a running Prefect server, with a CLI that answers at once: what is left is the machinery around it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.measure import Command, Cost, alternate, measure
from benchmarks.report import Bound, Section, Table, costs_table
from benchmarks.stage import OURS, PEERS, Stage, peers_python

FLOOR, HAND, OURS_FLOW, OURS_PYTHON, DBOS, LANGGRAPH = (
    "the stand-in ten times, from a shell",
    "ten sync `@task`s by hand",
    "ten turns, `channelcoder flow run`",
    "ten turns, `python flow.py`",
    "ten DBOS steps, SQLite",
    "ten LangGraph nodes, SQLite",
)
HAND_AGAIN, OURS_AGAIN = "by hand, results kept: the flow again", "`channelcoder flow resume`"
MANY, EARLY = 200, 20
FLOW = f"{PEERS / 'turns_flow.py'}:steps"
BY_HAND = str(PEERS / "prefect_by_hand.py")


def measure_all(stage: Stage, rounds: int) -> Section:
    """Measure ten steps, the resumption of ten after seven, and the memory of two hundred."""
    ten, resumed = _ten(stage, rounds), _resumed(stage, rounds)
    held = _memory(stage)
    hand, ours = ten[HAND], ten[OURS_FLOW]
    early, late = held["turns"]
    bounds = [
        Bound("ten no-op turns: CPU beside ten sync `@task`s", ours.cpu / hand.cpu, 1.15),
        Bound("ten no-op turns: wall time beside ten sync `@task`s", ours.wall / hand.wall, 0.80),
        Bound(
            "resume after step 7: CPU beside plain Prefect's", resumed[OURS_AGAIN].cpu / resumed[HAND_AGAIN].cpu, 1.15
        ),
        Bound(f"memory after turn {MANY} beside turn {EARLY}", late / early, 1.05),
    ]
    memory = Table(
        f"Memory of the flow's own process, MB, over {MANY} steps",
        ["", f"after step {EARLY}", f"after step {MANY}", "ratio"],
        [
            [name, f"{first / 1e6:.1f}", f"{last / 1e6:.1f}", f"{last / first:.2f}"]
            for name, (first, last) in held.items()
        ],
    )
    tables = [
        costs_table("Ten steps", ten, to=HAND),
        costs_table("Ten steps that failed before the eighth, gone on with: only 8 to 10 run", resumed, to=HAND_AGAIN),
        memory,
    ]
    missing = [] if peers_python() else ["DBOS and LangGraph are not installed here (`make bench ARGS=--peers`)."]
    return Section(tables, bounds, missing)


def _ten(stage: Stage, rounds: int) -> dict[str, Cost]:
    commands = {
        FLOOR: Command([str(PEERS / "claude_steps.sh"), str(PEERS / "claude"), "10"]),
        HAND: Command([sys.executable, BY_HAND, "hand-{round}"]),
        OURS_FLOW: Command([*OURS, "flow", "run", FLOW, "-d", "session=flow-{round}"]),
        OURS_PYTHON: Command([sys.executable, str(PEERS / "turns_flow.py"), "python-{round}"]),
    }
    if python := peers_python():
        commands[DBOS] = Command([python, str(PEERS / "dbos_steps.py"), "dbos-{round}"])
        commands[LANGGRAPH] = Command([python, str(PEERS / "langgraph_steps.py"), "langgraph-{round}"])
    return alternate(commands, rounds, env=stage.flow_env(), cwd=stage.work)


def _resumed(stage: Stage, rounds: int) -> dict[str, Cost]:
    by_hand = [sys.executable, BY_HAND, "kept-{round}"]
    ours = [*OURS, "flow", "run", FLOW, "-d", "session=resumed-{round}"]

    def until_seven(argv: list[str]) -> Callable[[int], None]:
        def run(number: int) -> None:
            env = {**stage.flow_env(), "DIE_AT": "8", "KEPT": "1"}
            there = [part.replace("{round}", str(number)) for part in argv]
            done = subprocess.run(there, cwd=stage.work, env=env, stdin=subprocess.DEVNULL, capture_output=True)
            _check_steps(stage, 7)
            assert done.returncode != 0, "the flow was to fail"

        return run

    def check(number: int) -> None:
        _check_steps(stage, 10)

    commands = {
        HAND_AGAIN: Command(by_hand, {"KEPT": "1"}, before=until_seven(by_hand), after=check),
        OURS_AGAIN: Command([*OURS, "flow", "resume", "resumed-{round}"], before=until_seven(ours), after=check),
    }
    return alternate(commands, rounds, env=stage.flow_env(), cwd=stage.work)


def _check_steps(stage: Stage, expected: int) -> None:
    """See in the latest transcript how often the CLI was asked."""
    latest = max(stage.transcripts.iterdir(), key=lambda file: file.stat().st_mtime)
    asked = latest.read_text().count('"type":"user"')
    assert asked == expected, f"{asked} steps have run, not {expected}"


def _memory(stage: Stage) -> dict[str, tuple[int, int]]:
    """Return what each flow's own process held after an early step and after the last."""
    flows = {"by hand": BY_HAND, "turns": str(PEERS / "turns_flow.py")}
    held: dict[str, tuple[int, int]] = {}
    for name, script in flows.items():
        notes = stage.home / f"memory-{name}"
        env = {**stage.flow_env(), "MEMORY": str(notes)}
        measure([sys.executable, script, f"many-{name[:2]}", str(MANY)], env=env, cwd=stage.work)
        at = dict(map(int, line.split()) for line in notes.read_text().splitlines())
        held[name] = at[EARLY], at[MANY]
    return held
