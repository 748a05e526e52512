"""What every store of sessions promises, as checks to run over your own.

    async def test_my_store() -> None:
        await run_storage_conformance(lambda: MyStore(connection))

A store with the three methods of `SessionStorage` is held to `STORE_CONTRACTS`, and to the others as it is used:
through `as_journal_storage`. One that appends is held to all of them directly. Each contract gets an empty store.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from channelcoder_flows.errors import (
    ChannelCoderError,
    JournalDamaged,
    SessionBusy,
    SessionConflict,
    SessionError,
    SessionExists,
    SessionNotFound,
    StorageError,
)
from channelcoder_flows.journal import (
    Created,
    Event,
    Failed,
    FileMark,
    Interactive,
    Journal,
    Rewind,
    SessionState,
    Turn,
)
from channelcoder_flows.storage.adapter import as_journal_storage
from channelcoder_flows.storage.base import JournalStorage, SessionStorage
from channelcoder_flows.turn import Message

__all__ = ["JOURNAL_CONTRACTS", "REMOVAL_CONTRACTS", "STORE_CONTRACTS", "run_storage_conformance"]

MakeStorage = Callable[[], SessionStorage | Awaitable[SessionStorage]]

BEGAN: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

NAMES: Final = (
    "plain",
    "Plain",
    "PLAIN",
    "with space",
    "feature/search",
    "feature~search",
    "../../escape",
    "/etc/passwd",
    "..",
    ".hidden",
    "-rf",
    "a" * 200,
    "\U0001f680" * 200,
    "caf\u00e9",
    "cafe\u0301",
    "line\nbreak\u2028\x01",
    'quote " and \\ and ,"sum":{',
    "%2e%2e%2f",
    "journal.jsonl",
    "con",
)
"""Names that differ, each for a reason a store has been known to mix them up, lose them or leave its own ground."""


async def run_storage_conformance(make_storage: MakeStorage) -> None:
    """Hold the stores that `make_storage` makes to every contract that applies to them.

    Args:
        make_storage: returns a new, empty store; called once a contract; may be asynchronous.

    Raises:
        Exception: what the first broken contract came upon; a note says which contract that is.
    """
    with tempfile.TemporaryDirectory() as locks:

        async def fresh() -> SessionStorage:
            made = make_storage()
            return await made if inspect.isawaitable(made) else made

        async def fresh_journal() -> JournalStorage:
            return as_journal_storage(await fresh(), locks=Path(locks))

        removes = hasattr(await fresh(), "remove")
        for check in STORE_CONTRACTS:
            await _hold(check, await fresh())
        for check in (*JOURNAL_CONTRACTS, *(REMOVAL_CONTRACTS if removes else ())):
            await _hold(check, await fresh_journal())


async def _hold(check: Callable[[Any], Awaitable[None]], storage: SessionStorage) -> None:
    try:
        await check(storage)
    except Exception as exc:
        exc.add_note(f"broken contract of a store: {check.__name__}: {inspect.getdoc(check)}")
        raise


# What the three methods promise.


async def keeps_a_session_whole(storage: SessionStorage) -> None:
    """What was saved is what is loaded: conversation, journal and transcript, to the last byte."""
    state = a_state("whole")
    name = await storage.save(state, "whole")
    assert await storage.load(name) == state


async def replaces_a_session(storage: SessionStorage) -> None:
    """A second save under a name takes the place of the first."""
    await storage.save(a_state("again"), "again")
    longer = a_state("again", turns=5)
    await storage.save(longer, "again")
    assert await storage.load("again") == longer
    assert [info.name for info in await storage.list()] == ["again"]


async def falls_back_on_the_sessions_own_name(storage: SessionStorage) -> None:
    """Saved without a name, a session is kept under its own."""
    assert await storage.save(a_state("its own")) == "its own"
    assert (await storage.load("its own")).metadata.name == "its own"


async def says_what_is_missing(storage: SessionStorage) -> None:
    """Loading what is not there raises `SessionNotFound`, `LookupError` or `FileNotFoundError`."""
    try:
        await storage.load("missing")
    except (SessionNotFound, LookupError, FileNotFoundError):
        return
    raise AssertionError("load of a missing session returned")


async def lists_latest_first(storage: SessionStorage) -> None:
    """The list has each session's name, times and number of messages, the latest activity first."""
    assert list(await storage.list()) == []
    for name, turns in (("one", 1), ("three", 3), ("two", 2)):
        await storage.save(a_state(name, turns=turns), name)
    infos = await storage.list()
    assert [(info.name, info.message_count) for info in infos] == [("three", 6), ("two", 4), ("one", 2)]
    assert infos[0].created == BEGAN
    assert infos[0].last_active == BEGAN + timedelta(seconds=3)


# What appending adds.


async def reads_what_was_appended(storage: JournalStorage) -> None:
    """Events come back as they were, in their order, from any number on."""
    events = a_session("s", turns=4)
    assert await storage.append("s", events[:1], expect=0) == 1
    assert await storage.append("s", events[1:3], expect=1) == 3
    assert await storage.append("s", events[3:], expect=3) == 5
    for since in range(7):
        assert list(await storage.read("s", since=since)) == list(events[since:])


async def nothing_appended_is_nothing(storage: JournalStorage) -> None:
    """An append without events makes no session."""
    assert await storage.append("s", (), expect=0) == 0
    assert not await storage.exists("s")


async def refuses_a_stale_writer(storage: JournalStorage) -> None:
    """Who does not know the latest event is told so, and nothing of theirs is kept."""
    events = a_session("s", turns=3)
    await storage.append("s", events[:3], expect=0)
    for expect, batch in ((0, events[:1]), (2, events[2:]), (9, events[3:])):
        error = await refused(SessionConflict, storage.append("s", batch, expect=expect))
        assert (error.expected, error.found) == (expect, 3)
    assert list(await storage.read("s")) == list(events[:3])
    error = await refused(SessionConflict, storage.append("new", events[1:], expect=1))
    assert error.found == 0
    assert not await storage.exists("new")


async def begins_with_created(storage: JournalStorage) -> None:
    """A session begins with its `Created`, has no second one, and carries the name it is appended to."""
    events = a_session("s", turns=1)
    await refused(StorageError, storage.append("s", events[1:], expect=0))
    await refused(StorageError, storage.append("s", (events[0], events[0]), expect=0))
    await refused(StorageError, storage.append("other", events[:1], expect=0))
    await storage.append("s", events[:1], expect=0)
    await refused(StorageError, storage.append("s", events[:1], expect=1))
    assert tuple(await storage.read("s")) == events[:1]


async def one_of_many_racers_wins(storage: JournalStorage) -> None:
    """Of eight writers at one number one is acknowledged, and its event is the one that is there."""
    first, _ = a_session("s", turns=1)
    await storage.append("s", (first,), expect=0)
    racers = [a_turn("s", number) for number in range(8)]
    ends = await asyncio.gather(*(storage.append("s", (turn,), expect=1) for turn in racers), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["SessionConflict"] * 7 + ["int"]
    assert list(await storage.read("s", since=1)) == [racers[ends.index(2)]]


async def keeps_deltas(storage: JournalStorage) -> None:
    """Each delta comes back to the byte, early or late, empty or a megabyte."""
    blobs = [b"", b"\n\0\r\n", bytes(range(256)) * 4096, b"last"]
    await storage.append("s", a_session("s", turns=0), expect=0)
    for number, blob in enumerate(blobs, 1):
        turn = a_turn("s", number).model_copy(update={"delta": sha256(blob)})
        await storage.append("s", (turn,), expect=number, deltas={sha256(blob): blob})
        for earlier in blobs[:number]:
            assert await storage.delta("s", sha256(earlier)) == earlier
    assert (await storage.load("s")).deltas == {sha256(blob): blob for blob in blobs}
    await refused(JournalDamaged, storage.delta("s", sha256(b"never saved")))


async def refuses_a_delta_that_is_another(storage: JournalStorage) -> None:
    """A delta whose bytes are not what its sha256 says is refused, and its events with it."""
    await refused(StorageError, storage.append("s", a_session("s"), expect=0, deltas={sha256(b"one"): b"two"}))
    assert not await storage.exists("s")


async def keeps_any_text(storage: JournalStorage) -> None:
    """Answers come back as they were: megabytes, control characters, what looks like the store's own format."""
    texts = [
        "",
        "\n\r\n",
        "\x00\x1b[31m\x7f",
        "\u2028\u2029\ufeff",
        '"},"sum":{"seq":9},"crc":"00000000"}\n',
        "x" * (2 << 20),
    ]
    turns = [a_turn("s", number, text=text, output={"sum": text[:99]}) for number, text in enumerate(texts, 1)]
    await storage.append("s", (*a_session("s", turns=0), *turns), expect=0)
    assert list(await storage.read("s", since=1)) == turns


async def takes_any_name(storage: JournalStorage) -> None:
    """Names are any text up to 200 characters, and no two of them are one session."""
    for name in NAMES:
        await storage.append(name, a_session(name), expect=0)
    for name in NAMES:
        assert (await storage.load(name)).metadata.name == name
    assert sorted(info.name for info in await storage.list()) == sorted(NAMES)


async def refuses_what_is_no_name(storage: JournalStorage) -> None:
    """The empty name, one of 201 characters and one that is no text are refused, and are no session."""
    for name in ("", "   ", "x" * 201, "nul\0", "\ud800"):
        await refused(SessionError, storage.append(name, a_session(name), expect=0))
        assert not await storage.exists(name)
    assert list(await storage.list()) == []


async def lists_what_the_journal_says(storage: JournalStorage) -> None:
    """The list's figures are the journal's: messages, turns and cost through failures, typed words and a rewind."""
    fold = Journal()
    for event in a_long_session("s"):
        await storage.append("s", (event,), expect=fold.seq)
        fold.apply(event)
        (info,) = await storage.list()
        state = fold.state()
        assert (info.message_count, info.turns) == (len(fold.messages), len(fold.turns))
        assert (info.created, info.last_active) == (state.metadata.created, state.metadata.last_active)
        assert abs(info.cost_usd - fold.totals.cost_usd) < 1e-9


async def loads_the_fold(storage: JournalStorage) -> None:
    """A loaded session is the fold of its events, with every delta."""
    state = a_state("s", turns=3)
    await storage.append("s", state.journal, expect=0, deltas=state.deltas)
    assert await storage.load("s") == state


async def goes_on_after_a_save(storage: JournalStorage) -> None:
    """A session that was saved whole takes appends, and keeps its deltas through further saves."""
    state = a_state("s", turns=2)
    await storage.save(state, "copy")
    await storage.append("copy", (a_turn("copy", 3),), expect=3)
    grown = await storage.load("copy")
    assert [turn.text for turn in Journal(grown.journal).turns] == ["answer 1", "answer 2", "answer 3"]
    await storage.save(grown, "copy")
    assert await storage.load("copy") == grown
    assert grown.deltas == state.deltas


async def says_the_nearest_names(storage: JournalStorage) -> None:
    """What is asked of a missing session fails with `SessionNotFound`, which says the nearest names."""
    await storage.append("search-feature", a_session("search-feature"), expect=0)
    for asked in (
        storage.read("serch-feature"),
        storage.load("serch-feature"),
        storage.delta("serch-feature", "0" * 64),
    ):
        error = await refused(SessionNotFound, asked)
        assert error.nearest == ("search-feature",)
        assert "search-feature" in str(error)
    assert not await storage.exists("serch-feature")


async def locks_one_at_a_time(storage: JournalStorage) -> None:
    """A lock has one holder; others wait, are told that they do, and get it when it is free."""
    order: list[str] = []
    waiting = asyncio.Event()

    async def second() -> None:
        async with storage.lock("s", on_wait=waiting.set):
            order.append("second")

    async with storage.lock("s"):
        task = asyncio.create_task(second())
        await asyncio.wait_for(waiting.wait(), 10)
        order.append("first")
    await asyncio.wait_for(task, 10)
    assert order == ["first", "second"]


async def gives_up_waiting(storage: JournalStorage) -> None:
    """`wait` bounds the wait for a lock: `SessionBusy`, and with 0 without any wait."""

    async def take(wait: float) -> None:
        async with storage.lock("s", wait=wait):
            raise AssertionError("two hold one lock")

    async with storage.lock("s"), storage.lock("another"), storage.lock("run/s"):
        await refused(SessionBusy, take(0))
        await refused(SessionBusy, take(0.02))


async def takes_a_free_lock_at_once(storage: JournalStorage) -> None:
    """With `wait=0` a free lock is taken, time and again; a held one is `SessionBusy` and stays its holder's."""
    for _ in range(2):
        async with storage.lock("s", wait=0):
            held = storage.lock("s", wait=0)
            await refused(SessionBusy, held.__aenter__())


async def frees_a_lock_however_its_work_ends(storage: JournalStorage) -> None:
    """A lock is free after an error in its holder, and after one who waited for it was cancelled."""
    waiting = asyncio.Event()

    async def wait_for_it() -> None:
        async with storage.lock("s", on_wait=waiting.set):
            raise AssertionError("cancelled, and yet it got the lock")

    try:
        async with storage.lock("s"):
            task = asyncio.create_task(wait_for_it())
            await asyncio.wait_for(waiting.wait(), 10)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    async with storage.lock("s", wait=10):
        assert list(await storage.list()) == [], "a lock is no session"


# What a store that removes adds.


async def removes(storage: JournalStorage) -> None:
    """A removed session is gone, its name is free, and what begins there has nothing of it."""
    state = a_state("s")
    await storage.append("s", state.journal, expect=0, deltas=state.deltas)
    await storage.append("other", a_session("other"), expect=0)
    await storage.remove("s")
    assert not await storage.exists("s")
    assert [info.name for info in await storage.list()] == ["other"]
    await refused(SessionNotFound, storage.remove("s"))
    await storage.append("s", a_session("s", turns=0), expect=0)
    assert len(await storage.read("s")) == 1
    for sha in state.deltas:
        await refused(JournalDamaged, storage.delta("s", sha))


async def renames(storage: JournalStorage) -> None:
    """A renamed session is the same under its new name, and goes on there."""
    names = ("one", "Two words", "three/3", "one")
    state = a_state("one")
    await storage.append("one", state.journal, expect=0, deltas=state.deltas)
    for number, (old, new) in enumerate(itertools.pairwise(names)):
        await storage.rename(old, new)
        assert not await storage.exists(old)
        loaded = await storage.load(new)
        assert (loaded.metadata.name, loaded.deltas) == (new, state.deltas)
        first = loaded.journal[0]
        assert isinstance(first, Created)
        assert first.name == new
        assert [info.name for info in await storage.list()] == [new]
        seq = len(state.journal) + number
        assert await storage.append(new, (a_turn(new, seq),), expect=seq) == seq + 1
    await refused(SessionNotFound, storage.rename("Two words", "four"))


async def never_renames_over_another(storage: JournalStorage) -> None:
    """A rename onto another session is refused, and both are as they were."""
    for name in ("one", "two"):
        await storage.append(name, a_session(name), expect=0)
    await refused(SessionExists, storage.rename("one", "two"))
    for name in ("one", "two"):
        assert tuple(await storage.read(name)) == a_session(name)


STORE_CONTRACTS: Final = (
    keeps_a_session_whole,
    replaces_a_session,
    falls_back_on_the_sessions_own_name,
    says_what_is_missing,
    lists_latest_first,
)
"""What the three methods promise: `async (SessionStorage) -> None` each."""

JOURNAL_CONTRACTS: Final = (
    reads_what_was_appended,
    nothing_appended_is_nothing,
    refuses_a_stale_writer,
    begins_with_created,
    one_of_many_racers_wins,
    keeps_deltas,
    refuses_a_delta_that_is_another,
    keeps_any_text,
    takes_any_name,
    refuses_what_is_no_name,
    lists_what_the_journal_says,
    loads_the_fold,
    goes_on_after_a_save,
    says_the_nearest_names,
    locks_one_at_a_time,
    gives_up_waiting,
    takes_a_free_lock_at_once,
    frees_a_lock_however_its_work_ends,
)
"""What a store that appends promises besides: `async (JournalStorage) -> None` each."""

REMOVAL_CONTRACTS: Final = (removes, renames, never_renames_over_another)
"""What a store promises that has `remove`."""


async def refused(error: type[ChannelCoderError], asked: Awaitable[object]) -> Any:
    """Await what must fail with `error`, and return that error."""
    try:
        await asked
    except error as exc:
        return exc
    raise AssertionError(f"{error.__name__} was due")


def sha256(data: bytes) -> str:
    """Return a delta's id."""
    return hashlib.sha256(data).hexdigest()


def a_turn(name: str, number: int, *, text: str | None = None, output: Any = None) -> Turn:
    """Return turn `number` of a session: a second after the one before, 10 cents each."""
    at = BEGAN + timedelta(seconds=number)
    return Turn(
        at=at,
        turn_id=f"turn-{number}",
        session_id="claude-1",
        prompt=f"question {number}",
        text=f"answer {number}" if text is None else text,
        output=output,
        cost_usd=0.1,
        started=at - timedelta(milliseconds=500),
    )


def a_session(name: str, *, turns: int = 1) -> tuple[Event, ...]:
    """Return the events of a session with so many turns."""
    created = Created.model_construct(at=BEGAN, name=name, session_id="claude-1")
    return (created, *(a_turn(name, number) for number in range(1, turns + 1)))


def a_long_session(name: str) -> tuple[Event, ...]:
    """Return a session in which everything happens that counts in the list."""
    at = BEGAN + timedelta(minutes=1)
    typed = Message(role="user", content="typed by hand", timestamp=at, session_id="claude-1")
    return (
        *a_session(name, turns=2),
        Failed(at=at, turn_id="turn-3", error="api", message="overloaded", prompt="question 3", cost_usd=0.25),
        Interactive(at=at, session_id="claude-1", messages=(typed,), cost_usd=0.5),
        Rewind(at=at, to=1, session_id="claude-2", message_count=2),
        a_turn(name, 90),
    )


def a_state(name: str, *, turns: int = 2) -> SessionState:
    """Return a whole session whose every turn has a delta."""
    created, *rest = a_session(name, turns=turns)
    deltas: dict[str, bytes] = {}
    events = [created]
    for number, turn in enumerate(rest, 1):
        data = f"transcript of {name} {number}\n".encode() * 100
        mark = FileMark(length=number * len(data), sha256=sha256(data))
        deltas[sha256(data)] = data
        events.append(turn.model_copy(update={"delta": sha256(data), "files": (mark,)}))
    return Journal(events).state(deltas)
