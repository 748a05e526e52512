"""Runs the real console script, and keeps what it says as snapshots."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "channelcoder"
SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
TIMEOUT = 120


def channelcoder(*argv: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `channelcoder ARGV` in `cwd` and return how it ended."""
    return subprocess.run(
        [SCRIPT, *argv],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def start(*argv: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `channelcoder ARGV` in a process group of its own, as a shell does."""
    pipe = subprocess.PIPE
    return subprocess.Popen([SCRIPT, *argv], cwd=cwd, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def transcript(argv: tuple[str, ...], code: int, stdout: str, stderr: str, paths: Mapping[str, str]) -> str:
    """Return what a person at the terminal sees, with what differs from run to run taken out."""
    text = f"$ channelcoder {shlex.join(argv)}\n{stdout}{stderr}[exit code {code}]\n"
    for path, name in paths.items():
        text = text.replace(path, name)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\d+\.\d s$", "N s", text, flags=re.MULTILINE)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return re.sub(r"\S+/_bundled/claude", "claude", text)


def check_snapshot(name: str, text: str) -> None:
    """Compare with the snapshot; with UPDATE_SNAPSHOTS=1, write it instead."""
    file = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"no snapshot {name}: make it with UPDATE_SNAPSHOTS=1, and read it"
    assert text == file.read_text(encoding="utf-8")
