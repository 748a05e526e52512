"""A session in hand: its journal as far as it was read, and the store it lives in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import SessionConflict, SessionNotFound
from channelcoder_flows.journal import EVENT, Created, Event, Journal
from channelcoder_flows.storage.base import JournalStorage, check_name
from channelcoder_flows.turn import SessionRef


class OpenSession:
    """A session's name, its store, and `journal`: the fold of the events read and written so far."""

    def __init__(self, storage: JournalStorage, name: str, journal: Journal, *, session_id: str | None = None) -> None:
        self.storage = storage
        self.name = name
        self.journal = journal
        self.session_id = session_id or str(uuid.uuid4())
        """The Claude session id of the first turn, if the session is a new one."""

    @classmethod
    async def load(cls, storage: JournalStorage, name: str) -> OpenSession:
        """Read the session. Raises `SessionNotFound`, `JournalDamaged`, `StorageError`."""
        return cls(storage, name, Journal(await storage.read(name)))

    @classmethod
    def new(cls, storage: JournalStorage, name: str, *, session_id: str | None = None) -> OpenSession:
        """Begin a session: the store hears of it with `begin`. Raises `SessionError` for a bad name."""
        return cls(storage, check_name(name), Journal(), session_id=session_id)

    async def begin(self) -> None:
        """Write the first event, unless somebody has."""
        if not self.journal.events:
            await self.append(Created(name=self.name, session_id=self.session_id))

    @property
    def ref(self) -> SessionRef:
        """Where the session stands now, as data."""
        journal = self.journal
        return SessionRef(name=self.name, store=self.storage.url, seq=journal.seq, id=journal.session_id or "")

    async def refresh(self) -> None:
        """Read what others appended since. A session that nobody has written yet stays as it is.

        Raises:
            SessionConflict: the journal in the store is another one than was read.
            SessionNotFound: it was removed or renamed.
        """
        seq = self.journal.seq
        if seq == 0:
            try:
                events = await self.storage.read(self.name)
            except SessionNotFound:
                return
        else:
            known, events = self.journal.events[-1], await self.storage.read(self.name, since=seq - 1)
            if not events or EVENT.dump_json(events[0]) != EVENT.dump_json(known):
                raise SessionConflict(
                    f"session {self.name!r} was replaced since it was read: load it again", name=self.name, expected=seq
                )
            events = events[1:]
        for event in events:
            self.journal.apply(event)

    async def append(self, *events: Event, deltas: Mapping[str, bytes] | None = None) -> None:
        """Make the events durable and apply them, or neither. A cancelled append is finished first.

        Raises:
            SessionConflict: another writer was first; nothing was written.
            StorageError: the store could not write.
        """
        await to_the_end(self._append(events, deltas or {}))

    async def _append(self, events: tuple[Event, ...], deltas: Mapping[str, bytes]) -> None:
        await self.storage.append(self.name, events, expect=self.journal.seq, deltas=deltas)
        for event in events:
            self.journal.apply(event)

    async def delta(self, sha256: str) -> bytes:
        """Return one transcript delta. Raises `JournalDamaged` when it is missing or damaged."""
        return await self.storage.delta(self.name, sha256)

    async def rename(self, new: str) -> None:
        """Give the session another name. Raises `SessionExists`."""
        await self.storage.rename(self.name, new)
        self.name, self.journal = new, Journal(await self.storage.read(new))

    def lock(
        self, *, wait: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hold the session's turn lock. Raises `SessionBusy` after `wait` seconds. See `JournalStorage.lock`."""
        return self.storage.lock(self.name, wait=wait, on_wait=on_wait)
