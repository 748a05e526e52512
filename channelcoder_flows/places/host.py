"""The host: a directory of the user's. Never reset, never cleaned."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from channelcoder_flows.config import Secret
from channelcoder_flows.errors import PlaceError
from channelcoder_flows.places.spec import PlaceSpec, ProcessIdent

KEEPER = Path(__file__).with_name("keeper.sh")
MARKER = "CHANNELCODER_TURN"
GRACE = 3.0
"""Seconds between asking a process to end and killing it."""


class HostPlace:
    """Runs processes on this machine, as the caller, in `cwd`."""

    def __init__(self, cwd: Path, config_dir: Path) -> None:
        self.spec = PlaceSpec(kind="host")
        self.cwd = cwd
        self.config_dir = config_dir

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> HostProcess:
        """Start a process in a session of its own, kept by a watcher that ends it when we die.

        Raises:
            PlaceError: the directory does not exist, or the process cannot be started.
        """
        if not self.cwd.is_dir():
            raise PlaceError(f"the working directory {self.cwd} does not exist: create it, or choose another with cwd=")
        marker = uuid.uuid4().hex
        keep, let_go = os.pipe()
        pipes: list[int] = []
        try:
            env = {
                name: _hand_over(value, pipes) if isinstance(value, Secret) else value for name, value in env.items()
            }
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                str(KEEPER),
                str(keep),
                marker,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.cwd,
                env=env,
                pass_fds=(keep, *pipes),
                start_new_session=True,
            )
        except BaseException as exc:
            os.close(let_go)
            if isinstance(exc, OSError):
                raise PlaceError(f"cannot start {argv[0]}: {exc.strerror or exc}") from exc
            raise
        finally:
            for end in (keep, *pipes):
                os.close(end)
        ident = ProcessIdent(host=machine(), id=str(process.pid), started=start_time(process.pid), marker=marker)
        return HostProcess(process, ident, let_go)

    async def end_stale(self, ident: ProcessIdent) -> bool:
        """End what is left of a process whose owner died; nothing, when it ran on another machine."""
        if ident.host != machine():
            return False
        return await asyncio.to_thread(_end_all, ident, signal.SIGTERM, signal.SIGKILL)

    async def snapshot(self, label: str) -> str | None:
        """Keep nothing: the host's files are the user's."""
        return None

    async def rollback(self, commit: str | None) -> str | None:
        """Change nothing: the host's files are the user's."""
        return None


class HostProcess:
    """A process on this machine."""

    def __init__(self, process: asyncio.subprocess.Process, ident: ProcessIdent, let_go: int) -> None:
        self.ident = ident
        self._process = process
        self._let_go: int | None = let_go
        self._stderr: deque[str] = deque(maxlen=40)
        self._reader = asyncio.create_task(self._read_stderr())

    async def write(self, data: bytes) -> None:
        """Write to its standard input."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(data)
            await stdin.drain()
        except (OSError, RuntimeError) as exc:
            raise PlaceError(f"the process reads no more input: {exc}") from exc

    async def close_stdin(self) -> None:
        """Tell it that no more input comes."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def stdout(self) -> AsyncIterator[bytes]:
        """Its standard output as it comes."""
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(1 << 18):
            yield piece

    def stderr_tail(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(self._stderr)

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        return await self._process.wait()

    async def alone(self) -> bool:
        """Return whether it runs, and nothing that it started does."""
        return await asyncio.to_thread(marked, self.ident.marker) == [self._process.pid]

    async def end(self) -> None:
        """End it and all it started, then let the watcher go."""
        await self._end(signal.SIGTERM, signal.SIGKILL)

    async def kill(self) -> None:
        """End it and all it started at once, then let the watcher go."""
        await self._end(signal.SIGKILL)

    async def _end(self, *asks: signal.Signals) -> None:
        if self._let_go is None:
            return
        try:
            if signal.SIGTERM in asks:
                await self.close_stdin()
                await self._wait_a_little()
            await asyncio.to_thread(_end_all, self.ident, *asks)
            await self._wait_a_little()
        finally:
            let_go, self._let_go = self._let_go, None
            # The watcher ends on a line; were we killed before this, the pipe's end alone makes it sweep.
            with suppress(OSError):
                os.write(let_go, b"done\n")
            os.close(let_go)
            self._reader.cancel()

    async def _wait_a_little(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), GRACE)

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        while piece := await self._process.stderr.read(1 << 16):
            *lines, rest = (rest + piece).split(b"\n")
            self._stderr.extend(line.decode(errors="replace") for line in lines)
            rest = rest[-4096:]
        if rest:
            self._stderr.append(rest.decode(errors="replace"))


def _hand_over(secret: str, pipes: list[int]) -> str:
    """Put a secret into a pipe; add the end it is read from to `pipes`, and return its number. Raises `OSError`."""
    reading, writing = os.pipe()
    pipes.append(reading)
    try:
        os.set_blocking(writing, False)  # what does not fit into a pipe is no key
        os.write(writing, os.fsencode(secret))
    finally:
        os.close(writing)
    return str(reading)


@cache
def machine() -> str:
    """Return this machine and its boot: where, and since when, a pid means what it means."""
    with suppress(OSError):
        return f"{platform.node()}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return f"{platform.node()}/{_output_of('sysctl', '-n', 'kern.bootsessionuuid')}"


def start_time(pid: int) -> str:
    """Return when the process started, in the kernel's own unit; empty when there is none."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        # The second field is the program's name in parentheses and may hold anything; the 22nd is the start time.
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
    return _output_of("ps", "-o", "lstart=", "-p", str(pid))


def alive(ident: ProcessIdent) -> bool:
    """Return whether that very process runs, on this machine."""
    return ident.host == machine() and start_time(int(ident.id)) == ident.started != ""


def marked(marker: str) -> list[int]:
    """Return the processes that carry this turn's marker in their environment."""
    if sys.platform != "linux":
        word = f"{MARKER}={marker}"
        table = _output_of("ps", "-A", "-E", "-ww", "-o", "pid=,command=").splitlines()
        return [int(line.split()[0]) for line in table if word in line.split()]
    wanted = f"{MARKER}={marker}".encode()
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _end_all(ident: ProcessIdent, *asks: signal.Signals) -> bool:
    """End the process and all that carry its marker; return whether there were any."""
    any_left = False
    for ask in asks:
        left = _left(ident)
        if not left:
            break
        any_left = True
        _send(ask, left)
        _wait_gone(ident)
    return any_left


def _left(ident: ProcessIdent) -> list[int]:
    return [*([int(ident.id)] if alive(ident) else []), *marked(ident.marker)]


def _send(ask: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, ask)


def _wait_gone(ident: ProcessIdent) -> None:
    deadline = time.monotonic() + GRACE
    while _left(ident) and time.monotonic() < deadline:
        time.sleep(0.02)


def _output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
