"""A session is the fold of its events: whatever happened to it, in whatever order, it adds up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from channelcoder_flows.branching import fork_anew, fork_session, rewind_event
from channelcoder_flows.errors import UsageError
from channelcoder_flows.journal import (
    EVENT,
    EVENTS,
    Attach,
    Check,
    Created,
    Event,
    Failed,
    FileMark,
    Intent,
    Interactive,
    Journal,
    Metadata,
    Moved,
    Rewind,
    Run,
    SessionInfo,
    SessionState,
    Started,
    StepRef,
    Totals,
    Turn,
    deltas_of,
)
from channelcoder_flows.places.spec import ProcessIdent
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import Message

AT = datetime(2026, 11, 22, tzinfo=UTC)


class Writer:
    """Writes what can happen to a session, numbering what has to be told apart."""

    def __init__(self) -> None:
        self.journal = Journal([Created(name="s", session_id="c0")])
        self.count = 0

    def _next(self) -> int:
        self.count += 1
        return self.count

    @property
    def session_id(self) -> str:
        return self.journal.session_id or ""

    def _mark(self, number: int) -> tuple[FileMark, ...]:
        return (FileMark(path="", length=number, sha256=f"{number:064x}"),)

    def turn(self) -> None:
        n = self._next()
        self.journal.apply(Intent(turn_id=f"t{n}", session_id=self.session_id, prompt=f"ask {n}"))
        process = ProcessIdent(host="h", id="1", started="1", marker="m")
        self.journal.apply(Started(turn_id=f"t{n}", process=process))
        assert self.journal.process == process
        self.journal.apply(
            Turn(
                turn_id=f"t{n}",
                session_id=self.session_id,
                prompt=f"ask {n}",
                text=f"answer {n}",
                cost_usd=1.0,
                started=AT,
                files=self._mark(n),
                delta=f"d{n}",
            )
        )

    def failed(self) -> None:
        n = self._next()
        self.journal.apply(Intent(turn_id=f"t{n}", session_id=self.session_id, prompt=f"ask {n}"))
        self.journal.apply(Failed(turn_id=f"t{n}", error="died", message="m", prompt="p", cost_usd=0.25, tail=f"x{n}"))

    def failed_but_kept(self) -> None:
        n = self._next()
        self.journal.apply(
            Failed(turn_id=f"t{n}", error="died", message="m", prompt="p", files=self._mark(n), delta=f"d{n}")
        )

    def typed(self) -> None:
        n = self._next()
        message = Message(role="user", content=f"typed {n}", timestamp=AT, session_id=self.session_id)
        self.journal.apply(
            Interactive(
                session_id=self.session_id, messages=(message,), cost_usd=0.5, files=self._mark(n), delta=f"d{n}"
            )
        )

    def attached(self) -> None:
        n = self._next()
        self.journal.apply(Attach(session_id=f"c{n}", files=self._mark(n), delta=f"d{n}"))

    def moved(self) -> None:
        self.journal.apply(Moved(session_id=f"c{self._next()}"))

    def rewound(self) -> None:
        self.journal.apply(rewind_event(self.journal, self._next() % (len(self.journal.turns) + 1)))


ACTS: tuple[Callable[[Writer], None], ...] = (
    Writer.turn,
    Writer.turn,
    Writer.failed,
    Writer.failed_but_kept,
    Writer.typed,
    Writer.attached,
    Writer.moved,
    Writer.rewound,
)
HISTORIES = st.lists(st.sampled_from(ACTS), max_size=25)


def written(history: list[Callable[[Writer], None]]) -> Journal:
    """Return the journal of what happened."""
    writer = Writer()
    for act in history:
        act(writer)
    return writer.journal


def shape(journal: Journal) -> dict[str, Any]:
    """Return all that a journal adds up to."""
    return {
        "messages": journal.messages,
        "turns": journal.turns,
        "entries": journal.entries,
        "mark": journal.mark,
        "session_id": journal.session_id,
        "chain": journal.chain,
        "deltas": journal.deltas(),
        "totals": journal.totals,
        "intent": journal.intent,
    }


@given(HISTORIES)
def test_totals_are_the_fold(history: list[Callable[[Writer], None]]) -> None:
    """What `session list` shows without reading answers is what the answers add up to."""
    journal = written(history)
    assert journal.totals.messages == len(journal.messages)
    assert journal.totals.turns == len(journal.turns)
    spent = sum(getattr(event, "cost_usd", 0.0) for event in journal.events)
    assert journal.totals.cost_usd == spent
    totals = Totals()
    for event in journal.events:
        totals = totals.after(event)
    assert totals == journal.totals
    assert journal.totals.last_active == journal.events[-1].at


@given(HISTORIES)
def test_a_journal_survives_its_json(history: list[Callable[[Writer], None]]) -> None:
    """Events read back from a store, one by one or as a whole session, are the same session."""
    journal = written(history)
    again = Journal(EVENT.validate_json(EVENT.dump_json(event)) for event in journal.events)
    assert shape(again) == shape(journal)
    assert EVENTS.validate_json(EVENTS.dump_json(tuple(journal.events))) == tuple(journal.events)
    state = SessionState.model_validate_json(journal.state({"d": b"\xff"}).model_dump_json())
    assert shape(Journal(state.journal)) == shape(journal)
    assert (state.deltas, state.metadata.message_count) == ({"d": b"\xff"}, len(journal.messages))
    assert state.current_session_id == journal.session_id == journal.chain[-1]


@given(HISTORIES, st.integers(0, 30))
def test_a_rewind_goes_back_exactly(history: list[Callable[[Writer], None]], number: int) -> None:
    """After a rewind the session is what it was right after that turn, under a new id; the events stay."""
    journal = written(history)
    to = number % (len(journal.turns) + 1)
    then = Journal()
    for entry in journal.entries_to(to):
        then.apply(entry)
    before = list(journal.events)
    journal.apply(rewind_event(journal, to))
    assert (journal.messages, journal.turns, journal.mark) == (then.messages, then.turns, then.mark)
    assert journal.deltas() == then.deltas()
    assert journal.session_id not in {getattr(event, "session_id", None) for event in before}
    assert journal.events[:-1] == before
    with pytest.raises(UsageError, match="no turn"):
        rewind_event(journal, to + 1)


class Kept(MemorySessionStorage):
    """A store of sessions whose deltas are just their names."""

    async def delta(self, name: str, sha256: str) -> bytes:
        return sha256.encode()

    async def append(self, name: str, events: Any, *, expect: int, deltas: Any = None) -> int:
        assert {d for event in events for d in deltas_of(event)} <= set(deltas or {})
        return await super().append(name, events, expect=expect)


async def forked(journal: Journal, at: int | None) -> Journal:
    """Fork a session at a turn, or all of it."""
    fork = await fork_session(OpenSession(Kept(), "s", journal), "f", at=at)
    return fork.journal


@given(HISTORIES, st.none() | st.integers(0, 30))
async def test_a_fork_is_what_was_said(history: list[Callable[[Writer], None]], number: int | None) -> None:
    """A fork has the words up to its turn, all of them unless one is named; its id is its own, and it cost nothing."""
    journal = written(history)
    at = None if number is None else number % (len(journal.turns) + 1)
    fork = await forked(journal, at)
    kept = journal.entries if at is None else journal.entries_to(at)
    assert [entry.delta for entry in fork.entries] == [entry.delta for entry in kept]
    assert fork.deltas() == (journal.deltas() if at is None else Journal(kept).deltas())
    if at is None:
        assert fork.messages == journal.messages
        assert fork.mark == journal.mark
    assert fork.session_id not in journal.chain
    assert fork.totals.cost_usd == 0
    assert (fork.totals.messages, fork.totals.turns) == (len(fork.messages), len(fork.turns))
    assert fork.created is not None
    assert fork.created.forked_from is not None
    assert (fork.name, fork.created.forked_from.name) == ("f", "s")


@given(HISTORIES, HISTORIES)
async def test_a_fork_made_anew_is_a_fork_of_now(
    before: list[Callable[[Writer], None]], after: list[Callable[[Writer], None]]
) -> None:
    """Made anew, a fork is what a new one would be; what had been done on it stays in its journal, and counted."""
    store, writer = Kept(), Writer()
    session = OpenSession(store, "s", writer.journal)
    for happens in before:
        happens(writer)
    fork = await fork_session(session, "f")
    done = Turn(turn_id="done", session_id="f", prompt="p", text="t", cost_usd=1.0, started=AT)
    await fork.append(done)
    for happens in after:
        happens(writer)
    await fork_anew(fork, session)
    new = await fork_session(session, "new")
    assert fork.journal.entries == new.journal.entries
    assert (fork.journal.messages, fork.journal.mark) == (new.journal.messages, new.journal.mark)
    assert fork.journal.deltas() == new.journal.deltas()
    assert fork.journal.origin == new.journal.origin
    assert fork.journal.session_id not in {*writer.journal.chain, new.journal.session_id}
    assert done in fork.journal.events
    assert (fork.journal.totals.turns, fork.journal.totals.messages) == (
        len(new.journal.turns),
        len(new.journal.messages),
    )
    assert fork.journal.totals.cost_usd == 1.0


def test_an_intent_is_open_until_its_own_ending() -> None:
    """Only the ending of that very turn closes an intent."""
    writer = Writer()
    writer.journal.apply(Intent(turn_id="open", session_id="c0", prompt="p"))
    writer.journal.apply(Failed(turn_id="another", error="died", message="m", prompt="p"))
    assert writer.journal.intent is not None
    writer.journal.apply(Failed(turn_id="open", error="died", message="m", prompt="p"))
    assert (writer.journal.intent, writer.journal.process) == (None, None)


def test_numbers_of_turns() -> None:
    """A turn's number is its place in the conversation, its sequence number its place in the journal."""
    writer = Writer()
    writer.turn()
    writer.failed()
    writer.turn()
    first, second = writer.journal.turns
    assert [writer.journal.number_of(turn) for turn in (first, second)] == [1, 2]
    assert [writer.journal.seq_of(turn) for turn in (first, second)] == [4, 9]
    writer.journal.apply(rewind_event(writer.journal, 1))
    assert (writer.journal.number_of(second), writer.journal.seq_of(second)) == (0, 9)


def test_every_kind_of_event_is_told_apart() -> None:
    """The line of each event says its kind, so that a reader of another language can tell."""
    events: list[Event] = [
        Rewind(to=0, session_id="c", message_count=0),
        Moved(session_id="c"),
        Created(name="s", session_id="c"),
    ]
    assert [event.kind for event in events] == ["rewind", "moved", "session"]
    for event in events:
        assert type(EVENT.validate_json(EVENT.dump_json(event))) is type(event)


def test_a_fork_is_as_young_as_it_is() -> None:
    """What a fork inherits is older than the fork itself: `list` sorts by when it was made, not by what it copied."""
    made = Created(name="fork", session_id="c")
    old = Check(at=made.at - timedelta(days=3), step=StepRef(key="plan"), name="tests", passed=True)
    assert Journal([made, old]).totals.last_active == made.at


def test_a_turn_that_is_the_first_event_or_none() -> None:
    """A turn is found also where its journal begins with it; what is not in a journal has the number 0."""
    turn = Turn(turn_id="t", session_id="c", prompt="p", text="t", started=AT)
    alone = Journal([turn])
    assert (alone.number_of(turn), alone.seq_of(turn)) == (1, 1)
    assert (Journal().number_of(turn), Journal().seq_of(turn)) == (0, 0)


def test_a_step_reads_as_it_is_shown() -> None:
    """A step's first turn goes by its key alone; the ones after it are counted."""
    assert [str(StepRef(key="plan", attempt=attempt)) for attempt in (1, 2, 3)] == ["plan", "plan~2", "plan~3"]


def test_a_line_of_session_list() -> None:
    """`session list` shows the totals as they are, to a billionth of a dollar, and takes a session without a date."""
    later = AT + timedelta(hours=1)
    totals = Totals(name="s", created=AT, last_active=later, messages=4, turns=2, cost_usd=1.2500000004)
    assert totals.info("sub/s") == SessionInfo(
        name="s", path="sub/s", created=AT, last_active=later, message_count=4, turns=2, cost_usd=1.25
    )
    assert Totals(created=AT).info("s").last_active == AT
    before = datetime.now(UTC)
    new = Totals().info("s")
    assert before <= new.created == new.last_active <= datetime.now(UTC)


def test_a_session_as_data() -> None:
    """A custom store is handed everything: who it is, since when, what was said, and every event."""
    writer = Writer()
    writer.turn()
    writer.moved()
    journal = writer.journal
    state = journal.state()
    assert (state.session_chain, state.current_session_id) == (("c0", "c2"), "c2")
    assert [message.content for message in state.messages] == ["ask 1", "answer 1"]
    assert [message.role for message in state.messages] == ["user", "assistant"]
    assert [message.session_id for message in state.messages] == ["c0", "c0"]
    assert [message.timestamp for message in state.messages] == [AT, journal.turns[0].at]
    assert journal.created is not None
    last = journal.events[-1].at
    assert state.metadata == Metadata(name="s", created=journal.created.at, last_active=last, message_count=2)
    assert (state.journal, state.deltas) == (tuple(journal.events), {})
    empty = Journal().state()
    assert (empty.metadata.name, empty.current_session_id) == (None, None)
    assert empty.metadata.created == empty.metadata.last_active


def test_the_runs_of_a_session() -> None:
    """The last word on each run is kept, and the latest run is the one that was spoken of last."""
    journal = Journal()
    assert journal.run is None
    for key, status in (("a", "started"), ("b", "started"), ("a", "completed")):
        journal.apply(Run(run=key, status=status))
    assert [(run.run, run.status) for run in journal.runs.values()] == [("b", "started"), ("a", "completed")]
    assert journal.run is journal.runs["a"]


def test_an_intent_hides_no_other_process() -> None:
    """The process that is looked for belongs to the open turn, never to the one before."""
    journal = Journal([Intent(turn_id="one", session_id="c", prompt="p")])
    journal.apply(Started(turn_id="one", process=ProcessIdent(host="h", id="1", started="1", marker="m")))
    journal.apply(Intent(turn_id="two", session_id="c", prompt="p"))
    assert journal.intent is not None
    assert (journal.intent.turn_id, journal.process) == ("two", None)


def test_the_deltas_an_event_names() -> None:
    """What a store has to keep for an event: the bytes it added, and those that were cut off."""
    failed = Failed(turn_id="t", error="died", message="m", prompt="p", delta="d", tail="x")
    assert deltas_of(failed) == ("d", "x")
    assert deltas_of(failed.model_copy(update={"delta": None})) == ("x",)
    assert deltas_of(Moved(session_id="c")) == ()


def test_deltas_that_are_no_base64_are_refused() -> None:
    """A session that comes back from a store with damaged bytes is not taken for a whole one."""
    text = Journal().state({"d": b"\xff"}).model_dump_json()
    assert "/w==" in text
    with pytest.raises(ValidationError):
        SessionState.model_validate_json(text.replace("/w==", "/w=*="))


def test_a_journal_begins_with_nothing() -> None:
    """Before its first event nothing is open, nothing made, and nothing forked; the first says since when it is."""
    journal = Journal()
    assert (journal.intent, journal.process, journal.created, journal.origin) == (None, None, None, None)
    created = Created(name="s", session_id="c")
    journal.apply(created)
    assert (journal.created, journal.totals.created, journal.totals.name) == (created, created.at, "s")


def test_the_deltas_of_a_transcript() -> None:
    """A transcript is all that was said since the last conversation that was attached, from the first turn on."""
    writer = Writer()
    writer.turn()
    writer.failed()
    writer.turn()
    assert writer.journal.intent is None
    assert writer.journal.deltas() == ["d1", "d3"]
    writer.attached()
    writer.turn()
    assert writer.journal.deltas() == ["d4", "d5"]
