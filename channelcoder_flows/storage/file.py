"""Sessions in a directory: the default store. docs/storage.md has the layout and what it guarantees."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from channelcoder_flows.errors import StorageError
from channelcoder_flows.journal import Event, SessionInfo, SessionState
from channelcoder_flows.storage.base import check_append, check_name, events_to_save, is_name, not_found, with_name
from channelcoder_flows.storage.disk import make_private, storage_error
from channelcoder_flows.storage.filelock import file_lock, sweep
from channelcoder_flows.storage.listing import list_sessions
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.storage.session_dir import JOURNAL, NEW, SessionDirectory

DIRECTORY_VARIABLE: Final = "CHANNELCODER_SESSION_DIR"
_TRASH: Final = ".trash-"
_LOCK: Final = ".lock-"
_RUN: Final = "run/"

_P = ParamSpec("_P")
_T = TypeVar("_T")


def default_directory() -> Path:
    """Return `$CHANNELCODER_SESSION_DIR`, or `~/.channelcoder/sessions`."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or Path.home() / ".channelcoder" / "sessions")


class FileSessionStorage:
    """A store in a directory of the user's own, made when the first session is.

    Args:
        path: the directory; by default `$CHANNELCODER_SESSION_DIR`, or `~/.channelcoder/sessions`.

    Every method raises `StorageError` for what the file system refuses, for a store that is somebody else's, and for
    sessions of a newer version.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.root = Path(path or default_directory()).expanduser().absolute()
        self._swept = False
        self._sessions: dict[str, SessionDirectory] = {}

    @property
    def url(self) -> str:
        """The directory as a `file:` URL."""
        return self.root.as_uri()

    async def append(
        self, name: str, events: Sequence[Event], *, expect: int, deltas: Mapping[str, bytes] | None = None
    ) -> int:
        """Add events after number `expect`, durably. See `JournalStorage.append`."""
        if not events:
            return expect
        check_append(name, events, expect, deltas or {})
        return await self._in_thread(self._append, name, events, expect, deltas or {})

    async def read(self, name: str, *, since: int = 0) -> Sequence[Event]:
        """Return the events after number `since`."""
        return await self._in_thread(self._read, name, since)

    async def delta(self, name: str, sha256: str) -> bytes:
        """Return one delta."""
        return await self._in_thread(self._delta, name, sha256)

    async def save(self, state: SessionState, name: str | None = None) -> str:
        """Keep the whole session, replacing what was there in one step."""
        name, events = events_to_save(state, name)
        await self._in_thread(self._save, name, events, state.deltas)
        return name

    async def load(self, name_or_path: str) -> SessionState:
        """Return the session of that name; or the one at the path of a session's directory or `journal.jsonl`."""
        return await self._in_thread(self._load, name_or_path)

    async def list(self) -> Sequence[SessionInfo]:
        """Return every session's metadata, latest activity first, from the end of each journal.

        A session whose journal cannot be opened or ends in damage is listed with what is known, its name (or its
        directory's) and time, and a warning is logged; damage further up is found by `read` and `load`.
        """
        return await self._in_thread(self._list)

    async def rename(self, name: str, new: str) -> None:
        """Give the session another name, in one step."""
        if check_name(new) != name:
            await self._in_thread(self._rename, name, new)

    async def remove(self, name: str) -> None:
        """Delete the session, in one step."""
        await self._in_thread(self._remove, name)

    async def exists(self, name: str) -> bool:
        """Return whether there is such a session; a damaged one counts."""
        return await self._in_thread(self._exists, name)

    @asynccontextmanager
    async def lock(
        self, name: str, *, wait: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> AsyncGenerator[None]:
        """Hold the lock of that name on this machine. See `JournalStorage.lock`.

        A session's lock is in its directory and goes with it through a rename; a name that begins with `run/` is a
        run's, and its lock is apart from the sessions.
        """
        session = await self._in_thread(self._lock_directory, name)
        async with file_lock(session.turn_lock, name, wait=wait, on_wait=on_wait, keep=session.journal.exists):
            yield

    async def _in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await asyncio.to_thread(work, *args, **kwargs)
        except OSError as exc:
            raise storage_error(exc, self.root) from exc

    # What follows runs in threads; `_in_thread` translates its OSErrors.

    def _append(self, name: str, events: Sequence[Event], expect: int, deltas: Mapping[str, bytes]) -> int:
        self._prepare()
        self._session(name).append(name, events, expect, deltas)
        return expect + len(events)

    def _read(self, name: str, since: int) -> Sequence[Event]:
        with self._found(name) as session:
            return with_name(session.read(since), name)

    def _delta(self, name: str, sha256: str) -> bytes:
        with self._found(name) as session:
            return session.delta(sha256)

    def _save(self, name: str, events: Sequence[Event], deltas: Mapping[str, bytes]) -> None:
        self._prepare()
        self._session(name).replace(name, events, deltas)

    def _load(self, name_or_path: str) -> SessionState:
        if not self._exists(name_or_path) and (session := _at_path(name_or_path)):
            return session.state()
        with self._found(name_or_path) as session:
            return session.state()

    def _exists(self, name: str) -> bool:
        return is_name(name) and self._session(name).begun()

    def _list(self) -> Sequence[SessionInfo]:
        self._check_owner()
        return list_sessions(self.root)

    def _rename(self, name: str, new: str) -> None:
        with self._found(name) as session:
            session.move(self._session(new), new)

    def _remove(self, name: str) -> None:
        self._prepare()
        trash = self.root / f"{_TRASH}{secrets.token_hex(8)}"
        with self._found(name) as session:
            session.leave(trash)
        _delete(trash)

    def _lock_directory(self, name: str) -> SessionDirectory:
        self._prepare()
        if name.startswith(_RUN):
            return SessionDirectory(self.root / f"{_LOCK}{directory_name(name)}")
        return self._session(name)

    def _session(self, name: str) -> SessionDirectory:
        self._check_owner()
        session = self._sessions.setdefault(name, SessionDirectory(self.root / directory_name(check_name(name))))
        if session.path.is_symlink():
            raise StorageError(f"{session.path} is a link: put the session's own directory in its place")
        return session

    @contextmanager
    def _found(self, name: str) -> Generator[SessionDirectory]:
        session = self._session(name)
        try:
            yield session
        except FileNotFoundError:
            raise not_found(name, [info.name for info in self._list()]) from None

    def _check_owner(self) -> None:
        with suppress(FileNotFoundError):
            if self.root.stat().st_uid != os.geteuid():
                raise StorageError(
                    f"{self.root} is another user's: keep your sessions elsewhere with {DIRECTORY_VARIABLE}"
                )

    def _prepare(self) -> None:
        make_private(self.root)
        self._check_owner()
        if not self._swept:
            self._swept = True
            for trash in self.root.glob(f"{_TRASH}*"):
                _delete(trash)
            for new in self.root.glob(f"{NEW}*"):
                sweep(new)


def _at_path(text: str) -> SessionDirectory | None:
    try:
        path = Path(text).expanduser().resolve()
        session = SessionDirectory(path.parent if path.name == JOURNAL else path, in_store=False)
        return session if session.journal.is_file() else None
    except (OSError, RuntimeError):
        return None  # a name that no path can be: too long, or the home of a user who is not there


def _delete(trash: Path) -> None:
    # Whatever cannot be deleted now is no session any more, and is tried again by the next process.
    shutil.rmtree(trash, ignore_errors=True)
