"""Starts a flow from its file, and resumes one from the journal alone."""

from __future__ import annotations

import asyncio
import copy
import difflib
import inspect
import json
import logging
import re
import signal
import typing
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities import engine

from channelcoder_flows.config import Settings
from channelcoder_flows.errors import (
    ChannelCoderError,
    FlowError,
    FlowNotFound,
    RunAlive,
    RunTakenOver,
    SessionDiverged,
    SessionUnfinished,
    UsageError,
)
from channelcoder_flows.flow.running import (
    BY_REFERENCE,
    Running,
    entrypoint_of,
    given_running,
    new_owner,
    plain_parameters,
)
from channelcoder_flows.flow.server import is_unreachable, prefect_server
from channelcoder_flows.run import OnDiverged, OnUnfinished, Run, quoted, resume_command
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import Frozen

Say = Callable[[str], None]

SAYS_THE_WAY_ON = (SessionDiverged, SessionUnfinished, RunAlive, RunTakenOver)
"""The errors after which a plain resume would only fail again; they name what helps."""

SIGTERM_HANDLER = "_prefect_sigterm_handler"
"""Prefect's name for what a flow installs as it begins; it has no setting for it."""


class FlowReport(Frozen):
    """How a flow's run ended."""

    result: Any = None
    """What the flow returned, as JSON data."""
    run_key: str
    sessions: tuple[str, ...] = ()
    cost_usd: float = 0.0
    """US dollars that this execution spent; turns taken from the journal cost nothing."""
    turns: int = 0
    """Turns that this execution paid for."""


async def run_flow(
    entrypoint: str,
    data: Mapping[str, Any],
    *,
    settings: Settings,
    run_key: str | None = None,
    on_unfinished: OnUnfinished | None = None,
    say: Say = lambda line: None,
) -> FlowReport:
    """Run the flow at `entrypoint` (`file.py:function`) as a new run.

    Args:
        entrypoint: where the flow is, from the working directory.
        data: its parameters: values, or their text as it was typed.
        settings: where sessions live, and the like.
        run_key: the run's name; a new one unless given.
        on_unfinished: what to do when a session's last run did not end; the settings' own unless given.
        say: hears what is no part of the result.

    Raises:
        FlowNotFound: there is no such file or flow.
        UsageError: the parameters do not fit.
        ChannelCoderError: a turn failed, and the flow with it; the message ends with the command that resumes it.
        FlowError: the flow failed of itself; the message ends likewise.
    """
    flow = load_flow(entrypoint)
    parameters = flow_parameters(flow, data)
    run = Run(
        run_key or str(uuid.uuid4()),
        owner=new_owner(),
        flow=flow.name,
        entrypoint=entrypoint_of(flow),
        parameters=plain_parameters(flow, parameters),
        on_unfinished=on_unfinished or settings.on_unfinished,
    )
    return await _execute(flow, parameters, Running(run, settings), say)


async def resume_flow(
    session: str,
    data: Mapping[str, Any],
    *,
    settings: Settings,
    on_diverged: OnDiverged = "fail",
    takeover: bool = False,
    say: Say = lambda line: None,
) -> FlowReport | None:
    """Start a session's last run again, from the journal alone: finished turns are taken from there.

    Args:
        session: any session that the run has entered.
        data: parameters that the journal does not hold: secrets.
        settings: where sessions live, and the like.
        on_diverged: what to do with a finished step that was changed since: `fail`, `keep` what was recorded, or
            `rerun` from there.
        takeover: resume even though another process holds the run; that one stops before its next turn.
        say: hears what is no part of the result.

    Returns:
        None when the run has ended and there is nothing to resume.

    Raises:
        SessionNotFound: there is no such session.
        RunAlive: the run is still going on.
        FlowError: the session has no run.
        ChannelCoderError: the flow failed again, as in `run_flow`.
    """
    store = open_storage(settings.store)
    opened = await OpenSession.load(store, session)
    last = opened.journal.run
    if last is None:
        raise FlowError(f"session {session!r} was never in a flow: continue it with `channelcoder run --load-session`")
    if last.status == "completed":
        return None
    flow = load_flow(last.entrypoint)
    kept = {name: value for name, value in last.parameters.items() if not _is_reference(value)}
    missing = [name for name in last.parameters if name not in kept and name not in data]
    if missing:
        raise UsageError(
            f"the run's {' and '.join(missing)} was secret and is not kept: pass it again with -d {missing[0]}=…"
        )
    parameters = flow_parameters(flow, {**kept, **data}, typed=data)
    run = Run(
        last.run,
        owner=new_owner(),
        flow=flow.name,
        entrypoint=last.entrypoint,
        parameters=last.parameters,
        on_diverged=on_diverged,
        on_unfinished=settings.on_unfinished,
    )
    running = Running(run, settings, takeover=takeover)
    await running.hold(opened)
    return await _execute(flow, parameters, running, say)


async def _execute(flow: Flow[..., Any], parameters: dict[str, Any], running: Running, say: Say) -> FlowReport:
    api = ""
    try:
        async with prefect_server(say) as api:
            with _one_line_errors(), _polite_end():
                token = given_running.set(running)
                try:
                    result = await _call(flow, parameters)
                finally:
                    given_running.reset(token)
    except (Exception, asyncio.CancelledError) as exc:
        if isinstance(exc, SAYS_THE_WAY_ON):
            raise
        raise _with_the_way_on(exc, running, api) from exc
    finally:
        await running.let_go()
    return FlowReport(
        result=_plain(result),
        run_key=running.run.key,
        sessions=tuple(running.run.sessions),
        cost_usd=running.run.cost_usd,
        turns=running.run.turns,
    )


@contextmanager
def _one_line_errors() -> Generator[None]:
    """Keep Prefect from printing a traceback for what is no bug: our errors say all in one line."""

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], ChannelCoderError):
            record.exc_info = None
        return True

    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addFilter(without_traceback)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(without_traceback)


@contextmanager
def _polite_end() -> Generator[None]:
    """Let SIGTERM end the flow in the way that whoever started it has chosen, where he has.

    Prefect's own way raises an exception wherever the event loop is just then, in the saving of a turn too.
    """
    ours, theirs = signal.getsignal(signal.SIGTERM), getattr(engine, SIGTERM_HANDLER, None)
    setattr(engine, SIGTERM_HANDLER, ours if callable(ours) else theirs)
    try:
        yield
    finally:
        setattr(engine, SIGTERM_HANDLER, theirs)


async def _call(flow: Flow[..., Any], parameters: dict[str, Any]) -> Any:
    if flow.isasync:
        return await flow(**parameters)
    return await asyncio.to_thread(flow, **parameters)


def _with_the_way_on(exc: BaseException, running: Running, api: str) -> BaseException:
    """Return the same error, with the command that resumes the run at the end of its message."""
    sessions = running.run.sessions
    way_on = f"; to go on from there: {_resume_line(running.run)}" if sessions else ""
    if isinstance(exc, asyncio.CancelledError):
        return asyncio.CancelledError(f"interrupted: every finished turn is kept{way_on}")
    if isinstance(exc, ChannelCoderError):
        error = copy.copy(exc)
        error.message += way_on
        error.args = (error.message,)
        return error
    when = "" if sessions else "the flow failed before its first turn: "
    what = f"{type(exc).__name__}: {exc}"
    if is_unreachable(api, exc):
        what = f"the Prefect server at {api} cannot be reached: see that it runs"
    return FlowError(f"{when}{what}{way_on}")


def _resume_line(run: Run) -> str:
    """Return the command that goes on with a run; only a session whose store has a URL leads to it by itself."""
    *_, last = [None, *((name, store) for name, store in run.sessions.items() if store)]
    return (
        resume_command(*last)
        if last
        else f"channelcoder flow run {quoted(run.entrypoint)} … --run-key {quoted(run.key)}"
    )


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """Return the flow at `file.py:function`.

    Raises:
        FlowNotFound: there is no such file, or no such flow in it.
    """
    file, colon, function = entrypoint.rpartition(":")
    if not colon:
        raise FlowNotFound(f"{entrypoint}: name the flow in the file as well, as in {entrypoint}:my_flow")
    path = Path(file)
    if not path.is_file():
        raise FlowNotFound(f"{file}: there is no such file here ({Path.cwd()})")
    try:
        return load_flow_from_entrypoint(f"{path.absolute()}:{function}", use_placeholder_flow=False)
    except (AttributeError, MissingFlowError) as exc:
        near = difflib.get_close_matches(function, re.findall(r"^\s*(?:async )?def (\w+)", path.read_text(), re.M), n=1)
        hint = f": did you mean {near[0]}?" if near else ": a flow is a function with @flow above it"
        raise FlowNotFound(f"{file} has no flow {function!r}{hint}") from exc
    except ChannelCoderError:
        raise
    except Exception as exc:
        cause = exc.user_exc if isinstance(exc, ScriptError) else exc
        raise FlowNotFound(f"{file} cannot be loaded: {type(cause).__name__}: {cause}") from exc


def flow_parameters(
    flow: Flow[..., Any], data: Mapping[str, Any], *, typed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the flow's parameters: what was typed as text is read as what the parameter takes.

    Raises:
        UsageError: one is unknown, missing, or does not fit.
    """
    signature = inspect.signature(flow.fn)
    hints = typing.get_type_hints(flow.fn)
    for name in data:
        if name not in signature.parameters:
            near = difflib.get_close_matches(name, signature.parameters, n=1)
            raise UsageError(f"flow {flow.name!r} takes no {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    texts = data if typed is None else typed
    values = {name: _read(value, hints.get(name)) if name in texts else value for name, value in data.items()}
    required = [name for name, each in signature.parameters.items() if each.default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"flow {flow.name!r} needs {missing[0]!r}: pass it with -d {missing[0]}=…")
    try:
        return flow.validate_parameters(values)
    except Exception as exc:
        raise UsageError(f"flow {flow.name!r}: {' '.join(str(exc).split())}") from exc


def _read(value: Any, hint: Any) -> Any:
    if not isinstance(value, str) or hint is str:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and BY_REFERENCE in value


def _plain(result: Any) -> Any:
    """Return what a flow returned as JSON data."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(Any).dump_python(result, mode="json")
    except ValueError:
        return str(result)
