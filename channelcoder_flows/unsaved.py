"""A session that is not saved by itself: kept in memory, and written to its store when `save` says so."""

from __future__ import annotations

import uuid

from channelcoder_flows.branching import fork_session
from channelcoder_flows.errors import SessionExists
from channelcoder_flows.journal import Moved, deltas_of
from channelcoder_flows.storage.base import JournalStorage
from channelcoder_flows.storage.open_session import OpenSession


class Unsaved:
    """How much of a session that is not saved by itself the store has, and under which name."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.seq = 0

    async def begin_from(self, stored: OpenSession, session: OpenSession) -> None:
        """Let `session`, in memory, go on from what is stored."""
        await session.storage.save(await stored.storage.load(stored.name), session.name)
        await session.refresh()
        self.name, self.seq = session.name, session.journal.seq

    async def part(self, session: OpenSession) -> None:
        """Go on under a Claude session id of its own, before the first turn that the store has not.

        Under the stored one's, a turn that is never saved would be taken for one that was typed by hand.
        """
        if session.journal.entries and session.journal.seq == self.seq:
            await session.append(Moved(session_id=str(uuid.uuid4()), reason="not saved yet"))

    async def keep(self, session: OpenSession, store: JournalStorage, name: str, *, overwrite: bool) -> OpenSession:
        """Write what the store has not; return the session to go on with: under a second name it is a fork."""
        if name != self.name:
            await make_free(store, name, overwrite=overwrite)
            if self.name is not None:
                session = await fork_session(session, name)
            elif not session.journal.events:
                session.name = name
            elif session.name != name:
                await session.rename(name)
            self.name, self.seq = name, 0
        await session.begin()
        events = session.journal.events[self.seq :]
        wanted = {delta for event in events for delta in deltas_of(event)}
        deltas = {delta: await session.delta(delta) for delta in wanted}
        self.seq = await store.append(name, events, expect=self.seq, deltas=deltas)
        return session


async def make_free(store: JournalStorage, name: str, *, overwrite: bool) -> None:
    """Make sure that no session has the name.

    Raises:
        SessionExists: one has, and it may not be overwritten.
        SessionBusy: a turn of it runs.
    """
    if await store.exists(name):
        if not overwrite:
            raise SessionExists(
                f"there is a session {name!r} already: choose another name, or pass overwrite=True", name=name
            )
        await remove_unused(store, name)


async def remove_unused(store: JournalStorage, name: str) -> None:
    """Delete a session that nobody uses. Raises `SessionNotFound`, and `SessionBusy` when a turn of it runs."""
    async with store.lock(name, wait=0):
        await store.remove(name)
