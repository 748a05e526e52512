"""Notes how much memory this process holds, in the file $MEMORY: a line `STEP BYTES`."""

import os
from pathlib import Path


def note(step: int) -> None:
    if "MEMORY" in os.environ:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with open(os.environ["MEMORY"], "a") as file:
            file.write(f"{step} {pages * os.sysconf('SC_PAGESIZE')}\n")
