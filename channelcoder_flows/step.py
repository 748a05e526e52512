"""Runs a step: prompt and inputs in, a recorded turn out. Knows no Prefect.

The order of things is what makes a turn safe. Under the session's lock: bring conversation and journal in step, look
whether the run has this step already, append the intent, run the CLI, append the turn, judge the output.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from channelcoder_flows import errors
from channelcoder_flows.branching import fork_session, rewind_event
from channelcoder_flows.config import OnUnfinished, Settings, child_environment
from channelcoder_flows.conversation import Conversation, failure
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import (
    ChannelCoderError,
    OutputInvalid,
    PlaceError,
    SessionConflict,
    SessionRequired,
    TurnError,
    UsageError,
)
from channelcoder_flows.exchange import as_object, last_total_cost
from channelcoder_flows.journal import (
    Check,
    Event,
    Failed,
    Intent,
    Interactive,
    Journal,
    Moved,
    Started,
    StepRef,
    Turn,
    now,
)
from channelcoder_flows.places.base import Place, Process
from channelcoder_flows.places.host import HostPlace
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import Match, Recorded, Run, check_step_name, current_run
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.transcript import MAIN, Contents
from channelcoder_flows.turn import Outcome, StreamChunk, TurnOptions, TurnRequest, TurnResult, options_from

if TYPE_CHECKING:
    from channelcoder_flows.claude_code import Answer

GO_ON = "You were interrupted in the middle of this. Go on from where you stood; do not start over."
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
OUTPUT_ATTEMPTS = 2
"""Turns of one step until an answer fits its declared output."""
KEEP_ATTEMPTS = 10
"""Appends of a turn that others' appends may come before."""


@dataclass(frozen=True, slots=True)
class Step:
    """A prompt with its inputs bound, and how the caller wants it run."""

    prompt: Prompt
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: TurnOptions = field(default_factory=TurnOptions)
    key: str | None = None

    @property
    def name(self) -> str:
        """The step key before it is counted."""
        return check_step_name(self.key or self.prompt.name)

    def request(self, settings: Settings) -> TurnRequest:
        """State the turn in full: what the call says wins over the prompt, the prompt over the settings.

        Raises:
            InputError: the inputs do not fit the prompt.
            UsageError: the prompt is empty, or something in the request is no text.
        """
        text = self.prompt.bind(self.data)
        if not text.strip():
            raise UsageError("the prompt is empty: say what Claude should do")
        settled = options_from(
            model=settings.model,
            timeout=settings.timeout,
            idle_timeout=settings.idle_timeout,
            permission_mode=settings.permission_mode,
            setting_sources=settings.setting_sources,
        )
        options = self.options.over(self.prompt.options.over(settled.over(TurnOptions())))
        return check_texts(TurnRequest(prompt=text, options=options, output_schema=self.prompt.output_schema))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a step runs in: settings, directory, and who listens."""

    settings: Settings
    cwd: Path
    on_chunk: Callable[[StreamChunk], None] = field(default=lambda chunk: None)
    wait: float | None = None
    """Seconds to wait for a busy session; None: as long as it takes."""
    on_unfinished: OnUnfinished | None = None
    """What to do when the session's last run did not end; the run's own unless given."""

    def notice(self, text: str) -> None:
        """Say something that is no part of the answer."""
        self.on_chunk(StreamChunk(type="notice", content=text))

    def place(self) -> Place:
        """Open the place the step runs in."""
        return HostPlace(self.cwd, Path(self.settings.config_dir).expanduser())


async def run_step(session: OpenSession, step: Step, around: Surroundings) -> TurnResult:
    """Run a step in a session and return its result, from the journal where the current run has it already.

    An answer that does not fit the declared output goes back to Claude once, as another turn of the same step.

    Raises:
        SessionRequired: the prompt continues a session, and this one has no turn; nothing was spent.
        SessionBusy: the session is in use by another turn.
        SessionDiverged, SessionUnfinished, RunTakenOver: see `run.Run`.
        OutputInvalid: the answers did not fit the declared output; the turns are kept.
        TurnError: the turn ended badly; the session is as it was before, the attempt recorded.
        ChannelCoderError: the turn could not be kept; `answer` holds what Claude said.
    """
    request = step.request(around.settings)
    run = current_run()
    if run is None:
        return await _steps_turns(session, step, request, around, None)
    with run.one_turn(session.name):
        return await _steps_turns(session, step, request, around, run)


async def _steps_turns(
    session: OpenSession, step: Step, request: TurnRequest, around: Surroundings, run: Run | None
) -> TurnResult:
    one = _TurnOfStep(session, step, request, around, run)
    async with one.locked():
        match = await one.begin()
        if match.recorded is not None:
            return await _again(one, match, match.recorded)
        # Still under the lock: "your answer does not fit" must follow that very answer.
        return await _answered(one, match.step, OUTPUT_ATTEMPTS)


async def _again(one: _TurnOfStep, match: Match, recorded: Recorded) -> TurnResult:
    """Return, or raise, what the journal has of a step. One that the run died of with a wrong output goes on."""
    if not recorded.turns:
        raise _failure_again(one.session, recorded)
    turn = recorded.turns[-1]
    if match.as_recorded:
        return _result(one.session, turn, turn.output, replayed=True)
    output, problem = _judge(one.step.prompt, turn)
    if not problem:
        return _result(one.session, turn, output, replayed=True)
    if recorded.passed_over:
        raise _does_not_fit(one, turn, problem)
    return await _answered(one, turn.step, OUTPUT_ATTEMPTS - 1, again=problem)


async def _answered(one: _TurnOfStep, ref: StepRef, attempts: int, *, again: str = "") -> TurnResult:
    """Run the step's next turn; ask once more where the answer does not fit the declared output."""
    if again:
        one.around.notice("the answer does not fit the declared output: asking once more")
        ref = ref.model_copy(update={"attempt": ref.attempt + 1})
    try:
        turn = await one.turn(ref, again=again)
    except OutputInvalid:
        # Claude Code gave up on the form by itself: nothing of that attempt is left to be answered.
        if attempts < OUTPUT_ATTEMPTS:
            raise
        one.around.notice("Claude gave no answer in the declared form: asking once more")
        return await _answered(one, ref.model_copy(update={"attempt": ref.attempt + 1}), attempts - 1)
    output, problem = _judge(one.step.prompt, turn)
    if not problem:
        return _result(one.session, turn, output, replayed=False)
    await one.session.append(Check(step=turn.step, name="output", passed=False, message=problem))
    if attempts <= 1:
        raise _does_not_fit(one, turn, problem)
    return await _answered(one, ref, attempts - 1, again=problem)


def _does_not_fit(one: _TurnOfStep, turn: Turn, problem: str) -> OutputInvalid:
    return OutputInvalid(
        f"step {one.step.name!r}: the answer does not fit the declared output: {problem}",
        session=one.session.name,
        text=turn.text,
        cost_usd=turn.cost_usd,
    )


def _failure_again(session: OpenSession, recorded: Recorded) -> TurnError:
    """Return the error of a step that the flow went on without; nothing is spent on it again."""
    failed = recorded.failed
    assert failed is not None, "a step without turns is there because it failed"
    raised = getattr(errors, failed.raised, TurnError)
    kind = raised if isinstance(raised, type) and issubclass(raised, TurnError) else TurnError
    return kind(failed.message, kind=failed.error, session=session.name, text=failed.text)


def _judge(prompt: Prompt, turn: Turn) -> tuple[Any, str]:
    """Return the validated output, or what is wrong with it."""
    if prompt.output_schema is None:
        return None, ""
    if turn.output is None:
        return None, "there is no structured answer, only text"
    try:
        return prompt.validate_output(turn.output), ""
    except OutputInvalid as exc:
        return None, exc.message


def _result(session: OpenSession, turn: Turn, output: Any, *, replayed: bool) -> TurnResult:
    journal = session.journal
    outcome: Outcome = turn.outcome
    said = as_object(output).get("outcome")
    if said in ("done", "blocked", "no_change", "failed"):
        outcome = said
    return TurnResult(
        text=turn.text,
        output=output,
        outcome=outcome,
        session=session.ref.model_copy(update={"seq": journal.seq_of(turn), "id": turn.session_id}),
        turn=journal.number_of(turn),
        step=str(turn.step),
        cost_usd=turn.cost_usd,
        cost_estimated=turn.cost_estimated,
        usage=turn.usage,
        duration_s=turn.duration_s,
        model_calls=turn.model_calls,
        denials=turn.denials,
        commit=turn.commit,
        replayed=replayed,
        adopted=turn.adopted,
    )


class _TurnOfStep:
    """One turn, under the session's lock."""

    def __init__(
        self, session: OpenSession, step: Step, request: TurnRequest, around: Surroundings, run: Run | None
    ) -> None:
        self.session, self.step, self.request, self.around, self.run = session, step, request, around, run
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

    async def begin(self) -> Match:
        """Find out whether this step is done already; go back first where it is to be run again."""
        journal = self.session.journal
        await self.session.refresh()
        check_continues(self.step.prompt, journal)
        started: list[Event] = []
        if self.run is not None:
            await self.run.hold(self.session)
            name, store, on_unfinished = self.session.name, self.session.storage.url, self.around.on_unfinished
            started.extend(self.run.enter(name, store, journal, on_unfinished=on_unfinished))
        await self.catch_up()
        check_continues(self.step.prompt, journal)
        if started:
            await self.session.append(*started)
        if self.run is None:
            return Match(StepRef(key=self.step.name))
        match = self.run.match(self.session.name, journal, self.step.name, self.request.digest())
        if match.rewind_to is not None:
            self.around.notice(f"going back to the end of turn {match.rewind_to}: the later ones are run again")
            await self.session.append(rewind_event(journal, match.rewind_to, reason="run again"))
        return match

    async def turn(self, ref: StepRef, *, again: str = "") -> Turn:
        """Run one turn and record it. Paid work is never dropped: a writer that came between makes it a fork."""
        from channelcoder_flows import claude_code

        claude = claude_code.find_claude(self.around.settings.claude_path)
        text = _answer_again(again) if again else self._go_on(ref) or self.request.prompt
        contents = await self.conversation.lay()
        total_before = last_total_cost(contents.get(MAIN, b""))
        intent = await self._intend(ref, text)
        answer = await self._ask(claude, intent, total_before, resume=bool(contents.get(MAIN)))
        try:
            return await self._record(intent, answer, total_before)
        except ChannelCoderError as exc:
            exc.answer = answer.text
            raise

    async def _intend(self, ref: StepRef, text: str) -> Intent:
        """Make it durable that a turn is about to start."""
        intent = Intent(
            turn_id=str(uuid.uuid4()),
            session_id=self.session.journal.session_id or "",
            step=ref,
            digest=self.request.digest(),
            prompt=text,
            place=self.place.spec,
            cwd=str(self.place.cwd),
            snapshot=await self.place.snapshot("before"),
            structured=self.request.output_schema is not None,
            recovery=self.request.options.recovery,
        )
        await self.session.append(intent)
        return intent

    async def _ask(self, claude: Path, intent: Intent, total_before: float, *, resume: bool) -> Answer:
        """Run the CLI. Whatever ends it badly is recorded, however often we are cancelled meanwhile."""
        from channelcoder_flows import claude_code

        async def started(process: Process) -> None:
            await self.session.append(Started(turn_id=intent.turn_id, process=process.ident))

        try:
            return await claude_code.run_turn(
                self.place,
                self.request.model_copy(update={"prompt": intent.prompt}),
                claude=claude,
                env=child_environment(self.around.settings, os.environ),
                session_id=intent.session_id,
                turn_id=intent.turn_id,
                resume=resume,
                on_chunk=self.around.on_chunk,
                on_started=started,
            )
        except BaseException as exc:
            await to_the_end(self._failed(intent, exc, total_before))
            raise

    async def _record(self, intent: Intent, answer: Answer, total_before: float) -> Turn:
        """Keep the answer, with what the transcript grew by."""
        after = await self.conversation.read()
        ours, typed = self.conversation.part(after, intent.turn_id)
        if ours is None:
            error = TurnError(
                f"Claude Code kept no transcript under {self.place.config_dir}: make it writable, then run again",
                kind="not-saved",
                text=answer.text,
            )
            await self._failed(intent, error, total_before, total=answer.total_cost_usd)
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
            cost_usd=max(0.0, round(answer.total_cost_usd - total_before, 9)),
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
        if self.run is not None:
            self.run.count(turn.cost_usd, turns=1)
        joined: list[Interactive] = []
        if typed:
            joined = [self.conversation.typed_meanwhile(after, typed, answer.total_cost_usd)]
            self.around.notice(f"{len(typed)} exchange(s) typed into claude during the turn joined the session")
        await self._keep(turn, *joined, deltas=deltas)
        return turn

    def _go_on(self, ref: StepRef) -> str:
        """Return what to say to a step whose last attempt was kept half done, with this very prompt."""
        for entry in reversed(self.session.journal.entries):
            if not isinstance(entry, Failed) or (entry.step.run, entry.step.key) != (ref.run, ref.key):
                break
            if entry.prompt != GO_ON:
                return GO_ON if entry.prompt == self.request.prompt else ""
        return ""

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

    async def _failed(
        self, intent: Intent, exc: BaseException, total_before: float, *, total: float | None = None
    ) -> None:
        """Record how the attempt ended, and take its words back."""
        error = exc if isinstance(exc, TurnError) else _as_turn_error(exc)
        contents: Contents = await self.conversation.read()
        keep = intent.recovery == "continue" and error.retryable
        await self.conversation.fail(intent, error, contents, total_before, keep=keep, total=total)
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


def _answer_again(problem: str) -> str:
    return (
        f"Your answer does not fit the form that was asked for: {problem}. "
        "Answer again, complete, in that form; change nothing else."
    )


def check_texts(request: TurnRequest) -> TurnRequest:
    """Return `request` when all of it can be written down and given to a program.

    Raises:
        UsageError: a text holds a NUL, or half of a surrogate pair (bytes that are no UTF-8 end as such).
    """
    for name, value in {"prompt": request.prompt, **dict(request.options)}.items():
        texts = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        if any(isinstance(text, str) and NO_TEXT.search(text) for text in texts):
            raise UsageError(f"{name} holds a character that is no text: remove it, or read it as UTF-8")
    return request


def check_continues(prompt: Prompt, journal: Journal) -> None:
    """Hold a prompt that says `session.required` to it.

    Raises:
        SessionRequired: the session has nothing to go on from.
    """
    if prompt.session.required and not journal.entries and journal.intent is None:
        raise SessionRequired(
            f"prompt {prompt.name!r} continues a session, and there is none to continue: "
            "name one with --load-session (or session=), or run the step that begins it first"
        )
