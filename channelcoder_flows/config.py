"""Settings: flag > environment > project file > user file > default.

The project file is the nearest `channelcoder.toml`, or `pyproject.toml` with a `[tool.channelcoder]` table, from the
working directory upwards; the user file is `~/.channelcoder/config.toml`. A relative path in a file starts at that
file's directory.

A project file comes with a clone, so it cannot set what decides over trust (`PERSONAL`): which program runs, what that
program may see and do. Those stand in the user file, the environment, or a prompt file that is run by name.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from channelcoder_flows.errors import ConfigError

OnUnfinished = Literal["fail", "resume", "new"]

PROJECT_FILE = "channelcoder.toml"
ENVIRONMENT = {
    "store": ("CHANNELCODER_STORE", "CHANNELCODER_SESSION_DIR"),
    "claude_path": ("CHANNELCODER_CLAUDE_PATH",),
    "config_dir": ("CLAUDE_CONFIG_DIR",),
    "model": ("CHANNELCODER_MODEL",),
    "timeout": ("CHANNELCODER_TIMEOUT",),
    "idle_timeout": ("CHANNELCODER_IDLE_TIMEOUT",),
    "permission_mode": ("CHANNELCODER_PERMISSION_MODE",),
    "setting_sources": ("CHANNELCODER_SETTING_SOURCES",),
    "pass_env": ("CHANNELCODER_PASS_ENV",),
    "on_unfinished": ("CHANNELCODER_ON_UNFINISHED",),
    "lock_wait": ("CHANNELCODER_LOCK_WAIT",),
    "live": ("CHANNELCODER_LIVE",),
}
"""The variables of each setting; the first that is set and not empty counts. A list is separated by commas."""

PERSONAL = frozenset({"claude_path", "config_dir", "permission_mode", "setting_sources", "pass_env"})
"""What a project file cannot set."""

PATHS = frozenset({"store", "claude_path", "config_dir"})
LISTS = frozenset({"setting_sources", "pass_env"})


class Settings(BaseModel):
    """What holds for every turn unless the prompt or the call says otherwise. None: left to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(
        min_length=1, description="Where sessions live: a store's URL, or the absolute path of a directory."
    )
    claude_path: str | None = Field(
        default=None, min_length=1, description="The Claude Code CLI; None: the one we bring along."
    )
    config_dir: str = Field(min_length=1, description="Claude Code's own directory: its login and transcripts.")
    model: str | None = Field(default=None, min_length=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Seconds for a whole turn.")
    idle_timeout: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Seconds without a sign of life."
    )
    permission_mode: Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"] | None = None
    setting_sources: tuple[Literal["user", "project", "local"], ...] | None = Field(
        default=None, description="Which of Claude Code's own settings are read."
    )
    pass_env: tuple[str, ...] = Field(
        default=(), description="Further variables that reach the CLI: names, or prefixes that end in `*`."
    )
    on_unfinished: OnUnfinished = Field(default="fail", description="When a session's last run did not end.")
    lock_wait: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Seconds to wait for a busy session; None: until free."
    )
    live: bool = Field(default=False, description="Keep one CLI process over a session's turns, where that is as good.")
    sources: Mapping[str, str] = Field(default={}, description="Where each setting comes from, by its name.")


KEYS = tuple(name for name in Settings.model_fields if name != "sources")


class _Layer(NamedTuple):
    values: Mapping[str, Any]
    sources: Mapping[str, str]


def load_settings(
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Gather the settings that hold in `cwd`.

    Args:
        cwd: where the search for the project file starts; the current directory.
        env: the environment; this process's own.
        overrides: what was given on the command line or in a call. None is: not given.

    Raises:
        ConfigError: a file cannot be read, or a key or value is wrong; the message names both and the nearest key.
    """
    here = Path(cwd or Path.cwd()).absolute()
    environ = os.environ if env is None else env
    home = Path(environ.get("HOME") or Path.home())
    layers = [
        _defaults(home),
        _from_user_file(home),
        _from_project_file(here, home),
        _from_environment(environ, here, home),
        _from_overrides(overrides or {}, here, home),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(KEYS, "default")
    for layer in layers:
        values |= layer.values
        sources |= layer.sources
    return Settings(**values, sources=sources)


def _defaults(home: Path) -> _Layer:
    return _Layer({"store": str(home / ".channelcoder" / "sessions"), "config_dir": str(home / ".claude")}, {})


def _from_user_file(home: Path) -> _Layer:
    file = home / ".channelcoder" / "config.toml"
    table = _read_toml(file)
    return _Layer({}, {}) if table is None else _from_table(table, file, home)


def _from_project_file(here: Path, home: Path) -> _Layer:
    for folder in (here, *here.parents):
        if (table := _read_toml(file := folder / PROJECT_FILE)) is None:
            table = _tool_table(file := folder / "pyproject.toml")
        if table is None:
            continue
        for key in PERSONAL & table.keys():
            raise ConfigError(
                f"{file}: {key}: a project cannot set this; set it in {home / '.channelcoder' / 'config.toml'} "
                f"or as {ENVIRONMENT[key][0]}"
            )
        return _from_table(table, file, home)
    return _Layer({}, {})


def _tool_table(pyproject: Path) -> dict[str, Any] | None:
    table = _read_toml(pyproject)
    for key in ("tool", "channelcoder"):
        inner: Any = None if table is None else table.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{pyproject}: {key}: must be a table; write [tool.channelcoder]")
        table = cast("dict[str, Any] | None", inner)
    return table


def _read_toml(file: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{file}: cannot be read: {reason}") from exc


def _from_table(table: Mapping[str, Any], file: Path, home: Path) -> _Layer:
    sources = dict.fromkeys(table, str(file))
    given: dict[str, Any] = {k: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for k, v in table.items()}
    return _checked(given, sources, base=file.parent, home=home, strict=True)


def _from_environment(environ: Mapping[str, str], here: Path, home: Path) -> _Layer:
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, variables in ENVIRONMENT.items():
        variable = next((name for name in variables if environ.get(name)), None)
        if variable is None:
            continue
        text = environ[variable]
        given[key] = tuple(filter(None, (item.strip() for item in text.split(",")))) if key in LISTS else text
        sources[key] = f"environment {variable}"
    return _checked(given, sources, base=here, home=home, strict=False)


def _from_overrides(overrides: Mapping[str, Any], here: Path, home: Path) -> _Layer:
    given = {key: str(v) if isinstance(v, Path) else v for key, v in overrides.items() if v is not None}
    sources = {key: f"flag --{key.replace('_', '-')}" for key in given}
    return _checked(given, sources, base=here, home=home, strict=False)


def _checked(given: Mapping[str, Any], sources: Mapping[str, str], *, base: Path, home: Path, strict: bool) -> _Layer:
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(key.replace("-", "_"), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KEYS)}"
            raise ConfigError(f"{sources[key]}: {key}: there is no such setting; {hint}")
    try:
        settings = Settings.model_validate({"store": ".", "config_dir": ".", **given}, strict=strict)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = str(first["loc"][0])
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{sources[key]}: {key}: {problem}, not {first['input']!r}") from exc
    values = {key: getattr(settings, key) for key in given}
    for key in PATHS & values.keys():
        values[key] = _absolute(key, values[key], base, home)
    return _Layer(values, sources)


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _absolute(key: str, text: str, base: Path, home: Path) -> str:
    if key == "store" and _URL.match(text):
        return text
    # A bare word is a command to look up in PATH.
    if key == "claude_path" and "/" not in text and text != "~":
        return text
    if text == "~" or text.startswith("~/"):
        return str(home / text[2:])
    return str(Path(os.path.normpath(base / text)))


_SYSTEM = ("HOME", "PATH", "LANG", "LANGUAGE", "TERM", "COLORTERM", "TMPDIR", "USER", "LOGNAME", "SHELL", "TZ")
_TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CLAUDE = ("CLAUDE_CONFIG_DIR", "IS_SANDBOX", "API_TIMEOUT_MS", "MAX_THINKING_TOKENS", "MAX_MCP_OUTPUT_TOKENS")
_TIMEOUTS = ("BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS", "MCP_TIMEOUT", "MCP_TOOL_TIMEOUT")
_INHERITED = frozenset((*_SYSTEM, *_TRUST, *_PROXY, *map(str.lower, _PROXY), *_CLAUDE, *_TIMEOUTS))
_INHERITED_PREFIXES = ("LC_", "XDG_", "GIT_AUTHOR_", "GIT_COMMITTER_", "ANTHROPIC_", "CLAUDE_CODE_", "DISABLE_")

_PIPES = {
    "ANTHROPIC_API_KEY": "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
"""Secrets that the CLI also takes from a pipe, by the variable that tells it the pipe's number."""

_SECRET = re.compile("(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS?)$")
_LOGINS = frozenset(
    (
        *_PIPES,
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_IDENTITY_TOKEN",
        "CLAUDE_CODE_CLIENT_KEY",
        "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE",
    )
)
"""Of all that is called a secret, what the CLI logs in with: an ANTHROPIC_ADMIN_KEY is none of its business."""

_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": ("AWS_",),
    "CLAUDE_CODE_USE_ANTHROPIC_AWS": ("AWS_", "ANTHROPIC_AWS_"),
    "CLAUDE_CODE_USE_VERTEX": ("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "CLOUD_ML_REGION", "VERTEX_REGION_"),
    "CLAUDE_CODE_USE_FOUNDRY": ("AZURE_", "ANTHROPIC_FOUNDRY_"),
}
"""Credentials that the CLI needs only when it talks to that cloud."""

_OUTER_SESSION = re.compile(
    "CLAUDECODE$|CLAUDE_CODE_(EXECPATH|SSE_PORT|TASK_LIST|ENTRYPOINT|SESSION_|CHILD_|HOST_|BRIDGE_|REMOTE|SDK_|TEAM"
    "|LAUNCHED_|STARTER_|MESSAGING_|\\w+_FILE_DESCRIPTOR$)"
)
"""What Claude Code 2.1.330 tells the processes of its own session: with these a turn would think it is part of it."""


class Secret(str):
    """A value that is handed over on a pipe: the variable of its name holds the number of the pipe's descriptor."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret()"


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of `environ` reaches the CLI.

    An allow-list: a variable passes when the CLI, git or the system needs it, or when `pass_env` names it. Every
    command that Claude runs inherits it, so the key goes as a `Secret`, unless `pass_env` names it. What tells the
    processes of an outer Claude Code session that they belong to it never passes.
    """
    clouds = tuple(_cloud_prefixes(environ))
    chosen = frozenset(settings.pass_env)
    chosen_prefixes = tuple(entry[:-1] for entry in chosen if entry.endswith("*"))
    child: dict[str, str] = {}
    for name, value in environ.items():
        if _OUTER_SESSION.match(name):
            continue
        if name in chosen or name.startswith(chosen_prefixes):
            child[name] = value
        elif name in _PIPES and value:
            child[_PIPES[name]] = Secret(value)
        elif _is_needed(name) or name.startswith(clouds):
            child[name] = value
    # Naming the default directory is not the same as leaving it out: the CLI then looks for its login elsewhere.
    if settings.sources.get("config_dir", "default") != "default":
        child["CLAUDE_CONFIG_DIR"] = settings.config_dir
    return child


def _is_needed(name: str) -> bool:
    if name in _INHERITED or name in _LOGINS:
        return True
    return name.startswith(_INHERITED_PREFIXES) and not _SECRET.search(name)


def _cloud_prefixes(environ: Mapping[str, str]) -> Iterator[str]:
    for switch, prefixes in _CLOUDS.items():
        if _is_on(environ.get(switch, "")):
            yield from prefixes


def _is_on(value: str) -> bool:
    return value.strip().lower() not in {"", "0", "false", "no", "off"}
