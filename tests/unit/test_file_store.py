"""The store in a directory: what is on the disk, and what happens when the disk is not as it should be."""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import resource
import stat
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channelcoder_flows.errors import JournalDamaged, SessionConflict, SessionNotFound, StorageError
from channelcoder_flows.journal import FORMAT, Created, Event
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.filelock import new_file, try_lock
from channelcoder_flows.storage.journal_file import make_line, read_tail
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.testing.storage_conformance import NAMES, a_session, a_state, a_turn

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200).filter(
    str.strip
)


@pytest.fixture
def store(tmp_path: Path) -> FileSessionStorage:
    """An empty store."""
    return FileSessionStorage(tmp_path / "sessions")


async def filled(store: FileSessionStorage, name: str = "s") -> Path:
    """Save three events and two deltas, an append each, and return the session's directory."""
    state = a_state(name)
    for number, event in enumerate(state.journal):
        delta = {event.delta: state.deltas[event.delta]} if event.kind == "turn" and event.delta else None
        await store.append(name, [event], expect=number, deltas=delta)
    return store.root / directory_name(name)


class TestNames:
    """Session names as directories."""

    @given(names)
    @settings(deadline=None)
    def test_any_name_is_one_directory_of_the_store(self, name: str):
        """No name leaves the store, whatever it is made of, and the session is found by it again."""
        with tempfile.TemporaryDirectory() as outer:
            store = FileSessionStorage(Path(outer) / "sessions")
            asyncio.run(store.append(name, a_session(name), expect=0))
            assert os.listdir(outer) == ["sessions"]
            (directory,) = os.listdir(store.root)
            assert not directory.startswith(".")
            assert sorted(os.listdir(store.root / directory)) == ["journal.jsonl"]
            (info,) = asyncio.run(store.list())
            assert info.name == name
            assert info.path == str(store.root / directory)
            assert asyncio.run(store.load(name)).metadata.name == name

    @given(names, names)
    def test_two_names_are_two_directories_on_any_file_system(self, one: str, two: str):
        """Names that differ only in case or Unicode form do not meet where the file system folds them."""
        for other in (two, one.upper(), one.swapcase(), unicodedata.normalize("NFD", one), one + " ", one + "."):
            if other != one:
                assert directory_name(one).casefold() != directory_name(other).casefold()

    def test_plain_names_are_their_own_directory(self):
        """A name that can be a directory's is one, so a person finds the session with `ls`."""
        assert directory_name("feature-auth_2.1") == "feature-auth_2.1"
        assert directory_name("Fix login!").startswith("fix-login~")
        assert len({directory_name(name) for name in NAMES}) == len(NAMES)


class TestReadingOn:
    """Who has a part of a session reads the rest."""

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
    @settings(deadline=None)
    def test_reading_on_gives_the_rest(self, batches: list[int], data: st.DataObject):
        """From any number on, the events after it come back, however many each append held, past renames too."""

        async def check() -> None:
            with tempfile.TemporaryDirectory() as root:
                store, name, events = FileSessionStorage(root), "s", list(a_session("s", turns=0))
                await store.append(name, events, expect=0)
                for batch in batches:
                    if batch == 0:
                        await store.rename(name, name := name + "s")
                        events[0] = events[0].model_copy(update={"name": name})
                    added = [a_turn(name, len(events) + n, text="x" * 3000 * n) for n in range(batch)]
                    await store.append(name, added, expect=len(events))
                    events += added
                since = data.draw(st.integers(0, len(events) + 1))
                assert list(await store.read(name, since=since)) == events[since:]

        asyncio.run(check())

    async def test_reading_on_costs_what_was_added(self, store: FileSessionStorage, monkeypatch: pytest.MonkeyPatch):
        """A step of a long session reads what is new to it, not every answer that was ever given."""
        await store.append("s", a_session("s", turns=0), expect=0)
        for number in range(1, 40):
            await store.append("s", [a_turn("s", number, text="x" * 50_000)], expect=number)
        read, pread = [0], os.pread

        def counted(descriptor: int, length: int, offset: int) -> bytes:
            data = pread(descriptor, length, offset)
            read[0] += len(data)
            return data

        monkeypatch.setattr(os, "pread", counted)
        (last,) = await store.read("s", since=39)
        assert last == a_turn("s", 39, text="x" * 50_000)
        assert read[0] < 200_000


class TestDamage:
    """Torn and flipped bytes."""

    async def test_a_line_torn_anywhere_does_not_count(self, store: FileSessionStorage):
        """Cut at any byte of its last line, a journal has all events before it and takes the next one."""
        journal = await filled(store) / "journal.jsonl"
        whole = journal.read_bytes()
        last = whole.rindex(b"\n", 0, -1) + 1
        events = await store.read("s")
        for cut in range(last, len(whole)):
            journal.write_bytes(whole[:cut])
            assert await store.read("s") == events[:2]
            assert (await store.list())[0].turns == 1
            assert len((await store.load("s")).deltas) == 1
            await store.append("s", events[2:], expect=2)
            assert await store.read("s") == events

    async def test_a_first_line_torn_anywhere_is_no_session(self, store: FileSessionStorage):
        """A session whose first append was cut short was never there, and can begin."""
        journal = await filled(store) / "journal.jsonl"
        first = journal.read_bytes().partition(b"\n")[0]
        for cut in range(len(first) + 1):
            journal.write_bytes(first[:cut])
            assert not await store.exists("s")
            assert await store.list() == []
            with pytest.raises(SessionNotFound):
                await store.read("s")
        await store.append("s", a_session("s"), expect=0)
        assert len(await store.read("s")) == 2

    async def test_every_flipped_bit_of_a_journal_is_found(self, store: FileSessionStorage):
        """One bit flipped in any byte of a journal, its newlines too, and reading it names the file and the line."""
        journal = await filled(store) / "journal.jsonl"
        whole = journal.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            journal.write_bytes(flipped)
            line = whole[:position].count(b"\n") + 1
            for since in range(line):
                with pytest.raises(JournalDamaged) as caught:
                    await store.read("s", since=since)
                assert caught.value.file == str(journal)
                assert abs(caught.value.line - line) <= 1

    async def test_nothing_is_added_to_a_damaged_end(self, store: FileSessionStorage):
        """An append after a damaged last line is refused: a turn is never paid for on top of it."""
        journal = await filled(store) / "journal.jsonl"
        whole = journal.read_bytes()
        for position in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            journal.write_bytes(flipped)
            with pytest.raises((JournalDamaged, StorageError)):
                await store.append("s", [a_turn("s", 3)], expect=3)
            assert journal.read_bytes() == flipped

    async def test_missing_and_doubled_lines_are_found(self, store: FileSessionStorage):
        """Lines that were taken out, swapped or repeated are found, though each is whole."""
        journal = await filled(store) / "journal.jsonl"
        one, two, three = journal.read_bytes().splitlines(keepends=True)
        for lines in ([two, three], [one, three], [one, two, two], [one, three, two], [one, one, two, three]):
            journal.write_bytes(b"".join(lines))
            for since in (0, 2):
                with pytest.raises(JournalDamaged):
                    await store.read("s", since=since)

    async def test_damaged_deltas_are_found(self, store: FileSessionStorage):
        """A transcript delta that is flipped, cut or gone is an error and never half a transcript."""
        deltas = await filled(store) / "deltas.bin"
        whole = deltas.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for content in (bytes(flipped), whole[:-1], b""):
            deltas.write_bytes(content)
            with pytest.raises(JournalDamaged, match=r"deltas\.bin"):
                await store.load("s")
        deltas.unlink()
        with pytest.raises(JournalDamaged, match=r"deltas\.bin"):
            await store.load("s")

    async def test_a_damaged_session_does_not_hide_the_others(
        self, store: FileSessionStorage, caplog: pytest.LogCaptureFixture
    ):
        """The list shows a session with a damaged end by its directory's name, and a warning names the file."""
        journal = await filled(store, "broken") / "journal.jsonl"
        await filled(store, "sound")
        journal.write_bytes(b"not a journal\n")
        with caplog.at_level(logging.WARNING):
            assert {info.name for info in await store.list()} == {"broken", "sound"}
        assert str(journal) in caplog.text
        assert await store.exists("broken")
        await store.remove("broken")
        assert [info.name for info in await store.list()] == ["sound"]

    async def test_a_damaged_session_can_be_saved_over(self, store: FileSessionStorage):
        """A session put back from another copy with `save` is whole again, whatever its files were like."""
        directory = await filled(store)
        for file in (directory / "journal.jsonl", directory / "deltas.bin"):
            file.write_bytes(file.read_bytes().replace(b"1", b"2"))
        await store.save(a_state("s"))
        assert await store.load("s") == a_state("s")

    async def test_a_newer_version_is_refused_never_guessed_at(self, store: FileSessionStorage):
        """A journal of a later format says `upgrade`, is neither read nor written, and does not hide the others."""
        (created,) = a_session("s", turns=0)
        newer = created.model_copy(update={"format": FORMAT + 1})
        await store.append("s", [newer], expect=0)
        before = (store.root / "s" / "journal.jsonl").read_bytes()
        for asked in (store.read("s"), store.load("s"), store.append("s", [a_turn("s", 1)], expect=1)):
            with pytest.raises(StorageError, match="newer version"):
                await asked
        assert (store.root / "s" / "journal.jsonl").read_bytes() == before
        assert [info.name for info in await store.list()] == ["s"]

    async def test_what_cannot_be_read_again_is_not_written(self, store: FileSessionStorage):
        """An event that JSON cannot hold is refused before it makes the session unreadable."""
        await filled(store)
        for event in (a_turn("s", 3, text="\ud800"), a_turn("s", 3).model_copy(update={"cost_usd": float("nan")})):
            with pytest.raises(StorageError, match="cannot be kept as JSON"):
                await store.append("s", [event], expect=3)
        assert len(await store.read("s")) == 3


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to write any file past `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestDisk:
    """What the file system refuses, and what the store leaves on it."""

    async def test_a_full_disk_leaves_what_was_there(self, store: FileSessionStorage):
        """Wherever the disk fills up, the append fails as a whole, the session is as before, and goes on later."""
        directory = await filled(store)
        before = {file.name: file.read_bytes() for file in directory.iterdir()}
        data = os.urandom(6000)
        turn = a_turn("s", 3, text="long " * 500).model_copy(update={"delta": hashlib.sha256(data).hexdigest()})
        for limit in range(0, 4000, 250):
            for deltas in ({str(turn.delta): data}, {}):
                with file_size_limit(limit), pytest.raises(StorageError, match="saved before is intact"):
                    await store.append("s", [turn], expect=3, deltas=deltas)
                assert (directory / "journal.jsonl").read_bytes() == before["journal.jsonl"]
                assert len(await store.read("s")) == 3
        assert await store.append("s", [turn], expect=3, deltas={str(turn.delta): data}) == 4
        assert await store.delta("s", str(turn.delta)) == data

    async def test_a_full_disk_leaves_the_saved_session(self, store: FileSessionStorage):
        """A save that does not fit leaves the session that was there, and nothing beside it."""
        directory = await filled(store)
        before = await store.load("s")
        with file_size_limit(5000), pytest.raises(StorageError, match="File too large"):
            await store.save(a_state("s", turns=40), "s")
        assert await store.load("s") == before
        assert sorted(os.listdir(directory)) == ["deltas.bin", "journal.jsonl"]

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    async def test_nobody_else_reads_sessions(self, tmp_path: Path, umask: int):
        """Directories are 0700 and files 0600, whatever the umask."""
        old = os.umask(umask)
        try:
            store = FileSessionStorage(tmp_path / "home" / "sessions")
            await filled(store)
            async with store.lock("s"), store.lock("run/x"):
                paths = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
                modes = {path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in paths}
        finally:
            os.umask(old)
        assert {mode for path, mode in modes.items() if (tmp_path / path).is_dir()} == {0o700}
        files = {path: mode for path, mode in modes.items() if path.endswith((".jsonl", ".bin", ".lock"))}
        assert set(files.values()) == {0o600}
        assert len(files) >= 3

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the kernel's own count of bytes read")
    async def test_listing_never_reads_answers(self, store: FileSessionStorage):
        """A session with an answer of 20 MB is listed from less than 64 KB of it."""
        await store.append("s", (*a_session("s"), a_turn("s", 2, text="x" * 20_000_000)), expect=0)

        def bytes_read() -> int:
            return int(Path("/proc/self/io").read_text().split()[1])

        before = bytes_read()
        (info,) = await store.list()
        assert bytes_read() - before < 64_000
        assert (info.turns, info.message_count) == (2, 4)

    async def test_listing_sees_past_a_torn_end(self, store: FileSessionStorage):
        """A session whose last write was torn after a megabyte is listed as it was before."""
        directory = await filled(store)
        with (directory / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"events":[' + b"x" * 1_000_000)
        (info,) = await store.list()
        assert info.turns == 2

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs a directory of another user's")
    async def test_another_users_store_is_refused(self, store: FileSessionStorage):
        """Sessions are neither read from nor written to a directory that somebody else can change."""
        await filled(store)
        os.chown(store.root, 12345, 12345)
        for asked in (store.read("s"), store.list(), store.append("t", a_session("t"), expect=0), store.remove("s")):
            with pytest.raises(StorageError, match="another user's"):
                await asked

    async def test_links_are_not_followed(self, store: FileSessionStorage, tmp_path: Path):
        """A session directory or journal that is a link is refused: a store never writes elsewhere."""
        other = FileSessionStorage(tmp_path / "other")
        victim = await filled(other, "victim")
        store.root.mkdir(mode=0o700)
        (store.root / "linked").symlink_to(victim)
        (store.root / "inner").mkdir()
        (store.root / "inner" / "journal.jsonl").symlink_to(victim / "journal.jsonl")
        for name in ("linked", "inner"):
            for asked in (store.read(name), store.append(name, [a_turn("x", 3)], expect=3), store.remove(name)):
                with pytest.raises(StorageError, match="link"):
                    await asked
        assert len(await other.read("victim")) == 3
        assert [info.name for info in await store.list()] == ["inner"], "one link does not hide the other sessions"

    async def test_no_leftovers(self, store: FileSessionStorage):
        """What a killed `remove` left goes with the next write; locks leave nothing where there is no session."""
        await filled(store)
        trash = store.root / ".trash-0123"
        trash.mkdir()
        (trash / "journal.jsonl").write_text("old")
        async with store.lock("never begun"), store.lock("run/k"):
            pass
        await FileSessionStorage(store.root).append("t", a_session("t"), expect=0)
        assert sorted(os.listdir(store.root)) == ["s", "t"]

    async def test_a_save_that_runs_is_not_swept(self, store: FileSessionStorage):
        """What a killed `save` left goes with the next start; what another process is writing at that moment stays."""
        await filled(store)
        killed, running = store.root / ".new-s", store.root / ".new-t"
        killed.write_bytes(b"half a jour")
        with new_file(running):
            await FileSessionStorage(store.root).append("u", a_session("u"), expect=0)
            assert sorted(os.listdir(store.root)) == [".new-t", "s", "u"]

    async def test_saving_again_does_not_grow_the_store(self, store: FileSessionStorage):
        """Deltas that are there already are not written again by a save."""
        state = a_state("s", turns=5)
        await store.save(state)
        size = (store.root / "s" / "deltas.bin").stat().st_size
        for _ in range(3):
            await store.save(state)
        assert (store.root / "s" / "deltas.bin").stat().st_size == size == sum(map(len, state.deltas.values()))


class TestPlaces:
    """Sessions by path, and under new names."""

    @pytest.mark.parametrize("given", [lambda path: path, lambda path: path / "journal.jsonl"])
    async def test_a_copy_is_loaded_by_its_path(self, store: FileSessionStorage, given: Callable[[Path], Path]):
        """A session anywhere on the disk is loaded by its directory or its journal, true name and transcript too."""
        directory = await filled(store, "Two words")
        elsewhere = FileSessionStorage(store.root.parent / "elsewhere")
        assert await elsewhere.load(str(given(directory))) == await store.load("Two words")

    async def test_a_name_goes_before_a_path(self, store: FileSessionStorage, monkeypatch: pytest.MonkeyPatch):
        """A session is found by its name also where a path of that name exists."""
        await filled(store, "s")
        monkeypatch.chdir(store.root)
        await store.rename("s", "t")
        await filled(FileSessionStorage(store.root), "s")
        await store.append("s", [a_turn("s", 3)], expect=3)
        assert len((await store.load("s")).journal) == 4

    @pytest.mark.parametrize("asked", ["~nobody-here/x", "x/" * 90, "\U0001f680" * 200, "/proc/1/root/x"])
    async def test_what_is_no_path_is_not_found(self, store: FileSessionStorage, asked: str):
        """Text that can be no path, or one we may not look at, is a session that is not found."""
        with pytest.raises(SessionNotFound):
            await store.load(asked)

    async def test_a_rename_that_was_killed_halfway_has_not_happened(self, store: FileSessionStorage):
        """Killed between its two steps, a rename leaves the session whole under its old name."""
        directory = await filled(store, "Old name")
        journal = directory / "journal.jsonl"
        descriptor = os.open(journal, os.O_RDONLY)
        tail = read_tail(descriptor, journal)
        os.close(descriptor)
        assert tail
        with journal.open("ab") as file:
            file.write(make_line("New name", (), {}, tail, end=tail.summary.end))
        assert [info.name for info in await store.list()] == ["Old name"]
        assert not await store.exists("New name")
        await store.append("Old name", [a_turn("Old name", 3)], expect=3)
        assert (await store.load("Old name")).metadata.name == "Old name"
        assert (await store.load(str(directory))).metadata.name == "Old name"
        await store.rename("Old name", "New name")
        assert [info.name for info in await store.list()] == ["New name"]

    async def test_a_rename_takes_a_name_that_was_only_locked(self, store: FileSessionStorage):
        """The lock of a name where no session began does not keep another session from taking it."""
        await filled(store)
        async with store.lock("t"):
            await store.rename("s", "t")
        assert len(await store.read("t")) == 3

    async def test_a_lock_goes_along_with_its_session(self, store: FileSessionStorage):
        """A turn that runs while its session is renamed keeps the session locked under the new name."""
        await filled(store)
        async with store.lock("s"):
            await store.rename("s", "t")
            with pytest.raises(Exception, match="still in use by process"):
                async with store.lock("t", wait=0):
                    pass

    async def test_deltas_of_a_replaced_session_are_found(self, store: FileSessionStorage):
        """A delta is found after its session was saved over, and one that went is not."""
        old, new = a_state("s"), a_state("s").model_copy(update={"deltas": {}})
        await store.save(old, "s")
        for sha in old.deltas:
            assert await store.delta("s", sha) == old.deltas[sha]
        await store.remove("s")
        await store.save(new, "s")
        for sha in old.deltas:
            with pytest.raises(JournalDamaged):
                await store.delta("s", sha)


class TestLocks:
    """What happens between opening a file and holding its lock."""

    def test_a_lock_that_goes_with_its_file_has_one_holder(self, tmp_path: Path):
        """However often a lock file is removed by its holder while others open it, there is one holder at a time."""
        path, holders, most = tmp_path / "k" / "turn.lock", 0, 0

        def work() -> None:
            nonlocal holders, most
            for _ in range(1500):
                if (descriptor := try_lock(path)) is not None:
                    holders += 1
                    os.fstat(descriptor)  # lets the other threads in
                    most = max(most, holders)
                    holders -= 1
                    path.unlink(missing_ok=True)
                    os.close(descriptor)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    @pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs the kernel's list of waiting locks")
    async def test_a_writer_that_waited_writes_to_the_journal_that_is_there(self, store: FileSessionStorage):
        """A journal that is replaced while a writer waits for it gets the event, and not the file that is gone."""
        journal = await filled(store) / "journal.jsonl"
        held = journal.open("rb")
        fcntl.flock(held, fcntl.LOCK_EX)
        inode = f":{os.fstat(held.fileno()).st_ino} "
        append = asyncio.create_task(store.append("s", [a_turn("s", 3)], expect=3))
        while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
            await asyncio.sleep(0.001)
        copy = journal.with_suffix(".copy")
        copy.write_bytes(journal.read_bytes())
        copy.replace(journal)
        held.close()
        assert await append == 4
        assert len(await store.read("s")) == 4


async def test_a_journal_is_plain_json_lines(store: FileSessionStorage):
    """Each line is JSON that any tool reads, one append a line, with the figures of `list` in it."""
    directory = await filled(store)
    lines = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    assert [[event["kind"] for event in line["events"]] for line in lines] == [["session"], ["turn"], ["turn"]]
    assert [line["sum"]["totals"]["turns"] for line in lines] == [0, 1, 2]


async def test_reads_see_whole_appends_only(store: FileSessionStorage):
    """Who reads while another writes sees some number of whole appends, never a damaged journal."""
    first: Event = Created(name="s", session_id="claude-1")
    await store.append("s", [first], expect=0)

    async def write() -> None:
        for number in range(60):
            await store.append("s", [a_turn("s", 2 * number), a_turn("s", 2 * number + 1)], expect=1 + 2 * number)

    writer, seen = asyncio.create_task(write()), 0
    while not writer.done():
        events = await store.read("s")
        assert len(events) % 2 == 1
        assert len(events) >= seen
        seen = len(events)
        (info,) = await store.list()
        assert info.turns % 2 == 0
    await writer
    with pytest.raises(SessionConflict):
        await store.append("s", [a_turn("s", 1)], expect=seen + 99)
