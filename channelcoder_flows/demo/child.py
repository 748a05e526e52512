"""The processes of the demo: started like a turn's, so that none outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from channelcoder_flows.places.base import Process
from channelcoder_flows.places.host import HostPlace


class Child:
    """A process whose lines, of both streams, are handed to `hear`; the last ones are kept."""

    def __init__(self, process: Process, hear: Callable[[str], None]) -> None:
        self.pid = int(process.ident.id)
        self.lines: deque[str] = deque(maxlen=200)
        self._process = process
        self._first_line = asyncio.Event()
        self._reader = asyncio.create_task(self._read(hear))

    @property
    def ended(self) -> bool:
        """Whether it has said its last word."""
        return self._reader.done()

    async def ends_within(self, seconds: float) -> bool:
        """Return whether it ends in that time."""
        await asyncio.wait([self._reader], timeout=seconds)
        return self.ended

    async def first_line(self) -> str:
        """Wait for its first line; empty when it ends without any."""
        await self._first_line.wait()
        return self.lines[0] if self.lines else ""

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status, negative where a signal ended it."""
        await asyncio.wait([self._reader])
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def end(self) -> None:
        """End it, if it has not: ask, wait a little, then kill."""
        if not self.ended:
            self.send(signal.SIGTERM)
        await self._process.end()
        await asyncio.wait([self._reader])

    async def _read(self, hear: Callable[[str], None]) -> None:
        rest = b""
        async for piece in self._process.stdout():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"), hear)
        if rest:
            self._take(rest.decode(errors="replace"), hear)
        self._first_line.set()

    def _take(self, line: str, hear: Callable[[str], None]) -> None:
        self.lines.append(line)
        self._first_line.set()
        hear(line)


@asynccontextmanager
async def started(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, hear: Callable[[str], None]
) -> AsyncGenerator[Child]:
    """Start a process; it ends with this block, or with us, whichever is first.

    Raises:
        PlaceError: it cannot be started.
    """
    one_stream = ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *argv]
    child = Child(await HostPlace(cwd, cwd).start(one_stream, env), hear)
    try:
        yield child
    finally:
        await child.end()
