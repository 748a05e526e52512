"""Claude Code's transcript of a conversation, as files: take what is new, lay what is kept, cut what failed.

A conversation is `<config>/projects/<slug of the directory>/<id>.jsonl`, and what its tools and subagents left under
`<id>/`. All of it only ever grows (measured on Claude Code 2.1.330), so a turn is the bytes it added: its delta.
Paths here are relative to `<id>/`; the conversation itself is the empty path. All of it blocks: run it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from channelcoder_flows.errors import StorageError

MAIN = ""
SLUG_LIMIT = 200
Contents = dict[str, bytes]
"""A whole transcript: the bytes of each file, by path."""


class Mark(NamedTuple):
    """Where one file stands: its length in bytes, and the hash of all of it."""

    length: int
    sha256: str


class Piece(NamedTuple):
    """What was added to one file: `data` belongs at `offset` (0: the whole file)."""

    path: str
    offset: int
    data: bytes


def slug(directory: Path) -> str:
    """Return the name of a directory's folder under `projects`, by Claude Code's rule."""
    real = unicodedata.normalize("NFC", os.path.realpath(directory))
    # Longer ones end in a hash of Claude Code's own; it finds a conversation in any folder, so we do without.
    return re.sub("[^a-zA-Z0-9]", "-", real)[:SLUG_LIMIT]


def mark_of(data: bytes) -> Mark:
    """Return where a file of these bytes stands."""
    return Mark(len(data), hashlib.sha256(data).hexdigest())


def marks_of(contents: Contents) -> dict[str, Mark]:
    """Return where each file stands."""
    return {path: mark_of(data) for path, data in contents.items()}


class Transcript:
    """The files of one conversation under a Claude Code configuration directory."""

    def __init__(self, config_dir: Path, cwd: Path, session_id: str) -> None:
        self.projects = config_dir / "projects"
        self.home = self.projects / slug(cwd)
        self.session_id = session_id

    def read(self) -> Contents:
        """Return what is there now; empty when there is no such conversation.

        Raises:
            StorageError: it cannot be read.
        """
        with self._translated("read"):
            return {path: _read(file) for path, file in self._files()}

    def mend(self) -> None:
        """Cut off the line that a killed process left half written: the next one would be appended to it, and lost.

        Raises:
            StorageError: it cannot be cut.
        """
        torn = {path: data for path, data in self.read().items() if _is_lines(path) and not data.endswith(b"\n")}
        with self._translated("mend"):
            for path, file in list(self._files()):
                if path in torn:
                    _truncate(file, torn[path].rfind(b"\n") + 1)

    def lay(self, contents: Contents) -> None:
        """Put exactly these files in place, each whole or not at all, and no others of this conversation.

        Raises:
            StorageError: they cannot be written.
        """
        with self._translated("lay"):
            for path, file in list(self._files()):
                if path not in contents:
                    file.unlink()
            targets = dict(self._files())
            for path, data in contents.items():
                self._unlink_folders(path)
                _write_whole(targets.get(path, self._home_of(path)), data)

    def cut(self, marks: Mapping[str, Mark]) -> None:
        """Cut every file back to its mark, and take away those that have none.

        Raises:
            StorageError: they cannot be cut.
        """
        with self._translated("cut back"):
            for path, file in list(self._files()):
                if path not in marks:
                    file.unlink()
                elif file.stat().st_size > marks[path].length:
                    _truncate(file, marks[path].length)

    @contextmanager
    def _translated(self, work: str) -> Generator[None]:
        try:
            yield
        except OSError as exc:
            raise StorageError(
                f"cannot {work} conversation {self.session_id} under {self.projects}: {exc.strerror or exc}"
            ) from exc

    def _home_of(self, path: str) -> Path:
        return self.home / self.session_id / path if path else self.home / f"{self.session_id}.jsonl"

    def _unlink_folders(self, path: str) -> None:
        """Take away links where the conversation's own folders belong: what is laid would land elsewhere."""
        folder = self.home
        for name in self._home_of(path).relative_to(self.home).parts[:-1]:
            folder /= name
            if folder.is_symlink():
                folder.unlink()

    def _files(self) -> Iterator[tuple[str, Path]]:
        if not self.projects.is_dir():
            return
        folders = sorted(self.projects.iterdir(), key=lambda folder: folder != self.home)
        for folder in folders:
            main = folder / f"{self.session_id}.jsonl"
            if main.is_file() and not main.is_symlink():
                yield MAIN, main
                break
        for folder in folders:
            side = folder / self.session_id
            if side.is_dir() and not side.is_symlink():
                for file in sorted(side.rglob("*")):
                    path = file.relative_to(side).as_posix()
                    # Claude Code's own files have names that are text; another's is nothing a journal could name.
                    if file.is_file() and not file.is_symlink() and _is_text(path):
                        yield path, file


def _is_lines(path: str) -> bool:
    return path == MAIN or path.endswith(".jsonl")


def _is_text(path: str) -> bool:
    return path.encode("utf-8", "replace") == os.fsencode(path)


def _read(file: Path) -> bytes:
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
        return opened.read()


def _truncate(file: Path, length: int) -> None:
    # Claude Code takes an empty conversation for one that another process has just begun.
    if length:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_NOFOLLOW), "wb") as opened:
            opened.truncate(length)
    else:
        file.unlink()


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for nobody but the user, whatever the umask."""
    # `mkdir(parents=True)` makes only the last one private.
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _write_whole(file: Path, data: bytes) -> None:
    make_private(file.parent)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def grown_from(contents: Contents, marks: Mapping[str, Mark]) -> bool:
    """Return whether `contents` is what stood at `marks`, with nothing lost or changed and perhaps more added."""
    for path, mark in marks.items():
        data = contents.get(path)
        if data is None or mark_of(data[: mark.length]) != mark:
            return False
    return True


def added_since(contents: Contents, marks: Mapping[str, Mark]) -> list[Piece]:
    """Return what `contents` holds beyond `marks`; a file that did more than grow comes whole."""
    pieces: list[Piece] = []
    for path, data in contents.items():
        mark = marks.get(path, Mark(0, ""))
        if mark.length and mark_of(data[: mark.length]) != mark:
            pieces.append(Piece(path, 0, data))
        elif len(data) > mark.length or path not in marks:
            pieces.append(Piece(path, mark.length, data[mark.length :]))
    return pieces


def pack(pieces: Iterable[Piece]) -> bytes:
    """Return pieces as one compressed delta."""
    kept = list(pieces)
    header = json.dumps([[piece.path, piece.offset, len(piece.data)] for piece in kept]).encode()
    return zlib.compress(b"\n".join([header, b"".join(piece.data for piece in kept)]))


def unpack(delta: bytes) -> list[Piece]:
    """Return the pieces of a delta.

    Raises:
        StorageError: it is no delta of ours.
    """
    try:
        header, _, data = zlib.decompress(delta).partition(b"\n")
        pieces: list[Piece] = []
        at = 0
        for path, offset, length in json.loads(header):
            pieces.append(Piece(check_path(path), offset, data[at : at + length]))
            at += length
    except (zlib.error, ValueError, TypeError) as exc:
        raise StorageError(f"a transcript delta cannot be read: {exc}") from exc
    return pieces


def check_path(path: str) -> str:
    """Return `path` when it stays inside the conversation's own folder.

    Raises:
        ValueError: it would lead out of it.
    """
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{path!r} leads out of the conversation")
    return path


def join(deltas: Iterable[bytes]) -> Contents:
    """Return the whole transcript that these deltas, in their order, add up to."""
    files: dict[str, bytearray] = {}
    for delta in deltas:
        for piece in unpack(delta):
            file = files.setdefault(piece.path, bytearray())
            file[piece.offset :] = piece.data
    return {path: bytes(data) for path, data in files.items()}
