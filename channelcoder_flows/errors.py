"""Every error this package raises on purpose.

    ChannelCoderError                      exit code
    ├── UsageError                         2   a wrong argument or option
    ├── ConfigError                        2   a settings file or variable that cannot be used
    ├── PromptError                        2   a prompt file that cannot be used (file, line, key)
    │   └── PromptNotFound                 3
    ├── InputError                         2   inputs that do not fit the prompt
    ├── SchemaError                        2   an input or output declaration that cannot be used
    ├── SessionError                       4
    │   ├── SessionNotFound                4
    │   ├── SessionExists                  4
    │   ├── SessionRequired                4   the prompt says `session.required` and there is none
    │   ├── SessionBusy                    4   another turn of this session is running
    │   ├── SessionConflict                4   another writer was first
    │   ├── SessionDiverged                4   a finished step's prompt or options changed
    │   ├── SessionUnfinished              4   the session's last run did not end
    │   └── JournalDamaged                 4
    ├── StorageError                       4   the store cannot be read or written
    ├── PlaceError                         5
    ├── TurnError                          1   the turn ended badly (kind, retryable, retry_after, cost_usd)
    │   ├── ClaudeNotFound                 1
    │   ├── NotLoggedIn                    1
    │   ├── ApiError                       1
    │   ├── TurnTimeout                    1
    │   ├── TurnStalled                    1
    │   ├── TurnDied                       1
    │   ├── LimitReached                   6   max turns or budget
    │   └── OutputInvalid                  7   the answer does not fit `output`
    └── FlowError                          1
        ├── FlowNotFound                   3
        ├── RunAlive                       4   the run to resume is still going on
        └── RunTakenOver                   4   another process resumed this run

A class's docstring is its default message. Errors carry their data as attributes and survive pickling.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "ApiError",
    "ChannelCoderError",
    "ClaudeNotFound",
    "ConfigError",
    "FlowError",
    "FlowNotFound",
    "InputError",
    "JournalDamaged",
    "LimitReached",
    "NotLoggedIn",
    "OutputInvalid",
    "PlaceError",
    "PromptError",
    "PromptNotFound",
    "RunAlive",
    "RunTakenOver",
    "SchemaError",
    "SessionBusy",
    "SessionConflict",
    "SessionDiverged",
    "SessionError",
    "SessionExists",
    "SessionNotFound",
    "SessionRequired",
    "SessionUnfinished",
    "StorageError",
    "TurnDied",
    "TurnError",
    "TurnStalled",
    "TurnTimeout",
    "UsageError",
]


class ChannelCoderError(Exception):
    """Something went wrong."""

    exit_code: int = 1
    """What a command ends with on this error."""
    answer: str = ""
    """Claude's whole answer, paid for, where what failed came after it."""

    def __init__(self, message: str = "", /, **data: Any) -> None:
        """Keep `message` (one line: what happened and what to do next) and `data` as attributes."""
        self.message = _one_line(message or (type(self).__doc__ or "").partition("\n")[0])
        for name, value in data.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no {name!r}")
            setattr(self, name, value)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), dict(self.__dict__))

    @classmethod
    def _blank(cls, attributes: dict[str, Any]) -> Self:
        error = cls.__new__(cls, attributes["message"])
        error.__dict__.update(attributes)
        return error


def _one_line(text: str) -> str:
    """Return `text` with whatever could end the line or steer a terminal as its escape: names come from anywhere."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _restore(cls: type[ChannelCoderError], attributes: dict[str, Any]) -> ChannelCoderError:
    return cls._blank(attributes)  # pyright: ignore[reportPrivateUsage]


class UsageError(ChannelCoderError):
    """A wrong argument or option."""

    exit_code = 2


class ConfigError(ChannelCoderError):
    """The settings cannot be used."""

    exit_code = 2


class PromptError(ChannelCoderError):
    """The prompt file cannot be used."""

    exit_code = 2
    file: str = ""
    line: int = 0
    key: str = ""
    problem: str = ""

    @classmethod
    def at(cls, file: str, line: int, key: str, problem: str) -> Self:
        """Build the error from its place: `file:line: key: problem`."""
        where = f"{file}:{line}: " if line else f"{file}: "
        return cls(
            f"{where}{key}: {problem}" if key else f"{where}{problem}",
            file=file,
            line=line,
            key=key,
            problem=problem,
        )


class PromptNotFound(PromptError):
    """There is no such prompt file."""

    exit_code = 3


class InputError(ChannelCoderError):
    """The inputs do not fit the prompt."""

    exit_code = 2
    field: str = ""


class SchemaError(ChannelCoderError):
    """The input or output declaration cannot be used."""

    exit_code = 2
    path: str = ""


class SessionError(ChannelCoderError):
    """The session cannot be used."""

    exit_code = 4
    name: str = ""


class SessionNotFound(SessionError):
    """There is no such session."""

    nearest: tuple[str, ...] = ()


class SessionExists(SessionError):
    """There is a session of that name already."""


class SessionRequired(SessionError):
    """The prompt continues a session and none was given."""


class SessionBusy(SessionError):
    """Another turn of this session is running."""


class SessionConflict(SessionError):
    """Another writer added to the session first."""

    expected: int = 0
    found: int = 0


class SessionDiverged(SessionError):
    """A finished step was changed since it ran."""

    step: str = ""
    changed: tuple[str, ...] = ()


class SessionUnfinished(SessionError):
    """The session's last run did not end."""

    run_key: str = ""


class JournalDamaged(SessionError):
    """The session's journal is damaged."""

    file: str = ""
    line: int = 0


class StorageError(ChannelCoderError):
    """The store cannot be read or written."""

    exit_code = 4


class PlaceError(ChannelCoderError):
    """The place a step asks for cannot be used."""

    exit_code = 5


class TurnError(ChannelCoderError):
    """The turn ended badly."""

    kind: str = "failed"
    retryable: bool = False
    retry_after: float | None = None
    """Seconds until a retry can help, where it is known."""
    cost_usd: float = 0.0
    """US dollars spent by the failed attempt."""
    status: int | None = None
    """The API's HTTP status, where there was one."""
    session: str = ""
    """The name of the session the turn belongs to."""
    text: str = ""
    """What Claude had answered until then."""


class ClaudeNotFound(TurnError):
    """The Claude Code CLI was not found."""

    kind = "no-cli"


class NotLoggedIn(TurnError):
    """Claude Code has no key and no login."""

    kind = "no-login"


class ApiError(TurnError):
    """The API refused the request."""

    kind = "api"


class TurnTimeout(TurnError):
    """The turn took longer than its timeout."""

    kind = "timeout"


class TurnStalled(TurnError):
    """The turn said nothing for longer than its idle timeout."""

    kind = "stalled"


class TurnDied(TurnError):
    """The Claude Code CLI ended without a result."""

    kind = "died"


class LimitReached(TurnError):
    """The turn reached its limit."""

    exit_code = 6
    kind = "limit"


class OutputInvalid(TurnError):
    """The answer does not fit the declared output."""

    exit_code = 7
    kind = "output"


class FlowError(ChannelCoderError):
    """The flow cannot be run."""


class FlowNotFound(FlowError):
    """There is no such flow."""

    exit_code = 3


class RunAlive(FlowError):
    """The run is still going on."""

    exit_code = 4


class RunTakenOver(FlowError):
    """Another process resumed this run."""

    exit_code = 4
