"""Runs an operation of the store in a process of its own, system call by system call; any of them can fail or kill."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import re
import select
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from channelcoder_flows.errors import ChannelCoderError
from channelcoder_flows.storage.file import FileSessionStorage

CALLS = (
    *("openat", "newfstatat", "fstat", "mkdir", "mkdirat", "fchmod", "chmod", "flock", "pread64", "getdents64"),
    *("ftruncate", "pwrite64", "fdatasync", "fsync", "link", "rename", "renameat", "unlink", "unlinkat", "rmdir"),
)
"""The system calls that an operation of the store may be made of."""
LIMIT = 60
"""Seconds until something that must happen has not."""

Operation = Callable[[FileSessionStorage], Awaitable[object]]

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([f"{__package__}.test_saves", "concurrent.futures.thread"])


def start_server() -> None:
    """Start the process that the others are forked from, where it does not run yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # or it cannot load what it is to preload
        forkserver.ensure_running()


def needs_strace() -> None:
    """Skip the test where there is no strace; under CI fail it."""
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("strace is missing (Debian: apt-get install strace)")


@dataclass(frozen=True)
class Call:
    """One system call."""

    name: str
    text: str
    """As strace prints it, each descriptor with its path."""

    @property
    def failed(self) -> bool:
        return "= -1 " in self.text

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.text

    @property
    def path(self) -> Path:
        """The file it is about: that of its descriptor, joined with the name given, if any."""
        at = re.search(r"\((?:\d+|AT_FDCWD)<([^>]*)>", self.text)
        named = re.search(r'"([^"]*)"', self.text) if self.name not in ("pwrite64", "pread64") else None
        return Path(at[1] if at else "/") / (named[1] if named else "")

    @property
    def target(self) -> Path:
        """Where a rename leads."""
        paths = re.findall(r'(?:<([^<>]*)>, )?"([^"]*)"', self.text)
        return Path(paths[1][0]) / paths[1][1]


@dataclass(frozen=True)
class Outcome:
    """How an operation ended."""

    error: ChannelCoderError | None
    killed: bool
    calls: list[Call]
    """All system calls of the thread that worked on the files, in their order."""

    @property
    def hit(self) -> bool:
        """Whether the injection came to pass."""
        return self.killed or any(call.injected for call in self.calls)

    @property
    def done(self) -> bool:
        return not self.killed and self.error is None


def run_traced(operation: Operation, root: Path, log: Path, inject: str = "") -> Outcome:
    """Run `operation` on the store at `root`; `inject` is what strace is to do to it, as `fsync:error=EIO:when=2`.

    Its own thread does the work on the files, and strace counts `when` by thread.
    """
    start_server()
    ours, theirs = processes.Pipe()
    worker = processes.Process(target=_work, args=(operation, root, theirs))
    worker.start()
    theirs.close()
    assert ours.recv() == "ready"
    argv = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(CALLS)}", "-p", str(worker.pid)]
    tracer = subprocess.Popen(
        [*argv, *(["-e", f"inject={inject}"] if inject else [])], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr
    try:
        assert select.select([tracer.stderr], [], [], LIMIT)[0], "strace did not attach"
        attached = tracer.stderr.readline()
        assert "attached" in attached, attached
        ours.send("go")
        assert ours.poll(LIMIT), "the operation did not end"
        try:
            result: ChannelCoderError | str | None = ours.recv()
        except EOFError:
            result = "killed"
        worker.join(LIMIT)
        tracer.communicate(timeout=LIMIT)
    finally:
        worker.kill()
        tracer.kill()
        tracer.communicate()
    killed = result == "killed"
    assert killed == (worker.exitcode == -9), worker.exitcode
    return Outcome(None if killed else result, killed, _calls(log.read_text(), str(worker.pid)))


def _work(operation: Operation, root: Path, say: Connection) -> None:
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: strace is no parent of ours

    async def work() -> ChannelCoderError | None:
        await asyncio.to_thread(int)  # from here on there is one thread for the files, and nothing left to import
        say.send("ready")
        say.recv()
        try:
            await operation(FileSessionStorage(root))
        except ChannelCoderError as exc:
            return exc
        return None

    say.send(asyncio.run(work()))


def _calls(text: str, main_thread: str) -> list[Call]:
    """Return the calls of the thread that works on files; the main one only waits for it."""
    found = re.findall(r"^(\d+) +(\w+)(\(.*)", text, re.MULTILINE)
    return [Call(name, name + rest) for thread, name, rest in found if thread != main_thread]
