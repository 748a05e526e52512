"""A store with ChannelCoder's three methods, made to append.

What `save`, `load` and `list` cannot give is made up for here: an append loads the whole session, compares, and saves
the whole session; nobody else on this machine does so meanwhile. Two machines on one such store can lose each other's
turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from channelcoder_flows.errors import ChannelCoderError, JournalDamaged, SessionExists, SessionNotFound, StorageError
from channelcoder_flows.journal import Event, Journal, SessionInfo, SessionState
from channelcoder_flows.storage.base import (
    JournalStorage,
    SessionStorage,
    check_append,
    check_name,
    conflict,
    is_journal_storage,
    is_name,
    not_found,
    with_name,
)
from channelcoder_flows.storage.filelock import file_lock

LOCK_FILE: Final = "lock"


def as_journal_storage(storage: SessionStorage, *, locks: Path | None = None) -> JournalStorage:
    """Return `storage` itself when it appends already, or else one that appends to it.

    Args:
        storage: any store. Its own `append`, `exists`, `remove` and `lock` are used where it has them; they do
            what `JournalStorage` says.
        locks: where the locks of a store without its own are; by default `~/.channelcoder/locks`.
    """
    return storage if is_journal_storage(storage) else AdaptedStorage(storage, locks)


class AdaptedStorage:
    """A journal store over three methods.

    A session is missing when `load` says so with `SessionNotFound`, `FileNotFoundError`, `KeyError` or any other
    `LookupError`. Whatever else the store raises becomes a `StorageError`.
    """

    def __init__(self, storage: SessionStorage, locks: Path | None = None) -> None:
        kind = type(storage)
        self.storage = storage
        self.url = str(getattr(storage, "url", ""))
        self._label = kind.__qualname__
        self._identity = f"{kind.__module__}.{kind.__qualname__} {self.url}"
        self._locks = locks or Path.home() / ".channelcoder" / "locks"

    async def save(self, state: SessionState, name: str | None = None) -> str:
        """Keep the whole session."""
        with self._translated():
            return await self.storage.save(state, name)

    async def load(self, name_or_path: str) -> SessionState:
        """Return the session. Raises `SessionNotFound` with the nearest names."""
        state = await self._load(name_or_path)
        if state is None:
            raise not_found(name_or_path, [info.name for info in await self.list()])
        return state

    async def list(self) -> Sequence[SessionInfo]:
        """Return every session's metadata, in the store's order."""
        with self._translated():
            return await self.storage.list()

    async def append(
        self, name: str, events: Sequence[Event], *, expect: int, deltas: Mapping[str, bytes] | None = None
    ) -> int:
        """Add events after number `expect`. See `JournalStorage.append`."""
        if not events:
            return expect
        check_append(name, events, expect, deltas or {})
        if own := self._own("append"):
            with self._translated():
                return await own(name, events, expect=expect, deltas=deltas)
        async with self._writing(name):
            state = await self._load(name)
            journal = Journal(with_name(state.journal, name) if state else ())
            if journal.seq != expect:
                raise conflict(name, expect, journal.seq)
            for event in events:
                journal.apply(event)
            await self.save(journal.state({**(state.deltas if state else {}), **(deltas or {})}), name)
        return journal.seq

    async def read(self, name: str, *, since: int = 0) -> Sequence[Event]:
        """Return the events after number `since`."""
        state = await self.load(check_name(name))
        return with_name(state.journal, name)[since:]

    async def delta(self, name: str, sha256: str) -> bytes:
        """Return one delta."""
        data = (await self.load(check_name(name))).deltas.get(sha256)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise JournalDamaged(
                f"session {name!r}: delta {sha256[:12]} is not what was saved: {self._label} must keep `deltas` whole",
                name=name,
            )
        return data

    async def rename(self, name: str, new: str) -> None:
        """Save the session under the new name; the old one goes where the store can remove."""
        if check_name(new) == name:
            return
        async with self._writing(new):
            state = await self.load(name)
            if await self.exists(new):
                raise SessionExists(f"there is a session {new!r} already: choose another name", name=new)
            await self.save(Journal(with_name(state.journal, new)).state(state.deltas), new)
        if self._own("remove"):
            await self.remove(name)

    async def remove(self, name: str) -> None:
        """Delete the session. Raises `StorageError` for a store that has no `remove`."""
        own = self._own("remove")
        if own is None:
            raise StorageError(f"{self._label} has no `remove`: delete session {name!r} where that store keeps it")
        await self.load(name)
        with self._translated():
            await own(name)

    async def exists(self, name: str) -> bool:
        """Return whether there is such a session."""
        if own := self._own("exists"):
            with self._translated():
                return await own(name)
        return is_name(name) and await self._load(name) is not None

    @asynccontextmanager
    async def lock(
        self, name: str, *, wait: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> AsyncGenerator[None]:
        """Hold the store's own lock, or one on this machine."""
        if own := self._own("lock"):
            held = own(name, wait=wait, on_wait=on_wait)
        else:
            held = file_lock(self._lock_file("turn", name), name, wait=wait, on_wait=on_wait)
        async with held:
            yield

    async def _load(self, name: str) -> SessionState | None:
        try:
            with self._translated():
                state = await self.storage.load(name)
        except SessionNotFound:
            return None
        if not state.journal:
            raise StorageError(
                f"{self._label} lost the journal of session {name!r}: it must keep all of `SessionState`"
            )
        return state

    def _writing(self, name: str) -> Any:
        return file_lock(self._lock_file("write", name), name)

    def _lock_file(self, purpose: str, name: str) -> Path:
        key = hashlib.sha256(f"{self._identity}\0{purpose}\0{name}".encode()).hexdigest()[:32]
        return self._locks / key / LOCK_FILE

    def _own(self, method: str) -> Callable[..., Any] | None:
        return getattr(self.storage, method, None)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except ChannelCoderError:
            raise
        except (LookupError, FileNotFoundError) as exc:
            raise SessionNotFound(f"{self._label}: there is no such session: {exc}") from exc
        except Exception as exc:
            raise StorageError(f"{self._label}: {type(exc).__name__}: {exc}: see what the store says") from exc
