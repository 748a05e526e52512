"""Where sessions live. `open_storage` finds a store by its URL; `base` says what a store must do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from channelcoder_flows.errors import StorageError
from channelcoder_flows.storage.base import JournalStorage, SessionStorage

__all__ = ["JournalStorage", "SessionStorage", "open_storage"]

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_storage(url: str | Path | None = None) -> JournalStorage:
    """Return the store at `url`: a directory, `file:///absolute/path`, `memory:`, or None for the default directory.

    `memory:` is a new store; the URL it has then finds it again, in this process and as long as somebody holds it.

    Raises:
        StorageError: no such kind of store, or a store in memory that is gone.
    """
    text = str(url or "file:")
    scheme = _SCHEME.match(text)
    match scheme.group().lower() if scheme else "":
        case "":
            return _open_directory(text)
        case "file:":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost"):
                raise StorageError(f"{text}: a file: URL names a directory of this machine, as file:///absolute/path")
            return _open_directory(unquote(parts.path))
        case "memory:":
            return _open_memory(text)
        case _:
            raise StorageError(
                f"{text}: this version keeps sessions in files or in memory; give a directory, file:///path or memory:"
            )


def _open_directory(path: str) -> JournalStorage:
    from channelcoder_flows.storage.file import FileSessionStorage

    return FileSessionStorage(path or None)


def _open_memory(url: str) -> JournalStorage:
    from channelcoder_flows.storage.memory import MemorySessionStorage

    if url == "memory:":
        return MemorySessionStorage()
    store = MemorySessionStorage.find(url)
    if store is None:
        raise StorageError(f"{url} is gone: a store in memory ends with its process; use a directory to keep sessions")
    return store
