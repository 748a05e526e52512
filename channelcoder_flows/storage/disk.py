"""What stores ask of the file system: private files, durable writes, and errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from channelcoder_flows.errors import StorageError

_TRIES: Final = 100
"""How often a directory may be taken away by another process between making it and making a file in it."""


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, durably and for nobody but the user."""
    if directory.is_dir():
        return
    make_private(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        with _open_directory(directory) as descriptor:
            os.fchmod(descriptor, 0o700)  # the umask may have taken even this
        sync_directory(directory.parent)


@contextmanager
def _open_directory(path: Path) -> Generator[int]:
    """Open a directory that is no link: what is done in it is done there, whatever is put in its place meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as exc:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from exc
        raise
    try:
        yield descriptor
    except OSError as exc:
        if exc.filename is not None:
            exc.filename = str(path / exc.filename)
        raise
    finally:
        os.close(descriptor)


def open_private(file: Path, flags: int) -> int:
    """Open a plain file; a new one is for nobody but the user. Neither it nor its directory may be a link.

    Raises:
        StorageError: it is something else: a pipe would keep us waiting, a device can be anything.
    """
    with _open_directory(file.parent) as directory:
        # Without O_NONBLOCK, to open a pipe is to wait for its other end.
        descriptor = os.open(file.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StorageError(f"{file} is no plain file: put the real one in its place")
        if flags & os.O_CREAT:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_private(file: Path) -> int:
    """Open a file for reading and writing, made with its directory where they are missing."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            make_private(file.parent)
            return open_private(file, os.O_RDWR | os.O_CREAT)
    return open_private(file, os.O_RDWR | os.O_CREAT)


def replace_file(new: Path, file: Path) -> None:
    """Put `new` in the place of `file`, in one step."""
    with _open_directory(new.parent) as source, _open_directory(file.parent) as target:
        os.replace(new.name, file.name, src_dir_fd=source, dst_dir_fd=target)


def remove_file(file: Path) -> None:
    """Remove a file, where there is one."""
    with suppress(FileNotFoundError), _open_directory(file.parent) as directory:
        os.unlink(file.name, dir_fd=directory)


def is_at(descriptor: int, file: Path) -> bool:
    """Return whether the open file is still the one at that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write `data` at `offset` as the file's new end, durably; a failure cuts the file back to `offset`."""
    try:
        os.ftruncate(descriptor, offset)
        view, position = memoryview(data), offset
        while view:
            written = os.pwrite(descriptor, view, position)
            view, position = view[written:], position + written
        sync(descriptor)
    except OSError:
        # If this fails too, what is left has no newline, or is found by the next writer's `expect`.
        with suppress(OSError):
            os.ftruncate(descriptor, offset)
            sync(descriptor)
        raise


def sync(descriptor: int) -> None:
    """Wait until a file's bytes are on the disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
    else:
        os.fdatasync(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(exc: OSError, path: Path) -> StorageError:
    """Return the error for what the operating system refused, with what to do about it."""
    match exc.errno:
        case errno.ENOSPC | errno.EDQUOT:
            advice = "free some space and try again; what was saved before is intact"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            advice = "make it yours to write, or keep sessions elsewhere with CHANNELCODER_SESSION_DIR"
        case errno.ENOTDIR:
            advice = "a file is where a directory must be; move it, or keep sessions elsewhere"
        case errno.ELOOP:
            advice = "it is a link; put the real file or directory in its place"
        case errno.EISDIR | errno.ENXIO:
            advice = "it is no plain file; put the real one in its place"
        case _:
            advice = "what was saved before is intact"
    return StorageError(f"{exc.filename or path}: {exc.strerror or exc}: {advice}")
