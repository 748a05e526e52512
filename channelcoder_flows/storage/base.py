"""What a store of sessions must do.

Two protocols. `SessionStorage` is ChannelCoder's: three methods that take and give whole sessions; anyone can write one
(`adapter.py` makes it a journal store). `JournalStorage` adds what makes a turn safe: compare-and-append, deltas, a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeGuard

from channelcoder_flows.errors import SessionError
from channelcoder_flows.journal import Event, SessionInfo, SessionState

NAME_LIMIT = 200
"""Characters of a session name."""


class SessionStorage(Protocol):
    """The three methods of ChannelCoder's `SessionStorage`, asynchronous."""

    async def save(self, state: SessionState, name: str | None = None) -> str:
        """Keep the whole session, replacing what was there; return the name it is kept under."""
        ...

    async def load(self, name_or_path: str) -> SessionState:
        """Return the session. Raises `SessionNotFound`."""
        ...

    async def list(self) -> Sequence[SessionInfo]:
        """Return every session's metadata, latest activity first."""
        ...


class JournalStorage(SessionStorage, Protocol):
    """A store that appends: what every store of this package is."""

    @property
    def url(self) -> str:
        """How `open_storage` finds this store again; empty where it cannot."""
        ...

    async def append(
        self, name: str, events: Sequence[Event], *, expect: int, deltas: Mapping[str, bytes] | None = None
    ) -> int:
        """Add events after number `expect`, all or none, durable on return; return the last one's number.

        `deltas` (sha256 of the bytes to the bytes) are durable before the events that name them.
        The first event of a session (`expect=0`) is a `Created` with its name.

        Raises:
            SessionConflict: the session is not at `expect`; nothing was written.
            StorageError: the store could not write; nothing that was acknowledged is lost.
        """
        ...

    async def read(self, name: str, *, since: int = 0) -> Sequence[Event]:
        """Return the events after number `since`. Raises `SessionNotFound`, `JournalDamaged`."""
        ...

    async def delta(self, name: str, sha256: str) -> bytes:
        """Return one delta. Raises `SessionNotFound`, `JournalDamaged` when it is missing or damaged."""
        ...

    async def rename(self, name: str, new: str) -> None:
        """Give the session another name, in one step. Raises `SessionNotFound`, `SessionExists`."""
        ...

    async def remove(self, name: str) -> None:
        """Delete the session, in one step. Raises `SessionNotFound`."""
        ...

    async def exists(self, name: str) -> bool:
        """Return whether there is such a session."""
        ...

    def lock(
        self, name: str, *, wait: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hold a lock of that name, across processes; it ends with its holder, however that ends.

        Args:
            name: what is locked: a session's name, or a key such as `run/…`.
            wait: seconds to wait for another holder; None: as long as it takes; 0: not at all.
            on_wait: called once when there is another holder and we wait.

        Raises:
            SessionBusy: another holder kept it for longer than `wait`.
        """
        ...


def is_journal_storage(storage: SessionStorage) -> TypeGuard[JournalStorage]:
    """Return whether `storage` appends, or has only the three methods."""
    return all(hasattr(storage, method) for method in ("append", "read", "delta", "rename", "remove", "lock"))


def check_name(name: str) -> str:
    """Return `name` when a session can be called that: 1 to 200 characters of any text.

    Raises:
        SessionError: it is empty, too long, or no text that can be stored (NUL, lone surrogates).
    """
    if not name.strip():
        raise SessionError("a session name cannot be empty: give it a word or two", name=name)
    if len(name) > NAME_LIMIT:
        raise SessionError(f"a session name has at most {NAME_LIMIT} characters, this one has {len(name)}", name=name)
    if "\0" in name or not _is_text(name):
        raise SessionError(f"{name!r} cannot be a session name: it holds a character that is no text", name=name)
    return name


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
