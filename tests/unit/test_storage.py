"""Every store keeps the promises of docs/storage.md."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows.errors import SessionConflict, SessionNotFound, StorageError
from channelcoder_flows.journal import Attach, SessionState
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.adapter import AdaptedStorage, as_journal_storage
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.testing import storage_conformance as suite

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"


def documented(name: str) -> Any:
    """Return the class that the page defines."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if f"class {name}:" in code]
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope[name]


DatabaseStorage = documented("DatabaseStorage")


class RemovingStorage(DatabaseStorage):
    """The documented store with one method more."""

    async def remove(self, name: str) -> None:
        with self.db:
            self.db.execute("DELETE FROM sessions WHERE name = ?", (name,))


STORES: dict[str, Callable[[Path], Any]] = {
    "file": FileSessionStorage,
    "memory": lambda _: MemorySessionStorage(),
    "documented": lambda _: DatabaseStorage(":memory:"),
    "removing": lambda _: RemovingStorage(":memory:"),
}


@pytest.mark.parametrize("contract", suite.STORE_CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("kind", STORES)
async def test_three_methods(kind: str, contract: Any, tmp_path: Path):
    """Every store does what ChannelCoder's three methods promise."""
    await contract(STORES[kind](tmp_path / "store"))


@pytest.mark.parametrize("contract", suite.JOURNAL_CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("kind", STORES)
async def test_appending(kind: str, contract: Any, tmp_path: Path):
    """Every store appends safely, the documented one with three methods too."""
    await contract(as_journal_storage(STORES[kind](tmp_path / "store"), locks=tmp_path / "locks"))


@pytest.mark.parametrize("contract", suite.REMOVAL_CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "documented"])
async def test_removing(kind: str, contract: Any, tmp_path: Path):
    """Every store that removes also renames, and both leave nothing behind."""
    await contract(as_journal_storage(STORES[kind](tmp_path / "store"), locks=tmp_path / "locks"))


async def test_the_suite_finds_a_store_that_forgets():
    """A store that loses transcripts is found out, and the note says which promise it broke."""

    class Forgetful(DatabaseStorage):
        async def save(self, state: SessionState, name: str | None = None) -> str:
            return await super().save(state.model_copy(update={"deltas": {}}), name)

    await suite.run_storage_conformance(lambda: RemovingStorage(":memory:"))
    with pytest.raises(AssertionError) as caught:
        await suite.run_storage_conformance(lambda: Forgetful(":memory:"))
    assert "keeps_a_session_whole" in caught.value.__notes__[0]


class TestAdapter:
    """What the adapter adds to three methods."""

    def test_a_journal_store_is_used_as_it_is(self, tmp_path: Path):
        """No second layer over a store that appends."""
        for store in (MemorySessionStorage(), FileSessionStorage(tmp_path)):
            assert as_journal_storage(store) is store

    @pytest.mark.parametrize("missing", [KeyError, IndexError, FileNotFoundError, SessionNotFound])
    async def test_missing_in_the_stores_own_words(self, missing: type[Exception], tmp_path: Path):
        """However a store says that a session is missing, the user reads the nearest names."""

        class Store(DatabaseStorage):
            async def load(self, name_or_path: str) -> SessionState:
                raise missing(name_or_path)

        store = Store(":memory:")
        await store.save(suite.a_state("todo-app"))
        with pytest.raises(SessionNotFound, match="did you mean 'todo-app'"):
            await AdaptedStorage(store, tmp_path).load("todo-ap")

    async def test_foreign_errors_are_translated(self, tmp_path: Path):
        """Whatever a store raises reaches the user as a StorageError that names the store and keeps the cause."""

        class Broken:
            async def save(self, state: SessionState, name: str | None = None) -> str:
                raise RuntimeError("connection lost")

            load = list = save

        store = AdaptedStorage(Broken(), tmp_path)  # pyright: ignore[reportArgumentType]
        state = suite.a_state("s")
        for asked in (store.save(state), store.load("s"), store.list(), store.append("s", state.journal, expect=0)):
            with pytest.raises(StorageError, match="Broken: ") as caught:
                await asked
            assert caught.value.__cause__ is not None

    async def test_a_store_that_drops_the_journal_is_told(self, tmp_path: Path):
        """A store that keeps only messages is refused before a turn is paid for on top of it."""

        class Lossy(DatabaseStorage):
            async def load(self, name_or_path: str) -> SessionState:
                state: SessionState = await super().load(name_or_path)
                return state.model_copy(update={"journal": ()})

        store = Lossy(":memory:")
        await store.save(suite.a_state("s"))
        with pytest.raises(StorageError, match="Lossy lost the journal"):
            await AdaptedStorage(store, tmp_path).read("s")

    async def test_uses_what_the_store_has(self, tmp_path: Path):
        """A store's own `append` and `exists` are called in place of load and save."""
        calls: list[str] = []

        class Appending(DatabaseStorage):
            async def append(self, name: str, events: Any, *, expect: int, deltas: Any = None) -> int:
                calls.append("append")
                return expect + len(events)

            async def exists(self, name: str) -> bool:
                calls.append("exists")
                return True

        store = AdaptedStorage(Appending(":memory:"), tmp_path)
        assert await store.append("s", suite.a_session("s"), expect=0) == 2
        assert await store.exists("never saved")
        assert calls == ["append", "exists"]

    async def test_remove_needs_a_store_that_removes(self, tmp_path: Path):
        """Removing from a store without `remove` says where to delete."""
        with pytest.raises(StorageError, match="DatabaseStorage has no `remove`"):
            await AdaptedStorage(DatabaseStorage(":memory:"), tmp_path).remove("s")


class TestOpenStorage:
    """Finding a store by its URL."""

    def test_default_is_the_users_own_directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """Without a URL sessions are in ~/.channelcoder/sessions, or where CHANNELCODER_SESSION_DIR says."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("CHANNELCODER_SESSION_DIR", raising=False)
        assert open_storage().url == f"file://{tmp_path}/.channelcoder/sessions"
        monkeypatch.setenv("CHANNELCODER_SESSION_DIR", f"{tmp_path}/elsewhere")
        assert open_storage().url == f"file://{tmp_path}/elsewhere"
        assert not any(tmp_path.iterdir()), "looking for a store makes nothing"

    def test_a_directorys_url_finds_it_again(self, tmp_path: Path):
        """Spaces, percent signs and what else is in a path survive the way through a URL."""
        store = open_storage(tmp_path / "a b%20c#d?é")
        found = open_storage(store.url)
        assert isinstance(store, FileSessionStorage)
        assert isinstance(found, FileSessionStorage)
        assert found.root == store.root

    def test_relative_paths_are_kept_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """A relative store stays the same one when the process changes its directory."""
        monkeypatch.chdir(tmp_path)
        assert open_storage("./sessions").url == f"file://{tmp_path}/sessions"

    def test_memory_is_found_while_it_is_held(self):
        """A store in memory is found by its URL in this process, and the error says so when it is gone."""
        store = open_storage("memory:")
        assert open_storage(store.url) is store
        assert open_storage("memory:") is not store
        with pytest.raises(StorageError, match="ends with its process"):
            open_storage("memory:0123")

    @pytest.mark.parametrize(
        "url", ["postgresql://db/x", "sqlite:///x.db", "s3://bucket", "redis://h", "https://x", "file://host/x"]
    )
    def test_other_stores_are_refused_by_name(self, url: str):
        """A URL of a store this version has not says what there is."""
        with pytest.raises(StorageError, match=re.escape(url)):
            open_storage(url)


class TestOpenSession:
    """A session in hand."""

    async def test_two_hands_on_one_session(self):
        """What one appends the other reads; who did not read is refused and can go on after reading."""
        store = MemorySessionStorage()
        one, two = OpenSession.new(store, "s"), OpenSession.new(store, "s")
        await two.refresh()
        await one.append(*suite.a_session("s"))
        with pytest.raises(SessionConflict):
            await two.append(*suite.a_session("s"))
        await two.refresh()
        await two.append(suite.a_turn("s", 2))
        await one.refresh()
        assert one.journal.events == two.journal.events == list(await store.read("s"))
        assert one.ref == two.ref
        assert (one.ref.seq, one.ref.store, one.ref.id) == (3, store.url, "claude-1")

    async def test_a_replaced_session_is_noticed(self, tmp_path: Path):
        """Who holds a session that was saved over meanwhile is told to load it again, and never mixes the two."""
        store = FileSessionStorage(tmp_path)
        held = OpenSession.new(store, "s")
        await held.append(*suite.a_session("s", turns=2))
        for turns in (1, 3):
            other = suite.a_session("s", turns=0) + tuple(suite.a_turn("s", n, text="other") for n in range(turns))
            await store.save(SessionState(metadata=suite.a_state("s").metadata, journal=other), "s")
            with pytest.raises(SessionConflict, match="load it again"):
                await held.refresh()

    async def test_a_cancelled_append_is_not_half_known(self):
        """Ctrl-C during an append: the event is in the store and in the hand, or in neither."""
        begun, go = asyncio.Event(), asyncio.Event()

        class Slow(MemorySessionStorage):
            async def append(self, *args: Any, **kwargs: Any) -> int:
                begun.set()
                await go.wait()
                return await super().append(*args, **kwargs)

        held = OpenSession.new(Slow(), "s")
        task = asyncio.create_task(held.append(*suite.a_session("s")))
        await begun.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.journal.events == list(await held.storage.read("s"))

    async def test_takes_its_new_name_along(self):
        """After a rename the session in hand has the new name, in its journal too."""
        held = OpenSession.new(MemorySessionStorage(), "s")
        await held.append(*suite.a_session("s"))
        await held.rename("t")
        await held.append(Attach(session_id="claude-2"))
        assert (held.name, held.journal.name, held.ref.seq) == ("t", "t", 3)
