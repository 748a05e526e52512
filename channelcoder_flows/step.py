"""Runs a step: prompt and inputs in, a recorded turn out. Knows no Prefect.

Under the session's lock: bring conversation and journal in step, look whether the run has this step already, run its
turns as checkpoints, judge the output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from channelcoder_flows import errors
from channelcoder_flows.branching import rewind_event
from channelcoder_flows.checkpoint import Checkpoint, Surroundings
from channelcoder_flows.config import Settings
from channelcoder_flows.errors import OutputInvalid, SessionRequired, TurnError, UsageError
from channelcoder_flows.exchange import as_object
from channelcoder_flows.journal import Check, Event, Failed, Journal, StepRef, Turn
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import Match, Recorded, Run, check_step_name, current_run
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import Outcome, TurnOptions, TurnRequest, TurnResult, options_from

GO_ON = "You were interrupted in the middle of this. Go on from where you stood; do not start over."
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
OUTPUT_ATTEMPTS = 2
"""Turns of one step until an answer fits its declared output."""


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
    one = _StepInSession(session, step, request, around, run)
    async with one.checkpoint.locked():
        match = await one.begin()
        if match.recorded is not None:
            return await _again(one, match, match.recorded)
        # Still under the lock: "your answer does not fit" must follow that very answer.
        return await _answered(one, match.step, OUTPUT_ATTEMPTS)


async def _again(one: _StepInSession, match: Match, recorded: Recorded) -> TurnResult:
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


async def _answered(one: _StepInSession, ref: StepRef, attempts: int, *, again: str = "") -> TurnResult:
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


def _does_not_fit(one: _StepInSession, turn: Turn, problem: str) -> OutputInvalid:
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


class _StepInSession:
    """A step in its session, under the session's lock."""

    def __init__(
        self, session: OpenSession, step: Step, request: TurnRequest, around: Surroundings, run: Run | None
    ) -> None:
        self.session, self.step, self.request, self.around, self.run = session, step, request, around, run
        self.checkpoint = Checkpoint(session, request, around, run)

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
        await self.checkpoint.catch_up()
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
        """Run the step's next turn."""
        return await self.checkpoint.turn(
            ref, _answer_again(again) if again else self._go_on(ref) or self.request.prompt
        )

    def _go_on(self, ref: StepRef) -> str:
        """Return what to say to a step whose last attempt was kept half done, with this very prompt."""
        for entry in reversed(self.session.journal.entries):
            if not isinstance(entry, Failed) or (entry.step.run, entry.step.key) != (ref.run, ref.key):
                break
            if entry.prompt != GO_ON:
                return GO_ON if entry.prompt == self.request.prompt else ""
        return ""


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
