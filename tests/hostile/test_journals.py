"""Damaged journals: what is read is what was acknowledged, or an error says which line is not; nothing is changed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import socket
import time
import tracemalloc
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from channelcoder_flows.errors import ChannelCoderError, JournalDamaged, SessionNotFound, StorageError
from channelcoder_flows.journal import FORMAT, Event
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.testing.storage_conformance import a_state, a_turn

NAME = "Fix login!"
MEMORY = 50_000_000
"""Bytes that a refusal may take."""
HUGE = 64 << 20
"""Bytes of a line that nobody should have to hold."""


class Damage(NamedTuple):
    """A journal that is not as it was written, and what may become of reading it."""

    kind: str
    data: bytes
    ends: tuple[str, ...] = ("refused",)


class Kept:
    """A store with a session of six lines, renamed on the way, and another one beside it."""

    def __init__(self, root: Path) -> None:
        self.store = FileSessionStorage(root)
        asyncio.run(self._fill())
        self.directory = root / directory_name(NAME)
        self.journal, self.deltas = self.directory / "journal.jsonl", self.directory / "deltas.bin"
        self.other = root / "other"
        self.whole = self.journal.read_bytes()
        self.lines = self.whole.splitlines(keepends=True)
        self.events = self.read()

    async def _fill(self) -> None:
        for name, last in (("first name", NAME), ("other", "other")):
            state = a_state(name, turns=4)
            for number, event in enumerate(state.journal):
                delta = {event.delta: state.deltas[event.delta]} if event.kind == "turn" and event.delta else None
                if number == 3 and name != last:
                    await self.store.rename(name, name := last)
                await self.store.append(name, [event], expect=number, deltas=delta)

    def read(self) -> list[Event]:
        """Read the session."""
        return list(asyncio.run(self.store.read(NAME)))

    def judge(self, damage: Damage, notices: pytest.LogCaptureFixture) -> str:
        """Hold a damaged journal to the promise; return what became of reading it."""
        self.journal.write_bytes(damage.data)
        notices.clear()
        end = self._read(notices)
        assert end in damage.ends, damage.kind
        assert self.journal.read_bytes() == damage.data, "reading changed the file"
        assert sorted(os.listdir(self.directory)) == ["deltas.bin", "journal.jsonl"]
        infos = asyncio.run(self.store.list())
        names = [info.name for info in infos if info.name != "other"]
        assert not names if end == "never began" else names in ([NAME], [self.directory.name])
        assert [(info.turns, info.cost_usd) for info in infos if info.name == "other"] == [(4, 0.4)]
        # What the list says of a session is what some line of it said, or nothing.
        assert all(info.cost_usd == round(0.1 * info.turns, 9) <= 0.4 for info in infos)
        return end

    def _read(self, notices: pytest.LogCaptureFixture) -> str:
        try:
            events = self.read()
        except SessionNotFound:
            assert b"\n" not in self.journal.read_bytes(), "a session that is there was not found"
            return "never began"
        except JournalDamaged as exc:
            assert exc.file == str(self.journal)
            assert exc.line or "is the journal of" in str(exc)
            assert ": put " in str(exc)
            return "refused"
        except StorageError as exc:
            assert str(self.journal) in str(exc)
            assert "upgrade" in str(exc)
            return "newer"
        if events == self.events:
            return "same"
        assert events == self.events[: len(events)], "what was read was never acknowledged"
        assert "left out" in notices.text or "no line of the journal names" in notices.text, "dropped without a word"
        return "cut"


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A session to be damaged, and its neighbour."""
    return Kept(tmp_path / "sessions")


def signed(body: bytes) -> bytes:
    """Return a line as a version that is not this one might write it: every sum in it is right."""
    total = body.rpartition(b',"sum":')[2]
    return b'%b,"crc":"%08x%08x"}\n' % (body, zlib.crc32(body), zlib.crc32(total))


def resigned(line: bytes, old: bytes, new: bytes) -> bytes:
    """Return a line with something else in it, and right sums."""
    assert old in line
    return signed(line.rpartition(b',"crc":')[0].replace(old, new))


def cuts(kept: Kept, choose: Callable[[int], list[int]]) -> Iterator[Damage]:
    """Cut at bytes, at each end of a line and beside it among them."""
    ends = [0, *itertools.accumulate(map(len, kept.lines))]
    for cut in {
        *choose(len(kept.whole)),
        *(end + beside for end in ends[:-1] for beside in (-1, 0, 1) if end + beside >= 0),
    }:
        # Before the line that renames it, it is a session of another name, in the wrong directory.
        end = "never began" if cut < ends[1] else "refused" if cut < ends[4] else "cut"
        yield Damage("cut", kept.whole[:cut], (end,))


def flips(kept: Kept, choose: Callable[[int], list[int]]) -> Iterator[Damage]:
    """Flip single bits."""
    for bit in choose(8 * len(kept.whole)):
        flipped = bytearray(kept.whole)
        flipped[bit // 8] ^= 1 << bit % 8
        yield Damage("bit flipped", bytes(flipped))


def lines(kept: Kept) -> Iterator[Damage]:
    """Take out, double, swap and replace whole lines, each of which is as it was written."""
    ours, theirs = kept.lines, (kept.other / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for n in range(len(ours)):
        last = n == len(ours) - 1
        yield Damage("line taken out", b"".join(ours[:n] + ours[n + 1 :]), ("cut",) if last else ("refused",))
        yield Damage("line doubled", b"".join(ours[: n + 1] + ours[n:]))
        yield Damage("another session's line", b"".join([*ours[:n], theirs[min(n, len(theirs) - 1)], *ours[n + 1 :]]))
        yield Damage("empty line", b"".join([*ours[:n], b"\n", *ours[n:]]))
    for n, m in itertools.combinations(range(len(ours)), 2):
        swapped = list(ours)
        swapped[n], swapped[m] = swapped[m], swapped[n]
        yield Damage("lines swapped", b"".join(swapped))
    yield Damage("lines reversed", b"".join(reversed(ours)))
    yield Damage("journals in a row", kept.whole + kept.whole)
    yield Damage("another session's journal", b"".join(theirs))


def bytes_of_all_kinds(kept: Kept) -> Iterator[Damage]:
    """What editors, power cuts and other programs make of a file."""
    whole, half = kept.whole, len(kept.whole) // 2
    yield Damage("untouched", whole, ("same",))
    yield Damage("zeros at the end", whole + b"\0" * 5000, ("same",))
    yield Damage("end is zeros", whole[:-700] + b"\0" * 700, ("cut",))
    yield Damage("zeros in the middle", whole[:half] + b"\0" * 64 + whole[half + 64 :])
    yield Damage("all zeros", b"\0" * len(whole), ("never began",))
    yield Damage("NUL in a text", whole.replace(b"answer 2", b"answ\0r 2"))
    yield Damage("invalid UTF-8", whole.replace(b"answer 2", b"answ\xff\xfe2"))
    yield Damage("BOM", b"\xef\xbb\xbf" + whole)
    yield Damage("Windows line ends", whole.replace(b"\n", b"\r\n"))
    yield Damage("UTF-16", whole.decode().encode("utf-16"))
    yield Damage("formatted", b"".join(json.dumps(json.loads(line)).encode() + b"\n" for line in kept.lines))
    yield Damage("edited by hand", whole.replace(b"answer 2", b"answer 3"))
    yield Damage("one JSON list", json.dumps([json.loads(line) for line in kept.lines]).encode() + b"\n")
    yield Damage("JSON of 20,000 levels", kept.lines[0] + b"[" * 20_000 + b"]" * 20_000 + b"\n")
    yield Damage("words after the end", whole + b"oops\n")
    yield Damage("words after the end, no newline", whole + b"oops", ("same",))
    yield Damage("only a newline", b"\n")
    yield Damage("compressed", gzip.compress(whole, mtime=0) + b"\n")
    yield Damage("wrong numbers, right sums", kept.lines[0] + resigned(kept.lines[1], b'"at":', b'"at":9' + b"9" * 30))


def of_the_future(kept: Kept) -> Iterator[Damage]:
    """What only a later version can have written."""
    *first, last = kept.lines
    before = b"".join(first)
    newer = {
        "a later format": (b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1)),
        "a much later format": (b'"format":%d' % FORMAT, b'"format":%d' % 10**12),
        "an unknown event": (b'"kind":"turn"', b'"kind":"telepathy"'),
        "an unknown field": (b'"kind":"turn"', b'"kind":"turn","mood":"good"'),
    }
    for kind, (old, new) in newer.items():
        yield Damage(kind, before + resigned(last, old, new), ("newer",))


def splices(kept: Kept, chance: random.Random, count: int) -> Iterator[Damage]:
    """Several random edits at once."""
    for _ in range(count):
        data = bytearray(kept.whole)
        for _ in range(chance.randint(1, 4)):
            at, length = chance.randrange(len(data)), chance.choice([1, 1, 8, 200, 1000])
            other = chance.randrange(len(data))
            new = chance.choice([b"", chance.randbytes(length), bytes(data[other : other + length]), b"\n"])
            data[at : at + chance.choice([0, length])] = new
        yield Damage("spliced", bytes(data), ("refused", "cut", "same", "never began"))


def corpus(kept: Kept, seed: int, *, every: bool) -> Iterator[Damage]:
    """All damages: of cuts, flips and splices, some or all."""
    chance = random.Random(seed)

    def choose(size: int) -> list[int]:
        return list(range(size)) if every else chance.sample(range(size), 60)

    yield from cuts(kept, choose)
    yield from flips(kept, choose)
    yield from lines(kept)
    yield from bytes_of_all_kinds(kept)
    yield from of_the_future(kept)
    yield from splices(kept, chance, 2000 if every else 60)


def test_no_damage_is_read_as_a_session(kept: Kept, caplog: pytest.LogCaptureFixture):
    """Cut, flipped, doubled, swapped, edited, from the future: never another conversation, and never without a word."""
    ends = Counter(kept.judge(damage, caplog) for damage in corpus(kept, 20261122, every=False))
    assert ends["refused"] > 150 and ends["cut"] > 30 and ends["newer"] == 4


@pytest.mark.torture
def test_no_damage_at_any_byte_is_read_as_a_session(kept: Kept, caplog: pytest.LogCaptureFixture, seed: int):
    """Every byte cut at, every bit flipped, two thousand random edits."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: Counter[str] = Counter()
    for damage in corpus(kept, seed, every=True):
        began = time.process_time()
        table[damage.kind][kept.judge(damage, caplog)] += 1
        slowest[damage.kind] = max(slowest[damage.kind], round(1e6 * (time.process_time() - began)))
    for kind, ends in table.items():
        print(f"{kind:32} {slowest[kind] / 1000:7.1f} ms of CPU at most  {dict(ends)}")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("a line of another program's", lambda line: b"x" * HUGE + b"\n"),
        ("a line that begins like ours", lambda line: line[:100] + b"x" * HUGE + b"\n"),
        (
            "a line with one byte changed",
            lambda line: resigned(line, b"answer 3", b"y" * HUGE).replace(b"yy", b"yz", 1),
        ),
        ("zeros without an end", lambda line: b"\0" * HUGE),
    ],
)
def test_a_huge_line_is_refused_without_holding_it(kept: Kept, kind: str, line: Callable[[bytes], bytes]):
    """A line of 64 MB that is not ours is refused, or left out at the end, in less memory than it takes."""
    kept.journal.write_bytes(b"".join(kept.lines[:4]) + line(kept.lines[4]))
    tracemalloc.start()
    began = time.process_time()
    try:
        if kind == "zeros without an end":
            assert len(kept.read()) == 3
        else:
            with pytest.raises(JournalDamaged, match=r"journal\.jsonl:5 is damaged"):
                kept.read()
        middle = time.process_time()
        assert len(asyncio.run(kept.store.list())) == 2
        print(f"{kind}: read {middle - began:.3f} s, list {time.process_time() - middle:.3f} s")
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_the_lines_before_the_damage_can_be_kept(kept: Kept):
    """The advice of the error helps: with only the lines before the damage, the session is as it was then."""
    kept.journal.write_bytes(kept.whole.replace(b"answer 4", b"answer 5"))
    with pytest.raises(JournalDamaged, match="keep only the lines before this one") as caught:
        kept.read()
    kept.journal.write_bytes(b"".join(kept.lines[: caught.value.line - 1]))
    assert kept.read() == kept.events[:4]
    asyncio.run(kept.store.append(NAME, [a_turn(NAME, 4)], expect=4))
    assert len(kept.read()) == 5


def test_early_journals_are_read(kept: Kept, caplog: pytest.LogCaptureFixture):
    """A journal of before `sum` had a CRC of its own is read, proven and gone on with."""
    early = b""
    for line in kept.lines:
        body = re.sub(rb'"at":\d+,"end"', b'"at":%d,"end"' % len(early), line.rpartition(b',"crc":')[0])
        early += b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))
    assert kept.judge(Damage("early", early, ("same",)), caplog) == "same"
    for bit in random.Random(1).sample(range(8 * len(early)), 60):
        flipped = bytearray(early)
        flipped[bit // 8] ^= 1 << bit % 8
        kept.journal.write_bytes(flipped)
        with pytest.raises(JournalDamaged):
            kept.read()
    kept.journal.write_bytes(early)
    asyncio.run(kept.store.append(NAME, [a_turn(NAME, 5)], expect=5))
    assert len(kept.read()) == 6


def test_journals_in_each_others_place(kept: Kept):
    """Two journals that were swapped are not taken for one another's: nobody goes on in the wrong conversation."""
    theirs = (kept.other / "journal.jsonl").read_bytes()
    kept.journal.write_bytes(theirs)
    (kept.other / "journal.jsonl").write_bytes(kept.whole)
    asked = [
        lambda: kept.store.read(NAME),
        lambda: kept.store.read("other"),
        lambda: kept.store.read("other", since=2),
        lambda: kept.store.load("other"),
        lambda: kept.store.append("other", [a_turn("other", 5)], expect=5),
        lambda: kept.store.rename("other", "third"),
    ]
    for ask in asked:
        with pytest.raises(JournalDamaged, match="is the journal of session"):
            asyncio.run(ask())
    assert {info.turns for info in asyncio.run(kept.store.list())} == {0}
    assert kept.journal.read_bytes() == theirs
    asyncio.run(kept.store.remove("other"))
    assert len(asyncio.run(kept.store.list())) == 1


def test_a_line_of_a_twin(tmp_path: Path):
    """A line of another session that fits to the byte is found by the name in it."""
    store = FileSessionStorage(tmp_path)
    for name in ("one", "two"):
        for number, event in enumerate(a_state(name, turns=3).journal):
            asyncio.run(store.append(name, [event], expect=number))
    one, two = ((tmp_path / name / "journal.jsonl").read_bytes().splitlines(keepends=True) for name in ("one", "two"))
    assert list(map(len, one)) == list(map(len, two))
    for number in range(len(one)):
        (tmp_path / "one" / "journal.jsonl").write_bytes(b"".join([*one[:number], two[number], *one[number + 1 :]]))
        for since in range(number + 1):
            with pytest.raises(JournalDamaged):
                asyncio.run(store.read("one", since=since))


def test_no_wrong_figure_is_listed(kept: Kept, caplog: pytest.LogCaptureFixture):
    """A bit flipped in what `list` reads is not shown as the session's cost, turns or times."""
    (true,) = (info for info in asyncio.run(kept.store.list()) if info.name == NAME)
    for position in range(kept.whole.rindex(b'"sum":'), len(kept.whole) - 1, 3):
        flipped = bytearray(kept.whole)
        flipped[position] ^= 1 << position % 8
        kept.journal.write_bytes(flipped)
        caplog.clear()
        (info,) = (info for info in asyncio.run(kept.store.list()) if info.name != "other")
        assert info == true or (info.turns == info.cost_usd == 0 and str(kept.journal) in caplog.text)


def test_deltas_that_are_not_ours(kept: Kept):
    """Deltas swapped, flipped, cut or gone: what was said is readable, and no half transcript is handed out."""
    own, theirs = kept.deltas.read_bytes(), (kept.other / "deltas.bin").read_bytes()
    ids = [event.delta for event in kept.events if event.kind == "turn" and event.delta]
    flipped = bytearray(own)
    flipped[-1] ^= 1
    for data in (theirs, bytes(flipped), own[:-1], b"", None):
        kept.deltas.unlink()
        if data is not None:
            kept.deltas.write_bytes(data)
        assert kept.read() == kept.events
        for number, sha256 in enumerate(ids):
            if data in (bytes(flipped), own[:-1]) and number < len(ids) - 1:
                asyncio.run(kept.store.delta(NAME, sha256))  # what is intact is there
                continue
            with pytest.raises(JournalDamaged, match=r"deltas\.bin is damaged: put"):
                asyncio.run(kept.store.delta(NAME, sha256))
        kept.deltas.write_bytes(own)


def test_a_cut_journal_costs_no_transcript(kept: Kept):
    """A turn recorded on top of a journal that lost its end leaves the lost turns' bytes where they are."""
    own = kept.deltas.read_bytes()
    for left in (b"".join(kept.lines[:-1]), b""):
        kept.journal.write_bytes(left)
        state = a_state(NAME, turns=4)
        (sha256, data), *_ = state.deltas.items()
        turn = a_turn(NAME, 4).model_copy(update={"delta": sha256})
        if left:
            asyncio.run(kept.store.append(NAME, [turn], expect=4, deltas={sha256: data}))
        else:
            asyncio.run(kept.store.append(NAME, [state.journal[0], turn], expect=0, deltas={sha256: data}))
        assert kept.deltas.read_bytes().startswith(own)
        assert asyncio.run(kept.store.delta(NAME, sha256)) == data
    kept.deltas.write_bytes(own)
    kept.journal.write_bytes(kept.whole)
    assert kept.read() == kept.events
    assert len(asyncio.run(kept.store.load(NAME)).deltas) == 4


def a_pipe(file: Path) -> None:
    """Put a pipe there, which nobody writes to."""
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    """Put a folder there."""
    file.mkdir()


def a_link(file: Path) -> None:
    """Put a link to another session's file there."""
    file.symlink_to(file.parent.parent / "other" / file.name)


def a_socket(file: Path) -> None:
    """Put a socket there; its path may be long."""
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        here = os.getcwd()
        os.chdir(file.parent)
        try:
            listening.bind(file.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("make", [a_pipe, a_folder, a_link, a_socket])
@pytest.mark.parametrize("name", ["journal.jsonl", "deltas.bin"])
def test_what_is_no_file(kept: Kept, make: Callable[[Path], None], name: str):
    """A pipe, folder, link or socket in a file's place is an error that names it, at once; nothing goes through it."""
    theirs = {file: file.read_bytes() for file in kept.other.iterdir()}
    (kept.directory / name).unlink()
    make(kept.directory / name)
    delta = next(event.delta for event in kept.events if event.kind == "turn" and event.delta)
    more = hashlib.sha256(b"more").hexdigest()
    turn = a_turn(NAME, 5).model_copy(update={"delta": more})
    asked: list[Any] = [kept.store.delta(NAME, delta), kept.store.load(NAME)]
    asked += [kept.store.append(NAME, [turn], expect=5, deltas={more: b"more"})]
    asked += [kept.store.read(NAME), kept.store.rename(NAME, "third")] if name == "journal.jsonl" else []
    for ask in asked:
        with pytest.raises(StorageError, match=r"no plain file|is a link") as caught:
            asyncio.run(asyncio.wait_for(ask, 20))
        assert str(kept.directory / name) in str(caught.value)
    assert len(asyncio.run(kept.store.list())) == 2
    assert {file: file.read_bytes() for file in kept.other.iterdir()} == theirs


def test_a_damaged_session_is_removed_by_the_name_that_the_list_shows(kept: Kept):
    """Whatever its end is like, a session is listed under its own name while the journal tells it, and goes by it."""
    for data in (kept.whole[:-30] + b"\n", b"\0" * 9000 + kept.lines[-1][1:]):
        kept.journal.write_bytes(data)
        assert {info.name for info in asyncio.run(kept.store.list())} == {NAME, "other"}
    asyncio.run(kept.store.remove(NAME))
    assert [info.name for info in asyncio.run(kept.store.list())] == ["other"]


def test_a_folder_whose_name_is_no_text(kept: Kept):
    """A folder with a name that is not UTF-8 does not hide the sessions beside it."""
    folder = os.fsencode(kept.store.root) + b"/odd-\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "journal.jsonl").write_bytes(kept.whole)
    infos = asyncio.run(kept.store.list())
    assert {info.name for info in infos} == {NAME, "other", "odd-\\xff"}
    assert all(info.model_dump_json() for info in infos)


def test_refusals_are_errors_of_ours(kept: Kept):
    """Random bytes in place of both files never come out as anything but an error of this package."""
    chance = random.Random(7)
    for _ in range(40):
        kept.journal.write_bytes(chance.randbytes(chance.randint(0, 5000)) + b"\n")
        kept.deltas.write_bytes(chance.randbytes(300))
        for ask in (kept.store.read(NAME), kept.store.read(NAME, since=2), kept.store.load(NAME)):
            with pytest.raises(ChannelCoderError):
                asyncio.run(ask)
        assert asyncio.run(kept.store.exists(NAME))
