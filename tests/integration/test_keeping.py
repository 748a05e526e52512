"""An answer that was paid for is kept, whatever comes between it and the journal."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelcoder_flows import FileSessionStorage, Session
from channelcoder_flows import run as run_module
from channelcoder_flows.claude_code import find_claude
from channelcoder_flows.errors import ChannelCoderError, OutputInvalid, TurnError
from channelcoder_flows.journal import Check, Failed, Journal, StepRef, Turn, now
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.run import Run
from channelcoder_flows.testing.model import ScriptedModel

HELD = [{"when": "Build", "reply": {"hold": "gate", "text": "Built."}}, {"reply": "fine"}]


async def meanwhile(
    model: ScriptedModel, name: str, act: Callable[[FileSessionStorage, Journal], Any], cwd: Path
) -> BaseException | Any:
    """Run a turn, do something to its session while the model thinks, and return what comes of the turn."""
    turn = asyncio.create_task(Session(name, cwd=cwd).claude("Build it"))
    await asyncio.to_thread(model.wait_for, "Build")
    store = FileSessionStorage()
    await act(store, Journal(await store.read(name)))
    model.release("gate")
    return (await asyncio.gather(turn, return_exceptions=True))[0]


async def test_a_word_in_between_is_no_conflict(scripted_model: Any, tmp_path: Path) -> None:
    """Another writer noted something while the turn ran: the turn is kept after it, in the session itself."""
    model = scripted_model(HELD)
    await Session("work", cwd=tmp_path).claude("Plan it")

    async def note(store: FileSessionStorage, journal: Journal) -> None:
        verdict = Check(step=StepRef(key="plan"), name="tests", passed=True)
        await store.append("work", [verdict], expect=journal.seq)

    result = await meanwhile(model, "work", note, tmp_path)
    assert (result.session.name, result.turn) == ("work", 2)
    assert [info.name for info in await Session.list()] == ["work"]


async def test_a_turn_in_between_makes_a_fork(scripted_model: Any, tmp_path: Path) -> None:
    """Another writer's turn came first: ours is kept as a fork and only there, and its cost counts once."""
    model = scripted_model(HELD)
    await Session("work", cwd=tmp_path).claude("Plan it")

    async def other_turn(store: FileSessionStorage, journal: Journal) -> None:
        first = journal.turns[0]
        mark = first.files[0].model_copy(update={"length": first.files[0].length, "sha256": "0" * 64})
        turn = Turn(
            turn_id="other", session_id=first.session_id, prompt="p", text="t", started=now(), files=(mark,), delta=None
        )
        await store.append("work", [turn], expect=journal.seq)

    result = await meanwhile(model, "work", other_turn, tmp_path)
    assert result.session.name.startswith("work-fork-")
    fork = await Session.load(result.session.name, cwd=tmp_path)
    assert [message.content for message in fork.messages] == ["Plan it", "fine", "Build it", "Built."]
    kept = Journal(await FileSessionStorage().read("work"))
    assert kept.intent is None
    assert [event.error for event in kept.events if isinstance(event, Failed)] == ["kept-as-fork"]
    assert [turn.text for turn in kept.turns] == ["fine", "t"]
    assert fork.cost_usd == pytest.approx(result.cost_usd)
    assert str((await fork.claude("And now?")).turn) == "3"


async def test_a_session_that_is_gone_loses_no_answer(scripted_model: Any, tmp_path: Path) -> None:
    """The session's files vanish while the turn runs: the error that says so carries the whole answer."""
    model = scripted_model(HELD)
    await Session("work", cwd=tmp_path).claude("Plan it")

    async def vanish(store: FileSessionStorage, journal: Journal) -> None:
        await asyncio.to_thread(shutil.rmtree, store.root / "work")

    failed = await meanwhile(model, "work", vanish, tmp_path)
    assert isinstance(failed, ChannelCoderError)
    assert failed.answer == "Built."


async def test_a_turn_without_a_transcript_is_no_turn(
    scripted_model: Any, claude_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude Code answers and keeps no transcript: nothing could go on from that, so it is an error, with its cost."""
    scripted_model([{"reply": "Said."}])
    cli = tmp_path / "claude"
    cli.write_text(f'#!/bin/sh\n{find_claude(None)} "$@"\nrm -rf {claude_env["CLAUDE_CONFIG_DIR"]}/projects\n')
    cli.chmod(0o700)
    monkeypatch.setenv("CHANNELCODER_CLAUDE_PATH", str(cli))
    session = Session("work", cwd=tmp_path)
    with pytest.raises(TurnError, match=r"kept no transcript under .*: make it writable, then run again") as caught:
        await session.claude("Plan it")
    assert (caught.value.kind, caught.value.text, caught.value.session) == ("not-saved", "Said.", "work")
    [failed] = [event for event in session.opened.journal.events if isinstance(event, Failed)]
    assert (failed.error, failed.text, session.turns) == ("not-saved", "Said.", 0)
    assert failed.cost_usd == session.cost_usd == caught.value.cost_usd > 0


async def test_a_run_counts_what_it_spends(
    scripted_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns and failed attempts are added up for the run they were made in, and a replay adds nothing."""
    scripted_model([{"when": "Fail", "reply": {"error": 400, "times": 9}}, {"reply": "fine"}])
    run = Run("run", owner="me")
    monkeypatch.setattr(run_module, "_find", [lambda: run])
    session = Session("work", cwd=tmp_path)
    await session.claude("Plan it", key="plan")
    with pytest.raises(TurnError):
        await session.claude("Fail", key="fail")
    assert (run.turns, run.cost_usd) == (1, pytest.approx(session.cost_usd))
    assert run.cost_usd > 0
    spent, run = run.cost_usd, Run("run", owner="me")
    assert (await Session("work", cwd=tmp_path).claude("Plan it", key="plan")).replayed
    assert (run.turns, run.cost_usd, spent > 0) == (0, 0.0, True)


async def test_claude_gives_up_on_the_form(scripted_model: Any, tmp_path: Path) -> None:
    """When Claude Code itself gives up on the declared output, the step is tried once more, and then it is an error."""
    prompt = Prompt.parse("---\noutput:\n  score: integer\n---\nJudge it", path=tmp_path / "judge.md")
    wrong = {"output": {"score": "high"}}
    scripted_model([{"when": "Judge", "reply": [wrong] * 40}])
    session = Session("judged", cwd=tmp_path)
    with pytest.raises(OutputInvalid):
        await session.claude(prompt)
    attempts = [str(event.step) for event in session.opened.journal.events if isinstance(event, Failed)]
    assert attempts == ["judge", "judge~2"]
    assert session.turns == 0
    assert session.cost_usd > 0
