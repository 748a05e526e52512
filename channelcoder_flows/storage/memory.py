"""Sessions in memory: for tests, and for work that nobody wants to keep."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakValueDictionary

from channelcoder_flows.errors import JournalDamaged, SessionExists
from channelcoder_flows.journal import Event, Journal, SessionInfo, SessionState
from channelcoder_flows.storage.base import check_append, check_name, conflict, events_to_save, not_found, with_name
from channelcoder_flows.storage.filelock import busy


@dataclass
class _Kept:
    events: tuple[Event, ...] = ()
    deltas: dict[str, bytes] = field(default_factory=dict[str, bytes])


class MemorySessionStorage:
    """A store that lives as long as somebody holds it; `open_storage(store.url)` finds it in this process."""

    _alive: ClassVar[WeakValueDictionary[str, MemorySessionStorage]] = WeakValueDictionary()

    def __init__(self) -> None:
        self.url = f"memory:{secrets.token_hex(8)}"
        self._sessions: dict[str, _Kept] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._alive[self.url] = self

    @classmethod
    def find(cls, url: str) -> MemorySessionStorage | None:
        """Return the living store of that URL."""
        return cls._alive.get(url)

    async def append(
        self, name: str, events: Sequence[Event], *, expect: int, deltas: Mapping[str, bytes] | None = None
    ) -> int:
        """Add events after number `expect`. See `JournalStorage.append`."""
        if not events:
            return expect
        check_append(name, events, expect, deltas or {})
        kept = self._sessions.get(name, _Kept())
        if len(kept.events) != expect:
            raise conflict(name, expect, len(kept.events))
        self._sessions[name] = _Kept((*kept.events, *events), kept.deltas | dict(deltas or {}))
        return expect + len(events)

    async def read(self, name: str, *, since: int = 0) -> Sequence[Event]:
        """Return the events after number `since`."""
        return self._kept(name).events[since:]

    async def delta(self, name: str, sha256: str) -> bytes:
        """Return one delta."""
        try:
            return self._kept(name).deltas[sha256]
        except KeyError:
            raise JournalDamaged(f"session {name!r} has no delta {sha256}", name=name) from None

    async def save(self, state: SessionState, name: str | None = None) -> str:
        """Keep the whole session, replacing what was there."""
        name, events = events_to_save(state, name)
        self._sessions[name] = _Kept(events, dict(state.deltas))
        return name

    async def load(self, name_or_path: str) -> SessionState:
        """Return the session; in memory there are no paths."""
        kept = self._kept(name_or_path)
        return Journal(kept.events).state(kept.deltas)

    async def list(self) -> Sequence[SessionInfo]:
        """Return every session's metadata, latest activity first."""
        totals = [Journal(kept.events).totals for kept in self._sessions.values()]
        return sorted((total.info(self.url) for total in totals), key=lambda info: info.last_active, reverse=True)

    async def rename(self, name: str, new: str) -> None:
        """Give the session another name."""
        kept = self._kept(name)
        if check_name(new) in self._sessions:
            raise SessionExists(f"there is a session {new!r} already: choose another name", name=new)
        self._sessions[new] = _Kept(with_name(kept.events, new), kept.deltas)
        del self._sessions[name]

    async def remove(self, name: str) -> None:
        """Delete the session."""
        self._kept(name)
        del self._sessions[name]

    async def exists(self, name: str) -> bool:
        """Return whether there is such a session."""
        return name in self._sessions

    @asynccontextmanager
    async def lock(
        self, name: str, *, wait: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> AsyncGenerator[None]:
        """Hold a lock of that name, in this process and on this event loop."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        if lock.locked() and wait != 0 and on_wait:
            on_wait()
        try:
            # Not `wait_for`: with 0 that gives up before it has tried, on a free lock too.
            async with asyncio.timeout(wait):
                await lock.acquire()
        except TimeoutError:
            raise busy(name, wait) from None
        try:
            yield
        finally:
            lock.release()

    def _kept(self, name: str) -> _Kept:
        try:
            return self._sessions[name]
        except KeyError:
            raise not_found(name, self._sessions) from None
