"""What `run` and `stream` take: which session, what for Claude, which limits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from channelcoder_flows.arguments import TurnArguments
from channelcoder_flows.cli import STDIN
from channelcoder_flows.cli.options import OTHER, Data, Json, Store, Verbose, read_data, settings
from channelcoder_flows.config import Settings
from channelcoder_flows.errors import PlaceError, PromptError, UsageError
from channelcoder_flows.matter import read_text
from channelcoder_flows.prompt import Prompt, seconds, text_or_file
from channelcoder_flows.turn import Effort, PermissionMode

SESSION = Group("Session", sort_key=1)
CLAUDE = Group("Claude", sort_key=3)
LIMITS = Group("Limits", sort_key=4)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TurnFlags:
    """What `run` and `stream` take: which session, what for Claude, which limits."""

    session: Annotated[
        str | None, Parameter(metavar="NAME", help="Continue this session, or begin it.", group=SESSION)
    ] = None
    load_session: Annotated[
        str | None, Parameter(metavar="NAME", help="Continue this session; it must exist.", group=SESSION)
    ] = None
    no_wait: Annotated[bool, Parameter(help="Fail when the session is busy, instead of waiting.", group=SESSION)] = (
        False
    )
    data: Data = None
    tools: Annotated[
        str | None,
        Parameter(
            name=("-t", "--tools"),
            metavar="TOOLS",
            help='The only tools there are, already allowed: "Read Write".',
            group=CLAUDE,
        ),
    ] = None
    allowed_tools: Annotated[
        str | None, Parameter(metavar="TOOLS", help="Further tools that need no permission.", group=CLAUDE)
    ] = None
    disallowed_tools: Annotated[
        str | None, Parameter(metavar="TOOLS", help="Tools that Claude cannot use.", group=CLAUDE)
    ] = None
    system: Annotated[
        str | None,
        Parameter(
            name=("-s", "--system"),
            metavar="TEXT",
            help="The system prompt: a text, or a file of it.",
            group=CLAUDE,
            allow_leading_hyphen=True,
        ),
    ] = None
    append_system: Annotated[
        str | None,
        Parameter(
            metavar="TEXT",
            help="What follows Claude Code's own system prompt: a text, or a file of it.",
            group=CLAUDE,
            allow_leading_hyphen=True,
        ),
    ] = None
    model: Annotated[str | None, Parameter(metavar="NAME", help="The model, such as opus.", group=CLAUDE)] = None
    fallback_model: Annotated[
        str | None, Parameter(metavar="NAME", help="The model to use when the first is overloaded.", group=CLAUDE)
    ] = None
    effort: Annotated[Effort | None, Parameter(metavar="LEVEL", help="How hard to think.", group=CLAUDE)] = None
    permission_mode: Annotated[
        PermissionMode | None,
        Parameter(metavar="MODE", help="What happens with a tool that is not allowed.", group=CLAUDE),
    ] = None
    mcp_config: Annotated[
        str | None, Parameter(metavar="FILE", help="MCP servers: a JSON file, or JSON.", group=CLAUDE)
    ] = None
    max_turns: Annotated[
        int | None,
        Parameter(metavar="N", help="Model calls inside the turn.", group=LIMITS, validator=Number(gte=1)),
    ] = None
    max_budget: Annotated[
        float | None,
        Parameter(metavar="USD", help="US dollars of the turn.", group=LIMITS, validator=Number(gt=0)),
    ] = None
    timeout: Annotated[
        str | None, Parameter(metavar="TIME", help="For the whole turn: seconds, or 90s, 30m, 2h.", group=LIMITS)
    ] = None
    idle_timeout: Annotated[
        str | None, Parameter(metavar="TIME", help="Without a sign of life from Claude.", group=LIMITS)
    ] = None
    cwd: Annotated[
        Path | None, Parameter(metavar="DIR", help="Where Claude works; the current directory.", group=OTHER)
    ] = None
    store: Store = None
    json: Json = False
    dry_run: Annotated[bool, Parameter(help="Show prompt, options and place, and spend nothing.", group=OTHER)] = False
    verbose: Verbose = False

    def __post_init__(self) -> None:
        """Raises UsageError for a dash, which is standard input, where no prompt is."""
        for field in fields(self):
            if getattr(self, field.name) == STDIN:
                raise UsageError(f"--{field.name.replace('_', '-')} -: standard input is for the prompt alone")

    def settings(self) -> Settings:
        """Return the settings that hold for this command. Raises `PlaceError` when `--cwd` is no directory."""
        if self.cwd is not None and not self.cwd.is_dir():
            raise PlaceError(f"--cwd {self.cwd}: there is no such directory")
        return settings(self.store, cwd=self.cwd)

    def name(self) -> str | None:
        """Return the name of the session; None: without one.

        Raises:
            UsageError: two are named.
        """
        if self.session is not None and self.load_session is not None:
            raise UsageError("--session and --load-session name one session each: give one of them")
        return self.load_session if self.session is None else self.session

    def arguments(self, prompt: Prompt) -> TurnArguments:
        """Return what `Session.claude` takes. A flag that was not given is left out: the prompt file has its say.

        Raises:
            UsageError: a value cannot be used.
        """
        data = {name: prompt.read_value(name, text) for name, text in read_data(self.data).items()}
        given: dict[str, Any] = {
            "data": data or None,
            "tools": self.tools,
            "allowed_tools": self.allowed_tools,
            "disallowed_tools": self.disallowed_tools,
            "system": _text_of("--system", self.system),
            "append_system": _text_of("--append-system", self.append_system),
            "model": self.model,
            "fallback_model": self.fallback_model,
            "effort": self.effort,
            "permission_mode": self.permission_mode,
            "mcp_config": _mcp_config(self.mcp_config),
            "max_turns": self.max_turns,
            "max_budget_usd": self.max_budget,
            "timeout": _seconds("--timeout", self.timeout),
            "idle_timeout": _seconds("--idle-timeout", self.idle_timeout),
            "wait": 0.0 if self.no_wait else None,
        }
        return TurnArguments(**{name: value for name, value in given.items() if value is not None})


NO_FLAGS = TurnFlags()


def is_file(text: str) -> bool:
    """Return whether `text` is the path of an existing file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False  # no path can be that: too long, or with a NUL


def _text_of(flag: str, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return read_text(value).strip() if is_file(value) else text_or_file(value, Path())
    except (PromptError, ValueError) as exc:
        raise UsageError(f"{flag}: {exc}") from exc


def _mcp_config(value: str | None) -> str | None:
    if value is None or value.lstrip().startswith("{"):
        return value
    if not is_file(value):
        raise UsageError(f"--mcp-config {value}: there is no such file")
    return str(Path(value).absolute())


def _seconds(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        length = seconds(float(text) if text.replace(".", "", 1).isdigit() else text)
    except ValueError as exc:
        raise UsageError(f"{flag} {text}: this {exc}") from exc
    if length <= 0:
        raise UsageError(f"{flag} {text}: this leaves no time at all")
    return length
