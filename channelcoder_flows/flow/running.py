"""Which run a flow run belongs to, and who holds it.

The run key is what a resumed flow has in common with the one that died: the key that was given, or deployment and
scheduled time, or the first flow run's id. Prefect's own retry of a flow run has the same id, so it resumes as well.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.flows import Flow
from pydantic import BaseModel, SecretBytes, SecretStr

from channelcoder_flows.config import load_settings
from channelcoder_flows.errors import FlowError, RunAlive, SessionBusy
from channelcoder_flows.run import Run, find_run_with, quoted
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.base import JournalStorage
from channelcoder_flows.storage.open_session import OpenSession

BY_REFERENCE = "$secret"
"""A secret parameter is kept as `{"$secret": its name}`: the journal never holds its value."""


class Running:
    """A run in this process: its lock, and the stores it has entered."""

    def __init__(self, run: Run, *, takeover: bool = False) -> None:
        self.run = run
        self.attempt = 0
        self.turns = 0
        """Turns paid for by this process."""
        self.cost_usd = 0.0
        """US dollars spent by this process, failed attempts included."""
        self.takeover = takeover
        self._locks = AsyncExitStack()
        self._stores: dict[str, JournalStorage] = {}

    async def hold(self, store: JournalStorage) -> None:
        """Hold the run's lock in a store, for as long as this process has the run.

        Raises:
            RunAlive: another process has it.
        """
        if store.url in self._stores:
            return
        if not self.takeover:
            try:
                await self._locks.enter_async_context(store.lock(f"run/{self.run.key}", wait=0))
            except SessionBusy as exc:
                raise RunAlive(
                    f"run {self.run.key} is still going on in another process: wait, or take it over with --takeover"
                ) from exc
        self._stores[store.url] = store

    def count(self, cost_usd: float, *, turns: int = 0) -> None:
        """Add up what this process spent."""
        self.cost_usd += cost_usd
        self.turns += turns

    async def finish(self, status: Literal["completed", "failed"]) -> None:
        """Write how the run ended into every session it entered, and let it go."""
        try:
            for name, url in self.run.sessions.items():
                session = await OpenSession.load(self._stores.get(url) or open_storage(url), name)
                known = session.journal.runs.get(self.run.key)
                if known is not None and known.owner == self.run.owner:
                    await session.append(self.run.event(status))
        finally:
            await self.let_go()

    async def let_go(self) -> None:
        """Give up the run's locks."""
        self._stores.clear()
        await self._locks.aclose()


given_running: ContextVar[Running | None] = ContextVar("channelcoder_running", default=None)
"""The run that whoever started the flow has prepared for it."""

_running: dict[UUID, Running] = {}
_watched: set[int] = set()


def new_owner() -> str:
    """Return a name for this process's hold on a run that no other process has."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def running_here() -> Running:
    """Return the run of the flow run that this code runs in.

    Raises:
        FlowError: it is in no flow.
    """
    context = _root_context()
    flow_run = context.flow_run if context else None
    if context is None or flow_run is None or context.flow is None:
        raise FlowError("turn() is for flows: outside of one, use Session or claude()")
    running = _running.get(flow_run.id)
    if running is None:
        running = given_running.get() or Running(
            Run(
                run_key_of(flow_run),
                owner=new_owner(),
                flow=context.flow.name,
                entrypoint=entrypoint_of(context.flow),
                parameters=plain_parameters(context.flow, context.parameters or {}),
                on_unfinished=load_settings().on_unfinished,
            )
        )
        running.attempt = flow_run.run_count
        _running[flow_run.id] = running
        _watch(context.flow)
    elif running.attempt != flow_run.run_count:
        # Prefect tries the flow again in this process: the same run, asking for its steps from the first.
        running.attempt, running.run = flow_run.run_count, running.run.again()
    return running


def _find_run() -> Run | None:
    context = _root_context()
    return running_here().run if context and context.flow_run and context.flow else None


find_run_with(_find_run)


def run_key_of(flow_run: FlowRun) -> str:
    """Return the run key of a flow run that was given none."""
    if flow_run.deployment_id and flow_run.auto_scheduled and flow_run.expected_start_time:
        return f"{flow_run.deployment_id}@{flow_run.expected_start_time.isoformat()}"
    return str(flow_run.id)


def entrypoint_of(flow: Flow[..., Any]) -> str:
    """Return `file.py:function`, from the working directory where the file is below it."""
    file = Path(flow.fn.__code__.co_filename)
    here = Path.cwd()
    path = file.relative_to(here) if file.is_relative_to(here) else file
    return f"{path.as_posix()}:{flow.fn.__name__}"


def plain_parameters(flow: Flow[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a flow's parameters as JSON data, secrets by reference."""
    open_ones = {name: value for name, value in parameters.items() if not _is_secret(value)}
    plain = flow.serialize_parameters(open_ones)
    return plain | {name: {BY_REFERENCE: name} for name in parameters if name not in plain}


def _is_secret(value: object) -> bool:
    if isinstance(value, SecretStr | SecretBytes):
        return True
    if isinstance(value, BaseModel):
        return any(_is_secret(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        return any(_is_secret(member) for member in cast("Mapping[object, object]", value).values())
    if isinstance(value, list | tuple | set):
        return any(_is_secret(member) for member in cast("Iterable[object]", value))
    return False


def _root_context() -> FlowRunContext | None:
    """Return the context of the outermost flow: a flow called by a flow is part of the same run."""
    context = FlowRunContext.get()
    while context is not None:
        token = context._token  # pyright: ignore[reportPrivateUsage]
        outer = token.old_value if token is not None else Token.MISSING
        if not isinstance(outer, FlowRunContext):
            return context
        context = outer
    return None


def _watch(flow: Flow[..., Any]) -> None:
    """Hear how runs of this flow end, so that the sessions know."""
    if id(flow) in _watched:
        return
    _watched.add(id(flow))
    flow.on_completion(_completed)
    flow.on_failure(_failed)
    flow.on_cancellation(_failed)
    flow.on_crashed(_failed)


async def _completed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    if running := _running.pop(flow_run.id, None):
        await running.finish("completed")


async def _failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    if running := _running.pop(flow_run.id, None):
        await running.finish("failed")


def resume_command(session: str) -> str:
    """Return the command that resumes the run which a session belongs to."""
    return f"channelcoder flow resume {quoted(session)}"
