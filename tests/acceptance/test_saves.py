"""What was saved stays saved: under SIGKILL at any system call, on a disk that fails, and with many writers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows.branching import fork_session
from channelcoder_flows.errors import StorageError
from channelcoder_flows.journal import Journal
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.storage.session_dir import DELTAS, JOURNAL, TURN_LOCK
from channelcoder_flows.testing.model import ScriptedModel
from channelcoder_flows.testing.storage_conformance import a_session, a_state, a_turn

from .traced import CALLS, Call, Operation, Outcome, needs_strace, processes, run_traced, start_server

CHANNELCODER = [sys.executable, "-m", "channelcoder_flows"]
ERRORS = ("ENOSPC", "EIO")
WRITES = ("mkdir", "ftruncate", "pwrite64", "fdatasync", "fsync", "renameat", "unlinkat")
"""The system calls that change something."""
Told = dict[str, tuple[list[str], list[str]]]
"""What a store has: by session, what was said and which deltas are kept."""


def a_turn_with_delta(name: str, number: int, size: int = 5000) -> tuple[Any, dict[str, bytes]]:
    """Return a turn and its delta."""
    data = number.to_bytes(4) * (size // 4)
    turn = a_turn(name, number, text=f"answer {number} " * 50)
    turn = turn.model_copy(update={"delta": hashlib.sha256(data).hexdigest()})
    return turn, {str(turn.delta): data}


# What is done to a store, by name. Each finds the sessions "s" and "other" in it.


async def append(store: FileSessionStorage) -> None:
    """A turn with its delta is appended to a session."""
    turn, deltas = a_turn_with_delta("s", 9)
    await store.append("s", [turn], expect=len(await store.read("s")), deltas=deltas)


async def begin(store: FileSessionStorage) -> None:
    """A session begins."""
    await store.append("new", a_session("new"), expect=0)


async def save(store: FileSessionStorage) -> None:
    """A session is saved over another one."""
    await store.save(a_state("s", turns=7), "s")


async def fork(store: FileSessionStorage) -> None:
    """A session is copied into a new one."""
    await fork_session(await OpenSession.load(store, "s"), "fork")


async def rename(store: FileSessionStorage) -> None:
    """A session gets another name."""
    await store.rename("s", "t")


async def remove(store: FileSessionStorage) -> None:
    """A session is deleted."""
    await store.remove("s")


APPENDS = (append, begin, fork)
"""What adds to a journal: until it is acknowledged, nothing has changed."""
OPERATIONS = (*APPENDS, save, rename, remove)


async def make_store(root: Path) -> None:
    """Make a store with two sessions."""
    store = FileSessionStorage(root)
    await store.save(a_state("s", turns=3), "s")
    await store.append("other", a_session("other"), expect=0)


async def told(root: Path) -> Told:
    """Return what a new process finds in a store, after reading every byte of it."""
    found: Told = {}
    store = FileSessionStorage(root)
    for info in await store.list():
        state = await store.load(info.name)
        assert info.turns == len(Journal(state.journal).turns)
        found[info.name] = [message.content for message in state.messages], sorted(state.deltas)
    return found


def leftovers(root: Path) -> list[str]:
    """Return the files that are no part of any session."""
    known = {JOURNAL, DELTAS, TURN_LOCK}
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if (path.parent == root and path.name.startswith(".")) or (path.is_file() and path.name not in known)
    ]


def each_call(
    operation: Operation, folder: Path, injection: str, calls: tuple[str, ...] = CALLS
) -> Iterator[tuple[str, Path, Outcome]]:
    """Run the operation on a fresh copy of one store for each system call it makes, which is then hit."""
    original = folder / "original"
    asyncio.run(make_store(original))
    for call in calls:
        for number in range(1, 1000):
            root = folder / f"{call}-{number}"
            shutil.copytree(original, root)
            outcome = run_traced(operation, root, folder / "trace", f"{call}:{injection}:when={number}")
            if not outcome.hit:
                break
            yield f"{operation.__name__}, {call} {number}: {injection}", root, outcome
            shutil.rmtree(root)
        shutil.rmtree(root)


def after_rename(calls: list[Call]) -> bool:
    """Return whether the call that failed came after the one that makes it so."""
    renamed = [n for n, call in enumerate(calls) if call.name in ("rename", "renameat") and not call.failed]
    return bool(renamed) and renamed[0] < next(n for n, call in enumerate(calls) if call.injected)


def expected(operation: Operation, folder: Path) -> tuple[Told, Told]:
    """Return what a store has before and after an operation."""
    root = folder / "expected"
    asyncio.run(make_store(root))
    before = asyncio.run(told(root))
    asyncio.run(operation(FileSessionStorage(root)))
    return before, asyncio.run(told(root))


def check_failing_calls(
    operation: Operation, folder: Path, errors: tuple[str, ...], calls: tuple[str, ...] = CALLS
) -> Counter[str]:
    """Let each system call of an operation fail once; return what came of it, counted."""
    before, after = expected(operation, folder)
    counts: Counter[str] = Counter()
    for error in errors:
        for what, root, outcome in each_call(operation, folder / error, f"error={error}", calls):
            found = asyncio.run(told(root))
            if outcome.done:
                assert found == after, what
            else:
                assert isinstance(outcome.error, StorageError), (what, outcome.error)
                assert "\n" not in outcome.error.message, what
                whole = (before, after) if operation not in APPENDS and after_rename(outcome.calls) else (before,)
                assert found in whole, (what, outcome.error.message)
            asyncio.run(begin_next(root))
            assert leftovers(root) == [], what
            counts["went on" if outcome.done else "refused"] += 1
    return counts


async def begin_next(root: Path) -> None:
    """Do what the next process does: write."""
    await FileSessionStorage(root).append("next", a_session("next"), expect=0)


def check_kills_at_calls(operation: Operation, folder: Path, calls: tuple[str, ...] = CALLS) -> int:
    """Kill the process at each system call of an operation; return how many that were."""
    before, after = expected(operation, folder)
    kills = 0
    for what, root, outcome in each_call(operation, folder / "kills", "signal=KILL", calls):
        assert outcome.killed, what
        found = asyncio.run(told(root))
        assert found in (before, after), what
        asyncio.run(begin_next(root))
        assert leftovers(root) == [], what
        if found == before:
            asyncio.run(operation(FileSessionStorage(root)))
            assert asyncio.run(told(root)) == {**after, "next": (["question 1", "answer 1"], [])}, what
        kills += 1
    return kills


def unsynced(calls: list[Call], existing: set[Path]) -> Iterator[tuple[Call | None, set[Path]]]:
    """Yield what is not on the disk yet at each rename, and at the end."""
    dirty: set[Path] = set()
    known = set(existing)
    for call in calls:
        if call.failed:
            continue
        match call.name:
            case "pwrite64" | "ftruncate":
                dirty.add(call.path)
            case "fsync" | "fdatasync":
                dirty.discard(call.path)
            case "mkdir" | "mkdirat":
                dirty.add(call.path.parent)
                known.add(call.path)
            case "openat" if "O_CREAT" in call.text and call.path not in known:
                dirty.add(call.path.parent)
                known.add(call.path)
            case "rename" | "renameat":
                yield call, set(dirty)
                dirty.add(call.target.parent)
            case _:
                pass
    yield None, dirty


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_acknowledged_is_on_the_disk(operation: Any, tmp_path: Path) -> None:
    """A trace of system calls: a file is on the disk before it is renamed, and everything is before we say so."""
    needs_strace()
    root = tmp_path / "sessions"
    asyncio.run(make_store(root))
    existing = {root, *root.rglob("*")}
    calls = run_traced(operation, root, tmp_path / "trace").calls
    moments = list(unsynced(calls, existing))
    for rename_call, dirty in moments[:-1]:
        assert rename_call and not {path for path in dirty if rename_call.path in (path, *path.parents)}
    assert moments[-1] == (None, set())
    if operation is append:
        written = [call.path.name for call in calls if call.name in ("pwrite64", "fdatasync")]
        assert written == [DELTAS, DELTAS, JOURNAL, JOURNAL]


def test_the_first_session_is_on_the_disk(tmp_path: Path) -> None:
    """The store's own directory, made with its first session, is on the disk before that is acknowledged."""
    needs_strace()
    calls = run_traced(begin, tmp_path / "new" / "sessions", tmp_path / "trace").calls
    assert [dirty for _, dirty in unsynced(calls, {tmp_path})] == [set()]


def test_an_append_on_a_failing_disk(tmp_path: Path) -> None:
    """Each system call of an append fails once: a typed error, and the session as it was to the last byte."""
    needs_strace()
    counts = check_failing_calls(append, tmp_path, ERRORS, WRITES)
    assert counts["refused"] >= 10


@pytest.mark.torture
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_on_a_failing_disk(operation: Any, tmp_path: Path) -> None:
    """ENOSPC and EIO at each system call: a typed error and the old state, or it went on and is done."""
    needs_strace()
    print(operation.__name__, dict(check_failing_calls(operation, tmp_path, ERRORS)))


def test_a_begin_killed_at_each_call(tmp_path: Path) -> None:
    """SIGKILL at each system call of a session's first append: it is there whole or not at all, and can begin again."""
    needs_strace()
    assert check_kills_at_calls(begin, tmp_path, WRITES) >= 7


@pytest.mark.torture
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_killed_at_each_call(operation: Any, tmp_path: Path) -> None:
    """SIGKILL at each system call of whatever changes a store: the old state or the new one, and no leftovers."""
    needs_strace()
    print(operation.__name__, {"killed": check_kills_at_calls(operation, tmp_path)})


def work_until_killed(root: Path, seed: int, say: Connection) -> None:
    """Append, begin, fork and save in turns; say each session's length once that is acknowledged."""
    chance = random.Random(seed)

    async def work() -> None:
        store = FileSessionStorage(root)
        session = await OpenSession.load(store, "s")
        while True:
            match chance.choice(["append", "append", "append", "begin", "fork", "save"]):
                case "append":
                    turn, deltas = a_turn_with_delta("s", session.journal.seq, 20_000)
                    await session.append(turn, deltas=deltas)
                    say.send(("s", session.journal.seq))
                case "begin":
                    name = f"begun {chance.getrandbits(64)}"
                    say.send((name, await store.append(name, a_session(name), expect=0)))
                case "fork":
                    forked = await fork_session(session, f"fork {chance.getrandbits(64)}")
                    say.send((forked.name, forked.journal.seq))
                case _:
                    state = a_state("saved", turns=chance.choice([2, 30]))
                    await store.save(state)
                    say.send(("saved", len(state.journal)))

    asyncio.run(work())


async def check_acknowledged(root: Path, acknowledged: dict[str, int]) -> None:
    """Read all of a store: nothing is torn, and nothing that was acknowledged is missing."""
    store = FileSessionStorage(root)
    states = {info.name: await store.load(info.name) for info in await store.list()}
    for name, state in states.items():
        assert set(state.deltas) == {turn.delta for turn in Journal(state.journal).turns if turn.delta}
        assert name != "saved" or len(state.journal) in (3, 31)
    for name, length in acknowledged.items():
        assert name == "saved" or len(states[name].journal) >= length, name
    assert "saved" in states or "saved" not in acknowledged


def check_kills(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill so many writers at random moments; return what they had been acknowledged, counted."""
    chance, counts = random.Random(seed), Counter[str]()
    start_server()
    for number in range(kills):
        root = folder / str(number // 10)
        if number % 10 == 0:
            asyncio.run(FileSessionStorage(root).append("s", a_session("s", turns=0), expect=0))
            acknowledged: dict[str, int] = {}
        told, say = processes.Pipe(duplex=False)
        writer = processes.Process(target=work_until_killed, args=(root, chance.getrandbits(32), say))
        writer.start()
        say.close()
        left = chance.randint(0, 8)
        with suppress(EOFError):
            while True:
                if left == 0:
                    time.sleep(chance.random() * 0.005)  # the moment of the kill, anywhere in a save
                    writer.kill()
                left -= 1
                name, length = told.recv()
                acknowledged[name] = length
                counts[name.partition(" ")[0]] += 1
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        asyncio.run(check_acknowledged(root, acknowledged))
        asyncio.run(FileSessionStorage(root).append(f"next {number}", a_session(f"next {number}"), expect=0))
        assert leftovers(root) == [], f"kill {number}"
    return counts


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    """A dozen SIGKILLs at random moments of saving: nothing torn, nothing acknowledged lost, nothing left over."""
    assert check_kills(tmp_path, 12, seed=20)["s"] > 12


@pytest.mark.torture
def test_five_hundred_kills(tmp_path: Path, seed: int) -> None:
    """Five hundred of them, brought back by the printed seed."""
    print({"kills": 500, "acknowledged": dict(check_kills(tmp_path, 500, seed))})


def run_on_failing_disk(env: dict[str, str], cwd: Path, name: str, inject: str) -> subprocess.CompletedProcess[str]:
    """Run a turn of session "work" on the real CLI while system calls on that session's own file `name` fail."""
    file = Path(env["CHANNELCODER_SESSION_DIR"]) / "work" / name
    strace = ["strace", "-f", "-qq", "-o", str(cwd / "trace"), "-P", str(file), "-e", f"inject={inject}"]
    command = [*CHANNELCODER, "run", "-p", "Build it", "--session", "work"]
    return subprocess.run(
        [*strace, *command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize(
    ("name", "inject"),
    [
        (DELTAS, "pwrite64:error=ENOSPC"),
        *[
            pytest.param(name, f"{call}:error={error}:when={number}+", marks=pytest.mark.torture)
            for name, numbers in ((DELTAS, (1,)), (JOURNAL, (1, 2, 3)))
            for call in ("pwrite64", "fdatasync")
            for error in ERRORS
            for number in numbers
        ],
    ],
)
def test_an_answer_is_printed_though_the_disk_fails(
    name: str, inject: str, scripted_model: Any, claude_env: dict[str, str], tmp_path: Path
) -> None:
    """A disk that fails from some write on: a typed error, no exit code 0, and an answer paid for is printed."""
    needs_strace()
    model: ScriptedModel = scripted_model([{"reply": "Built."}])
    ended = run_on_failing_disk(claude_env, tmp_path, name, inject)
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    assert ended.returncode > 0
    assert re.search(r"^channelcoder: .*saved before is intact$", ended.stderr, re.MULTILINE), ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("Built." in ended.stdout) == any(request.paid for request in model.requests)
    assert leftovers(Path(claude_env["CHANNELCODER_SESSION_DIR"])) == []
    again = subprocess.run(
        [*CHANNELCODER, "run", "-p", "Go on", "--session", "work"],
        cwd=tmp_path,
        env={**os.environ, **claude_env},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (again.returncode, again.stdout) == (0, "Built.\n"), again.stderr
