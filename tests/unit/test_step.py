"""A step states its turn in full, and what a run has done of it is told again: the same answer, or the same error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows import run as run_module
from channelcoder_flows.checkpoint import Surroundings
from channelcoder_flows.config import Settings
from channelcoder_flows.errors import ClaudeNotFound, OutputInvalid, SessionRequired, TurnError, UsageError
from channelcoder_flows.journal import Created, Event, Failed, Intent, Journal, StepRef, Turn, now
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import Run
from channelcoder_flows.step import Step, run_step
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.turn import TurnOptions, TurnResult, Usage

ASK = Prompt.parse("---\nname: ask\n---\nSay it.")
FORM = Prompt.parse("---\nname: ask\noutput: {n: integer, 'outcome?': string}\n---\nSay it.")


def settings(tmp_path: Path, **more: Any) -> Settings:
    """Return settings of which nothing is read from outside; there is no CLI, so nothing can be spent."""
    nowhere = str(tmp_path / "no-claude")
    return Settings(store=str(tmp_path), config_dir=str(tmp_path / "claude"), claude_path=nowhere, **more)


async def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: Prompt, *events: Event) -> TurnResult:
    """Resume a run whose journal has these events, and ask for the step again."""
    session = OpenSession(MemorySessionStorage(), "s", Journal())
    run = Run("run", owner="me")
    await session.append(Created(name="s", session_id="c"), run.event("started"), *events)
    monkeypatch.setattr(run_module, "_find", [lambda: run])
    return await run_step(session, Step(prompt), Surroundings(settings(tmp_path), tmp_path))


def intent(tmp_path: Path, prompt: Prompt, key: str = "ask", turn_id: str = "t") -> Intent:
    """Return the intent of a step's turn, as the prompt asks for it now."""
    digest = Step(prompt).request(settings(tmp_path)).digest()
    return Intent(turn_id=turn_id, session_id="c", step=StepRef(run="run", key=key), digest=digest, prompt="Say it.")


def turn(begun: Intent, **more: Any) -> Turn:
    """Return the turn that an intent ended in."""
    same = {"turn_id": begun.turn_id, "session_id": "c", "step": begun.step, "digest": begun.digest}
    return Turn(**same, prompt=begun.prompt, **{"text": "Said.", "started": now(), **more})


def test_a_turn_is_stated_in_full(tmp_path: Path) -> None:
    """What the call says wins over the prompt, the prompt over the settings, and they over nothing."""
    prompt = Prompt.parse("---\nname: ask\nmodel: theirs\n---\nSay it.")
    own = settings(
        tmp_path, model="m", timeout=3.0, idle_timeout=2.0, permission_mode="plan", setting_sources=("project",)
    )
    asked = Step(prompt, options=TurnOptions(timeout=9.0)).request(own)
    assert asked.prompt == "Say it."
    assert (asked.options.model, asked.options.timeout, asked.options.idle_timeout) == ("theirs", 9.0, 2.0)
    assert (asked.options.permission_mode, asked.options.setting_sources) == ("plan", ("project",))
    assert Step(ASK).request(own).options.model == "m"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_is_no_text_is_refused_before_anything_is_spent(tmp_path: Path, text: str) -> None:
    """A NUL and half a character never reach the CLI, wherever in the request they stand."""
    for options in (TurnOptions(append_system_prompt=text), TurnOptions(model=text)):
        with pytest.raises(UsageError, match="holds a character that is no text: remove it"):
            Step(ASK, options=options).request(settings(tmp_path))


async def test_a_step_done_is_answered_from_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, a step gives the very result it gave, cost and refusals included, and says that it is a replay."""
    first = intent(tmp_path, ASK, "before", "t0")
    begun = intent(tmp_path, ASK)
    did = {
        "cost_usd": 0.5,
        "cost_estimated": True,
        "usage": Usage(input_tokens=3),
        "duration_s": 1.5,
        "model_calls": 2,
        "denials": ("Bash",),
        "commit": "abc",
        "adopted": True,
        "outcome": "no_change",
    }
    result = await resumed(tmp_path, monkeypatch, ASK, first, turn(first), begun, turn(begun, **did))
    assert {name: getattr(result, name) for name in did} == did
    assert (result.text, result.output, result.turn, result.step, result.replayed) == ("Said.", None, 2, "ask", True)
    assert (result.session.name, result.session.id, result.session.seq) == ("s", "c", 6)


async def test_an_answer_says_how_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared output may say its outcome; another word in that field is only a word."""
    begun = intent(tmp_path, FORM)
    for said, outcome in (("blocked", "blocked"), ("perhaps", "done")):
        done = turn(begun, output={"n": 1, "outcome": said})
        result = await resumed(tmp_path, monkeypatch, FORM, begun, done)
        assert (result.output, result.outcome) == ({"n": 1, "outcome": said}, outcome)


@pytest.mark.parametrize("raised", ["TurnError", "ClaudeNotFound", "print", "NoSuchError"])
async def test_a_step_that_was_passed_over_fails_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str
) -> None:
    """A flow that went on without a step is told the same error, with what Claude had said, and spends nothing."""
    begun, after = intent(tmp_path, ASK), intent(tmp_path, ASK, "after", "t2")
    failed = Failed(
        turn_id="t", step=begun.step, error="api", raised=raised, message="no", prompt="Say it.", text="half"
    )
    with pytest.raises(TurnError) as caught:
        await resumed(tmp_path, monkeypatch, ASK, begun, failed, after, turn(after))
    error = caught.value
    assert type(error) is (ClaudeNotFound if raised == "ClaudeNotFound" else TurnError)
    assert (error.message, error.kind, error.session, error.text) == ("no", "api", "s", "half")


@pytest.mark.parametrize(
    ("output", "problem"),
    [(None, "there is no structured answer, only text"), ({"n": "x"}, 'n: must be a whole number, not "x"')],
)
async def test_a_wrong_answer_that_was_passed_over_is_wrong_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any, problem: str
) -> None:
    """An answer that did not fit, and that the flow went on without, is refused again with the same words."""
    begun, after = intent(tmp_path, FORM), intent(tmp_path, FORM, "after", "t2")
    wrong = turn(begun, output=output, cost_usd=0.5)
    with pytest.raises(OutputInvalid) as caught:
        await resumed(tmp_path, monkeypatch, FORM, begun, wrong, after, turn(after))
    error = caught.value
    assert error.message.startswith("step 'ask': the answer does not fit the declared output: ")
    assert error.message.endswith(problem)
    assert (error.session, error.text, error.cost_usd) == ("s", "Said.", 0.5)


async def test_a_step_that_continues_has_something_to_continue(tmp_path: Path) -> None:
    """A prompt that goes on from a session is refused without one, says what to do, and leaves no session behind."""
    prompt = Prompt.parse("---\nname: on\nsession: {required: true}\n---\nGo on.")
    session = OpenSession(MemorySessionStorage(), "s", Journal())
    around = Surroundings(settings(tmp_path), tmp_path)
    with pytest.raises(SessionRequired) as caught:
        await run_step(session, Step(prompt), around)
    assert caught.value.message == (
        "prompt 'on' continues a session, and there is none to continue: "
        "name one with --load-session (or session=), or run the step that begins it first"
    )
    assert session.journal.events == []
