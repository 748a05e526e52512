"""A flow whose processes are killed at any instant ends as if nothing had happened, and no turn is paid for twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from prefect_server import PrefectServer

from channelcoder_flows.errors import ChannelCoderError
from channelcoder_flows.journal import Journal
from channelcoder_flows.places.host import alive
from channelcoder_flows.testing.model import ScriptedModel

from .conftest import wait_until_gone
from .trial import LIMIT, PARTS, Trial, script

pytestmark = pytest.mark.xdist_group("prefect")


@dataclass(frozen=True)
class Kind:
    """A kind of kill: who dies of what, and how the flow may end of it."""

    victim: str
    how: signal.Signals
    codes: frozenset[int]
    """Exit codes of the flow; what a signal ended has its number, negative."""
    repeats: int = 1
    """How many turns may be paid for again: at most the one in flight."""
    stays_away: bool = False
    """The server comes back only after the flow has ended."""
    says: str = ""
    """What the flow's last words have in them, where it did not go on."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])


KINDS = {
    "flow-kill": Kind("flow", signal.SIGKILL, frozenset({-9})),
    "flow-term": Kind("flow", signal.SIGTERM, frozenset({143, -15}), says="interrupted"),  # -15: before it could listen
    "cli-kill": Kind("cli", signal.SIGKILL, frozenset({0, 1})),  # one prompt has a retry left, the other has none
    "server-kill": Kind("server", signal.SIGKILL, frozenset({0, 1}), repeats=0),
    "server-gone": Kind(
        "server",
        signal.SIGKILL,
        frozenset({1}),
        repeats=0,
        stays_away=True,
        says="the Prefect server at http",
        env={"PREFECT_CLIENT_MAX_RETRIES": "2"},  # seconds instead of minutes
    ),
}
SHORT = {"flow-kill": 2, "flow-term": 1, "cli-kill": 1, "server-kill": 1}
LONG = {"flow-kill": 150, "flow-term": 30, "cli-kill": 30, "server-kill": 7, "server-gone": 3}
ONLY = os.environ.get("CHANNELCODER_TRIAL", "")
"""The trials to carry out, as a pattern of their names; read here, because a test has an environment of its own."""

SPARE = 2
"""Trials that are planned for each that is wanted: some victims have ended before their moment."""


@dataclass(frozen=True)
class Moment:
    """When to kill: some way from one model call to the next, the first being the start and the last the end."""

    calls: int
    way: float

    def __str__(self) -> str:
        return f"call {self.calls} + {self.way:.0%}"


@dataclass
class Row:
    """What became of a trial."""

    name: str
    moment: Moment
    killed: bool = True
    code: int = 0
    ended: str = ""
    """`went on` without help, `resumed`, or `begun anew` where nothing was done yet."""
    finished: int = 0
    """Turns that were finished when the blow fell."""
    replayed: int = 0
    adopted: int = 0
    paid_twice: int = 0
    unreadable: int = 0
    orphans: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        what = f"{self.finished} turns finished, exit {self.code}, {self.ended}" if self.killed else "too late"
        adopted = ", adopted" if self.adopted else ""
        return f"{self.name}  {self.moment!s:14}  {what}{adopted}, {self.seconds:.1f} s  {'; '.join(self.wrong)}"


class Torture:
    """Trials on one model and one warm server, each compared with a run that was left alone."""

    def __init__(self, seed: int, folder: Path, model: ScriptedModel, env: dict[str, str], server: PrefectServer):
        self.seed, self.folder, self.model, self.server = seed, folder, model, server
        self.env = {**env, "PREFECT_API_URL": server.url, "ANTHROPIC_BASE_URL": model.url}
        whole = Trial(folder / "whole", "whole", model, self.env)
        assert whole.run().wait(timeout=LIMIT) == 0, whole.log()
        times = [whole.began, *whole.calls(), time.time()]
        self.steps = [later - earlier for earlier, later in pairwise(times)]
        """Seconds from the start to the first model call, and so on to the end."""
        self.outcome, self.price = whole.outcome(), whole.paid()
        assert (len(self.outcome["steps"]), self.outcome["open"]) == (len(PARTS), None)

    def rows(self, kind: str, count: int, at_once: int) -> list[Row]:
        """Carry out so many kills, and those that came too late besides."""
        names = iter(names_of(kind, count))
        rows: list[Row] = []
        with ThreadPoolExecutor(at_once) as pool:
            while missing := count - sum(row.killed for row in rows):
                rows += pool.map(self.row, islice(names, missing))
        return rows

    def row(self, name: str) -> Row:
        """Carry out one trial. Its name and the seed are all that it depends on."""
        kind = KINDS[name.rpartition("-")[0]]
        chance = random.Random(f"{self.seed}/{name}")
        moment = Moment(chance.randrange(kind.victim == "cli", len(self.steps)), chance.random())
        row = Row(name, moment)
        began = time.monotonic()
        trial = Trial(self.folder / name, name, self.model, {**self.env, **kind.env})
        try:
            self._try(kind, trial, row)
        except (AssertionError, ChannelCoderError, OSError, subprocess.TimeoutExpired, TimeoutError) as exc:
            row.unreadable += isinstance(exc, ChannelCoderError)
            row.wrong.append(f"{type(exc).__name__}: {exc}")
        finally:
            trial.end()
        row.seconds = time.monotonic() - began
        if not row.wrong:
            shutil.rmtree(trial.folder)
        print(row, flush=True)
        return row

    def _try(self, kind: Kind, trial: Trial, row: Row) -> None:
        flow = trial.run()
        row.killed = self._strike(kind, trial, flow, row.moment)
        try:
            struck = trial.journal()
            row.finished = len(struck.turns)
            if kind.stays_away:
                flow.wait(timeout=LIMIT)
        finally:
            if kind.victim == "server" and row.killed:
                self.server.start()
        row.code = flow.wait(timeout=LIMIT)
        row.orphans = len(wait_until_gone(trial.folder))
        if row.code not in (kind.codes if row.killed else {0}):
            row.wrong.append(f"exit {row.code}: {trial.log()}")
        if row.code > 0:
            row.wrong += self._last_words(kind, trial, struck)
        before = trial.journal()
        row.ended = "went on" if row.code == 0 else "resumed" if before.run else "begun anew"
        if row.code != 0:
            if kind.how == signal.SIGTERM and before.intent:
                row.wrong.append("a turn was left open")
            row.replayed = len(before.turns)
            again = trial.resume() if before.run else trial.run()
            if code := again.wait(timeout=LIMIT):
                row.wrong.append(f"{row.ended} with exit {code}: {trial.log()}")
            row.orphans += len(wait_until_gone(trial.folder))
        self._compare(kind, trial, row, struck)

    def _last_words(self, kind: Kind, trial: Trial, struck: Journal) -> list[str]:
        """Return what is wrong with the error of a flow that could still say something."""
        error = trial.error()
        message = error.get("message", "")
        wrong = [] if error.get("retryable") or kind.victim == "server" else [f"not retryable: {error}"]
        if kind.says not in message:
            wrong.append(f"not clear: {error}")
        if struck.turns and f"channelcoder flow resume {trial.name}" not in message:
            wrong.append(f"no way on: {error}")
        return wrong

    def _strike(self, kind: Kind, trial: Trial, flow: subprocess.Popen[bytes], moment: Moment) -> bool:
        """Wait for the moment and kill; return whether there was anybody to kill."""
        trial.wait_for_call(moment.calls)
        try:
            flow.wait(timeout=moment.way * self.steps[moment.calls])
            return False
        except subprocess.TimeoutExpired:
            pass
        match kind.victim:
            case "flow":
                flow.send_signal(kind.how)
            case "cli":
                return kill_cli(trial, flow, kind.how)
            case _:
                self.server.kill()
        return True

    def _compare(self, kind: Kind, trial: Trial, row: Row, struck: Journal) -> None:
        """Compare a trial that has gone to its end with the run that was left alone."""
        outcome, spent, journal = trial.outcome(), trial.paid(), trial.journal()
        row.wrong += [f"{what}: {outcome[what]}" for what in outcome if outcome[what] != self.outcome[what]]
        adopted = {number for number, turn in enumerate(journal.turns, start=1) if turn.adopted}
        row.adopted = len(adopted)
        in_flight = len(struck.turns) + 1
        for part in PARTS:
            repeats = kind.repeats if part == in_flight and part not in adopted and row.killed else 0
            if not self.price[part] <= spent[part] <= self.price[part] * (1 + repeats):
                row.wrong.append(f"part {part}: {spent[part]} calls were paid for instead of {self.price[part]}")
                row.paid_twice += part < in_flight
        if row.orphans:
            row.wrong.append(f"{row.orphans} processes were left")


def kill_cli(trial: Trial, flow: subprocess.Popen[bytes], how: signal.Signals) -> bool:
    """Kill the CLI of the turn in flight, or of the next; return whether there was one."""
    while flow.poll() is None:
        process = trial.journal().process
        if process is not None and alive(process):
            os.kill(int(process.id), how)
            return True
        time.sleep(0.01)
    return False


def names_of(kind: str, count: int) -> list[str]:
    """Return what trials are called."""
    return [f"{kind}-{number:03}" for number in range(count * SPARE)]


def table(rows: list[Row]) -> str:
    """Return the sums of each kind."""
    counts: dict[str, Callable[[list[Row]], Any]] = {
        "kills": lambda rows: sum(row.killed for row in rows),
        "went on": lambda rows: sum(row.ended == "went on" for row in rows),
        "resumed": lambda rows: sum(row.ended == "resumed" for row in rows),
        "anew": lambda rows: sum(row.ended == "begun anew" for row in rows),
        "replayed": lambda rows: sum(row.replayed for row in rows),
        "adopted": lambda rows: sum(row.adopted for row in rows),
        "paid twice": lambda rows: sum(row.paid_twice for row in rows),
        "unreadable": lambda rows: sum(row.unreadable for row in rows),
        "orphans": lambda rows: sum(row.orphans for row in rows),
        "wrong": lambda rows: sum(bool(row.wrong) for row in rows),
        "s each": lambda rows: f"{sum(row.seconds for row in rows) / len(rows):.1f}",
    }
    kinds = {kind: [row for row in rows if row.killed and row.name.startswith(kind)] for kind in KINDS}
    lines = [["kind", *counts]]
    lines += [[kind, *(str(count(rows)) for count in counts.values())] for kind, rows in kinds.items() if rows]
    return "\n".join("  ".join(cell.rjust(11) for cell in line) for line in lines)


def check_kills(
    plan: Mapping[str, int],
    seed: int,
    folder: Path,
    scripted_model: Any,
    env: dict[str, str],
    server: PrefectServer,
    *,
    only: str = "",
) -> None:
    """Carry out the kills of a plan, or the trials named `only`; nothing may be wrong with any."""
    names = [name for kind, count in plan.items() for name in names_of(kind, count)]
    torture = Torture(seed, folder, scripted_model(script(["whole", *names])), env, server)
    rows: list[Row] = []
    if only:
        rows = [torture.row(name) for name in names if fnmatch(name, only)]
    else:
        for kind, count in plan.items():
            # Who kills the server kills it for all.
            rows += torture.rows(kind, count, at_once=1 if KINDS[kind].victim == "server" else 3)
    print(table(rows))
    assert [row for row in rows if row.wrong] == []


def test_a_flow_under_kills_ends_as_if_nothing_had_happened(
    tmp_path: Path, scripted_model: Any, claude_env: dict[str, str], prefect_server: PrefectServer
) -> None:
    """Flow, CLI or server killed at random moments: the same session and files, nothing paid twice, nothing left."""
    check_kills(SHORT, 20261122, tmp_path, scripted_model, claude_env, prefect_server)


@pytest.mark.torture
def test_two_hundred_and_twenty_kills(
    tmp_path: Path, seed: int, scripted_model: Any, claude_env: dict[str, str], prefect_server: PrefectServer
) -> None:
    """Two hundred and twenty kills, each of which the printed seed and its name bring back.

    CHANNELCODER_SEED=SEED CHANNELCODER_TRIAL=flow-kill-017 is one of them again, `server-*` a kind.
    """
    check_kills(LONG, seed, tmp_path, scripted_model, claude_env, prefect_server, only=ONLY)
