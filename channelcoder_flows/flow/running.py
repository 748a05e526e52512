"""Which run a flow run belongs to, and who holds it.

The run key is what a resumed flow has in common with the one that died: the key that was given, or deployment and
scheduled time, or the first flow run's id. Prefect's own retry of a flow run has the same id, so it resumes as well.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import UTC
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.flows import Flow
from pydantic import BaseModel, SecretBytes, SecretStr

from channelcoder_flows.config import Settings, load_settings
from channelcoder_flows.errors import FlowError, RunAlive, SessionBusy, SessionConflict, SessionNotFound
from channelcoder_flows.run import Asker, Run, find_run_with
from channelcoder_flows.storage.base import JournalStorage
from channelcoder_flows.storage.open_session import OpenSession

BY_REFERENCE = "$secret"
"""A secret parameter is kept as `{"$secret": its name}`: the journal never holds its value."""


class Running:
    """A run in this process: its locks, its settings, and the stores of the sessions it has entered."""

    def __init__(self, run: Run, settings: Settings, *, takeover: bool = False) -> None:
        self.run = run
        self.settings = settings
        self.takeover = takeover
        self.stores: dict[str, JournalStorage] = {}
        """The sessions' stores, by the sessions' names."""
        self._locks = AsyncExitStack()
        self._locking = asyncio.Lock()
        self._held: set[tuple[str, str]] = set()
        self._attempts: dict[UUID, int] = {}
        run.settings = settings
        run.hold = self.hold
        run.asked_by = _asker

    async def hold(self, session: OpenSession) -> None:
        """Hold the run's lock in the session's store, for as long as this process has the run.

        A run of that session that did not end is held as well: it may still go on elsewhere, and must not be resumed
        under this one's feet. Where this run is taken over, the lock is taken as soon as the other process is gone.

        Raises:
            RunAlive: another process has one of them.
        """
        entered = session.name in self.run.sessions
        if entered and not self.takeover:
            return
        key, runs = self.run.key, session.journal.runs
        if not entered and key not in runs and (last := session.journal.run) is not None and last.status != "completed":
            await self._lock(
                session.storage,
                last.run,
                f"run {last.run} is still going on in session {session.name!r}: wait for it, or work on a fork",
            )
        try:
            await self._lock(
                session.storage,
                key,
                f"run {key} is still going on in another process: wait, or take it over with --takeover",
            )
        except RunAlive:
            if not self.takeover:
                raise
        self.stores[session.name] = session.storage

    async def _lock(self, store: JournalStorage, key: str, alive: str) -> None:
        async with self._locking:  # turns that start side by side must not find each other's lock
            if (store.url, key) in self._held:
                return
            try:
                await self._locks.enter_async_context(store.lock(f"run/{key}", wait=0))
            except SessionBusy as exc:
                raise RunAlive(alive) from exc
            self._held.add((store.url, key))

    def attempt(self, flow_run: FlowRun) -> None:
        """Notice when Prefect tries a flow or subflow again in this process: its steps are asked for anew."""
        known = self._attempts.setdefault(flow_run.id, flow_run.run_count)
        if flow_run.run_count > known:
            self._attempts[flow_run.id] = flow_run.run_count
            self.run.begin_again(str(flow_run.id))

    async def finish(self, status: Literal["completed", "failed"]) -> None:
        """Write how the run ended into every session it entered, and let it go."""
        try:
            for name in self.run.sessions:
                await self._write_end(name, status)
        finally:
            await self.let_go()

    async def _write_end(self, name: str, status: Literal["completed", "failed"]) -> None:
        while True:
            try:
                session = await OpenSession.load(self.stores[name], name)
                known = session.journal.runs.get(self.run.key)
                if known is not None and known.owner == self.run.owner:
                    await session.append(self.run.event(status))
                return
            except SessionNotFound:
                return  # removed meanwhile: there is nothing left to resume
            except SessionConflict:
                continue  # somebody goes on with the session already

    async def let_go(self) -> None:
        """Give up the run's locks, and end the CLIs that wait for its next turns."""
        try:
            await self.run.end_clis()
        finally:
            self._held.clear()
            await self._locks.aclose()


given_running: ContextVar[Running | None] = ContextVar("channelcoder_running", default=None)
"""The run that whoever started the flow has prepared for it."""

_running: dict[UUID, Running] = {}
"""The runs in this process, by their outermost flow run."""


def new_owner() -> str:
    """Return a name for this process's hold on a run that no other process has."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def running_here() -> Running:
    """Return the run of the flow run that this code runs in.

    Raises:
        FlowError: it is in no flow.
    """
    flows = _flows()
    if not flows:
        raise FlowError("turn() is for flows: outside of one, use Session or claude()")
    flow, flow_run, parameters = flows[0]
    running = _running.get(flow_run.id)
    if running is None:
        running = given_running.get() or _running_of(flow, flow_run, parameters)
        _running[flow_run.id] = running
        _watch(flow)
    for each in flows:
        running.attempt(each.run)
    return running


def _running_of(flow: Flow[..., Any], flow_run: FlowRun, parameters: dict[str, Any]) -> Running:
    settings = load_settings()
    run = Run(
        run_key_of(flow_run),
        owner=new_owner(),
        flow=flow.name,
        entrypoint=entrypoint_of(flow),
        parameters=plain_parameters(flow, parameters),
        on_unfinished=settings.on_unfinished,
    )
    return Running(run, settings)


def _find_run() -> Run | None:
    return running_here().run if _flows() else None


find_run_with(_find_run)


def run_key_of(flow_run: FlowRun) -> str:
    """Return the run key of a flow run that was given none."""
    if flow_run.deployment_id and flow_run.auto_scheduled and flow_run.expected_start_time:
        return f"{flow_run.deployment_id}@{flow_run.expected_start_time.astimezone(UTC).isoformat()}"
    return str(flow_run.id)


def entrypoint_of(flow: Flow[..., Any]) -> str:
    """Return `file.py:function`, from the working directory where the file is below it."""
    file = source_of(flow)
    here = Path.cwd()
    path = file.relative_to(here) if file.is_relative_to(here) else file
    return f"{path.as_posix()}:{flow.fn.__name__}"


def source_of(flow: Flow[..., Any]) -> Path:
    """Return the file that the flow's function stands in."""
    return Path(inspect.getsourcefile(inspect.unwrap(flow.fn)) or "").absolute()


def plain_parameters(flow: Flow[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a flow's parameters as JSON data, secrets by reference; a secret that is the default needs none."""
    secrets = {name: value for name, value in parameters.items() if _is_secret(value)}
    plain = flow.serialize_parameters({name: value for name, value in parameters.items() if name not in secrets})
    defaults = {name: each.default for name, each in inspect.signature(flow.fn).parameters.items()}
    left = {name for name, value in secrets.items() if value == defaults[name]}
    return plain | {name: {BY_REFERENCE: name} for name in parameters if name not in plain and name not in left}


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


class _InFlow(NamedTuple):
    flow: Flow[..., Any]
    run: FlowRun
    parameters: dict[str, Any]


def _flows() -> list[_InFlow]:
    """Return the flows this code is in, outermost first: one that a flow calls is part of the same run."""
    flows: list[_InFlow] = []
    context = FlowRunContext.get()
    while isinstance(context, FlowRunContext):
        if context.flow is not None and context.flow_run is not None:
            flows.insert(0, _InFlow(context.flow, context.flow_run, context.parameters or {}))
        token = context._token  # pyright: ignore[reportPrivateUsage]
        context = token.old_value if token is not None else None
    return flows


def _asker() -> Asker:
    return tuple(str(each.run.id) for each in _flows())


def _watch(flow: Flow[..., Any]) -> None:
    """Let the sessions know when the flow ends. (Where it is killed, nobody can: a run without its lock is dead.)"""
    if _completed not in flow.on_completion_hooks:
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
