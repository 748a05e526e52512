"""Sessions in the file store: saved turn by turn, loaded, listed; beside ChannelCoder's store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.report import Bound, Section, Table
from benchmarks.stage import PEERS, Stage, channelcoder
from benchmarks.storage import list_sessions, load_turns, save_turns

TURNS, SESSIONS = 5_000, 10_000
EVERY = 20
"""One in so many of ChannelCoder's saves is made, and counted so often: all of them write 15 GB."""
FLAT = 50
"""MB that a list of so many sessions may grow by."""


def measure_all(stage: Stage, rounds: int) -> Section:
    """Measure our store, and ChannelCoder's where it is installed."""
    saves = save_turns(stage.home / "saves", TURNS)
    load = load_turns(stage.home / "load")
    listing = list_sessions(stage.home / "list", SESSIONS)
    saved = [
        ["ours", f"{saves.cpu:.2f}", f"{saves.last * 1e3:.2f}", f"{saves.written / 1e6:.0f}", f"{saves.kept / 1e6:.0f}"]
    ]
    listed = [["ours", f"{listing.cpu:.3f}", f"{listing.memory / 1e6:.1f}"]]
    bounds = [
        Bound(f"{TURNS} saved turns: bytes written beside the final size", saves.written / saves.kept, 1.5),
        Bound("the last save beside the tenth: CPU", saves.last / saves.tenth, 2.0),
        Bound(f"to load a session of {load.turns} turns: wall time", load.wall * 1e3, 100, "ms"),
        Bound(f"a list of {SESSIONS} sessions: memory", listing.memory / 1e6, FLAT, "MB"),
    ]
    missing: list[str] = []
    if package := channelcoder():
        their_saves = _channelcoder(package, "save", str(stage.home / "theirs"), str(TURNS), str(EVERY))
        store = stage.home / "their-list"
        _write_sessions(store)
        their_list = _channelcoder(package, "list", str(store))
        assert their_list["sessions"] == SESSIONS
        saved.append(
            [
                "ChannelCoder 3.0.2",
                f"{their_saves['cpu']:.2f}",
                f"{their_saves['last'] * 1e3:.2f}",
                f"{their_saves['written'] / 1e6:.0f}",
                f"{their_saves['kept'] / 1e6:.0f}",
            ]
        )
        listed.append(["ChannelCoder 3.0.2", f"{their_list['cpu']:.3f}", f"{their_list['memory'] / 1e6:.1f}"])
        bounds += [
            Bound(f"{TURNS} saved turns: CPU beside ChannelCoder's", saves.cpu / their_saves["cpu"], 0.05),
            Bound(f"a list of {SESSIONS} sessions: CPU beside ChannelCoder's", listing.cpu / their_list["cpu"], 0.10),
        ]
    else:
        missing.append("ChannelCoder 3.0.2 is not installed here (`make bench ARGS=--peers`).")
    tables = [
        Table(f"A session saved {TURNS} times", ["", "CPU s", "last save ms", "written MB", "kept MB"], saved),
        Table(f"A list of {SESSIONS} sessions", ["", "CPU s", "memory grew by MB"], listed),
    ]
    return Section(tables, bounds, missing)


def _channelcoder(package: Path, *work: str) -> dict[str, Any]:
    argv = ["node", str(PEERS / "channelcoder.mjs"), str(package), *work]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def _write_sessions(folder: Path) -> None:
    """Write as many sessions as ours, of one turn and answers as long, in ChannelCoder's form."""
    folder.mkdir()
    at = "2026-01-01T00:00:00.000Z"
    said = {"timestamp": at, "sessionId": "11111111-1111-4111-8111-111111111111"}
    for number in range(SESSIONS):
        messages = [
            {"role": "user", "content": "p" * 400, **said},
            {"role": "assistant", "content": "a" * 20_000, **said},
        ]
        name = f"session-{number:05}"
        state = {
            "sessionChain": [said["sessionId"]],
            "messages": messages,
            "metadata": {"name": name, "created": at, "lastActive": at},
        }
        (folder / f"{name}.json").write_text(json.dumps(state, indent=2))
