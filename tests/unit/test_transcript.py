"""A transcript in pieces: what was added is all that is kept, and it adds up to every byte again."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows.errors import StorageError
from channelcoder_flows.transcript import (
    Mark,
    Piece,
    Transcript,
    added_since,
    grown_from,
    join,
    mark_of,
    marks_of,
    pack,
    slug,
    unpack,
)

PATHS = st.sampled_from(["", "subagents/a.jsonl", "tool-results/b.txt"])
GROWTH = st.dictionaries(PATHS, st.binary(min_size=1, max_size=40), min_size=1)
ID = "1c0f6a9e-0000-4000-8000-000000000001"


@given(st.lists(GROWTH, max_size=6))
def test_deltas_add_up(turns: list[dict[str, bytes]]) -> None:
    """However the files grow, the deltas of the first k turns are the files as they stood after turn k."""
    contents: dict[str, bytes] = {}
    deltas: list[bytes] = []
    for growth in turns:
        before = marks_of(contents)
        contents = {**contents, **{path: contents.get(path, b"") + data for path, data in growth.items()}}
        assert grown_from(contents, before)
        deltas.append(pack(added_since(contents, before)))
        assert sum(len(piece.data) for piece in unpack(deltas[-1])) == sum(map(len, growth.values()))
        assert join(deltas) == contents
        assert added_since(contents, marks_of(contents)) == []


@given(GROWTH, GROWTH)
def test_a_change_is_seen(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """A file that lost or changed a byte has not grown, and its delta holds the whole of it."""
    marks = marks_of(old)
    assert grown_from(new, marks) == all(new.get(path, b"").startswith(data) for path, data in old.items())
    whole = {**old, **new}
    assert join([pack(added_since(old, {})), pack(added_since(whole, marks))]) == whole


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_no_delta_leads_out(path: str) -> None:
    """A delta from a store that somebody tampered with cannot name a file outside the conversation."""
    with pytest.raises(StorageError, match="leads out"):
        unpack(pack([Piece(path, 0, b"x")]))


@pytest.mark.parametrize("data", [b"", b"no zlib", pack([])[:-3]])
def test_what_is_no_delta(data: bytes) -> None:
    """Damage is an error of ours."""
    with pytest.raises(StorageError, match="cannot be read"):
        unpack(data)


@pytest.fixture
def transcript(tmp_path: Path) -> Transcript:
    """A conversation of a directory that has none yet."""
    return Transcript(tmp_path / "config", tmp_path / "a b.ü", ID)


WHOLE = {"": b"one\n", "subagents/a.jsonl": b"two\n", "tool-results/b.txt": b"three"}


def test_lay_and_read(transcript: Transcript, tmp_path: Path) -> None:
    """What is laid is what is read, private, where Claude Code looks for it; nothing else of it stays."""
    assert transcript.read() == {}
    transcript.lay(WHOLE)
    assert transcript.read() == WHOLE
    home = tmp_path / "config" / "projects" / slug(tmp_path / "a b.ü")
    assert home.name.endswith("-a-b--")
    assert (home / f"{ID}.jsonl").read_bytes() == b"one\n"
    assert (home / ID / "tool-results" / "b.txt").read_bytes() == b"three"
    assert stat.S_IMODE((home / f"{ID}.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / ID).stat().st_mode) & 0o077 == 0
    transcript.lay({"": b"other\n"})
    assert transcript.read() == {"": b"other\n"}
    assert sorted(path.name for path in home.iterdir() if path.is_file()) == [f"{ID}.jsonl"]


def test_one_copy(transcript: Transcript, tmp_path: Path) -> None:
    """A conversation that lies under another directory's folder is found and kept there: two copies confuse the CLI."""
    elsewhere = Transcript(tmp_path / "config", tmp_path / "elsewhere", ID)
    elsewhere.lay({"": b"one\n"})
    assert transcript.read() == {"": b"one\n"}
    transcript.lay({"": b"one\ntwo\n", "tool-results/b.txt": b"three"})
    assert [path.parent for path in (tmp_path / "config").rglob("*.jsonl")] == [elsewhere.home]
    assert elsewhere.read() == transcript.read() == {"": b"one\ntwo\n", "tool-results/b.txt": b"three"}


def test_cut(transcript: Transcript) -> None:
    """A cut goes back to the marks: no byte more, no file more, and never an empty conversation."""
    transcript.lay(WHOLE)
    marks = marks_of(transcript.read())
    grown = {path: data + b"more" for path, data in WHOLE.items()} | {"tool-results/c.txt": b"new"}
    transcript.lay(grown)
    transcript.cut(marks)
    assert transcript.read() == WHOLE
    transcript.cut({"": Mark(0, mark_of(b"").sha256)})
    assert transcript.read() == {}


def test_mend(transcript: Transcript) -> None:
    """The line a killed process left half written goes; what is no list of lines is left alone."""
    transcript.lay({**WHOLE, "": b'{"a":1}\n{"b":', "subagents/a.jsonl": b'{"torn'})
    transcript.mend()
    assert transcript.read() == {"": b'{"a":1}\n', "tool-results/b.txt": b"three"}


def test_links_are_not_followed(transcript: Transcript, tmp_path: Path) -> None:
    """A link among the files is neither read nor written through."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    transcript.lay(WHOLE)
    side = transcript.home / ID / "tool-results"
    (side / "link.txt").symlink_to(secret)
    assert transcript.read() == WHOLE
    transcript.lay({**WHOLE, "tool-results/link.txt": b"ours"})
    assert secret.read_text() == "secret"
    assert (side / "link.txt").read_bytes() == b"ours"


def test_a_file_that_cannot_be_read(transcript: Transcript) -> None:
    """What the operating system refuses, here one more open file, is an error of ours that names the folder."""
    transcript.lay(WHOLE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot read .*projects"):
            transcript.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A configuration directory that is a file is an error of ours."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "projects").write_text("no folder")
    with pytest.raises(StorageError, match="cannot lay"):
        Transcript(tmp_path / "config", tmp_path, ID).lay(WHOLE)


def test_slug(tmp_path: Path) -> None:
    """A directory has one folder, by whatever way it is reached."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert slug(tmp_path / "link") == slug(tmp_path / "real") == slug(tmp_path / "x" / ".." / "real")
    assert set(slug(Path("/a.b/c_d/é"))) <= set("-abcd")
