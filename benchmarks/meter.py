"""Runs one command and prints, as JSON, what it and everything it started took.

    python -I -S meter.py COMMAND [ARGUMENT...]

A program of its own, so that what a command leaves behind (a watcher, say) comes to it as its parent and is counted
too. Linux only. The command's standard output is thrown away.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time

PR_SET_CHILD_SUBREAPER = 36
BETWEEN_LOOKS = 0.02
"""Seconds between two looks at the memory; what comes and goes in between is not seen."""


def main(argv: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = Watch()
    written, began = written_by_children(), time.monotonic()
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wall, status = 0.0, 0
    while True:
        try:
            pid, ended = os.wait()
        except ChildProcessError:
            break
        if pid == command.pid:
            wall, status = time.monotonic() - began, os.waitstatus_to_exitcode(ended)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "memory": watch.most}
    print(json.dumps({**took, "written": written_by_children() - written, "status": status}))


class Watch:
    """Looks at how much memory this process's descendants hold together."""

    def __init__(self) -> None:
        self.most = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, resident(os.getpid()))
            time.sleep(BETWEEN_LOOKS)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process's descendants hold, shared pages counted in each of them."""
    held = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    with open(f"/proc/{child}/statm") as statm:
                        held += int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
                    held += resident(int(child))
    except OSError:
        pass  # it has just ended
    return held


def written_by_children() -> int:
    """Return the bytes that this process and its ended children have sent towards a disk."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


if __name__ == "__main__":
    main(sys.argv[1:])
