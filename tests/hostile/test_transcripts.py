"""Damaged transcripts: each damage is seen before the next turn, which goes on with the whole conversation."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from channelcoder_flows import Session
from channelcoder_flows.conversation import Conversation
from channelcoder_flows.errors import JournalDamaged
from channelcoder_flows.journal import Interactive, Moved, Rewind, Turn
from channelcoder_flows.places.host import HostPlace
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.testing.storage_conformance import a_turn
from channelcoder_flows.transcript import MAIN, Contents, Transcript

Start = Callable[[Any], ScriptedModel]
FILES = (MAIN, "subagents/agent-a.jsonl", "tool-results/b1.txt", "tool-results/b2.txt")


class Kept:
    """A session of some turns whose transcript is on the disk, as after its last turn."""

    def __init__(self, root: Path, name: str, turns: int = 4) -> None:
        self.name, self.notices = name, list[str]()
        self.store = FileSessionStorage(root / "sessions")
        self.place = HostPlace(root, root / "config")
        self.whole: Contents = {}
        asyncio.run(self._fill(turns))

    async def _fill(self, turns: int) -> None:
        session = OpenSession.new(self.store, self.name)
        await session.begin()
        conversation = Conversation(session, self.place, self.notices.append)
        for number in range(1, turns + 1):
            for file in FILES[: number + 1]:
                line = {"type": "system", "of": self.name, "file": file, "turn": number, "text": "é𝄞 " * 20 * number}
                self.whole[file] = self.whole.get(file, b"") + json.dumps(line).encode() + b"\n"
            deltas: dict[str, bytes] = {}
            marks, delta = conversation.added(self.whole, deltas)
            turn = a_turn(self.name, number).model_copy(
                update={"session_id": session.session_id, "files": marks, "delta": delta}
            )
            await session.append(turn, deltas=deltas)
        self.files = Transcript(self.place.config_dir, self.place.cwd, session.session_id)
        self.files.lay(self.whole)

    def path(self, file: str) -> Path:
        """Return where a file of the transcript is."""
        side = self.files.home / self.files.session_id
        return side / file if file else side.with_suffix(".jsonl")

    def recover(self) -> list[str]:
        """Prepare the next turn, prove that it will have the whole conversation, and return what was said of it."""
        self.notices.clear()
        session = asyncio.run(OpenSession.load(self.store, self.name))
        contents = asyncio.run(Conversation(session, self.place, self.notices.append).lay())
        session_id = session.journal.session_id or ""
        assert contents == self.whole
        assert Transcript(self.place.config_dir, self.place.cwd, session_id).read() == self.whole
        assert [turn.text for turn in session.journal.turns] == [f"answer {n}" for n in range(1, 5)]
        self.files = Transcript(self.place.config_dir, self.place.cwd, session_id)
        return list(self.notices)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A session whose transcript is to be damaged."""
    return Kept(tmp_path, "s")


def test_an_intact_transcript_is_left_alone(kept: Kept):
    """Where nothing is wrong, nothing is said and no byte is written."""
    before = {file: kept.path(file).stat().st_mtime_ns for file in FILES}
    assert kept.recover() == []
    assert {file: kept.path(file).stat().st_mtime_ns for file in FILES} == before


def test_every_cut_is_seen(kept: Kept):
    """Cut at 200 places, in the conversation or beside it, a transcript is laid again in full, each time."""
    chance, seen = random.Random(20261122), Counter[str]()
    for number in range(200):
        file = MAIN if number < 140 else chance.choice(FILES)
        data = kept.whole[file]
        ends = [at + 1 for at, byte in enumerate(data) if byte == 10][:-1]
        cut = ends[number] if number < len(ends) else chance.randrange(len(data))
        os.truncate(kept.path(file), cut)
        seen.update(kept.recover())
    assert seen == {"the conversation is not here in full: laid again from the session's own copy": 200}


def changes(kept: Kept, other: Kept, seed: int, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and do what can happen to a transcript besides a cut."""
    chance = random.Random(seed)

    def write(file: str, data: bytes) -> Callable[[], object]:
        return lambda: kept.path(file).write_bytes(data)

    for _ in range(count):
        file = chance.choice(FILES)
        data = bytearray(kept.whole[file])
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield "bit flipped", write(file, bytes(data))
    for file in FILES:
        whole, lines = kept.whole[file], kept.whole[file].splitlines(keepends=True)
        yield "file gone", lambda file=file: kept.path(file).unlink()
        yield "another session's file", write(file, other.whole[file])
        yield "zeros", write(file, whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
        yield "lines reversed", write(file, b"".join(reversed(lines)) if len(lines) > 1 else b"\n" + whole)
        yield "first line doubled", write(file, lines[0] + whole if len(lines) > 1 else b"x" + whole)
        yield "Windows line ends", write(file, whole.replace(b"\n", b"\r\n"))


def test_every_change_is_seen(kept: Kept, tmp_path: Path):
    """Flipped, swapped, zeroed, gone: the turn goes on with the whole of it, and what was changed is left as it is."""
    for kind, change in changes(kept, Kept(tmp_path, "other"), 20261122, 40):
        before = kept.files
        change()
        theirs = before.read()
        assert len(kept.recover()) == 1, kind
        if kept.files.session_id != before.session_id:
            assert before.read() == theirs, f"{kind}: what another program wrote is gone"


@pytest.mark.torture
def test_hundreds_of_changes_are_seen(kept: Kept, tmp_path: Path, seed: int):
    """Three hundred bit flips, and a cut at every third byte of the conversation."""
    seen = Counter[str]()
    for kind, change in changes(kept, Kept(tmp_path, "other"), seed, 300):
        change()
        assert len(kept.recover()) == 1, kind
        seen[kind] += 1
    for cut in range(0, len(kept.whole[MAIN]), 3):
        os.truncate(kept.path(MAIN), cut)
        assert len(kept.recover()) == 1, cut
        seen["cut"] += 1
    print(dict(seen))


def test_what_is_added_without_words_is_taken_off(kept: Kept):
    """An end that cannot be read is cut off, and said so; Claude Code's own notes go without a word."""
    for more, notices in (
        (b'{"type":"user","torn', 1),
        (b"\0" * 99 + b"\n", 1),
        (b"[1]\n", 1),
        (b'{"type":"mode"}\n', 0),
    ):
        with kept.path(MAIN).open("ab") as file:
            file.write(more)
        assert len(kept.recover()) == notices
    deep = b'{"type":"user","message":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
    with kept.path(MAIN).open("ab") as file:
        file.write(deep)
    assert kept.recover() == [f"the end of the conversation cannot be read, and was cut off: {len(deep)} bytes"]


def test_swapped_transcripts_stay_apart(kept: Kept, tmp_path: Path):
    """Two sessions whose transcripts were swapped each go on with their own, under new Claude session ids."""
    other = Kept(tmp_path, "other")
    for file in FILES:
        ours, theirs = kept.path(file), other.path(file)
        ours.rename(tmp_path / "between")
        theirs.rename(ours)
        (tmp_path / "between").rename(theirs)
    ids = {kept.files.session_id, other.files.session_id}
    assert len(kept.recover()) == len(other.recover()) == 1
    assert not ids & {kept.files.session_id, other.files.session_id}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", ["link", "pipe", "folder of a link"])
def test_no_link_leads_out(kept: Kept, tmp_path: Path, file: str, what: str):
    """A link or pipe among the files is neither read nor written nor cut: what it leads to stays as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / kept.path(file).name
    victim.write_bytes(kept.whole[file] + b"the victim's own words\n")
    before = victim.read_bytes()
    place = kept.path(file)
    if what == "folder of a link":
        if file == MAIN:
            place, outside = kept.files.home / kept.files.session_id, tmp_path / "all"
            (outside / "tool-results").mkdir(parents=True)
        else:
            place = place.parent
        place.rename(tmp_path / "was")
        place.symlink_to(outside)
    else:
        place.unlink()
        os.mkfifo(place) if what == "pipe" else place.symlink_to(victim)
    others = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    assert len(kept.recover()) == 1
    assert victim.read_bytes() == before
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == others
    kept.files.cut({})
    assert victim.read_bytes() == before


def test_a_name_that_is_no_text(kept: Kept):
    """A file beside the conversation whose name no journal could hold is nobody's: the turn is kept all the same."""
    odd = os.fsencode(kept.path(FILES[2]).parent) + b"/\xff.txt"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    assert kept.recover() == []
    assert os.path.exists(odd)


def test_damaged_on_both_sides(kept: Kept):
    """With the session's own copy damaged too, the turn is refused, nothing is touched, and earlier turns are left."""
    deltas = kept.store.root / "s" / "deltas.bin"
    flipped = bytearray(deltas.read_bytes())
    flipped[-3] ^= 1
    deltas.write_bytes(flipped)
    assert kept.recover() == [], "an intact transcript needs no copy"
    os.truncate(kept.path(MAIN), 100)
    before = kept.files.read()
    with pytest.raises(JournalDamaged, match=r"deltas\.bin is damaged: put .*, or rewind"):
        kept.recover()
    assert kept.files.read() == before

    async def rewound() -> Contents:
        session = await OpenSession.load(kept.store, "s")
        await session.append(Rewind(to=3, session_id="1c0f6a9e-0000-4000-8000-000000000001", message_count=6))
        return await Conversation(session, kept.place, kept.notices.append).lay()

    contents = asyncio.run(rewound())
    assert all(kept.whole[file].startswith(data) for file, data in contents.items())
    assert json.loads(contents[MAIN].splitlines()[-1])["turn"] == 3


PASTE = "".join(f"line {number} of what was pasted\n" for number in range(400))
SCRIPT = [
    {"when": "Remember", "reply": [{"tool": "Bash", "input": {"command": "seq 20000"}}, "The word is quince."]},
    {"when": "Other", "reply": "Another conversation."},
    {"when": "Turn", "reply": "Noted."},
]


class Live(NamedTuple):
    """A session of the real CLI's, and the model that answers it."""

    model: ScriptedModel
    session: Session
    notices: list[str]

    def files(self) -> list[Path]:
        """Return all that Claude Code has of the conversation."""
        projects = Path(os.environ["CLAUDE_CONFIG_DIR"]) / "projects"
        return sorted(p for p in projects.rglob("*") if p.is_file() and str(self.session.id) in str(p))

    async def next_turn(self, damage: str) -> None:
        """Run a turn after the damage, and prove what the model was told."""
        said: list[str] = []
        asked = f"Turn after {damage}"
        async for chunk in self.session.stream(asked, tools="Bash"):
            if chunk.type == "notice":
                said.append(chunk.content)
        told = json.dumps(self.model.requests[-1].messages)
        assert "The word is quince." in told, damage
        assert "line 399 of what was pasted" in told, damage
        assert told.count("Remember") == 1, damage
        assert told.count(asked) == 1, damage
        assert len(said) == 1, (damage, said)
        self.notices.extend(said)


@pytest.fixture
async def live(scripted_model: Start, tmp_path: Path) -> Live:
    """A session whose one turn ran a tool with a large result."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    await session.claude(f"Remember this:\n{PASTE}", tools="Bash")
    return Live(model, session, [])


async def damage_and_go_on(live: Live, chance: random.Random, count: int) -> None:
    """Cut the conversation at random places, each time before a turn."""
    for number in range(count):
        main = next(path for path in live.files() if path.suffix == ".jsonl" and path.stem == live.session.id)
        os.truncate(main, cut := chance.randrange(main.stat().st_size))
        await live.next_turn(f"cut {number} at {cut}")


async def test_claude_gets_the_whole_conversation(live: Live):
    """Cut, flipped, gone, or the journal cut: the real CLI sends the model all that was said before, once."""
    await damage_and_go_on(live, random.Random(20261122), 1)
    (main,) = (path for path in live.files() if path.stem == live.session.id)
    flipped = bytearray(main.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    main.write_bytes(flipped)
    await live.next_turn("a flipped bit")
    for file in live.files():
        file.unlink()
    await live.next_turn("everything gone")
    assert [type(event) for event in live.session.opened.journal.events].count(Moved) == 1


@pytest.mark.parametrize("lines", [pytest.param(1, marks=pytest.mark.torture), 3])
async def test_a_turn_that_the_journal_lost_is_still_there(live: Live, tmp_path: Path, lines: int):
    """A journal that lost its last turn, and perhaps its intent: the next turn has it, and nothing is paid again."""
    journal = FileSessionStorage().root / "s" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-lines]))
    session = await Session.load("s", cwd=tmp_path)
    await live._replace(session=session).next_turn(f"a journal without its last {lines} lines")
    events = session.opened.journal.events
    first = next(event for event in events if isinstance(event, Interactive if lines == 3 else Turn))
    assert (first.messages[1].content if isinstance(first, Interactive) else first.text) == "The word is quince."
    assert live.model.paid("Remember") == 2  # the tool, and the answer


@pytest.mark.torture
async def test_claude_gets_the_whole_conversation_after_twenty_cuts(live: Live, tmp_path: Path, seed: int):
    """Twenty random cuts, and two sessions whose conversations were swapped, through the real CLI."""
    await damage_and_go_on(live, random.Random(seed), 20)
    other = Session("other", cwd=tmp_path)
    await other.claude("Other")
    (ours,) = (path for path in live.files() if path.stem == live.session.id)
    theirs = ours.with_name(f"{other.id}.jsonl")
    swapped = ours.read_bytes(), theirs.read_bytes()
    ours.write_bytes(swapped[1])
    theirs.write_bytes(swapped[0])
    await live.next_turn("a swap")
    await other.claude("Turn in the other")
    told = json.dumps(live.model.requests[-1].messages)
    assert "Another conversation." in told and "quince" not in told
    print(Counter(live.notices))
