"""What a store of sessions must do.

Two protocols. `SessionStorage` is ChannelCoder's: three methods that take and give whole sessions; anyone can write
one (`adapter.py` makes it a journal store). `JournalStorage` adds what makes a turn safe: compare-and-append, deltas,
a lock.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeGuard

from channelcoder_flows.errors import SessionConflict, SessionError, SessionNotFound, StorageError
from channelcoder_flows.journal import Created, Event, SessionInfo, SessionState

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
        The first event of a session (`expect=0`) is a `Created` with its name. Without events nothing happens.

        Raises:
            SessionConflict: the session is not at `expect`; nothing was written.
            StorageError: the store could not write; nothing that was acknowledged is lost.
        """
        ...

    async def read(self, name: str, *, since: int = 0) -> Sequence[Event]:
        """Return the events after number `since`. Raises `SessionNotFound`, `JournalDamaged`.

        The `Created` event has the session's present name, whatever it was called when it began.
        """
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


def is_name(name: str) -> bool:
    """Return whether a session can be called that."""
    try:
        check_name(name)
    except SessionError:
        return False
    return True


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


def check_append(name: str, events: Sequence[Event], expect: int, deltas: Mapping[str, bytes]) -> None:
    """Hold an append to the rules of `JournalStorage.append`, before anything is written.

    Raises:
        SessionError: the name cannot be a session's.
        StorageError: a session that does not begin with its `Created`, or a delta that is not what its id says.
    """
    check_name(name)
    begins = [number for number, event in enumerate(events, expect + 1) if isinstance(event, Created)]
    if begins != ([1] if expect == 0 else []):
        raise StorageError(f"session {name!r}: the event `session` is the first one, and only that")
    if isinstance(events[0], Created) and events[0].name != name:
        raise StorageError(f"session {name!r} cannot begin as {events[0].name!r}: give both the same name")
    for sha256, data in deltas.items():
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StorageError(f"session {name!r}: delta {sha256[:12]} is not what its sha256 says")


def events_to_save(state: SessionState, name: str | None) -> tuple[str, tuple[Event, ...]]:
    """Return the name to keep `state` under (given, its own, or its Claude session id), and its journal.

    Raises:
        SessionError: there is no usable name.
        StorageError: the state has no journal.
    """
    name = check_name(name or state.metadata.name or state.current_session_id or "")
    if not state.journal:
        raise StorageError(f"session {name!r} comes without its journal: keep all fields of a `SessionState`")
    events = with_name(state.journal, name)
    check_append(name, events, 0, state.deltas)
    return name, events


def with_name(events: Iterable[Event], name: str) -> tuple[Event, ...]:
    """Return the events with `name` as the session's name."""
    return tuple(
        event.model_copy(update={"name": name}) if isinstance(event, Created) and event.name != name else event
        for event in events
    )


def not_found(name: str, names: Iterable[str]) -> SessionNotFound:
    """Return the error for a session that is not among `names`; it says the nearest ones."""
    nearest = tuple(difflib.get_close_matches(name, list(names), n=3, cutoff=0.5))
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "`channelcoder session list` shows all"
    return SessionNotFound(f"there is no session {name!r}: {hint}", name=name, nearest=nearest)


def conflict(name: str, expected: int, found: int) -> SessionConflict:
    """Return the error for an append that came second."""
    return SessionConflict(
        f"session {name!r} has {found} events, not {expected}: another writer was first; load it and go on from there",
        name=name,
        expected=expected,
        found=found,
    )
