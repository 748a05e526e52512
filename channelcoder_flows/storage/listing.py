"""All sessions of a store at a glance, from the end of each journal.

Nearly all of them end in a whole line: its summary is checked against its own CRC and taken as it is, without the
models that reading a session goes through; ten thousand cost a third so. Whatever is unusual is looked at in full.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from channelcoder_flows.errors import JournalDamaged, StorageError
from channelcoder_flows.journal import FORMAT, SessionInfo, Totals
from channelcoder_flows.storage.disk import storage_error
from channelcoder_flows.storage.journal_file import summary_at_end
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.storage.session_dir import JOURNAL, SessionDirectory

_GLANCE: Final = 1024
"""Bytes; more than a summary takes, unless its names are long."""
_INFOS: Final = TypeAdapter(list[SessionInfo])

_log = logging.getLogger(__name__)


def list_sessions(root: Path) -> list[SessionInfo]:
    """Return the metadata of every session in the store at `root`, latest activity first."""
    rows: list[dict[str, Any]] = []
    unusual: list[str] = []
    for path in _directories(root):
        row = _glance(path)
        if row is None:
            unusual.append(path)
        else:
            rows.append(row)
    try:
        infos = _INFOS.validate_python(rows)
    except ValidationError:
        infos, unusual = [], list(_directories(root))
    for path in unusual:
        with suppress(FileNotFoundError):
            infos.append(_look(SessionDirectory(Path(path))))
    return sorted(infos, key=lambda info: info.last_active, reverse=True)


def _directories(root: Path) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield entry.path


def _glance(path: str) -> dict[str, Any] | None:
    """Return what a `SessionInfo` is made of; None: look at the session in full."""
    try:
        # Read only, and what is read must name this very directory: enough, should a link be put here meanwhile.
        descriptor = os.open(f"{path}/{JOURNAL}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            summary = summary_at_end(os.pread(descriptor, _GLANCE, max(0, size - _GLANCE)))
        finally:
            os.close(descriptor)
        if summary is None:
            return None
        found: dict[str, Any] = from_json(summary)
        totals, directory = found["totals"], path.rpartition("/")[2]
        name: str = totals["name"]
        if found["format"] > FORMAT or (name != directory and directory_name(name) != directory):
            return None
        return {
            "name": name,
            "path": path,
            "created": totals["created"],
            "last_active": totals["last_active"],
            "message_count": totals["messages"],
            "turns": totals["turns"],
            "cost_usd": round(totals["cost_usd"], 9),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _look(session: SessionDirectory) -> SessionInfo:
    try:
        summary = session.summary()
        totals = summary.totals.model_copy(update={"name": session.name(summary)})
    except FileNotFoundError:
        raise
    except (JournalDamaged, StorageError, OSError) as exc:
        _log.warning("%s", storage_error(exc, session.journal) if isinstance(exc, OSError) else exc)
        changed = datetime.fromtimestamp(session.path.lstat().st_mtime, UTC)
        totals = Totals(name=_text(session.likely_name()), created=changed, last_active=changed)
    return totals.info(_text(str(session.path)))


def _text(path: str) -> str:
    """Return what can be kept and printed of a path that need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
