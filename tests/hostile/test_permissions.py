"""Who may read what we write: nobody but the user, however careless their shell is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from channelcoder_flows.testing import ScriptedModel

Start = Callable[[Any], ScriptedModel]


def channelcoder(*words: str, cwd: Path) -> str:
    """Run a command in a shell whose umask hides nothing; return what it prints."""
    argv = ["/bin/sh", "-c", 'umask 000; exec "$@"', "sh", sys.executable, "-m", "channelcoder_flows", *words]
    return subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def open_to_others(folder: Path) -> Iterator[str]:
    """Give what in a folder, and which folders above it of ours, others may touch in any way."""
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            yield f"{path.relative_to(folder.parent)} {mode:o}"


def test_a_careless_umask(scripted_model: Start, claude_env: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """With umask 000, sessions, locks and the transcripts that we lay are for the user alone."""
    scripted_model([{"reply": "Well."}])
    work, store, home = tmp_path / "work", tmp_path / "kept" / "here", Path(claude_env["HOME"])
    work.mkdir()
    monkeypatch.setenv("CHANNELCODER_SESSION_DIR", str(store))
    channelcoder("run", "-p", "Hello", "--session", "first", cwd=work)
    channelcoder("session", "fork", "first", "second", cwd=work)
    channelcoder("run", "-p", "Go on", "--load-session", "second", cwd=work)  # lays the fork's transcript
    assert list(open_to_others(store)) == []
    assert {"journal.jsonl"} <= {path.name for path in store.rglob("*")}
    if (home / ".channelcoder").exists():
        assert list(open_to_others(home / ".channelcoder")) == []
    transcripts = list(Path(claude_env["CLAUDE_CONFIG_DIR"]).rglob("*.jsonl"))
    assert len(transcripts) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in transcripts} == {0o600}


def test_a_link_to_a_store_of_ones_own(
    scripted_model: Start, claude_env: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    """A store may be reached through a link of the user's; what is in it is as private as ever."""
    scripted_model([{"reply": "Well."}])
    real, link = tmp_path / "disk" / "store", tmp_path / "store"
    real.mkdir(parents=True, mode=0o700)
    link.symlink_to(real)
    monkeypatch.setenv("CHANNELCODER_SESSION_DIR", str(link))
    channelcoder("run", "-p", "Hello", "--session", "first", cwd=tmp_path)
    assert "first" in channelcoder("session", "list", cwd=tmp_path)
    assert list(open_to_others(real)) == []
    assert os.readlink(link) == str(real)
