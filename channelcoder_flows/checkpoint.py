"""A turn as a checkpoint: the conversation, the answer and its cost are recorded together, or not at all.

Under the session's lock, and in this order: lay the transcript as the journal has it, append the intent, run the CLI,
append the turn. Knows nothing of prompts, and of a run only that it counts what is spent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from channelcoder_flows.branching import fork_session
from channelcoder_flows.config import OnUnfinished, Settings, child_environment
from channelcoder_flows.conversation import Conversation, failure
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import (
    ChannelCoderError,
    PlaceError,
    SessionConflict,
    TurnDied,
    TurnError,
    TurnStalled,
    TurnTimeout,
)
from channelcoder_flows.exchange import last_total_cost
from channelcoder_flows.journal import Check, Failed, Intent, Interactive, Journal, Moved, Started, StepRef, Turn, now
from channelcoder_flows.journal import Run as RunEvent
from channelcoder_flows.places.base import Place, Process
from channelcoder_flows.places.host import HostPlace
from channelcoder_flows.run import Run
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.transcript import MAIN, Contents
from channelcoder_flows.turn import StreamChunk, TurnRequest

if TYPE_CHECKING:
    from channelcoder_flows.claude_code import Answer, Cli, LiveClis

_log = logging.getLogger(__name__)

KEEP_ATTEMPTS = 10
"""Appends of a turn that others' appends may come before."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a turn runs in: settings, directory, and who listens."""

    settings: Settings
    cwd: Path
    on_chunk: Callable[[StreamChunk], None] = field(default=lambda chunk: None)
    wait: float | None = None
    """Seconds to wait for a busy session; None: as long as it takes."""
    on_unfinished: OnUnfinished | None = None
    """What to do when the session's last run did not end; the run's own unless given."""
    live: LiveClis | None = None
    """Where a CLI may wait for the session's next turn. None: it ends with each turn."""

    def notice(self, text: str) -> None:
        """Say something that is no part of the answer."""
        self.on_chunk(StreamChunk(type="notice", content=text))

    def place(self) -> Place:
        """Open the place the step runs in."""
        return HostPlace(self.cwd, Path(self.settings.config_dir).expanduser())


class Checkpoint:
    """One turn of a session, under its lock."""

    def __init__(self, session: OpenSession, request: TurnRequest, around: Surroundings, run: Run | None) -> None:
        self.session, self.request, self.around, self.run = session, request, around, run
        self.place = around.place()
        self.conversation = Conversation(session, self.place, around.notice)

    def locked(self) -> AbstractAsyncContextManager[None]:
        """Hold the session's lock."""
        name, notice = self.session.name, self.around.notice
        return self.session.lock(
            wait=self.around.wait, on_wait=lambda: notice(f"session {name!r} is busy: waiting for its turn")
        )

    async def catch_up(self) -> None:
        """Read what others appended, and give a turn that died its ending."""
        await self.session.refresh()
        await self.session.begin()
        await self.conversation.settle()

    async def turn(self, step: StepRef, text: str) -> Turn:
        """Run one turn and record it. Paid work is never dropped: a writer that came between makes it a fork."""
        cli = await self._waiting()
        try:
            contents = await self.conversation.lay()
            if cli is None or self.conversation.touched:
                if cli is not None:
                    # The CLI has another conversation in mind than the one that was laid now.
                    await cli.kill()
                    contents = await self.conversation.lay()
                cli = self._cli(resume=bool(contents.get(MAIN)))
            turn = await self._ask_and_record(cli, contents, step, text)
        except BaseException:
            if cli is not None:
                await to_the_end(cli.end())
            raise
        if not cli.ended:
            await self._let_wait(cli)
        return turn

    async def _let_wait(self, cli: Cli) -> None:
        """Let a CLI wait for the next turn, or end it. The turn is recorded: what goes wrong here must not hide it."""
        try:
            if self.around.live is not None and cli.idle:
                await self.around.live.keep(cli, self._stand())
            else:
                await to_the_end(cli.end())
        except Exception:
            _log.exception("session %r: a CLI that outlived its turn could not be ended", self.session.name)

    def _cli(self, *, resume: bool) -> Cli:
        from channelcoder_flows import claude_code

        return claude_code.Cli(
            self.place,
            self.request,
            claude=claude_code.find_claude(self.around.settings.claude_path),
            env=child_environment(self.around.settings, os.environ),
            session_id=self.session.journal.session_id or "",
            resume=resume,
        )

    async def _waiting(self) -> Cli | None:
        """Return the CLI that waits for this very turn."""
        if self.around.live is None:
            return None
        return await self.around.live.take(self._cli(resume=True), self._stand())

    def _stand(self) -> object:
        """Return where the conversation stands: all but bookkeeping changes it."""
        journal = self.session.journal
        seq = next((n for n in range(journal.seq, 0, -1) if not isinstance(journal.events[n - 1], RunEvent | Check)), 0)
        return self.session.storage.url, self.session.name, seq, self.conversation.marks

    async def _ask_and_record(self, cli: Cli, contents: Contents, step: StepRef, text: str) -> Turn:
        # A CLI that waited has the earlier turns' costs in its head, and not yet in the transcript.
        total = last_total_cost(contents.get(MAIN, b"")) if cli.total_cost_usd is None else cli.total_cost_usd
        intent = await self._intent(step, text, total)
        try:
            answer = await self._ask(cli, intent)
        except BaseException as exc:
            if (arrived := await to_the_end(self._ended_badly(intent, exc))) is not None:
                return arrived
            raise
        try:
            return await self._record(cli, intent, answer)
        except ChannelCoderError as exc:
            exc.answer = answer.text
            raise

    async def _intent(self, step: StepRef, text: str, total: float) -> Intent:
        return Intent(
            turn_id=str(uuid.uuid4()),
            session_id=self.session.journal.session_id or "",
            step=step,
            digest=self.request.digest(),
            prompt=text,
            place=self.place.spec,
            cwd=str(self.place.cwd),
            snapshot=await self.place.snapshot("before"),
            structured=self.request.output_schema is not None,
            recovery=self.request.options.recovery,
            total_usd=total,
        )

    async def _ask(self, cli: Cli, intent: Intent) -> Answer:
        """Make it durable that the turn is about to start, and run the CLI."""
        from channelcoder_flows import claude_code

        async def started(process: Process) -> None:
            await self.session.append(Started(turn_id=intent.turn_id, process=process.ident))

        await self.session.append(intent)
        return await claude_code.run_turn(
            cli,
            self.request.model_copy(update={"prompt": intent.prompt}),
            turn_id=intent.turn_id,
            on_chunk=self.around.on_chunk,
            on_started=started,
            stay=self.around.live is not None and claude_code.can_stay(self.request.options),
        )

    async def _ended_badly(self, intent: Intent, exc: BaseException) -> Turn | None:
        """Record what became of the turn; return it where the answer had arrived before the CLI was gone."""
        if self.session.journal.intent != intent:
            return None
        if isinstance(exc, TurnDied | TurnStalled | TurnTimeout):
            try:
                turn = await self.conversation.adopt(intent)
            except ChannelCoderError as not_kept:
                not_kept.answer = exc.text
                raise
            if turn is not None:
                self._count(turn)
                self.around.notice(f"{exc.message.partition(':')[0]}; its answer had arrived, and is kept")
                return turn
        await self._failed(intent, exc)
        return None

    def _count(self, turn: Turn) -> None:
        if self.run is not None:
            self.run.count(turn.cost_usd, turns=1)

    async def _record(self, cli: Cli, intent: Intent, answer: Answer) -> Turn:
        """Keep the answer, with what the transcript grew by."""
        after = await self.conversation.read()
        ours, typed = self.conversation.part(after, intent.turn_id)
        written = ours is not None and (ours.finished_output if intent.structured else ours.finished)
        whole = after.get(MAIN, b"").endswith(b"\n")
        if not cli.ended and (not cli.idle or typed or ours is None or not (written and whole) or ours.moved):
            # It has more to write, or would go on from elsewhere than a new one.
            await cli.end()
            after = await self.conversation.read()
            ours, typed = self.conversation.part(after, intent.turn_id)
        if ours is None:
            error = TurnError(
                f"Claude Code kept no transcript under {self.place.config_dir}: make it writable, then run again",
                kind="not-saved",
                text=answer.text,
            )
            await self._failed(intent, error, total=answer.total_cost_usd)
            raise error
        deltas: dict[str, bytes] = {}
        marks, delta = self.conversation.added(after, deltas)
        turn = Turn(
            turn_id=intent.turn_id,
            session_id=intent.session_id,
            step=intent.step,
            digest=intent.digest,
            prompt=intent.prompt,
            text=answer.text,
            output=answer.output,
            cost_usd=max(0.0, round(answer.total_cost_usd - (intent.total_usd or 0.0), 9)),
            usage=answer.usage,
            started=intent.at,
            duration_s=round((now() - intent.at).total_seconds(), 3),
            model_calls=answer.model_calls,
            model=answer.model,
            denials=answer.denials,
            place=self.place.spec,
            commit=await self.place.snapshot(intent.turn_id),
            files=marks,
            delta=delta,
        )
        self._count(turn)
        joined: list[Interactive] = []
        if typed:
            joined = [self.conversation.typed_meanwhile(after, typed, answer.total_cost_usd)]
            self.around.notice(f"{len(typed)} exchange(s) typed into claude during the turn joined the session")
        await self._keep(turn, *joined, deltas=deltas)
        return turn

    async def _keep(self, turn: Turn, *typed: Interactive, deltas: Mapping[str, bytes]) -> None:
        """Append the turn. What others wrote meanwhile goes first, as long as the conversation is the one we had."""
        session, journal = self.session, self.session.journal
        events, mark = list(journal.events), dict(journal.mark)
        for _ in range(KEEP_ATTEMPTS):
            try:
                await session.append(turn, *typed, deltas=deltas)
                return
            except SessionConflict:
                await session.refresh()
            if journal.intent is None or journal.intent.turn_id != turn.turn_id or journal.mark != mark:
                break
        ours = OpenSession(session.storage, session.name, Journal(events))
        await self._keep_as_fork(ours, turn, *typed, deltas=deltas)

    async def _keep_as_fork(
        self, ours: OpenSession, turn: Turn, *typed: Interactive, deltas: Mapping[str, bytes]
    ) -> None:
        name = f"{ours.name[:150]}-fork-{turn.turn_id[:8]}"
        fork = await fork_session(ours, name)
        # The two must not go on under one Claude session id.
        await fork.append(turn, *typed, Moved(session_id=str(uuid.uuid4()), reason="fork"), deltas=deltas)
        self.around.notice(f"another writer went on with {ours.name!r}: this turn is kept as {name!r}")
        intent = self.session.journal.intent
        if intent is not None and intent.turn_id == turn.turn_id:
            moved = TurnError(f"another writer went on meanwhile: the turn is kept as {name!r}", kind="kept-as-fork")
            await self.session.append(failure(intent, moved, None, 0.0, None))
        self.session.name, self.session.journal = fork.name, fork.journal

    async def _failed(self, intent: Intent, exc: BaseException, *, total: float | None = None) -> None:
        """Record how the attempt ended, and take its words back."""
        error = exc if isinstance(exc, TurnError) else _as_turn_error(exc)
        contents: Contents = await self.conversation.read()
        keep = intent.recovery == "continue" and error.retryable
        await self.conversation.fail(intent, error, contents, intent.total_usd or 0.0, keep=keep, total=total)
        failed = next(event for event in reversed(self.session.journal.events) if isinstance(event, Failed))
        if self.run is not None:
            self.run.count(failed.cost_usd)
        if isinstance(exc, TurnError):
            exc.session, exc.cost_usd = self.session.name, failed.cost_usd


def _as_turn_error(exc: BaseException) -> TurnError:
    if isinstance(exc, ChannelCoderError):
        return TurnError(exc.message, kind="place" if isinstance(exc, PlaceError) else "internal")
    if isinstance(exc, asyncio.CancelledError | KeyboardInterrupt):
        return TurnError("the turn was interrupted", kind="interrupted", retryable=True)
    return TurnError(f"{type(exc).__name__}: {exc}", kind="internal")
