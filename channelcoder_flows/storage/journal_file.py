"""The lines of `journal.jsonl`, and how its end is read.

One line of the journal is one append, so an append is there as a whole or not at all:

    {"events":[…],"deltas":{"<sha256>":[offset,length]},"sum":{…},"crc":"89abcdef01234567"}

`sum` is the session so far (`Summary`); `crc` is the CRC-32 of every byte before `,"crc"`, and then that of `sum` alone
(early journals have only the first). Both stand last, so the end of the file says all that `list` shows, and proves it,
however long the answers are. A line without its newline was never acknowledged: it does not count, and the next append
cuts it off.
"""

from __future__ import annotations

import gc
import logging
import os
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from channelcoder_flows.errors import JournalDamaged, StorageError
from channelcoder_flows.journal import EVENTS, FORMAT, Created, Event, Totals
from channelcoder_flows.turn import Frozen

_DELTAS: Final = b',"deltas":'
_SUMMARY: Final = b',"sum":'
_CRC: Final = b',"crc":"'
_END: Final = b'"}'
_MARK: Final = len(b"%b%016x%b" % (_CRC, 0, _END))
"""Bytes that a CRC takes at the end of a line."""
_WINDOW: Final = 4096
"""Bytes read from the end at first."""
_CHUNK: Final = 1 << 20
"""Bytes in memory at a time of a line that has not been checked."""
_SUMMARY_LIMIT: Final = 3072
"""Bytes; more than any `sum` takes, two names of 200 characters included."""

_log = logging.getLogger(__name__)

DeltaIndex = dict[str, tuple[int, int]]
"""Where each delta stands in `deltas.bin`: offset and length, by sha256."""
_INDEX: Final = TypeAdapter(DeltaIndex)


class Summary(Frozen):
    """The session up to and with a line."""

    format: int = Field(default=FORMAT, le=FORMAT)
    seq: int = Field(default=0, ge=0, description="The number of the last event.")
    at: int = Field(default=0, ge=0, description="Where this line begins in the journal, in bytes.")
    end: int = Field(default=0, ge=0, description="How much of `deltas.bin` belongs to the session, in bytes.")
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


class _Span(NamedTuple):
    """Where a line begins and ends in the journal, in bytes, and what it is worth."""

    begin: int
    end: int
    """Without the newline."""
    whole: bool
    """It is what was written. Of a last line without its newline: it would be, with the last byte a newline."""
    ended: bool
    """It has its newline."""


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
    total = summary.model_dump_json().encode()
    body = b'{"events":%s%b%s%b%s' % (told, _DELTAS, index, _SUMMARY, total)
    return b"%b%b%08x%08x%b\n" % (body, _CRC, zlib.crc32(body), zlib.crc32(total), _END)


def _is_whole(end: bytes, crc: int = 0) -> bool:
    """Return whether a line, without its newline, is what was written: `end` follows bytes whose CRC-32 is `crc`."""
    body, _, sums = end.rpartition(_CRC)
    return sums[8:] in (_END, sums[8:16] + _END) and sums[:8] == b"%08x" % zlib.crc32(body, crc)


def read_tail(descriptor: int, file: Path) -> Tail | None:
    """Return the journal's last whole line from a bounded read of its end; None: there is none yet.

    Only a torn line at the end makes it read more than 4 KiB. It checks the summary: those who read lines check all.

    Raises:
        JournalDamaged: the last line has no summary that can be read.
        StorageError: a later version wrote it.
    """
    begin, window = os.fstat(descriptor).st_size, _WINDOW
    newline, chunk = -1, b""
    while newline < 0 and begin > 0:
        begin, stop = max(0, begin - window), begin
        chunk = os.pread(descriptor, stop - begin, begin)
        newline, window = chunk.rfind(b"\n"), _CHUNK
    if newline < 0:
        return None
    end, line = begin + newline, chunk[:newline]
    if newline < _SUMMARY_LIMIT and begin > 0:
        begin = max(0, end - _SUMMARY_LIMIT)
        line = os.pread(descriptor, end - begin, begin)
    return Tail(end + 1, _summary(line, file))


def check_tail(descriptor: int, tail: Tail, file: Path) -> None:
    """Check the last line's CRC, and that what follows it is torn and not damaged. Raises `JournalDamaged`."""
    if tail.end:
        _last_line(descriptor, tail, file)
    if any(span.whole for span in _spans(descriptor, tail.end)):
        raise damaged(file)


def _spans(descriptor: int, begin: int = 0) -> Iterator[_Span]:
    """Find the lines from byte `begin` on and check them, in constant memory however long they are."""
    end, crc, held = begin, 0, b""
    while chunk := os.pread(descriptor, _CHUNK, end):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            end += len(line)
            yield _Span(begin, end, _is_whole(held + line, crc), True)
            begin = end = end + 1
            crc, held = 0, b""
        end += len(rest)
        held += rest
        # The CRC that the line ends in, and perhaps a newline that is none any more, are not part of what it covers.
        crc, held = zlib.crc32(memoryview(held)[: -_MARK - 1], crc), held[-_MARK - 1 :]
    if end > begin:
        yield _Span(begin, end, _is_whole(held[:-1], crc), False)


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
    begin = min(tail.summary.at, tail.end)
    line = os.pread(descriptor, tail.end - begin, begin)[:-1]
    if not _is_whole(line):
        raise damaged(file)
    return line


def _tail_before(descriptor: int, tail: Tail, file: Path) -> Tail:
    end = tail.summary.at
    if end == 0:
        return NOTHING
    start = max(0, end - _WINDOW)
    chunk = os.pread(descriptor, end - start, start)
    before = Tail(end, _summary(chunk[:-1], file))
    if chunk[-1:] != b"\n" or before.summary.seq > tail.summary.seq or not _follows(tail.summary, before.summary):
        raise damaged(file)
    return before


def _follows(summary: Summary, before: Summary) -> bool:
    """Return whether a line is of the same session as the one before it: one that renames has both names."""
    return before.totals.name in ("", summary.totals.name, summary.was)


def _events_in(line: bytes) -> bytes:
    told, _, _ = line[: line.rfind(_SUMMARY)].rpartition(_DELTAS)
    return told.removeprefix(b'{"events":')


@contextmanager
def nothing_collected() -> Generator[None]:
    """Keep the garbage collector from looking among events while they are made: it doubles what a long session takes.

    Whoever turned it off turns it on again, so several threads may do this at once.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def read_lines(descriptor: int, file: Path) -> Iterator[Line]:
    """Read a journal line by line, each checked before it is read; a torn last line is left out, and a warning logged.

    Raises:
        JournalDamaged: a line is not what was written, is missing, or is another session's.
        StorageError: a later version wrote it.
    """
    before = NOTHING.summary
    for number, span in enumerate(_spans(descriptor), 1):
        if span.whole != span.ended:
            raise damaged(file, number)
        if not span.ended:
            _log.warning(
                "%s:%d: left out: the line is cut off; a write that was interrupted leaves it so", file, number
            )
            return
        line = os.pread(descriptor, span.end - span.begin, span.begin)
        summary = _summary(line, file, number)
        if summary.at != span.begin or not _follows(summary, before):
            raise damaged(file, number)
        yield Line(number, before.seq, _events_in(line), summary)
        before = summary


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


def damaged(file: Path, line: int = 0, *, otherwise: str = "") -> JournalDamaged:
    """Return the error for a file that is not what was written; `otherwise` is what helps without a backup."""
    where = f"{file}:{line}" if line else f"{file}"
    if line:
        otherwise = "keep only the lines before this one"
    advice = f"put the file back from a backup{', or ' if otherwise else ''}{otherwise}"
    return JournalDamaged(f"{where} is damaged: {advice}", file=str(file), line=line)


def misplaced(file: Path, name: str) -> JournalDamaged:
    """Return the error for a journal that is in another session's directory."""
    return JournalDamaged(
        f"{file} is the journal of session {name!r}: put it back there; `channelcoder session fork` copies sessions",
        file=str(file),
    )


def newer(file: Path) -> StorageError:
    """Return the error for a journal of a later version."""
    return StorageError(f"{file}: written by a newer version of channelcoder-flows: upgrade to use this session")


def _summary(line: bytes, file: Path, number: int = 0) -> Summary:
    _, _, text = line.rpartition(_SUMMARY)
    total, _, sums = text.rpartition(_CRC)
    if sums[8:-2] not in (b"", b"%08x" % zlib.crc32(total)):
        raise damaged(file, number)
    try:
        return Summary.model_validate_json(total)
    except ValidationError as exc:
        later = any(error["loc"] == ("format",) and error["type"] == "less_than_equal" for error in exc.errors())
        raise newer(file) if later else damaged(file, number) from exc


def summary_at_end(end: bytes) -> bytes | None:
    """Return the summary, as JSON, of the line that `end` of a journal ends in; None: it is cut off or damaged."""
    _, found, text = end.rpartition(_SUMMARY)
    total, _, sums = text.rpartition(_CRC)
    return total if found and sums[8:] == b"%08x%b\n" % (zlib.crc32(total), _END) else None


def find_deltas(descriptor: int, begin: int = 0) -> tuple[int, DeltaIndex]:
    """Return how far the journal's lines go, and where the deltas stand that those from byte `begin` on name."""
    index: DeltaIndex = {}
    for span in _spans(descriptor, begin):
        begin = span.end + 1 if span.ended else begin
        if span.whole and span.ended:
            line = os.pread(descriptor, span.end - span.begin, span.begin)
            _, _, text = line[: line.rfind(_SUMMARY)].rpartition(_DELTAS)
            index.update(_INDEX.validate_json(text))
    return begin, index
