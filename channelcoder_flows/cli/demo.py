"""`channelcoder demo`: a flow of real turns, killed and resumed, on a scripted model or with the user's own Claude."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from channelcoder_flows.cli.options import Verbose
from channelcoder_flows.errors import NotLoggedIn, UsageError


async def demo(
    *,
    live: Annotated[
        bool, Parameter(help="With your own Claude, key or login: this costs money, and asks first.")
    ] = False,
    keep: Annotated[
        Path | None, Parameter(metavar="DIR", help="Do it all in this new directory, and leave it.")
    ] = None,
    yes: Annotated[bool, Parameter(name=("-y", "--yes"), help="With --live: do not ask.")] = False,
    verbose: Verbose = False,
) -> None:
    """Play the demo. Nothing of the user's is touched; `live` leaves its conversation in Claude Code's directory."""
    from rich.console import Console

    from channelcoder_flows.demo.screen import Screen
    from channelcoder_flows.demo.show import LIVE_LIMIT_USD, show

    if live:
        _check_login()
        if not yes:
            _ask(LIVE_LIMIT_USD)
    screen = Screen(Console(highlight=False, emoji=False), program=_program(), verbose=verbose)
    await show(screen, live=live, keep=keep)


def _check_login() -> None:
    from channelcoder_flows.cli.doctor import examine

    for finding in examine(None):
        if finding.status == "fail":
            advice = f": {finding.advice}" if finding.advice else ""
            raise NotLoggedIn(f"{finding.name}: {finding.found}{advice}; without --live the demo needs neither")
        if finding.name == "login":
            return


def _ask(limit_usd: float) -> None:
    if not sys.stdin.isatty():
        raise UsageError("--live costs money, and there is nobody to ask: say so with --yes")
    print(f"This may cost up to ${limit_usd:.2f} of your own. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was run, nothing was spent; without --live the demo costs nothing")


def _program() -> str:
    """Return what to type to run this command line again."""
    name = "channelcoder"
    here = Path(sys.executable).with_name(name)
    if shutil.which(name) or not here.exists():
        return name
    return os.path.relpath(here)
