"""Session: what people hold. A thin face over steps, stores and the journal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from channelcoder_flows.arguments import TurnArguments, prompt_of, step_of
from channelcoder_flows.branching import check_turn, fork_anew, fork_session, rewind_event
from channelcoder_flows.checkpoint import Surroundings
from channelcoder_flows.config import Settings, load_settings
from channelcoder_flows.conversation import Conversation, attach
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import UsageError
from channelcoder_flows.journal import Journal, SessionInfo, SessionState, StepRef
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import Run, current_run
from channelcoder_flows.step import Step, run_step
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.adapter import as_journal_storage
from channelcoder_flows.storage.base import JournalStorage, SessionStorage, check_name
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import (
    Message,
    SessionRef,
    StreamChunk,
    TurnResult,
)
from channelcoder_flows.unsaved import Unsaved, make_free, remove_unused

if TYPE_CHECKING:
    from channelcoder_flows.claude_code import LiveClis

_log = logging.getLogger(__name__)


class Session:
    """A named conversation with Claude, kept after every turn.

    A session that exists in the store goes on from there; a new one begins with its first turn. Without a name it is
    kept under its Claude session id until `save` names it.

    Args:
        name: 1 to 200 characters of any text.
        storage: a store, or the URL or directory of one; the settings' own unless given.
        auto_save: False keeps the turns in memory until `save`.
        cwd: the directory Claude works in; the current one unless given.
        settings: what `load_settings` returned, to leave out files and environment. In a flow: the run's own.
        live: keep one CLI process over consecutive turns, where that is as good as one each. In a flow it ends with
            the run; elsewhere the session has to be used as `async with Session(…) as session:`, and it ends with
            that. The settings' own unless given.

    Raises:
        UsageError: in a flow, a session that is not kept.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        storage: SessionStorage | str | Path | None = None,
        auto_save: bool = True,
        cwd: str | Path | None = None,
        settings: Settings | None = None,
        live: bool | None = None,
    ) -> None:
        self._cwd = Path(cwd or Path.cwd()).absolute()
        self._settings = settings or _settings_here(self._cwd)
        self._store = _storage(storage, self._settings)
        run = current_run()
        if run is not None and (not auto_save or isinstance(self._store, MemorySessionStorage)):
            raise UsageError(
                "claude(), auto_save=False and sessions in memory are not for flows, where what is not kept cannot be "
                "resumed: use turn()"
            )
        self._named = name is not None
        self._kept: Unsaved | None = None if auto_save else Unsaved()
        first_id = str(uuid.uuid4())
        if name is None and run is not None:
            name = name_in_run(run, "session")
        where = self._store if auto_save else MemorySessionStorage()
        self._open = OpenSession.new(where, name or first_id, session_id=first_id)
        self._loaded = False
        self._pending: list[_Operation] = []
        self._live = live
        self._clis: LiveClis | None = None

    async def __aenter__(self) -> Self:
        if self._live or (self._live is None and self._settings.live):
            from channelcoder_flows.claude_code import LiveClis

            self._clis = LiveClis()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the CLI that waits for its next turn, if there is one. The session can be used on."""
        clis, self._clis = self._clis, None
        if clis is not None:
            await clis.close()

    def live_clis(self) -> LiveClis | None:
        """Return where its CLI may wait for the next turn; None: it ends with each.

        Raises:
            UsageError: nobody would end it.
        """
        run = current_run()
        if run is not None and (self._settings.live if self._live is None else self._live):
            return run.live_clis()
        if self._clis is not None and self._clis.closed:
            self._clis = None  # the block of the session that this is a fork of was left
        if self._live and self._clis is None:
            raise UsageError(
                "live=True needs an end: use the session as `async with Session(…, live=True) as session:`"
            )
        return self._clis

    @property
    def name(self) -> str:
        """The name it is kept under."""
        return self._open.name

    @property
    def id(self) -> str | None:
        """The current Claude session id; None before the first turn."""
        if self._pending:
            return self._pending[-1].session_id
        return self._open.journal.session_id if self._open.journal.entries else None

    @property
    def messages(self) -> list[Message]:
        """What was said so far: two messages a turn."""
        return [] if any(op.session_id is None for op in self._pending) else list(self._open.journal.messages)

    @property
    def turns(self) -> int:
        """How many turns it has."""
        return len(self._open.journal.turns)

    @property
    def cost_usd(self) -> float:
        """US dollars spent so far, failed attempts included."""
        return self._open.journal.totals.cost_usd

    @property
    def state(self) -> SessionState:
        """The session as frozen data, without the transcript."""
        return self._open.journal.state()

    @property
    def ref(self) -> SessionRef:
        """Where it stands, for `turn(session=…)` in a flow."""
        return self._open.ref

    @property
    def opened(self) -> OpenSession:
        """The session in hand, for those who run steps themselves."""
        return self._open

    def __repr__(self) -> str:
        return f"Session({self.name!r}, turns={self.turns})"

    async def claude(self, prompt: str | Path | Prompt, **arguments: Unpack[TurnArguments]) -> TurnResult:
        """Run one step: a prompt's text, or the path of a prompt file (`.md`).

        Raises:
            PromptError, InputError, SessionRequired: before anything was spent.
            TurnError: the turn ended badly; the session is as it was before. `retryable` says whether to try again.
            SessionBusy: another turn of this session runs, and `wait` is over.
            StorageError: the turn could not be kept; `text` holds the answer.
        """
        return await self._turn(prompt, arguments, _printer if arguments.get("verbose") else _silent)

    run = claude

    async def stream(
        self, prompt: str | Path | Prompt, **arguments: Unpack[TurnArguments]
    ) -> AsyncGenerator[StreamChunk]:
        """Run one step like `claude`, and give each piece as it comes; the last one holds the result.

        Leaving the loop early interrupts the turn, which is then taken back. What goes wrong in that is raised where
        the stream is closed, or logged where the caller is cancelled.
        """
        queue: asyncio.Queue[StreamChunk | None] = asyncio.Queue()
        verbose = arguments.get("verbose")

        def on_chunk(chunk: StreamChunk) -> None:
            if verbose:
                _printer(chunk)
            queue.put_nowait(chunk)

        turn = asyncio.create_task(self._turn(prompt, arguments, on_chunk))
        turn.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (chunk := await queue.get()) is not None:
                yield chunk
        except BaseException as left:
            turn.cancel()
            await to_the_end(asyncio.wait([turn]))
            if not turn.cancelled() and (failure := turn.exception()):
                if not isinstance(left, asyncio.CancelledError):
                    raise failure from None
                _log.error("session %r: an interrupted turn: %s", self.name, failure)
            raise
        result = await turn
        yield StreamChunk(type="result", content=result.text, result=result)

    async def _turn(
        self, source: str | Path | Prompt, arguments: TurnArguments, on_chunk: Callable[[StreamChunk], None]
    ) -> TurnResult:
        step = step_of(prompt_of(source), arguments)
        opened = await self.opened_for(step)
        around = self._around(on_chunk, arguments.get("wait", self._settings.lock_wait))
        return await run_step(opened, step, replace(around, live=self.live_clis()))

    def _around(
        self, on_chunk: Callable[[StreamChunk], None] = lambda chunk: None, wait: float | None = None
    ) -> Surroundings:
        return Surroundings(settings=self._settings, cwd=self._cwd, on_chunk=on_chunk, wait=wait)

    async def save(self, name: str | None = None, *, overwrite: bool = False) -> str:
        """Keep the session under `name` and go on under it; return the name.

        An unnamed session takes the name; a named one is forked to it.

        Raises:
            SessionExists: another session has the name, and `overwrite` is not given.
            SessionBusy: a turn of the session that is to be overwritten runs.
            SessionConflict: with `auto_save=False`, the store's session went on without this one.
        """
        await self._ready()
        target = check_name(name) if name is not None else self.name
        if self._kept is not None:
            self._open = await self._kept.keep(self._open, self._store, target, overwrite=overwrite)
            self._named = True
            return target
        if target == self.name:
            await self._open.begin()
            self._named = True
            return target
        step = self._operation(f"save {target}")
        await self._settle(self._open)
        if made := await self._made_by(target, step):
            self._open, self._named = made, True
            return target
        await make_free(self._store, target, overwrite=overwrite)
        await self._open.begin()
        if self._named or step.run:
            # A flow's own session keeps its name: that is how a resumed flow finds the way here again.
            self._open = await fork_session(self._open, target, step=step)
        else:
            await self._open.rename(target)
        self._named = True
        return target

    async def fork(self, name: str, *, at: int | None = None) -> Session:
        """Copy the session up to the end of turn `at` (all of it unless given) into a new one, and return that.

        Raises:
            SessionExists: another session has the name.
            SessionBusy: a turn of the session runs, for longer than the setting `lock_wait` says.
            UsageError: there is no such turn.
        """
        await self._ready()
        step = self._operation(f"fork {name}")
        await self._settle(self._open)
        made = await self._made_by(name, step, at=at)
        fork = Session(name, storage=self._open.storage, cwd=self._cwd, settings=self._settings, live=self._live)
        fork._clis = self._clis
        fork._open = made or await fork_session(self._open, check_name(name), at=at, step=step)
        fork._loaded = True
        return fork

    async def rewind(self, *, to: int) -> None:
        """Go back to the end of turn `to` (from 1; 0: the beginning). The later turns stay in the journal.

        Raises:
            UsageError: there is no such turn.
        """
        await self._ready()
        await self._go_back("rewind", to)

    def clear(self) -> None:
        """Begin anew under the same name: forget what was said. Kept with the next turn or `save`."""
        self._pending = [_Operation(session_id=None)]

    def set_id(self, session_id: str) -> None:
        """Go on from a conversation that Claude Code has under this id. Kept with the next turn or `save`.

        Raises:
            UsageError: it is no Claude session id. (That there is no such conversation shows with the next turn.)
        """
        self._pending.append(_Operation(session_id=check_session_id(session_id)))

    @classmethod
    async def load(
        cls,
        name_or_path: str | Path,
        *,
        storage: SessionStorage | str | Path | None = None,
        auto_save: bool = True,
        cwd: str | Path | None = None,
        settings: Settings | None = None,
        live: bool | None = None,
    ) -> Session:
        """Open a saved session by its name, or by the path that `list` shows.

        Raises:
            SessionNotFound: there is none; the message names the nearest.
            JournalDamaged: its journal cannot be read.
        """
        settings = settings or _settings_here(cwd)
        store, text = _storage(storage, settings), str(name_or_path)
        path = Path(text)
        if not await store.exists(text) and await asyncio.to_thread(path.exists):
            folder = path if await asyncio.to_thread(path.is_dir) else path.parent
            store, text = FileSessionStorage(folder.absolute().parent), (await store.load(text)).metadata.name or text
        session = cls(text, storage=store, auto_save=auto_save, cwd=cwd, settings=settings, live=live)
        if session._kept is None:
            session._open = await OpenSession.load(store, text)
            session._loaded = True
        else:
            await session._borrow(session._kept)
        return session

    @classmethod
    async def list(cls, *, storage: SessionStorage | str | Path | None = None) -> Sequence[SessionInfo]:
        """Return every session's metadata, latest activity first."""
        return await _storage(storage).list()

    @classmethod
    async def exists(cls, name: str, *, storage: SessionStorage | str | Path | None = None) -> bool:
        """Return whether there is a session of that name."""
        return await _storage(storage).exists(name)

    @classmethod
    async def remove(cls, name: str, *, storage: SessionStorage | str | Path | None = None) -> None:
        """Delete a session. Raises `SessionNotFound`, and `SessionBusy` when a turn of it runs."""
        await remove_unused(_storage(storage), name)

    async def _ready(self) -> None:
        """Read what the store has of it, and do what was asked for without waiting."""
        if not self._loaded and self._kept and await self._store.exists(self.name):
            await self._borrow(self._kept)
        if not self._loaded:
            await self._open.refresh()
            self._loaded = True
        while self._pending:
            wanted = self._pending[0].session_id
            if wanted is None:
                await self._go_back("clear", 0)
            else:
                await self._attach(wanted)
            del self._pending[0]

    async def _go_back(self, name: str, to: int) -> None:
        if not self._open.journal.events:
            check_turn(self._open.journal, to)  # a name that was mistyped is not begun
        step = self._operation(name)
        async with self._open.lock(wait=0):
            await self._catch_up(self._open)
            if not _done(self._open.journal, step):
                await self._open.append(rewind_event(self._open.journal, to, reason=name, step=step))

    async def _attach(self, session_id: str) -> None:
        step = self._operation("set_id")
        event, deltas = await attach(self._around().place(), session_id)
        async with self._open.lock(wait=0):
            await self._catch_up(self._open)
            if not _done(self._open.journal, step):
                await self._open.append(event.model_copy(update={"step": step}), deltas=deltas)

    async def _borrow(self, kept: Unsaved) -> None:
        """Take along what the store has of a session that goes on in memory. Raises `SessionNotFound`."""
        stored = await OpenSession.load(self._store, self.name)
        await self._settle(stored)
        await kept.begin_from(stored, self._open)
        self._loaded = True

    async def _settle(self, session: OpenSession) -> None:
        """Read what others appended, and wait until no turn is without its ending: a copy has whole turns."""
        await session.refresh()
        if session.journal.intent is not None:
            async with session.lock(wait=self._settings.lock_wait):
                await self._catch_up(session)

    async def _catch_up(self, session: OpenSession) -> None:
        """Read what others appended, and give a turn that died its ending: it began from where the session stood."""
        await session.refresh()
        await session.begin()
        await Conversation(session, self._around().place(), lambda notice: None).settle()

    async def _made_by(self, name: str, step: StepRef, *, at: int | None = None) -> OpenSession | None:
        """Return the fork of that name when this very step of the run made it.

        It is made anew where this session's turns were run again since: what was done on it was done on others.
        """
        run = current_run()
        if run is None or not await self._store.exists(name):
            return None
        found = await OpenSession.load(self._store, name)
        created, origin = found.journal.created, found.journal.origin
        if created is None or created.step != step or origin is None or origin.name != self.name:
            return None
        if origin.turn_id and not run.stands(self._open.journal, origin.turn_id):
            async with found.lock(wait=self._settings.lock_wait):
                await self._catch_up(found)
                await fork_anew(found, self._open, at=at)
        return found

    async def opened_for(self, step: Step) -> OpenSession:
        """Return the session that a step runs in: this one, or what its prompt's `session.mode` makes of it.

        `new` begins anew under the same name; `fork` runs the step on a copy, and leaves the session as it is.

        Raises:
            SessionNotFound: the prompt's `session.from` does not exist.
        """
        spec = step.prompt.session
        await self._ready()
        # In a flow it is recorded even where there is nothing to forget: a resumed flow must not forget this very step.
        if spec.mode == "new" and (self._open.journal.entries or current_run()):
            await self._go_back(f"new {step.name}", 0)
        if self._kept is not None:
            await self._kept.part(self._open)
        if spec.mode != "fork":
            return self._open
        source = self if spec.from_ is None else await Session.load(spec.from_, storage=self._store, cwd=self._cwd)
        asked = step.request(self._settings).digest()
        copy = await source.fork(
            spec.name if spec.name != source.name and spec.name else _free_name(source, step, asked)
        )
        return copy.opened

    def _operation(self, name: str) -> StepRef:
        run = current_run()
        return run.operation(self.name, name) if run else StepRef()


@dataclass(frozen=True, slots=True)
class _Operation:
    """What `clear` (no id) or `set_id` asked for, to be done at the next occasion."""

    session_id: str | None


async def claude(
    prompt: str | Path | Prompt, *, cwd: str | Path | None = None, **arguments: Unpack[TurnArguments]
) -> TurnResult:
    """Run one step without a session. It is not kept by us; `result.session.id` is Claude Code's own. See `Session`."""
    return await Session(storage=MemorySessionStorage(), cwd=cwd).claude(prompt, **arguments)


async def stream(
    prompt: str | Path | Prompt, *, cwd: str | Path | None = None, **arguments: Unpack[TurnArguments]
) -> AsyncGenerator[StreamChunk]:
    """Run one step without a session, and give each piece as it comes. See `Session.stream`."""
    async with aclosing(Session(storage=MemorySessionStorage(), cwd=cwd).stream(prompt, **arguments)) as chunks:
        async for chunk in chunks:
            yield chunk


def check_session_id(text: str) -> str:
    """Return `text` when it is a Claude session id: a UUID.

    Raises:
        UsageError: it is none.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"{text!r} is no Claude session id: it is a UUID, such as `session show` prints") from None


def name_in_run(run: Run, step: str, asked: Mapping[str, str] | None = None) -> str:
    """Return a name for a session that was given none, which a resumed run finds again.

    `asked` is the digest of the request it begins with. Only what is asked again in the very same way is counted:
    which of two branches that run side by side comes first is chance.
    """
    key = run.operation("", " ".join([step, *(asked or {}).values()])).key
    # A hash: the keys of one deployment's runs begin alike, and a name has its limit.
    mark = hashlib.sha256(f"{run.key}/{key}".encode()).hexdigest()[:12]
    return f"{(run.flow or 'flow')[:60]}-{step[:100]}-{mark}"


def _settings_here(cwd: str | Path | None = None) -> Settings:
    """Return the settings of the present run; outside of one, those that hold in `cwd`."""
    run = current_run()
    return run.settings if run and run.settings else load_settings(cwd=cwd)


def _storage(storage: SessionStorage | str | Path | None, settings: Settings | None = None) -> JournalStorage:
    if storage is None:
        storage = (settings or _settings_here()).store
    return open_storage(storage) if isinstance(storage, str | Path) else as_journal_storage(storage)


def _done(journal: Journal, step: StepRef) -> bool:
    run = current_run()
    return run is not None and run.has_done(journal, step)


def _free_name(source: Session, step: Step, asked: Mapping[str, str]) -> str:
    """Return a name for the fork that a step runs on: the same one when a flow asks for it again."""
    if run := current_run():
        return name_in_run(run, f"{source.name[:80]}-{step.name}", asked)
    return f"{source.name[:150]}-{step.name[:30]}-{uuid.uuid4().hex[:8]}"


def _printer(chunk: StreamChunk) -> None:
    """Say on stderr what happens, for `verbose`."""
    match chunk.type:
        case "tool_use":
            print(f"· {chunk.tool} {json.dumps(chunk.input, ensure_ascii=False)[:200]}", file=sys.stderr)
        case "retry" | "notice":
            print(f"· {chunk.content}", file=sys.stderr)
        case _:
            pass


def _silent(chunk: StreamChunk) -> None:
    pass
