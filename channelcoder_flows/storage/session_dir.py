"""One session's directory: its journal and its deltas, changed only under the journal's lock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from channelcoder_flows.errors import JournalDamaged, SessionExists, StorageError
from channelcoder_flows.journal import Event, Journal, SessionState
from channelcoder_flows.storage.base import conflict, with_name
from channelcoder_flows.storage.disk import (
    create_private,
    is_at,
    open_private,
    remove_file,
    replace_file,
    sync_directory,
    write_at,
)
from channelcoder_flows.storage.filelock import new_file
from channelcoder_flows.storage.journal_file import (
    NOTHING,
    DeltaIndex,
    Line,
    Summary,
    Tail,
    check_tail,
    damaged,
    events_of,
    find_deltas,
    make_line,
    misplaced,
    nothing_collected,
    read_back,
    read_lines,
    read_tail,
)
from channelcoder_flows.storage.names import directory_name

JOURNAL: Final = "journal.jsonl"
DELTAS: Final = "deltas.bin"
NEW: Final = ".new-"
"""Beside the sessions' directories: a journal that is written to take another one's place."""
TURN_LOCK: Final = "turn.lock"
_NAME: Final = re.compile(rb'"name":("(?:[^"\\]|\\.)*")')
_GLANCE: Final = 4096
"""Bytes at each end of a damaged journal in which its name is looked for."""

_log = logging.getLogger(__name__)


class SessionDirectory:
    """The files of one session. A session that never began, or is gone, is a `FileNotFoundError`.

    Args:
        path: the directory.
        in_store: whether the directory is called after its session, as it is in a store; a copy may lie anywhere.
    """

    def __init__(self, path: Path, *, in_store: bool = True) -> None:
        self.path = path
        self.in_store = in_store
        self.journal = path / JOURNAL
        self._index: tuple[int, DeltaIndex] = (0, {})
        """How much of the journal was searched for deltas, and what was found."""

    @property
    def deltas(self) -> Path:
        """The file of the transcript deltas."""
        return self.path / DELTAS

    @property
    def turn_lock(self) -> Path:
        """The file that is locked while a turn runs."""
        return self.path / TURN_LOCK

    def summary(self) -> Summary:
        """Return what the last line says of the session, from a bounded read. Raises `JournalDamaged`."""
        descriptor = open_private(self.journal, os.O_RDONLY)
        try:
            return self._tail(descriptor).summary
        finally:
            os.close(descriptor)

    def begun(self) -> bool:
        """Return whether there is a session; one that is damaged or of a newer version is one."""
        try:
            self.summary()
        except FileNotFoundError:
            return False
        except (JournalDamaged, StorageError):
            return True
        return True

    def name(self, summary: Summary) -> str:
        """Return the session's name: the one of its last two that the directory is called after.

        Raises:
            JournalDamaged: in a store, it is called after neither: the journal is another session's.
        """
        names = (summary.totals.name, summary.was, *(() if self.in_store else (self.path.name,)))
        found = next((name for name in names if directory_name(name) == self.path.name), None)
        if found is None and self.in_store:
            raise misplaced(self.journal, summary.totals.name)
        return found or summary.totals.name

    def likely_name(self) -> str:
        """Return the session's name as far as a damaged journal still tells it, else that of its directory."""
        with suppress(OSError, StorageError):
            descriptor = open_private(self.journal, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                ends = os.pread(descriptor, _GLANCE, 0) + os.pread(descriptor, _GLANCE, max(0, size - _GLANCE))
            finally:
                os.close(descriptor)
            for text in _NAME.findall(ends):
                with suppress(ValueError):
                    name: str = json.loads(text)
                    # The directory is the proof: no other name has it.
                    if directory_name(name) == self.path.name:
                        return name
        return self.path.name

    def append(self, name: str, events: Sequence[Event], expect: int, deltas: Mapping[str, bytes]) -> None:
        """Add events after number `expect`: the deltas are durable before the line that names them.

        Raises:
            SessionConflict: the session is not at `expect`.
        """
        try:
            with self._locked(create=not expect) as journal:
                before = self._tail(journal) if expect else read_tail(journal, self.journal) or NOTHING
                check_tail(journal, before, self.journal)
                if before.summary.seq != expect:
                    raise conflict(name, expect, before.summary.seq)
                index, end = self._write_deltas(deltas, before.summary.end)
                write_at(journal, make_line(name, events, index, before, end=end), before.end)
                if not expect:
                    self._sync_names(journal, before.end)
        except FileNotFoundError:
            if expect:
                raise conflict(name, expect, 0) from None
            raise

    def read(self, since: int = 0) -> tuple[Event, ...]:
        """Return the events after number `since`. Raises `JournalDamaged`.

        Only the lines that hold them are read and checked; for 0 that is all of the journal.
        """
        with self._locked(shared=True) as journal, nothing_collected():
            try:
                lines = read_back(journal, self._tail(journal), since, self.journal) if since else None
            except JournalDamaged:
                lines = None  # reading all of it says which line
            if lines is None:
                lines = self._lines(journal)
            return tuple(self._events(lines, since))

    def state(self) -> SessionState:
        """Return the whole session, deltas included. Raises `JournalDamaged`."""
        with self._locked(shared=True) as journal:
            lines = self._lines(journal)
            events = with_name(self._events(lines, 0), self.name(lines[-1].summary))
            index = self._search(journal, 0, {})
            return Journal(events).state({sha256: self._read_delta(index, sha256) for sha256 in index})

    def delta(self, sha256: str) -> bytes:
        """Return one delta. Raises `JournalDamaged`."""
        with self._locked(shared=True) as journal:
            self._tail(journal)
            try:
                return self._read_delta(self._search(journal, *self._index), sha256)
            except JournalDamaged:
                # The journal may have been replaced since it was searched.
                return self._read_delta(self._search(journal, 0, {}), sha256)

    def replace(self, name: str, events: Sequence[Event], deltas: Mapping[str, bytes]) -> None:
        """Put another journal in the place of this one, in one step; deltas that are there stay where they are."""
        new = self.path.parent / f"{NEW}{self.path.name}"
        with self._locked(create=True) as journal:
            index = self._search(journal, 0, {})
            known = {sha256: index[sha256] for sha256 in deltas if self._has(index, sha256)}
            end = self.deltas.stat().st_size if self.deltas.exists() else 0
            added, end = self._write_deltas({key: data for key, data in deltas.items() if key not in known}, end)
            with new_file(new) as descriptor:
                write_at(descriptor, make_line(name, events, known | added, NOTHING, end=end), 0)
                replace_file(new, self.journal)
            sync_directory(self.path)
            sync_directory(self.path.parent)

    def move(self, target: SessionDirectory, new: str) -> None:
        """Become the session `new` in the directory `target`.

        The name is written first, beside the old one: which of the two counts is told by the directory, so a kill
        between the two steps leaves the old name.

        Raises:
            SessionExists: there is a session in `target`.
        """
        taken = SessionExists(f"there is a session {new!r} already: choose another name", name=new)
        with self._locked() as journal:
            before = self._tail(journal)
            check_tail(journal, before, self.journal)
            try:
                target.clear()
                write_at(journal, make_line(new, (), {}, before, end=before.summary.end), before.end)
                self.path.rename(target.path)
            except OSError as exc:
                os.ftruncate(journal, before.end)
                if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise taken from None
                raise
            sync_directory(target.path.parent)

    def leave(self, path: Path) -> None:
        """Move the directory out of the store's names, to `path` beside it: from here on there is no such session."""
        with self._locked():
            if not self.begun():
                raise self._never_began()
            self.path.rename(path)
            sync_directory(path.parent)

    def clear(self) -> None:
        """Take away what a session that never began has left: its lock, an empty journal.

        Raises:
            OSError: `ENOTEMPTY`: there is a session.
        """
        with suppress(FileNotFoundError), self._locked():
            if self.begun():
                raise OSError(errno.ENOTEMPTY, "there is a session", str(self.path))
            for name in (DELTAS, JOURNAL):
                remove_file(self.path / name)
        if self.path.exists():
            remove_file(self.turn_lock)
            self.path.rmdir()

    @contextmanager
    def _locked(self, *, create: bool = False, shared: bool = False) -> Generator[int]:
        """Open the journal and hold `flock` on it, waiting for whoever is writing.

        The file may be replaced, moved or removed while we wait: then it is opened again.
        """
        while True:
            if create:
                descriptor = create_private(self.journal)
            else:
                descriptor = open_private(self.journal, os.O_RDONLY if shared else os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                if is_at(descriptor, self.journal):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _sync_names(self, journal: int, before: int) -> None:
        """Make it durable that there is a session; if that fails, cut the journal back to `before`: there is none."""
        try:
            sync_directory(self.path)
            sync_directory(self.path.parent)
        except OSError:
            with suppress(OSError):
                os.ftruncate(journal, before)
            raise

    def _tail(self, descriptor: int) -> Tail:
        tail = read_tail(descriptor, self.journal)
        if tail is None:
            raise self._never_began()
        self.name(tail.summary)
        return tail

    def _lines(self, descriptor: int) -> list[Line]:
        lines = list(read_lines(descriptor, self.journal))
        if not lines:
            raise self._never_began()
        summary = lines[-1].summary
        self.name(summary)
        with suppress(OSError):
            if (more := self.deltas.lstat().st_size - summary.end) > 0:
                _log.warning(
                    "%s has %d bytes that no line of the journal names: a write was interrupted, or lines were cut off",
                    self.deltas,
                    more,
                )
        return lines

    def _never_began(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, "the session never began", str(self.journal))

    def _events(self, lines: Iterable[Line], since: int) -> Iterator[Event]:
        for line in lines:
            if line.summary.seq > since:
                yield from events_of(line, self.journal)[max(0, since - line.after) :]

    def _search(self, journal: int, begin: int, known: DeltaIndex) -> DeltaIndex:
        searched, found = find_deltas(journal, begin)
        index = known | found
        self._index = (searched, index)
        return index

    def _has(self, index: DeltaIndex, sha256: str) -> bool:
        try:
            self._read_delta(index, sha256)
        except JournalDamaged:
            return False
        return True

    def _read_delta(self, index: DeltaIndex, sha256: str) -> bytes:
        try:
            offset, length = index[sha256]
            descriptor = open_private(self.deltas, os.O_RDONLY)
        except (KeyError, FileNotFoundError):
            raise damaged(self.deltas, otherwise="rewind the session to an earlier turn") from None
        try:
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(self.deltas, otherwise="rewind the session to an earlier turn")
        return data

    def _write_deltas(self, deltas: Mapping[str, bytes], end: int) -> tuple[DeltaIndex, int]:
        """Add deltas, durably; return where they stand, and the new end of what belongs to the session.

        They stand after all that is there: past the old end there may be more than a write that was interrupted, when
        the journal was cut.
        """
        if not deltas:
            return {}, end
        descriptor = open_private(self.deltas, os.O_RDWR | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            if size < end:
                raise damaged(self.deltas, otherwise="rewind the session to an earlier turn")
            end = size
            write_at(descriptor, b"".join(deltas.values()), end)
        finally:
            os.close(descriptor)
        index: DeltaIndex = {}
        for sha256, data in deltas.items():
            index[sha256] = (end, len(data))
            end += len(data)
        return index, end
