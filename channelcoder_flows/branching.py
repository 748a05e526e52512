"""Ways out of a session's straight line: back to an earlier turn, or on in a copy."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from channelcoder_flows.errors import SessionExists, UsageError
from channelcoder_flows.journal import (
    Attach,
    Created,
    Entry,
    Event,
    Failed,
    ForkOrigin,
    Interactive,
    Journal,
    Moved,
    Rewind,
    StepRef,
    Turn,
)
from channelcoder_flows.storage.open_session import OpenSession


def rewind_event(journal: Journal, to: int, *, reason: str = "", step: StepRef | None = None) -> Rewind:
    """Return the event that goes back to the end of turn `to`.

    Raises:
        UsageError: there is no such turn.
    """
    return Rewind(
        to=check_turn(journal, to),
        session_id=str(uuid.uuid4()),
        message_count=journal.message_count(to),
        reason=reason,
        step=step or StepRef(),
    )


def check_turn(journal: Journal, number: int) -> int:
    """Return `number` when the session can go back to the end of that turn.

    Raises:
        UsageError: there is no such turn.
    """
    if not 0 <= number <= len(journal.turns):
        raise UsageError(f"there is no turn {number} to go back to: the session has {len(journal.turns)}")
    return number


async def fork_session(
    session: OpenSession, name: str, *, at: int | None = None, step: StepRef | None = None
) -> OpenSession:
    """Copy a session up to the end of turn `at` (None: all of it) into a new one, under a new Claude session id.

    Raises:
        SessionExists: there is a session of that name.
        UsageError: there is no such turn.
    """
    fork = OpenSession.new(session.storage, name)
    copied = _copy(session.journal, at, fork.session_id)
    if await session.storage.exists(name):
        raise SessionExists(f"there is a session {name!r} already: choose another name for the fork", name=name)
    created = Created(
        name=name,
        session_id=copied.session_id,
        labels=session.journal.created.labels if session.journal.created else {},
        forked_from=copied.origin_in(session),
        step=step or StepRef(),
    )
    await fork.append(created, *copied.events, deltas=await copied.deltas(session))
    return fork


async def fork_anew(fork: OpenSession, session: OpenSession, *, at: int | None = None) -> None:
    """Let a fork begin again from what its session is now, in one step. What it was before stays in its journal.

    Raises:
        UsageError: there is no turn `at`.
    """
    copied = _copy(session.journal, at, str(uuid.uuid4()))
    back = Rewind(
        to=0,
        session_id=copied.session_id,
        message_count=0,
        reason="forked anew",
        forked_from=copied.origin_in(session),
    )
    await fork.append(back, *copied.events, deltas=await copied.deltas(session))


@dataclass(frozen=True, slots=True)
class _Copy:
    """What a fork takes over from its session."""

    session_id: str
    """The Claude session id that it begins with."""
    turn: int
    turn_id: str
    events: tuple[Event, ...]

    def origin_in(self, session: OpenSession) -> ForkOrigin:
        return ForkOrigin(name=session.name, turn=self.turn, turn_id=self.turn_id)

    async def deltas(self, session: OpenSession) -> dict[str, bytes]:
        names = {event.delta for event in self.events if isinstance(event, Entry) and event.delta}
        return {name: await session.delta(name) for name in names}


def _copy(journal: Journal, at: int | None, new_id: str) -> _Copy:
    turn = check_turn(journal, len(journal.turns) if at is None else at)
    kept = journal.entries if at is None else journal.entries_to(turn)
    turn_id = journal.turns[turn - 1].turn_id if turn else ""
    if not kept:
        return _Copy(new_id, turn, turn_id, ())
    moved = Moved(session_id=new_id, reason="fork")
    return _Copy(journal.chain[0], turn, turn_id, (*map(_inherited, kept), moved))


def _inherited(entry: Entry) -> Entry:
    """Return an entry as a fork has it: neither paid for nor done there."""
    match entry:
        case Turn():
            return entry.model_copy(update={"inherited": True})
        case Failed():
            return entry.model_copy(update={"cost_usd": 0.0, "step": StepRef()})
        case Interactive():
            return entry.model_copy(update={"cost_usd": 0.0})
        case Attach():
            return entry.model_copy(update={"step": StepRef()})
