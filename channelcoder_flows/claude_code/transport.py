"""The SDK's transport over a place's process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from claude_agent_sdk import ClaudeSDKError, CLIConnectionError, CLIJSONDecodeError, ProcessError, Transport

from channelcoder_flows.claude_code.options import LINE_LIMIT
from channelcoder_flows.errors import PlaceError
from channelcoder_flows.exchange import read_line
from channelcoder_flows.places.base import Place, Process

OnStarted = Callable[[Process], Awaitable[None]]


class PlaceTransport(Transport):
    """The SDK's transport over a place's process: JSON lines each way."""

    def __init__(self, place: Place, argv: list[str], env: Mapping[str, str]) -> None:
        self._place, self._argv, self._env = place, argv, env
        self.process: Process | None = None
        self.on_started: OnStarted | None = None
        """Awaited once the process runs, before anything is sent to it."""
        self.at_once = False
        """End the process without waiting for its last words."""

    async def connect(self) -> None:
        """Start the process."""
        self.process = await self._place.start(self._argv, self._env)
        if self.on_started is not None:
            await self.on_started(self.process)

    async def write(self, data: str) -> None:
        """Write to the CLI. Raises the SDK's `CLIConnectionError` when it does not read any more."""
        assert self.process is not None
        try:
            await self.process.write(data.encode())
        except PlaceError as exc:
            raise CLIConnectionError(str(exc)) from exc

    async def end_input(self) -> None:
        """Tell the CLI that no more input comes."""
        if self.process is not None:
            await self.process.close_stdin()

    def is_ready(self) -> bool:
        """Return whether the process was started."""
        return self.process is not None

    async def close(self) -> None:
        """End the process and everything it started."""
        if self.process is not None:
            await (self.process.kill() if self.at_once else self.process.end())

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """The CLI's messages as they come, until it ends."""
        return self._read()

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        assert self.process is not None
        async for line in _lines(self.process.stdout()):
            # What is no JSON object is a stray word of some tool's, and not for us.
            if line.startswith(b"{"):
                try:
                    yield read_line(line)
                except ValueError as exc:
                    raise CLIJSONDecodeError(line[:200].decode(errors="replace"), exc) from exc
        status = await self.process.wait()
        if status != 0:
            raise ProcessError("the CLI failed", exit_code=status, stderr=self.process.stderr_tail())


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            _check_size(size + len(end))
            yield b"".join([*parts, end]).strip()
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        _check_size(size)
    if size:
        yield b"".join(parts).strip()


def _check_size(size: int) -> None:
    if size > LINE_LIMIT:
        raise ClaudeSDKError(f"it sent a line of more than {LINE_LIMIT >> 20} MiB")
