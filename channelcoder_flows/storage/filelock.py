"""A lock of the file system: it ends with its holder, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path

from channelcoder_flows.errors import SessionBusy, StorageError
from channelcoder_flows.storage.disk import create_private, is_at, open_private, remove_file, storage_error

FIRST_DELAY, LAST_DELAY = 0.002, 0.25
"""Seconds between two tries: the first, and what it grows to."""


@asynccontextmanager
async def file_lock(
    path: Path,
    name: str,
    *,
    wait: float | None = None,
    on_wait: Callable[[], None] | None = None,
    keep: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[None]:
    """Hold `flock` on the file at `path`, made with its directory where they are missing.

    It is tried again with growing delays, so that a wait can be cancelled and blocks no thread. The descriptor is not
    inherited by programs that are started meanwhile.

    Args:
        path: the lock file.
        name: what is locked, for the error.
        wait: seconds to wait for another holder; None: as long as it takes; 0: not at all.
        on_wait: called once when there is another holder and we wait.
        keep: whether the file stays at the end; if not, it goes, and its directory when that is empty then.

    Raises:
        SessionBusy: another holder kept it for longer than `wait`.
        StorageError: the file cannot be made.
    """
    descriptor = await _acquire(path, name, wait, on_wait)
    try:
        yield
    finally:
        # Without a thread: nothing here can wait, and a cancelled task must not leave with the lock.
        # A file or directory that stays behind does no harm.
        with contextlib.suppress(OSError):
            if not keep() and is_at(descriptor, path):
                _clear(path)
        os.close(descriptor)


def busy(name: str, wait: float | None, holder: str = "") -> SessionBusy:
    """Return the error for a lock that another one holds."""
    waited = f" after {wait:g} s" if wait else ""
    by = f" by process {holder}" if holder else ""
    return SessionBusy(
        f"{name!r} is still in use{by}{waited}: wait for it, or work on a fork of the session", name=name
    )


async def _acquire(path: Path, name: str, wait: float | None, on_wait: Callable[[], None] | None) -> int:
    deadline = None if wait is None else time.monotonic() + wait
    delay = FIRST_DELAY
    while (descriptor := await _try(path)) is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise busy(name, wait, await asyncio.to_thread(_holder, path))
        if on_wait:
            on_wait()
            on_wait = None
        await asyncio.sleep(delay if left is None else min(delay, left))
        delay = min(delay * 1.5, LAST_DELAY)
    return descriptor


async def _try(path: Path) -> int | None:
    attempt = asyncio.ensure_future(asyncio.to_thread(try_lock, path))
    try:
        return await asyncio.shield(attempt)
    except asyncio.CancelledError:
        attempt.add_done_callback(_give_back)
        raise
    except OSError as exc:
        raise storage_error(exc, path) from exc


def _give_back(attempt: asyncio.Future[int | None]) -> None:
    if not attempt.cancelled() and attempt.exception() is None and (descriptor := attempt.result()) is not None:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None when another one does."""
    while True:
        descriptor = create_private(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed or replaced between open and lock: then this locks nothing.
            if is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def new_file(path: Path) -> Generator[int]:
    """Make a file that is to be renamed, and take it away where that fails. While it is locked, `sweep` leaves it."""
    while (descriptor := try_lock(path)) is None:
        time.sleep(FIRST_DELAY)  # it is what a killed process left, and is being swept
    try:
        yield descriptor
    except BaseException:
        remove_file(path)
        raise
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Take away a new file that a killed process left; one that is being written stays, and so does a link."""
    with contextlib.suppress(OSError, StorageError):
        descriptor = open_private(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                remove_file(path)
        finally:
            os.close(descriptor)


def _clear(path: Path) -> None:
    remove_file(path)
    path.parent.rmdir()


def _holder(path: Path) -> str:
    try:
        descriptor = open_private(path, os.O_RDONLY)
    except (OSError, StorageError):
        return ""
    try:
        return os.read(descriptor, 20).decode(errors="replace")
    finally:
        os.close(descriptor)
