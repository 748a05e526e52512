"""`channelcoder doctor`: is all there that a turn and a flow need, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from channelcoder_flows.cli import output
from channelcoder_flows.cli.options import Json, Store, Verbose, settings
from channelcoder_flows.config import Settings
from channelcoder_flows.errors import ChannelCoderError
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.file import FileSessionStorage

KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
CLOUDS = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
KEYCHAIN = ("security", "find-generic-password", "-s", "Claude Code-credentials")
PATIENCE = 20.0
"""Seconds that a program has to tell its version."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing. `fail`: turns or flows cannot run; `warn`: something else cannot."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(*, store: Store = None, json: Json = False, verbose: Verbose = False) -> int:
    """Print what was found, a line each; return 1 when something necessary is missing."""
    findings: list[Finding] = []
    for finding in examine(store):
        findings.append(finding)
        if not json:
            output.piece(f"{finding.status:4}  {finding.name}: {output.plain(finding.found)}\n")
            if finding.advice:
                output.piece(f"      {output.plain(finding.advice)}\n")
    if json:
        output.document([asdict(finding) for finding in findings])
    return int(any(finding.status == "fail" for finding in findings))


def examine(store: str | None) -> Iterator[Finding]:
    """Look at one thing after the other."""
    yield _python()
    try:
        options = settings(store)
    except ChannelCoderError as exc:
        yield Finding("settings", "fail", exc.message)
        return
    examinations: tuple[Callable[[], Finding], ...] = (
        lambda: _claude(options),
        lambda: _login(options, os.environ),
        lambda: _store(options),
        lambda: _config_dir(Path(options.config_dir)),
        lambda: _sandbox(os.environ),
        _git,
        _docker,
        _prefect,
    )
    for examination in examinations:
        yield examination()
    if url := os.environ.get("PREFECT_API_URL"):
        yield _prefect_server(url)


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _claude(options: Settings) -> Finding:
    try:
        from channelcoder_flows import claude_code

        path = claude_code.find_claude(options.claude_path)
    except ChannelCoderError as exc:
        return Finding("Claude Code", "fail", exc.message)
    version = _version(str(path), "--version")
    if version is None:
        return Finding(
            "Claude Code", "fail", f"{path} does not run", "reinstall claude-agent-sdk, which brings it along"
        )
    return Finding("Claude Code", "ok", f"{version} at {path}")


def _login(options: Settings, environ: Mapping[str, str]) -> Finding:
    if key := next((name for name in (*KEYS, *CLOUDS) if environ.get(name)), None):
        return Finding("login", "ok", f"{key} is set")
    if (file := Path(options.config_dir) / ".credentials.json").exists():
        return Finding("login", "ok", f"a login in {file}")
    if sys.platform == "darwin" and _version(*KEYCHAIN) is not None:
        return Finding("login", "ok", "a login in the keychain")
    from channelcoder_flows import claude_code

    return Finding("login", "fail", "no key and no login", f"set {KEYS[0]}, or {claude_code.log_in()}")


def _store(options: Settings) -> Finding:
    try:
        store = open_storage(options.store)
    except ChannelCoderError as exc:
        return Finding("store", "fail", exc.message)
    if not isinstance(store, FileSessionStorage):
        return Finding("store", "ok", store.url)
    root = store.root
    if not _can_write(root):
        return Finding("store", "fail", f"{root} cannot be written", "make it yours, or choose another with --store")
    if root.exists() and root.stat().st_mode & 0o077:
        return Finding("store", "warn", f"others may read {root}", f"chmod 700 {root}")
    return Finding("store", "ok", f"{root}{'' if root.exists() else ' (made with the first session)'}")


def _config_dir(path: Path) -> Finding:
    if _can_write(path):
        return Finding("Claude's directory", "ok", str(path))
    advice = "make it yours, or choose another with CLAUDE_CONFIG_DIR"
    return Finding("Claude's directory", "fail", f"{path} cannot be written", advice)


def _can_write(path: Path) -> bool:
    """Return whether a directory can be written, or made."""
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _sandbox(environ: Mapping[str, str]) -> Finding:
    from channelcoder_flows.claude_code import scrub

    name, switch = "sandbox for commands", scrub.SWITCH
    problem = scrub.problem()
    if not scrub.is_asked_for(environ):
        can = f"cannot work here: {problem}" if problem else f"can work here: {switch}=1 turns it on"
        return Finding(name, "ok", f"off (optional; {can})")
    if problem:
        return Finding(name, "fail", f"{switch} is set, and it cannot work here: {problem}", f"or unset {switch}")
    return Finding(name, "ok", f"on ({switch} is set)")


def _git() -> Finding:
    if version := _version("git", "--version"):
        return Finding("git", "ok", version)
    return Finding("git", "warn", "not installed", "turns do without; Claude's work is easier to follow with it")


def _docker() -> Finding:
    needless = "optional: steps run on the host"
    if shutil.which("docker") is None:
        return Finding("Docker", "ok", f"no client ({needless})")
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine = not host.startswith("unix://") or Path(host.removeprefix("unix://")).is_socket()
    return Finding("Docker", "ok", f"a client, {'an engine' if engine else 'no engine'} at {host} ({needless})")


def _prefect() -> Finding:
    # In a process of its own: what breaks Prefect (a library too new) breaks it on import.
    version = _version(sys.executable, "-c", "import prefect.flows; print(prefect.__version__)")
    if version is not None:
        return Finding("Prefect", "ok", version)
    try:
        found = f"{importlib.metadata.version('prefect')} cannot be imported"
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    return Finding("Prefect", "fail", found, "install channelcoder-flows again with its constraints.txt")


def _prefect_server(url: str) -> Finding:
    advice = "start it with `prefect server start`, or unset PREFECT_API_URL: `flow run` then brings its own"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):  # noqa: S310 (the user's own server)
            return Finding("Prefect server", "ok", url)
    except (OSError, ValueError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        return Finding("Prefect server", "fail", f"{url} does not answer ({reason})", advice)


def _version(*argv: str) -> str | None:
    """Return the first line a program prints; None when it fails."""
    try:
        run = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (run.stdout.splitlines() or [""])[0].strip()
