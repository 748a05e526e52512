"""Turns with the real CLI and a model that answers at once: what is left is the CLI's work and ours."""

from __future__ import annotations

import sys

from benchmarks.measure import Command, alternate
from benchmarks.report import Bound, Section, costs_table
from benchmarks.stage import OURS, PEERS, Stage, channelcoder

BARE, OUR_RUN, IMPORTS, THEIR_RUN = (
    "`claude -p`",
    "`channelcoder run --session`",
    "of that, loading modules",
    "ChannelCoder 3.0.2 `run`",
)
BARE_TEN, OUR_TEN, TEN_IMPORTS, LIVE_TEN, THEIR_TEN = (
    "`claude -p`, then `--resume` nine times",
    "`Session.claude` ten times, a process each",
    "of that, loading modules ",
    "`Session.claude` ten times, `live=True`",
    "ChannelCoder 3.0.2 `session.claude` ten times",
)
TEN = "10"

RUNS_MODULES = """
from channelcoder_flows.cli import app, failure, loading, output
loading.load_calmly()
import channelcoder_flows.cli.run
loading.load_claude_code()
"""
SESSIONS_MODULES = "import channelcoder_flows, channelcoder_flows.session, channelcoder_flows.claude_code"


def measure_all(stage: Stage, rounds: int) -> Section:
    """Measure one turn, then ten of one session."""
    theirs, env = channelcoder(), stage.model_env()
    claude = str(stage.claude)
    one = {
        BARE: Command([claude, "-p", "--setting-sources=", "--strict-mcp-config", "Part 1"]),
        OUR_RUN: Command([*OURS, "run", "-p", "Part 1", "--session", "one-{round}"]),
        IMPORTS: Command([sys.executable, "-c", RUNS_MODULES]),
    }
    ten = {
        BARE_TEN: Command([str(PEERS / "claude_steps.sh"), claude, TEN]),
        OUR_TEN: Command([sys.executable, str(PEERS / "session_turns.py"), "ten-{round}", TEN]),
        TEN_IMPORTS: Command([sys.executable, "-c", SESSIONS_MODULES]),
        LIVE_TEN: Command([sys.executable, str(PEERS / "session_turns.py"), "live-{round}", TEN, "live"]),
    }
    if theirs:
        one[THEIR_RUN] = Command(["node", str(theirs / "dist" / "cli.cjs"), "run", "Part 1"])
        script = str(PEERS / "channelcoder.mjs")
        ten[THEIR_TEN] = Command(["node", script, str(theirs), "turns", "ten-{round}", TEN])
    of_one = alternate(one, rounds, env=env, cwd=stage.work)
    of_ten = alternate(ten, max(1, rounds // 2), env=env, cwd=stage.work)
    our_one = (of_one[OUR_RUN].cpu - of_one[IMPORTS].cpu) / of_one[BARE].cpu
    our_ten = (of_ten[OUR_TEN].cpu - of_ten[TEN_IMPORTS].cpu) / of_ten[BARE_TEN].cpu
    bounds = [
        Bound("one `run` turn: CPU beside `claude -p`, loading modules not counted", our_one, 1.10),
        Bound("ten turns, a process each: CPU beside ten bare ones, loading modules not counted", our_ten, 1.05),
    ]
    missing: list[str] = []
    if theirs:
        live = of_ten[LIVE_TEN].cpu / of_ten[THEIR_TEN].cpu
        bounds.append(Bound("ten turns on one live CLI: CPU beside ChannelCoder's ten, everything counted", live, 0.25))
    else:
        missing.append("ChannelCoder 3.0.2 is not installed here (`make bench ARGS=--peers`).")
    tables = [costs_table("One turn", of_one, to=BARE), costs_table("Ten turns of one session", of_ten, to=BARE_TEN)]
    return Section(tables, bounds, missing)
