"""What the store in files costs: saving a long session turn by turn, loading one, and listing ten thousand."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import random
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from channelcoder_flows.journal import Created, FileMark, Intent, Started, Turn, now
from channelcoder_flows.places.spec import ProcessIdent
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.journal_file import NOTHING, make_line
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.storage.session_dir import JOURNAL
from channelcoder_flows.turn import Usage

PROMPT, ANSWER, DELTA = 400, 1200, 4096
"""Bytes of a turn: what was asked, what was answered, and what its transcript grew by (compressed)."""


class Saves(NamedTuple):
    """A session that was saved after each of its turns: three appends a turn, as `checkpoint.py` makes them."""

    turns: int
    written: int
    """Bytes given to the kernel, all files together."""
    kept: int
    """Bytes of the session's files in the end."""
    tenth: float
    """CPU seconds to save the tenth turn: the median of turns 6 to 14."""
    last: float
    """CPU seconds to save the last one: the median of the last nine."""
    cpu: float
    """CPU seconds of all saves."""


class Load(NamedTuple):
    """A session that was read from its files and folded."""

    turns: int
    wall: float
    """Seconds: the median of nine loads."""
    cpu: float


class Listing(NamedTuple):
    """A store of many sessions that was listed."""

    sessions: int
    on_disk: int
    """Bytes of all journals."""
    cpu: float
    """CPU seconds, imports not counted: the median of five lists, a process each."""
    memory: int
    """Bytes the process grew by."""


def save_turns(folder: Path, turns: int = 5_000) -> Saves:
    """Save so many turns, one by one, in a new store at `folder`."""
    return _in_process(_save_turns, folder, turns)


def load_turns(folder: Path, turns: int = 1_000) -> Load:
    """Load a session of so many turns, made in a new store at `folder`."""
    return _in_process(_load_turns, folder, turns)


def list_sessions(folder: Path, sessions: int = 10_000, answer: int = 20_000) -> Listing:
    """List a store of so many sessions of one turn, with answers of so many bytes, made at `folder`."""
    on_disk = 0
    for number in range(sessions):
        name = f"session-{number:05}"
        line = make_line(name, (_created(name), *_turn(name, answer)), {}, NOTHING, end=0)
        (folder / name).mkdir(mode=0o700, parents=True)
        (folder / name / JOURNAL).write_bytes(line)
        on_disk += len(line)
    lists = [_in_process(_list_sessions, folder) for _ in range(5)]
    return Listing(sessions, on_disk, statistics.median(cpu for cpu, _ in lists), max(memory for _, memory in lists))


def _save_turns(folder: Path, turns: int) -> Saves:
    async def work() -> list[float]:
        session, costs = await _new_session(folder), list[float]()
        for _ in range(turns):
            intent, started, turn = _turn(session.name, ANSWER)
            delta = random.randbytes(DELTA)
            turn = turn.model_copy(update={"delta": hashlib.sha256(delta).hexdigest()})
            began = time.process_time()
            await session.append(intent)
            await session.append(started)
            await session.append(turn, deltas={str(turn.delta): delta})
            costs.append(time.process_time() - began)
        return costs

    before = _written()
    costs = asyncio.run(work())
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tenth, last = statistics.median(costs[5:14]), statistics.median(costs[-9:])
    return Saves(turns, _written() - before, kept, tenth, last, sum(costs))


def _load_turns(folder: Path, turns: int) -> Load:
    async def work() -> list[tuple[float, float]]:
        session = await _new_session(folder)
        # Of what a turn appends only the journal is read again: many turns to an append load as slowly as one.
        for _ in range(turns):
            for event in _turn(session.name, ANSWER):
                await session.append(event)
        costs: list[tuple[float, float]] = []
        for _ in range(9):
            began, cpu = time.perf_counter(), time.process_time()
            loaded = await OpenSession.load(FileSessionStorage(folder), session.name)
            costs.append((time.perf_counter() - began, time.process_time() - cpu))
            assert len(loaded.journal.turns) == turns
        return costs

    walls, cpus = zip(*asyncio.run(work()), strict=True)
    return Load(turns, statistics.median(walls), statistics.median(cpus))


def _list_sessions(folder: Path) -> tuple[float, int]:
    store = FileSessionStorage(folder)
    asyncio.run(FileSessionStorage(folder / "nothing").list())  # what a first list loads is no part of this one
    cpu, memory = time.process_time(), _peak_memory()
    infos = asyncio.run(store.list())
    assert infos[0].turns == 1
    return time.process_time() - cpu, _peak_memory() - memory


async def _new_session(folder: Path) -> OpenSession:
    session = OpenSession.new(FileSessionStorage(folder), "work")
    await session.begin()
    return session


def _created(name: str) -> Created:
    return Created(name=name, session_id=str(uuid.uuid4()))


def _turn(name: str, answer: int) -> tuple[Intent, Started, Turn]:
    """Return a turn's three events, as large as those of real ones."""
    turn_id, session_id, prompt = str(uuid.uuid4()), str(uuid.uuid4()), random.randbytes(PROMPT // 2).hex()
    digest = {part: hashlib.sha256(part.encode()).hexdigest()[:16] for part in ("prompt", "system", "model", "tools")}
    intent = Intent(turn_id=turn_id, session_id=session_id, digest=digest, prompt=prompt, cwd=f"/home/me/{name}")
    marker = f"channelcoder-{uuid.uuid4()}"
    process = ProcessIdent(host="workstation 9f3c", id="4711", started="1234567", marker=marker)
    turn = Turn(
        turn_id=turn_id,
        session_id=session_id,
        digest=digest,
        prompt=prompt,
        text=random.randbytes(answer // 2).hex(),
        cost_usd=0.0123,
        usage=Usage(input_tokens=1200, output_tokens=340, cache_read_input_tokens=15000),
        started=now() - timedelta(seconds=30),
        duration_s=30.0,
        model_calls=3,
        model="claude-opus-4-6",
        files=(FileMark(length=137_000, sha256=hashlib.sha256(prompt.encode()).hexdigest()),),
    )
    return intent, Started(turn_id=turn_id, process=process), turn


def _written() -> int:
    return int(Path("/proc/self/io").read_text().split()[3])


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run it in a process of its own, so that no earlier measurement weighs on it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)
