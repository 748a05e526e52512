"""The lines of `journal.jsonl`, and how its end is read.

One line of the journal is one append, so an append is there as a whole or not at all:

    {"events":[…],"deltas":{"<sha256>":[offset,length]},"sum":{…},"crc":"89abcdef"}

`sum` is the session so far (`Summary`); `crc` is the CRC-32 of every byte before `,"crc"`. Both stand last, so the end
of the file says all that `list` shows, however long the answers are. A line without its newline was never
acknowledged: it does not count, and the next append cuts it off.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from channelcoder_flows.errors import JournalDamaged, StorageError
from channelcoder_flows.journal import EVENTS, FORMAT, Created, Event, Totals
from channelcoder_flows.turn import Frozen

_DELTAS: Final = b',"deltas":'
_SUMMARY: Final = b',"sum":'
_CRC: Final = b',"crc":"%08x"}'
_CRC_LENGTH: Final = len(_CRC % 0)
_WINDOW: Final = 4096
"""Bytes read from the end at first."""
_SUMMARY_LIMIT: Final = 3072
"""Bytes; more than any `sum` takes, two names of 200 characters included."""

DeltaIndex = dict[str, tuple[int, int]]
"""Where each delta stands in `deltas.bin`: offset and length, by sha256."""
_INDEX: Final = TypeAdapter(DeltaIndex)


class Summary(Frozen):
    """The session up to and with a line."""

    format: int = Field(default=FORMAT, le=FORMAT)
    seq: int = Field(default=0, description="The number of the last event.")
    at: int = Field(default=0, description="Where this line begins in the journal, in bytes.")
    end: int = Field(default=0, description="How much of `deltas.bin` belongs to the session, in bytes.")
    was: str = Field(default="", description="The name before a rename: what counts until the directory has moved.")
    totals: Totals = Totals()


class Tail(NamedTuple):
    """The last whole line: where it ends, and its summary."""

    end: int
    summary: Summary


NOTHING: Final = Tail(0, Summary())


class Line(NamedTuple):
    """One line, read."""

    number: int
    """From 1; 0: found from the end, and not counted."""
    after: int
    """The number of the event before it."""
    events: bytes
    """JSON."""
    summary: Summary


def make_line(name: str, events: Sequence[Event], deltas: DeltaIndex, before: Tail, *, end: int) -> bytes:
    """Return the bytes of the line that follows `before`, newline included.

    Args:
        name: the session's name from here on.
        events: what is added; a line without events only changes the name.
        deltas: where the deltas of these events stand.
        before: the line before this one, or `NOTHING`.
        end: how much of `deltas.bin` belongs to the session then.

    Raises:
        StorageError: an event holds what cannot be kept as JSON and read again.
    """
    old = before.summary
    version, totals = old.format, old.totals
    for event in events:
        totals = totals.after(event)
        version = event.format if isinstance(event, Created) else version
    was = old.totals.name if old.totals.name not in ("", name) else old.was
    summary = Summary.model_construct(
        format=version,
        seq=old.seq + len(events),
        at=before.end,
        end=end,
        was=was,
        totals=totals.model_copy(update={"name": name}),
    )
    try:
        told = EVENTS.dump_json(tuple(events))
        EVENTS.validate_json(told)
    except ValueError as exc:
        reason = str(exc).partition("\n")[0]
        raise StorageError(f"session {name!r}: an event cannot be kept as JSON: {reason}") from exc
    index = _INDEX.dump_json(deltas)
    body = b'{"events":%s%b%s%b%s' % (told, _DELTAS, index, _SUMMARY, summary.model_dump_json().encode())
    return body + _CRC % zlib.crc32(body) + b"\n"


def is_whole(line: bytes) -> bool:
    """Return whether a line, without its newline, is what was written."""
    return line[-_CRC_LENGTH:] == _CRC % zlib.crc32(line[:-_CRC_LENGTH])


def read_tail(descriptor: int, file: Path) -> Tail | None:
    """Return the journal's last whole line from a bounded read of its end; None: there is none yet.

    Only a torn line at the end makes it read more than 4 KiB. It checks no CRC: those who read lines do.

    Raises:
        JournalDamaged: the last line has no summary that can be read.
        StorageError: a later version wrote it.
    """
    size, window = os.fstat(descriptor).st_size, _WINDOW
    while True:
        start = max(0, size - window)
        chunk = os.pread(descriptor, size - start, start)
        newline = chunk.rfind(b"\n")
        if newline < 0 and start == 0:
            return None
        # When what follows the last whole line is torn, its summary may begin before the window.
        if start == 0 or newline >= _SUMMARY_LIMIT:
            break
        window *= 8
    return Tail(start + newline + 1, _summary(chunk[:newline], file))


def check_tail(descriptor: int, tail: Tail, file: Path) -> None:
    """Check the last line's CRC, and that what follows it is torn and not damaged. Raises `JournalDamaged`."""
    if tail.end:
        _last_line(descriptor, tail, file)
    rest = os.pread(descriptor, os.fstat(descriptor).st_size - tail.end, tail.end)
    if is_whole(rest[:-1]):
        raise damaged(file)


def read_back(descriptor: int, tail: Tail, since: int, file: Path) -> list[Line]:
    """Return the lines that hold the events after number `since`, found from the last one backwards.

    Each is checked; those before them are not read.

    Raises:
        JournalDamaged: a line is not what was written, or one is missing.
        StorageError: a later version wrote it.
    """
    check_tail(descriptor, tail, file)
    lines: list[Line] = []
    while tail.summary.seq > since:
        line, before = _last_line(descriptor, tail, file), _tail_before(descriptor, tail, file)
        lines.append(Line(0, before.summary.seq, _events_in(line), tail.summary))
        tail = before
    return lines[::-1]


def _last_line(descriptor: int, tail: Tail, file: Path) -> bytes:
    begin = tail.summary.at
    line = os.pread(descriptor, max(0, tail.end - begin), begin)[:-1]
    if not is_whole(line):
        raise damaged(file)
    return line


def _tail_before(descriptor: int, tail: Tail, file: Path) -> Tail:
    end = tail.summary.at
    if end == 0:
        return NOTHING
    start = max(0, end - _WINDOW)
    chunk = os.pread(descriptor, end - start, start)
    before = Tail(end, _summary(chunk[:-1], file))
    if chunk[-1:] != b"\n" or before.summary.seq > tail.summary.seq:
        raise damaged(file)
    return before


def _events_in(line: bytes) -> bytes:
    told, _, _ = line[: line.rfind(_SUMMARY)].rpartition(_DELTAS)
    return told.removeprefix(b'{"events":')


def read_lines(data: bytes, file: Path) -> Iterator[Line]:
    """Read a journal's bytes line by line, each checked; a torn last line is left out.

    Raises:
        JournalDamaged: a line is not what was written, or one is missing.
        StorageError: a later version wrote it.
    """
    *lines, rest = data.split(b"\n")
    at = seq = 0
    for number, line in enumerate(lines, 1):
        if not is_whole(line):
            raise damaged(file, number)
        summary = _summary(line, file, number)
        if summary.at != at:
            raise damaged(file, number)
        yield Line(number, seq, _events_in(line), summary)
        at, seq = at + len(line) + 1, summary.seq
    if is_whole(rest[:-1]):
        raise damaged(file, len(lines) + 1)


def events_of(line: Line, file: Path) -> tuple[Event, ...]:
    """Return a line's events.

    Raises:
        JournalDamaged: there are more or fewer than the line's number says.
        StorageError: they are intact, but of a kind that only a later version knows.
    """
    try:
        events = EVENTS.validate_json(line.events)
    except ValidationError as exc:
        raise newer(file) from exc
    if line.after + len(events) != line.summary.seq:
        raise damaged(file, line.number)
    return events


def damaged(file: Path, line: int = 0) -> JournalDamaged:
    """Return the error for a journal that is not what was written."""
    where = f"{file}:{line}" if line else f"{file}"
    advice = "put the file back from a backup" + (", or keep only the lines before this one" if line else "")
    return JournalDamaged(f"{where} is damaged: {advice}", file=str(file), line=line)


def newer(file: Path) -> StorageError:
    """Return the error for a journal of a later version."""
    return StorageError(f"{file}: written by a newer version of channelcoder-flows: upgrade to use this session")


def _summary(line: bytes, file: Path, number: int = 0) -> Summary:
    _, _, text = line.rpartition(_SUMMARY)
    try:
        return Summary.model_validate_json(text[:-_CRC_LENGTH])
    except ValidationError as exc:
        later = any(error["loc"] == ("format",) and error["type"] == "less_than_equal" for error in exc.errors())
        raise newer(file) if later else damaged(file, number) from exc


def read_index(data: bytes) -> DeltaIndex:
    """Return where the deltas named in a journal's whole lines stand; other lines do not count."""
    index: DeltaIndex = {}
    for line in filter(is_whole, data.split(b"\n")[:-1]):
        _, _, text = line[: line.rfind(_SUMMARY)].rpartition(_DELTAS)
        index.update(_INDEX.validate_json(text))
    return index
