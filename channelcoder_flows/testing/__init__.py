"""For tests of your own flows: the scripted model, and conformance suites. Nothing is imported until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelcoder_flows.testing.ledger import ModelRequest as ModelRequest
    from channelcoder_flows.testing.ledger import read_log as read_log
    from channelcoder_flows.testing.model import ScriptedModel as ScriptedModel
    from channelcoder_flows.testing.script import Rule as Rule
    from channelcoder_flows.testing.script import Script as Script
    from channelcoder_flows.testing.storage_conformance import run_storage_conformance as run_storage_conformance

_HOMES = {
    "ModelRequest": "ledger",
    "Rule": "script",
    "Script": "script",
    "ScriptedModel": "model",
    "read_log": "ledger",
    "run_storage_conformance": "storage_conformance",
}

__all__ = ["ModelRequest", "Rule", "Script", "ScriptedModel", "read_log", "run_storage_conformance"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
