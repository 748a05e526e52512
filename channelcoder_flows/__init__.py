"""Durable Claude Code work from Markdown prompt files: named sessions, Prefect flows, no turn paid for twice.

Importing the package loads its errors and nothing else: every other name is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channelcoder_flows.errors import (
    ApiError,
    ChannelCoderError,
    ClaudeNotFound,
    ConfigError,
    FlowError,
    FlowNotFound,
    InputError,
    JournalDamaged,
    LimitReached,
    NotLoggedIn,
    OutputInvalid,
    PlaceError,
    PromptError,
    PromptNotFound,
    RunAlive,
    RunTakenOver,
    SchemaError,
    SessionBusy,
    SessionConflict,
    SessionDiverged,
    SessionError,
    SessionExists,
    SessionNotFound,
    SessionRequired,
    SessionUnfinished,
    StorageError,
    TurnDied,
    TurnError,
    TurnStalled,
    TurnTimeout,
    UsageError,
)

if TYPE_CHECKING:
    from channelcoder_flows.journal import SessionInfo, SessionState
    from channelcoder_flows.prompt import Prompt
    from channelcoder_flows.session import Session, claude, stream
    from channelcoder_flows.storage import open_storage
    from channelcoder_flows.storage.base import JournalStorage, SessionStorage
    from channelcoder_flows.storage.file import FileSessionStorage
    from channelcoder_flows.storage.memory import MemorySessionStorage
    from channelcoder_flows.turn import Message, RetryPolicy, SessionRef, StreamChunk, TurnOptions, TurnResult, Usage

    __version__: str

__all__ = [
    "ApiError",
    "ChannelCoderError",
    "ClaudeNotFound",
    "ConfigError",
    "FileSessionStorage",
    "FlowError",
    "FlowNotFound",
    "InputError",
    "JournalDamaged",
    "JournalStorage",
    "LimitReached",
    "MemorySessionStorage",
    "Message",
    "NotLoggedIn",
    "OutputInvalid",
    "PlaceError",
    "Prompt",
    "PromptError",
    "PromptNotFound",
    "RetryPolicy",
    "RunAlive",
    "RunTakenOver",
    "SchemaError",
    "Session",
    "SessionBusy",
    "SessionConflict",
    "SessionDiverged",
    "SessionError",
    "SessionExists",
    "SessionInfo",
    "SessionNotFound",
    "SessionRef",
    "SessionRequired",
    "SessionState",
    "SessionStorage",
    "SessionUnfinished",
    "StorageError",
    "StreamChunk",
    "TurnDied",
    "TurnError",
    "TurnOptions",
    "TurnResult",
    "TurnStalled",
    "TurnTimeout",
    "Usage",
    "UsageError",
    "__version__",
    "claude",
    "open_storage",
    "stream",
]

_HOMES = {
    "journal": ("SessionInfo", "SessionState"),
    "prompt": ("Prompt",),
    "session": ("Session", "claude", "stream"),
    "storage": ("open_storage",),
    "storage.base": ("JournalStorage", "SessionStorage"),
    "storage.file": ("FileSessionStorage",),
    "storage.memory": ("MemorySessionStorage",),
    "turn": ("Message", "RetryPolicy", "SessionRef", "StreamChunk", "TurnOptions", "TurnResult", "Usage"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("channelcoder-flows")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
