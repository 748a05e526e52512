"""Keeps a session's conversation in a place and its journal in step, whatever happened in between.

The journal is the truth of what was done; the transcript is the truth of what Claude Code will remember. Before a turn
the two must agree: a turn that died is adopted or taken back, what a person typed meanwhile joins the session, what is
missing is laid again from the journal's own copy. Nothing that was paid for or typed is thrown away.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from channelcoder_flows import transcript as files
from channelcoder_flows.errors import JournalDamaged, SessionNotFound, TurnError
from channelcoder_flows.exchange import Exchange, exchanges, is_readable, last_total_cost, total_costs, without
from channelcoder_flows.journal import Attach, Failed, FileMark, Intent, Interactive, Moved, Turn
from channelcoder_flows.places.base import Place
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.transcript import MAIN, Contents, Mark, Transcript
from channelcoder_flows.turn import Message, Usage

OnNotice = Callable[[str], None]


class Conversation:
    """One session's conversation in one place."""

    def __init__(self, session: OpenSession, place: Place, on_notice: OnNotice) -> None:
        self.session = session
        self.place = place
        self.on_notice = on_notice
        self.touched = False
        """Whether the last `lay` found the transcript other than the journal says."""

    @property
    def marks(self) -> dict[str, Mark]:
        """Where the journal says that the transcript stands."""
        return {path: Mark(mark.length, mark.sha256) for path, mark in self.session.journal.mark.items()}

    def _transcript(self, session_id: str, cwd: str = "") -> Transcript:
        return Transcript(self.place.config_dir, Path(cwd) if cwd else self.place.cwd, session_id)

    async def read(self) -> Contents:
        """Return the transcript as it is in the place."""
        return await asyncio.to_thread(self._transcript(self.session.journal.session_id or "").read)

    async def settle(self) -> None:
        """Give a turn that has no ending its ending: adopt its answer where it had arrived, else take it back."""
        journal = self.session.journal
        intent = journal.intent
        if intent is None:
            return
        if journal.process is not None and await self.place.end_stale(journal.process):
            self.on_notice("ended what was left of a turn whose process died")
        if await self.adopt(intent):
            self.on_notice(
                f"step {intent.step.key or 'turn'}: the answer had arrived before the crash; nothing is paid again"
            )
            return
        where = self._transcript(intent.session_id, intent.cwd)
        contents = await asyncio.to_thread(where.read)
        if not files.grown_from(contents, self.marks):
            # Another machine, or a clean-up: nothing of this turn can be known here.
            contents = {}
        error = TurnError("the process died in the middle of the turn", kind="died", retryable=True)
        total = self._total_before(contents, intent)
        await self.fail(intent, error, contents, total, keep=intent.recovery == "continue", where=where)

    async def adopt(self, intent: Intent) -> Turn | None:
        """Record the turn whose answer had arrived in full, though nobody came to say so; None: it had not."""
        where = self._transcript(intent.session_id, intent.cwd)
        await asyncio.to_thread(where.mend)
        contents = await asyncio.to_thread(where.read)
        if not files.grown_from(contents, self.marks):
            return None
        ours, typed = self.part(contents, intent.turn_id)
        if ours is None or not (ours.finished_output if intent.structured else ours.finished):
            return None
        return await self._adopt(intent, ours, contents, typed)

    async def _adopt(self, intent: Intent, ours: Exchange, contents: Contents, typed: list[Exchange]) -> Turn:
        """Take the answer that had arrived; what was typed after it joins as interactive."""
        before = self._total_before(contents, intent)
        until = {**contents, MAIN: contents[MAIN][: self._main_mark().length + ours.end]} if typed else contents
        deltas: dict[str, bytes] = {}
        marks, delta = self.added(until, deltas)
        text = json.dumps(ours.output, separators=(",", ":")) if intent.structured else ours.text
        turn = Turn(
            turn_id=intent.turn_id,
            session_id=intent.session_id,
            step=intent.step,
            digest=intent.digest,
            prompt=intent.prompt,
            text=text,
            output=ours.output if intent.structured else None,
            cost_usd=max(0.0, ours.total_cost - before) if ours.total_cost is not None else self._estimate(ours),
            cost_estimated=ours.total_cost is None,
            usage=ours.usage,
            started=intent.at,
            duration_s=max(0.0, (ours.ended - intent.at).total_seconds()),
            model_calls=ours.model_calls,
            model=ours.model,
            place=intent.place,
            commit=await self.place.snapshot(intent.turn_id),
            adopted=True,
            files=marks,
            delta=delta,
        )
        await self.session.append(turn, deltas=deltas)
        if typed:
            await self._join_typed(contents, typed, ours.total_cost or before)
        return turn

    async def fail(
        self,
        intent: Intent,
        error: TurnError,
        contents: Contents,
        total_before: float,
        *,
        keep: bool = False,
        where: Transcript | None = None,
        total: float | None = None,
    ) -> None:
        """Record a failed attempt, with its tail, and cut the transcript back to where it stood before.

        With `keep`, what Claude had done stays in the conversation, and the next attempt goes on from there. Where a
        person typed into the same conversation meanwhile, their words stay, and ours too if theirs build on them.
        `total` is the conversation's running total in US dollars, where it is known from elsewhere than the transcript.
        """
        ours, typed = self.part(contents, intent.turn_id)
        deltas: dict[str, bytes] = {}
        marks, tail = self.added(contents, deltas) if contents else ((), None)
        if typed:
            spent = max(0.0, (ours.total_cost or 0.0) - total_before) if ours else 0.0
            await self.session.append(failure(intent, error, ours, spent, tail), deltas=deltas)
            where = where or self._transcript(intent.session_id)
            await self._join_typed(await self._take_out(intent, contents, typed, where), typed, total_before + spent)
            return
        spent = max(0.0, (last_total_cost(contents.get(MAIN, b"")) if total is None else total) - total_before)
        failed = failure(intent, error, ours, spent, tail)
        kept = keep and ours is not None and tail is not None
        if kept:
            failed = failed.model_copy(update={"tail": None, "files": marks, "delta": tail})
        marks_before = self.marks
        # Recorded first, cut second: killed in between, the tail is known as this failure's and cut by the next turn.
        await self.session.append(failed, deltas=deltas)
        if not kept and contents:
            cut = where or self._transcript(intent.session_id)
            await asyncio.to_thread(cut.cut, marks_before)
        if not kept:
            await self.place.rollback(intent.snapshot)

    async def _take_out(self, intent: Intent, contents: Contents, typed: list[Exchange], where: Transcript) -> Contents:
        """Take a failed attempt out from among what a person typed; else Claude would go on from the later of both."""
        start = self._main_mark().length
        main = contents[MAIN]
        left = main[:start] + without(main[start:], intent.turn_id, [exchange.turn_id for exchange in typed])
        if left == main or await asyncio.to_thread(where.read) != contents:
            return contents  # the person types on at this very moment
        contents = {**contents, MAIN: left}
        await asyncio.to_thread(where.lay, contents)
        return contents

    async def lay(self) -> Contents:
        """Bring the transcript to where the journal stands, and return it: the next turn can start."""
        journal = self.session.journal
        contents, marks = await self.read(), self.marks
        grown = files.grown_from(contents, marks)
        self.touched = not grown or bool(files.added_since(contents, marks))
        if not self.touched:
            return contents
        if grown:
            return await self._face_growth(contents, marks)
        ours = await self.restored()
        if all(ours.get(path, b"").startswith(data) for path, data in contents.items()):
            self.on_notice("the conversation is not here in full: laid again from the session's own copy")
        else:
            # Someone changed what was said. Theirs stays as it is; ours goes on under another id.
            moved = Moved(session_id=str(uuid.uuid4()), reason="the transcript was changed by another program")
            await self.session.append(moved)
            self.on_notice(f"another program changed the conversation: going on from our copy as {moved.session_id}")
        await asyncio.to_thread(self._transcript(journal.session_id or "").lay, ours)
        return ours

    async def restored(self) -> Contents:
        """Return the transcript from the journal's own copy. Raises `JournalDamaged`, `StorageError`."""
        contents = files.join([await self.session.delta(delta) for delta in self.session.journal.deltas()])
        if files.marks_of(contents) != self.marks:
            raise JournalDamaged(
                f"session {self.session.name!r}: its transcript does not add up to what its journal says: "
                "rewind it to an earlier turn",
                name=self.session.name,
            )
        return contents

    async def _face_growth(self, contents: Contents, marks: Mapping[str, Mark]) -> Contents:
        _, typed = self.part(contents)
        if typed:
            self.on_notice(f"{len(typed)} exchange(s) typed into claude since the last turn joined the session")
            # A CLI that outlived several turns says what they cost when it ends: before what was typed.
            before = last_total_cost(contents[MAIN][: self._main_mark().length + typed[0].start])
            await self._join_typed(contents, typed, before)
            return contents
        if (more := contents.get(MAIN, b"")[self._main_mark().length :]) and not is_readable(more):
            self.on_notice(f"the end of the conversation cannot be read, and was cut off: {len(more)} bytes")
        # What is left of a failed attempt, or housekeeping of Claude Code's own: no words that anyone would miss.
        await asyncio.to_thread(self._transcript(self.session.journal.session_id or "").cut, marks)
        return await self.read()

    def typed_meanwhile(self, contents: Contents, typed: list[Exchange], our_total: float) -> Interactive:
        """Return what was typed while a turn ran, to join right after it: the turn's own delta holds the words of both.

        Claude Code takes the two for branches of one conversation, and goes on from the later one.
        """
        totals = total_costs(contents[MAIN][self._main_mark().length :])
        if our_total in totals:
            totals.remove(our_total)
        before = self._total_before(contents)
        session_id = self.session.journal.session_id or ""
        return Interactive(
            session_id=session_id,
            messages=tuple(message for exchange in typed for message in exchange.messages(session_id)),
            cost_usd=max(0.0, max(totals, default=before) - before),
        )

    async def _join_typed(self, contents: Contents, typed: list[Exchange], total_before: float) -> None:
        session_id = self.session.journal.session_id or ""
        deltas: dict[str, bytes] = {}
        # Of two processes at once the dearer one counts: their totals begin from the same sum.
        totals = total_costs(contents[MAIN][self._main_mark().length :])
        spent = max(0.0, max(totals, default=0.0) - total_before)
        marks, delta = self.added(contents, deltas)
        messages: list[Message] = []
        for exchange in typed:
            messages.extend(exchange.messages(session_id))
        await self.session.append(
            Interactive(session_id=session_id, messages=tuple(messages), cost_usd=spent, files=marks, delta=delta),
            deltas=deltas,
        )

    def added(self, contents: Contents, deltas: dict[str, bytes]) -> tuple[tuple[FileMark, ...], str | None]:
        """Put what `contents` holds beyond the journal into `deltas`; return the new marks and the delta's id."""
        return _delta(contents, self.marks, deltas)

    def part(self, contents: Contents, turn_id: str = "") -> tuple[Exchange | None, list[Exchange]]:
        """Return what the transcript holds beyond the journal: that turn's exchange, and those that a person typed."""
        found = exchanges(contents.get(MAIN, b"")[self._main_mark().length :])
        ours = next((exchange for exchange in found if exchange.turn_id == turn_id), None)
        return ours, [e for e in found if e is not ours and not self._known_failure(e)]

    def _estimate(self, exchange: Exchange) -> float:
        """Return what an exchange may have cost, by what the session's turns on the same model did; 0 without any."""
        known = [t for t in self.session.journal.turns if t.model == exchange.model and not t.cost_estimated]
        weight = sum(_weight(turn.usage) for turn in known)
        return sum(turn.cost_usd for turn in known) * _weight(exchange.usage) / weight if weight else 0.0

    def _total_before(self, contents: Contents, intent: Intent | None = None) -> float:
        """Return what the conversation had cost before what the transcript grew by, or before the turn that began."""
        if intent is not None and intent.total_usd is not None:
            return intent.total_usd
        return last_total_cost(contents.get(MAIN, b"")[: self._main_mark().length])

    def _main_mark(self) -> Mark:
        return self.marks.get(MAIN, Mark(0, ""))

    def _known_failure(self, exchange: Exchange) -> bool:
        return any(
            isinstance(event, Failed) and event.turn_id == exchange.turn_id for event in self.session.journal.events
        )


def _weight(usage: Usage) -> float:
    # The proportions of Anthropic's list prices are the same for every model: an output token costs five input ones.
    return (
        usage.input_tokens
        + 5 * usage.output_tokens
        + 0.1 * usage.cache_read_input_tokens
        + 1.25 * usage.cache_creation_input_tokens
    )


async def attach(place: Place, session_id: str) -> tuple[Attach, dict[str, bytes]]:
    """Return the event, and its deltas, with which a session goes on from a conversation of Claude Code's own.

    Raises:
        SessionNotFound: Claude Code has no such conversation here.
    """
    contents = await asyncio.to_thread(Transcript(place.config_dir, place.cwd, session_id).read)
    if not contents.get(MAIN):
        raise SessionNotFound(
            f"Claude Code has no conversation {session_id} under {place.config_dir}: `claude --resume` lists them",
            name=session_id,
        )
    deltas: dict[str, bytes] = {}
    marks, delta = _delta(contents, {}, deltas)
    return Attach(session_id=session_id, files=marks, delta=delta), deltas


def failure(intent: Intent, error: TurnError, ours: Exchange | None, spent: float, tail: str | None) -> Failed:
    """Return a failed attempt as an event; `spent` is US dollars, `tail` the delta of what is taken back."""
    return Failed(
        turn_id=intent.turn_id,
        step=intent.step,
        error=error.kind,
        raised=type(error).__name__,
        message=error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        prompt=intent.prompt,
        text=error.text or (ours.text if ours else ""),
        cost_usd=spent,
        cost_estimated=ours is not None and ours.total_cost is None and ours.model_calls > 0,
        usage=ours.usage if ours else Usage(),
        tail=tail,
    )


def _delta(
    contents: Contents, marks: Mapping[str, Mark], deltas: dict[str, bytes]
) -> tuple[tuple[FileMark, ...], str | None]:
    """Put what `contents` holds beyond `marks` into `deltas`; return the new marks and the delta's id."""
    pieces = files.added_since(contents, marks)
    if not pieces:
        return (), None
    blob = files.pack(pieces)
    name = hashlib.sha256(blob).hexdigest()
    deltas[name] = blob
    changed = {piece.path for piece in pieces}
    new = {path: files.mark_of(data) for path, data in contents.items() if path in changed}
    return tuple(FileMark(path=path, length=mark.length, sha256=mark.sha256) for path, mark in new.items()), name
