"""The seam between a turn and where it runs.

A place starts one process at a time (argv, environment, working directory) and hands back its streams.
It knows nothing of Claude, sessions or prompts; `claude_code` knows nothing of containers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from channelcoder_flows.places.spec import PlaceSpec, ProcessIdent


class Process(Protocol):
    """A running process: three streams, one owner."""

    @property
    def ident(self) -> ProcessIdent:
        """Who it is, so that another process can find it after our death."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to its standard input. Raises `PlaceError` when it does not read any more."""
        ...

    async def close_stdin(self) -> None:
        """Tell it that no more input comes."""
        ...

    def stdout(self) -> AsyncIterator[bytes]:
        """Its standard output as it comes, in pieces of any size."""
        ...

    def stderr_tail(self) -> str:
        """The last lines of its standard error."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        ...

    async def alone(self) -> bool:
        """Whether it runs, and nothing that it started does."""
        ...

    async def end(self) -> None:
        """End it and everything it started: ask, wait a little, then kill. Safe to call again."""
        ...

    async def kill(self) -> None:
        """End it and everything it started without asking. Safe to call again, and before or after `end`."""
        ...


class Place(Protocol):
    """An opened place."""

    @property
    def spec(self) -> PlaceSpec:
        """What the session remembers."""
        ...

    @property
    def cwd(self) -> Path:
        """The working directory, as the process inside sees it."""
        ...

    @property
    def config_dir(self) -> Path:
        """Claude Code's configuration directory: transcripts are laid and read here."""
        ...

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> Process:
        """Start a process with exactly this environment, a `Secret` in it on a pipe. Raises `PlaceError`."""
        ...

    async def end_stale(self, ident: ProcessIdent) -> bool:
        """End what a dead owner left of `ident`; return whether anything was still running."""
        ...

    async def snapshot(self, label: str) -> str | None:
        """Keep the files as they are; return the commit, or None where files are not ours to keep."""
        ...

    async def rollback(self, commit: str | None) -> str | None:
        """Put the files back to `commit`; return a rescue commit of what was there, where there is one."""
        ...
