"""What a step may ask for as its place. Data only: opening one is the place's own module's work."""

from __future__ import annotations

from typing import Literal

from channelcoder_flows.turn import Frozen


class PlaceSpec(Frozen):
    """The place a session remembers. The host's directory is the caller's, so it is not part of it."""

    kind: Literal["host"] = "host"


class ProcessIdent(Frozen):
    """A process that can be found again after its owner died, without mistaking another for it."""

    kind: Literal["process"] = "process"
    host: str
    """The machine and its boot, so that a pid is never looked up on another one."""
    id: str
    """The pid."""
    started: str
    """When the process started, in the kernel's own words: a reused pid has another."""
    marker: str
    """The value of CHANNELCODER_TURN in the environment of the process and all it started."""
