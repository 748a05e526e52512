"""What acceptance tests share: finding what a run has started."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path


def processes_of(folder: Path) -> list[int]:
    """Return the processes that have `folder` in their environment: all that a run started there."""
    wanted, found = os.fsencode(folder), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile, or is somebody else's
    return found


def wait_until_gone(folder: Path, seconds: float = 15.0) -> list[int]:
    """Wait until a run's processes have ended; return those that have not."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    return left
