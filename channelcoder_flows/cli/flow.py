"""`channelcoder flow …`: run a flow, and resume one that did not end."""

from __future__ import annotations

import asyncio
import json as json_module
from collections.abc import Coroutine
from typing import Annotated, Any

from cyclopts import Parameter

from channelcoder_flows.cli import output
from channelcoder_flows.cli.failure import Interrupted
from channelcoder_flows.cli.loading import load_claude_code
from channelcoder_flows.cli.options import Data, Json, Store, Verbose, read_data, settings
from channelcoder_flows.config import OnUnfinished
from channelcoder_flows.errors import UsageError
from channelcoder_flows.flow.launch import FlowReport, resume_flow, run_flow
from channelcoder_flows.run import OnDiverged


async def run(
    entrypoint: Annotated[str, Parameter(help="The flow: FILE.py:NAME.")],
    /,
    *,
    data: Data = None,
    run_key: Annotated[
        str | None, Parameter(metavar="KEY", help="What this run is known by; a key of its own.")
    ] = None,
    on_unfinished: Annotated[
        OnUnfinished | None, Parameter(metavar="WHAT", help="When the session's last run did not end.")
    ] = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a flow and print what it returns."""
    load_claude_code()
    work = run_flow(
        entrypoint,
        read_data(data),
        settings=settings(store),
        run_key=run_key,
        on_unfinished=on_unfinished,
        say=output.say,
    )
    await _show(work, as_json=json)


async def resume(
    session: Annotated[str, Parameter(help="A session of the run.")],
    /,
    *,
    data: Data = None,
    keep: Annotated[bool, Parameter(help="Keep what a changed step had answered.")] = False,
    rerun: Annotated[bool, Parameter(help="Run again from the first changed step on.")] = False,
    takeover: Annotated[bool, Parameter(help="Go on although the run seems alive.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Start the session's last run again: what is done is not done twice."""
    if keep and rerun:
        raise UsageError("--keep and --rerun are two ways on: give one of them")
    load_claude_code()
    on_diverged: OnDiverged = "keep" if keep else "rerun" if rerun else "fail"
    work = resume_flow(
        session,
        read_data(data),
        settings=settings(store),
        on_diverged=on_diverged,
        takeover=takeover,
        say=output.say,
    )
    await _show(work, as_json=json, nothing=f"nothing to resume: the last run of session {session!r} has ended")


async def _show(work: Coroutine[Any, Any, FlowReport | None], *, as_json: bool, nothing: str = "") -> None:
    """Print what becomes of a run; `nothing` is what to say where there was none to resume."""
    try:
        report = await work
    except asyncio.CancelledError as exc:
        raise Interrupted(str(exc) or "interrupted: every finished turn is kept") from None
    if report is None:
        output.say(nothing)
        if as_json:
            output.document(None)
        return
    if as_json:
        document: dict[str, Any] = {
            "result": report.result,
            "run_key": report.run_key,
            "sessions": list(report.sessions),
            "cost_usd": report.cost_usd,
        }
        output.document(document)
        return
    if isinstance(report.result, str):
        output.answer(report.result)
    elif report.result is not None:
        output.answer(json_module.dumps(report.result, ensure_ascii=False, indent=2))
    sessions = ", ".join(map(repr, report.sessions)) or "no session"
    paid = output.count(report.turns, "turn")
    output.say(f"run {report.run_key} · {sessions} · {paid} paid · {output.dollars(report.cost_usd)}")
