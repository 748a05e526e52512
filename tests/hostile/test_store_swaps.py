"""A session's directory is put out of the way, and a link to somewhere else in its place, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from channelcoder_flows.errors import ChannelCoderError
from channelcoder_flows.journal import Event
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing.storage_conformance import a_session, a_state, a_turn

SWAPPER = """
import os, select, shutil, sys, time
store, victim = sys.argv[1:]
swaps = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for name in ("s", "t", ".lock-run-k"):
        place, away = f"{store}/{name}", f"{store}/.away-{name}"
        try:
            os.rename(place, away)
        except OSError:
            pass
        try:
            os.symlink(victim, place)
            time.sleep(0.0001)
            os.unlink(place)
        except OSError:
            pass
        try:
            os.rename(away, place)
        except FileNotFoundError:
            pass
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
    swaps += 1
print(swaps)
"""
"""Swaps as fast as it can, until its standard input ends; then says how often it did."""

FILES = ("journal.jsonl", "deltas.bin", "turn.lock")
"""What a store has in a session's directory: the victim has files of the same names."""


LIMIT = 60.0
"""Seconds until everything has been tried at least once."""


def test_nothing_is_written_where_a_link_leads(tmp_path: Path) -> None:
    """Whatever a store does while its sessions are swapped for links: the place they lead to stays as it was."""
    _attack(tmp_path, seconds=1.0, seed=3)


@pytest.mark.torture
def test_nothing_is_written_where_a_link_leads_for_a_minute(tmp_path: Path, seed: int) -> None:
    """The same, for a minute."""
    _attack(tmp_path, seconds=60, seed=seed)


def _attack(folder: Path, *, seconds: float, seed: int) -> None:
    victim, root = folder / "victim", folder / "sessions"
    victim.mkdir()
    for name in FILES:
        (victim / name).write_text("mine\n")
    (victim / "empty").mkdir()
    before = _state_of(victim)
    with _swapping(root, victim) as swaps:
        done = asyncio.run(_work(FileSessionStorage(root), random.Random(seed), seconds))
    print(f"{swaps[0]} swaps, {dict(sorted(done.items()))}")
    assert _state_of(victim) == before
    assert sorted(os.listdir(folder)) == ["sessions", "victim"]
    assert swaps[0] > 5
    assert _met(done), "the two never met: this showed nothing"


async def _work(store: FileSessionStorage, chance: random.Random, seconds: float) -> Counter[str]:
    """Do everything a store can do, in random order; count what was done and what was refused with an error of ours."""
    done: Counter[str] = Counter()
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds or (passed < LIMIT and not _met(done)):
        what, name = (
            chance.choice(["append", "save", "read", "list", "rename", "remove", "lock", "run"]),
            chance.choice("st"),
        )
        try:
            await _do(store, what, name, "t" if name == "s" else "s")
            done[what] += 1
        except ChannelCoderError as exc:
            assert "\n" not in str(exc)
            done["refused"] += 1
    return done


def _met(done: Counter[str]) -> bool:
    return min(done["append"], done["save"], done["lock"], done["refused"]) > 0


async def _do(store: FileSessionStorage, what: str, name: str, other: str) -> None:
    match what:
        case "append":
            events: tuple[Event, ...] = await store.read(name) if await store.exists(name) else ()  # pyright: ignore
            added = [a_turn(name, len(events))] if events else a_session(name)
            await store.append(name, added, expect=len(events))
        case "save":
            await store.save(a_state(name))
        case "read":
            await store.load(name)
        case "list":
            await store.list()
        case "rename":
            await store.rename(name, other)
        case "remove":
            await store.remove(name)
        case _:
            async with store.lock("run/k" if what == "run" else name, wait=0.01):
                pass


@contextmanager
def _swapping(store: Path, victim: Path) -> Iterator[list[int]]:
    store.mkdir(mode=0o700)
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", SWAPPER, str(store), str(victim)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as swapper:
        swaps: list[int] = []
        try:
            yield swaps
        finally:
            swaps.append(int(swapper.communicate(timeout=30)[0]))


def _state_of(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return every file of a folder with its bytes, mode and time, and the folder's own."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.stat()
        found[path.name] = (path.read_bytes() if path.is_file() else b"", status.st_mode, status.st_mtime_ns)
    return found
