"""Several processes on one store in a directory, some of them killed."""

import asyncio
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from channelcoder_flows.errors import SessionBusy, SessionConflict, StorageError
from channelcoder_flows.journal import Journal
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.testing.storage_conformance import a_session, a_state, a_turn

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["channelcoder_flows.storage.file", "channelcoder_flows.testing.storage_conformance"])


def write_turns(root: Path, writer: int, turns: int, conflicts: Connection) -> None:
    """Append so many turns, reading again each time another writer was first; report how often that was."""

    async def work() -> int:
        session = await OpenSession.load(FileSessionStorage(root), "s")
        refused = 0
        for number in range(turns):
            data = f"{writer} {number}".encode() * 50
            turn = a_turn("s", number, text=f"{writer}/{number}").model_copy(
                update={"delta": hashlib.sha256(data).hexdigest()}
            )
            while True:
                try:
                    await session.append(turn, deltas={str(turn.delta): data})
                    break
                except SessionConflict:
                    refused += 1
                    await session.refresh()
        return refused

    conflicts.send(asyncio.run(work()))


def hold_lock(root: Path, held: Connection) -> None:
    """Take the turn lock, say so, and keep it."""

    async def work() -> None:
        async with FileSessionStorage(root).lock("s"):
            held.send(os.getpid())
            await asyncio.Event().wait()

    asyncio.run(work())


@pytest.mark.parametrize(("count", "each"), [(4, 25), pytest.param(8, 100, marks=pytest.mark.torture)])
async def test_writers_lose_nothing(tmp_path: Path, count: int, each: int):
    """Processes that append turns to one session: each turn is there once, with its delta; late writers were told."""
    store = FileSessionStorage(tmp_path)
    await store.append("s", a_session("s", turns=0), expect=0)
    reports, report = processes.Pipe(duplex=False)
    writers = [processes.Process(target=write_turns, args=(tmp_path, writer, each, report)) for writer in range(count)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
        assert writer.exitcode == 0
    refused = sum(reports.recv() for _ in writers)
    state = await store.load("s")
    turns = Journal(state.journal).turns
    assert sorted(turn.text for turn in turns) == sorted(f"{w}/{n}" for w in range(count) for n in range(each))
    assert {turn.delta for turn in turns} == set(state.deltas)
    assert refused > 0, "the writers never met: this run showed nothing"
    print({"writers": count, "turns": len(turns), "conflicts": refused})


async def test_a_killed_holder_frees_the_lock(tmp_path: Path):
    """The turn lock of a process that was killed with SIGKILL is free at once, and until then names its holder."""
    store = FileSessionStorage(tmp_path)
    held, say = processes.Pipe(duplex=False)
    holder = processes.Process(target=hold_lock, args=(tmp_path, say))
    holder.start()
    pid = held.recv()
    with pytest.raises(SessionBusy, match=f"process {pid}"):
        async with store.lock("s", wait=0):
            pass
    waiting = asyncio.Event()

    async def take() -> None:
        async with store.lock("s", on_wait=waiting.set):
            pass

    taking = asyncio.create_task(take())
    await waiting.wait()
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(taking, 10)
    holder.join()


async def test_a_child_does_not_inherit_the_lock(tmp_path: Path):
    """A program that a turn started and left running does not keep the session locked."""
    store = FileSessionStorage(tmp_path)
    async with store.lock("s"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        async with store.lock("s", wait=0):
            assert child.poll() is None
    finally:
        child.communicate(b"\n")


async def test_a_disk_that_is_full(tmp_path: Path):
    """On a file system without a byte left an append says to free some space, and the session stays readable."""
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs to mount a small file system")
    try:
        store = FileSessionStorage(tmp_path / "sessions")
        session = OpenSession.new(store, "s")
        await session.append(*a_session("s"))
        with pytest.raises(StorageError, match="free some space"):
            for number in range(100):
                await session.append(a_turn("s", number, text="x" * 30_000))
        assert await store.read("s") == tuple(session.journal.events)
        with pytest.raises(StorageError, match="free some space"):
            await store.save(a_state("t", turns=200))
        assert [info.name for info in await store.list()] == ["s"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
