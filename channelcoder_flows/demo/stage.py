"""Where the demo happens: one directory, and an environment that leads nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from channelcoder_flows.errors import FlowError, UsageError

HERE = Path(__file__).parent
_FOREIGN = ("ANTHROPIC_", "CLAUDE", "CHANNELCODER_", "XDG_", "AWS_", "GOOGLE_")
"""What begins so may lead Claude Code to another account, API or directory."""
_STORES = ("CHANNELCODER_STORE", "CHANNELCODER_SESSION_DIR")
"""What would win over the project's own store."""
_OWN_GIT = {
    "user.name": "channelcoder demo",
    "user.email": "demo@example.invalid",
    "commit.gpgsign": "false",
    "core.hooksPath": ".git/hooks",
}
"""The repository's own settings, whatever those of the user are."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo's directory. With `live`, Claude Code and its login are the user's own; all else is in here."""

    root: Path
    live: bool

    @property
    def project(self) -> Path:
        """The small project that is worked on."""
        return self.root / "project"

    @property
    def sessions(self) -> Path:
        """The store; the project's `channelcoder.toml` names it."""
        return self.root / "sessions"

    @property
    def log(self) -> Path:
        """What the scripted model was asked."""
        return self.root / "model.jsonl"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of every process of the demo."""
        inside = {
            "TMPDIR": str(self.root / "tmp"),
            "PREFECT_HOME": str(self.root / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        if self.live:
            kept = _without(os.environ, ("PREFECT_", *_STORES))
        else:
            kept = _without(os.environ, ("PREFECT_", *_FOREIGN))
            home = self.root / "home"
            inside |= {
                "HOME": str(home),
                "CLAUDE_CONFIG_DIR": str(home / ".claude"),
                "ANTHROPIC_API_KEY": "scripted",
                "NO_PROXY": "127.0.0.1,localhost",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
                "DISABLE_ERROR_REPORTING": "1",
                "DISABLE_TELEMETRY": "1",
            }
            if path := os.environ.get("CHANNELCODER_CLAUDE_PATH"):
                inside["CHANNELCODER_CLAUDE_PATH"] = path
        return kept | inside | more

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a short command in the project."""
        return subprocess.run(
            argv, cwd=self.project, env=self.environment(), capture_output=True, text=True, check=False
        )

    def git(self, *arguments: str) -> str:
        """Run git in the project; return what it prints.

        Raises:
            FlowError: git fails.
        """
        done = self.run("git", *arguments)
        if done.returncode:
            raise FlowError(f"git {arguments[0]} failed: {' '.join(done.stderr.split())}")
        return done.stdout

    def prepare(self) -> None:
        """Write the project, as a git repository with one commit.

        Raises:
            FlowError: git fails.
        """
        shutil.copytree(HERE / "project", self.project, ignore=shutil.ignore_patterns("__pycache__"))
        for folder in ("home", "tmp"):
            (self.root / folder).mkdir()
        self.git("init", "--quiet")
        for name, value in _OWN_GIT.items():
            self.git("config", name, value)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "Split bills")


@contextmanager
def staged(*, live: bool, keep: Path | None) -> Generator[Stage]:
    """Prepare a stage. It is removed at the end, unless `keep` says where it is to stay, or something failed.

    Raises:
        UsageError: `keep` is there already.
        FlowError: a program is missing; or what failed, and then the message ends with where everything is.
    """
    for program in ("git", "python3"):
        if shutil.which(program) is None:
            raise FlowError(f"the demo needs {program}: install it, then run the demo again")
    if keep is None:
        root = Path(tempfile.mkdtemp(prefix="channelcoder-demo-"))
    else:
        root = keep.absolute()
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(f"--keep {keep}: it is there already: name a new directory")
        root.mkdir(parents=True, exist_ok=True)
    stage = Stage(root, live)
    try:
        stage.prepare()
        yield stage
    except FlowError as exc:
        raise FlowError(f"{exc.message} (kept to look at: {root})") from exc
    except BaseException:
        _remove(root, keep)
        raise
    _remove(root, keep)


def _remove(root: Path, keep: Path | None) -> None:
    if keep is None:
        shutil.rmtree(root)


def _without(environ: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(prefixes)}
