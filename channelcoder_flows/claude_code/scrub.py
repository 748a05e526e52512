"""Claude Code's sandbox for commands, where it is asked for: whether it can work here, and what it leaves behind.

With `CLAUDE_CODE_SUBPROCESS_ENV_SCRUB=1` the CLI runs each command under bubblewrap, without any of its credentials. So
that no command can make them, it first creates, empty, the files in the working directory and in the home that other
programs trust, and leaves them there. What was not there before is taken away after the last turn that needed it; after
a kill, by the next one. The names were read off Claude Code 2.1.330.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from channelcoder_flows.errors import PlaceError
from channelcoder_flows.transcript import make_private

SWITCH = "CLAUDE_CODE_SUBPROCESS_ENV_SCRUB"
IN_DIRECTORY = """
.env .env.local .env.development .env.development.local .env.test .env.test.local .env.production .env.production.local
bunfig.toml package.json package-lock.json yarn.lock pnpm-lock.yaml .npmrc .yarnrc .yarnrc.yml .gitmodules
node_modules/.bin .claude/agents .claude/commands .claude/.cc-writes .git/commondir .git/config.worktree .git/glab-cli
.git/modules .git/remotes .git/worktrees .git/info/.claude-sandbox-noreplace .git/info/exclude
""".split()  # noqa: SIM905 - one name after the other reads best
IN_HOME = """
.bash_aliases .bash_profile .bashrc .profile .zshrc .gitconfig .netrc .npmrc .yarnrc .yarnrc.yml .bunfig.toml .pip
.config/anthropic .config/gh .config/git .config/glab-cli .config/pip .cache/claude/staging
""".split()  # noqa: SIM905 - one name after the other reads best
DURING_A_COMMAND = """
.bash_profile .bashrc .gitconfig .github .idea .mcp.json .profile .ripgreprc .vscode .zprofile .zshrc scripts
""".split()  # noqa: SIM905 - one name after the other reads best
"""What is in the working directory while a command runs, and stays only when it is killed."""
EXCLUDE = Path(".git/info/exclude")
HEADING = b"\n# claude-code scrub-mode stubs\n"
"""Begins what the CLI adds to `EXCLUDE`, at each start: lines of `/name`."""


def is_asked_for(env: Mapping[str, str]) -> bool:
    """Return whether this environment turns the sandbox on."""
    return env.get(SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}


def problem() -> str:
    """Return why the sandbox cannot work here; empty where it can."""
    if sys.platform != "linux":
        return "Claude Code has it on Linux only"
    missing = [package for package, name in (("bubblewrap", "bwrap"), ("socat", "socat")) if not shutil.which(name)]
    if missing:
        return f"install {' and '.join(missing)}"
    trial = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    run = subprocess.run(trial, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return "" if run.returncode == 0 else " ".join(run.stderr.split()) or f"bwrap ended with {run.returncode}"


class Placeholders:
    """What the sandbox leaves in one folder, for all processes that use it there at once.

    A record tells what was not there before the first of them, and when that one's CLI had made its own. Each holds a
    shared lock on it while its CLI runs; who holds it alone is the last, or the first after a kill, and cleans up.
    """

    def __init__(self, folder: Path, names: Sequence[str], records: Path) -> None:
        self.folder, self.names = folder, names
        self._record = records / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.jsonl"
        self._lock: int | None = None

    def expect(self) -> None:
        """Note what is not there yet, before the CLI starts."""
        make_private(self._record.parent)
        self._lock = os.open(self._record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        while True:
            if self._is_alone():
                self._clean(after_a_kill=True)
                self._note(absent=self._absent(), exclude=self._size_of_exclude())
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if self._notes():  # else the last of the others has just cleaned up
                return

    def are_there(self) -> None:
        """Note that the CLI has started: what is made from now on is somebody's own."""
        self._note(until=time.time_ns())

    def clean(self) -> None:
        """Take them away, unless another CLI still runs here. Safe to call again."""
        if self._lock is None:
            return
        try:
            if self._is_alone():
                self._clean(after_a_kill=False)
        finally:
            os.close(self._lock)
            self._lock = None

    def _is_alone(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _note(self, **fields: Any) -> None:
        assert self._lock is not None
        os.write(self._lock, json.dumps(fields).encode() + b"\n")

    def _notes(self) -> dict[str, Any]:
        """Return what was noted: of each field the first, and nothing of a line that was torn."""
        notes: dict[str, Any] = {}
        for line in self._record.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError):
                notes = {**json.loads(line), **notes}
        return notes

    def _absent(self) -> list[str]:
        """Return what does not exist, the inner paths first."""
        missing: set[Path] = set()
        for path in map(Path, (*self.names, *self._passing())):
            if path.parts[0] != ".git" or (self.folder / ".git").is_dir():
                missing.update(p for p in (path, *path.parents[:-1]) if not os.path.lexists(self.folder / p))
        return [str(path) for path in sorted(missing, key=lambda path: -len(path.parts))]

    def _passing(self) -> Sequence[str]:
        return DURING_A_COMMAND if str(EXCLUDE) in self.names else ()

    def _clean(self, *, after_a_kill: bool) -> None:
        notes = self._notes()
        now = time.time_ns()
        if notes:
            self._clean_exclude(notes["exclude"])
        for name in notes.get("absent", ()):
            passing = after_a_kill and name in self._passing()
            with suppress(OSError):
                self._remove(self.folder / name, now if passing else notes.get("until", now))
        assert self._lock is not None
        os.ftruncate(self._lock, 0)

    def _remove(self, path: Path, until: int) -> None:
        if path.is_symlink():
            return
        if path.is_dir():
            path.rmdir()  # an empty one, or none
            return
        status = path.stat()
        small = stat.S_ISREG(status.st_mode) and status.st_size <= 1
        if small and status.st_mtime_ns <= until and path.read_bytes() in (b"", b"."):
            path.unlink()

    def _size_of_exclude(self) -> int | None:
        with suppress(OSError):
            return (self.folder / EXCLUDE).stat().st_size
        return None

    def _clean_exclude(self, size: int | None) -> None:
        path = self.folder / EXCLUDE
        if str(EXCLUDE) not in self.names or not path.is_file():
            return
        data = path.read_bytes()
        kept, added = data[: size or 0], data[size or 0 :]
        while (start := added.find(HEADING)) >= 0:
            end = start + len(HEADING)
            while added.startswith(b"/", end):
                end = (added.find(b"\n", end) + 1) or len(added)
            added = added[:start] + added[end:]
        if size is None and not added:
            path.unlink()
        elif kept + added != data:
            path.write_bytes(kept + added)


class Scrub:
    """The sandbox of one CLI that has been asked for."""

    def __init__(self, folders: Sequence[Placeholders]) -> None:
        self._folders = folders

    @classmethod
    def begin(cls, env: Mapping[str, str], cwd: Path) -> Self:
        """Prepare for a CLI that is about to start. What is to be cleaned up is noted in `~/.channelcoder/scrub`.

        Raises:
            PlaceError: the sandbox cannot work here.
        """
        if why := problem():
            raise PlaceError(f"{SWITCH} is set, and Claude Code's sandbox cannot work here: {why} (or unset it)")
        home = Path(env.get("HOME") or Path.home())
        folders = {cwd: IN_DIRECTORY, home: IN_HOME} if cwd != home else {cwd: [*IN_DIRECTORY, *IN_HOME]}
        records = home / ".channelcoder" / "scrub"
        scrub = cls([Placeholders(folder, names, records) for folder, names in folders.items()])
        try:
            for folder in scrub._folders:
                folder.expect()
        except OSError as exc:
            scrub.end()
            raise PlaceError(f"{records} cannot be written: {exc.strerror}: make it yours, or unset {SWITCH}") from exc
        return scrub

    def started(self) -> None:
        """Tell it that the CLI has said its first words."""
        for folder in self._folders:
            with suppress(OSError):  # as in `end`
                folder.are_there()

    def end(self) -> None:
        """Take away what the CLI, which has ended, left behind. Safe to call again."""
        for folder in self._folders:
            with suppress(OSError):  # no reason to lose an answer: the note stays, and the next turn cleans up
                folder.clean()
