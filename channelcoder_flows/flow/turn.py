"""`turn`: one step of a flow, as a Prefect task."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.tasks import Task

from channelcoder_flows.arguments import TurnArguments, prompt_of, step_of
from channelcoder_flows.checkpoint import Surroundings
from channelcoder_flows.errors import FlowError, SessionConflict, SessionNotFound, TurnError, UsageError
from channelcoder_flows.flow.report import publish
from channelcoder_flows.flow.running import Running, running_here, source_of
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import OnUnfinished
from channelcoder_flows.session import Session, name_in_run
from channelcoder_flows.step import Step, run_step
from channelcoder_flows.storage.base import SessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import RetryPolicy, SessionRef, StreamChunk, TurnResult

ROOT_MARKS = ("pyproject.toml", "prompts", ".git")
"""What the root of a project has one of."""

SessionLike = str | SessionRef | TurnResult | Session

LOGGED = 200
"""Characters of a tool's input that go to Prefect's log."""


def turn(
    prompt: str | Path | Prompt,
    *,
    session: SessionLike | None = None,
    storage: SessionStorage | str | Path | None = None,
    cwd: str | Path | None = None,
    on_unfinished: OnUnfinished | None = None,
    **arguments: Unpack[TurnArguments],
) -> Coroutine[Any, Any, TurnResult]:
    """Run one step of the flow in a session, or take its turn from the journal when this run has done it already.

    Args:
        prompt: a prompt's text, or the path of a prompt file (`.md`), from the project's root.
        session: the session to go on with: a name, or what an earlier turn returned. None: the prompt's own
            `session.name`, or a new session that a resumed run finds again.
        storage: where the session is kept, unless `session` says so.
        cwd: the directory Claude works in; the current one unless given.
        on_unfinished: what to do when this session's last run did not end: `fail` (and say how to resume), `resume`
            it, or begin `new`. The run's own unless given.
        arguments: as `Session.claude` takes them; what is left out is the prompt file's to say.

    Raises:
        FlowError: it is called outside a flow, or in one that is not `async def`.
        SessionNotFound: the session that an earlier turn left is gone.
        SessionConflict: another session has its name now.
        SessionDiverged: this run did the step already, with another prompt or other options.
        SessionUnfinished: the session's last run did not end.
        RunAlive: another process has this run.
        ChannelCoderError: what `Session.claude` raises.
    """
    # Not itself `async def`: a flow that cannot await would only find a coroutine in its hands.
    context = FlowRunContext.get()
    if context and context.flow and not context.flow.isasync:
        raise FlowError(
            f"turn() is asynchronous: write `async def {context.flow.fn.__name__}` and `await turn(…)` in it"
        )
    return _take(prompt, session, storage, cwd, on_unfinished, arguments)


async def _take(
    prompt: str | Path | Prompt,
    session: SessionLike | None,
    storage: SessionStorage | str | Path | None,
    cwd: str | Path | None,
    on_unfinished: OnUnfinished | None,
    arguments: TurnArguments,
) -> TurnResult:
    running = running_here()
    step = step_of(prompt_of(_from_root(prompt)), arguments)
    held = await _session_of(session, storage, cwd, step, running)
    await running.hold(held.opened)
    opened = await held.opened_for(step)
    around = Surroundings(
        settings=running.settings,
        cwd=Path(cwd or Path.cwd()).absolute(),  # noqa: ASYNC240
        wait=arguments.get("wait", running.settings.lock_wait),
        on_unfinished=on_unfinished,
        live=held.live_clis(),
    )
    _handed.set(_Handed(opened, step, around))
    return await _task_for(step)(step=step.name, session=opened.name)


@dataclass(slots=True)
class _Handed:
    """What a turn needs and Prefect must not see: live objects never cross its boundary."""

    session: OpenSession
    step: Step
    around: Surroundings
    not_before: float = 0.0
    """When the next attempt can help, in the loop's time: the API may ask for more patience than the prompt."""


_handed: ContextVar[_Handed] = ContextVar("channelcoder_live_turn")


@task(name="turn", task_run_name="{step}", cache_policy=NO_CACHE, persist_result=False)
async def _turn(step: str, session: str) -> TurnResult:
    handed = _handed.get()
    logger = get_run_logger()
    tools: list[str] = []
    around = replace(handed.around, on_chunk=_listener(logger, tools))
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, handed.not_before - loop.time()))
    try:
        result = await run_step(handed.session, handed.step, around)
    except TurnError as exc:
        handed.not_before = loop.time() + (exc.retry_after or 0.0)
        raise
    source = "from the journal, nothing spent" if result.replayed else f"${result.cost_usd:.4f}"
    logger.info("turn %d of session %r: %s (%s)", result.turn, result.session.name, result.outcome, source)
    await publish(result, handed.step.prompt.bind(handed.step.data), tools, logger)
    return result


def _task_for(step: Step) -> Task[..., Any]:
    retry = step.options.over(step.prompt.options).retry
    if retry == RetryPolicy():
        return _turn
    return _turn.with_options(
        retries=retry.attempts, retry_delay_seconds=retry.delay, retry_condition_fn=_a_retry_can_help
    )


async def _a_retry_can_help(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Ask the error whether another attempt can help."""
    error = await state.aresult(raise_on_failure=False)
    return bool(getattr(error, "retryable", False))


def _listener(logger: logging.Logger | logging.LoggerAdapter[Any], tools: list[str]) -> Callable[[StreamChunk], None]:
    """Return what logs a turn as it goes on, and adds its tool calls to `tools`."""

    def on_chunk(chunk: StreamChunk) -> None:
        match chunk.type:
            case "tool_use":
                given = json.dumps(chunk.input, ensure_ascii=False)
                logger.info("%s %s", chunk.tool, given[:LOGGED])
                tools.append(f"{chunk.tool} {given}")
            case "retry" | "notice":
                logger.warning("%s", chunk.content)
            case _:
                pass

    return on_chunk


async def _session_of(
    session: SessionLike | None,
    storage: SessionStorage | str | Path | None,
    cwd: str | Path | None,
    step: Step,
    running: Running,
) -> Session:
    if isinstance(session, Session):
        return session
    if isinstance(session, TurnResult):
        session = session.session
    if isinstance(session, SessionRef):
        return await _session_at(session, storage, cwd, running)
    name = session or step.prompt.session.name
    if not name:
        name = name_in_run(running.run, step.name, step.request(running.settings).digest())
    return Session(name, storage=storage, cwd=cwd)


async def _session_at(
    ref: SessionRef, storage: SessionStorage | str | Path | None, cwd: str | Path | None, running: Running
) -> Session:
    """Return the session that an earlier turn left, where it is still that one."""
    store = storage or ref.store or running.stores.get(ref.name)
    if store is None:
        raise UsageError(f"session {ref.name!r} is in a store that has no URL: pass the store as storage=")
    session = Session(ref.name, storage=store, cwd=cwd)
    await session.opened.refresh()
    journal = session.opened.journal
    if ref.seq and not journal.seq:
        raise SessionNotFound(
            f"session {ref.name!r} is gone since the turn to go on from: pass its present name as session=, "
            "or begin a new one with session=NAME",
            name=ref.name,
        )
    if journal.seq < ref.seq or (ref.id and ref.id not in journal.chain):
        raise SessionConflict(
            f"session {ref.name!r} was replaced since the turn to go on from: pass session={ref.name!r} to go on "
            "with the one that has this name now",
            name=ref.name,
            expected=ref.seq,
            found=journal.seq,
        )
    return session


def _from_root(prompt: str | Path | Prompt) -> str | Path | Prompt:
    """Find a prompt file from the project's root: the nearest folder above the flow's file that looks like one."""
    if isinstance(prompt, Prompt) or (isinstance(prompt, str) and ("\n" in prompt or not prompt.endswith(".md"))):
        return prompt
    path = Path(prompt)
    return path if path.is_absolute() else project_root() / path


def project_root() -> Path:
    """Return the root of the project that the running flow's file is in."""
    context = FlowRunContext.get()
    folders = (source_of(context.flow) if context and context.flow else Path.cwd() / "flow").parents
    return next((folder for folder in folders if any((folder / mark).exists() for mark in ROOT_MARKS)), folders[0])
