"""Our own death at any instant: the next turn adopts what was paid for, or takes it back; nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand import events_in_store, files_of, markers, owner, projects, said, transcript_of, until

from channelcoder_flows import Prompt, Session
from channelcoder_flows.claude_code import find_claude
from channelcoder_flows.exchange import exchanges
from channelcoder_flows.journal import Event, Failed, Interactive, Turn
from channelcoder_flows.places.host import marked
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.transcript import unpack

Start = Callable[[Any], ScriptedModel]
TOOL = {"tool": "Bash", "input": {"command": "trap '' TERM; (setsid nohup sleep 300 &); touch running; sleep 300"}}
SCRIPT = [
    {"when": "/^Begin$/", "reply": "Begun."},
    {"when": "/^Wait$/", "reply": [{"hold": "gate", "text": "Waited."}]},
    {"when": "/^Tool$/", "reply": [{**TOOL, "text": "Now the tool."}, "Done."]},
    {"when": "/^Plain$/", "reply": [{"tool": "Bash", "input": {"command": "echo once >> log"}}, "The answer."]},
    {"when": "/^Report$/", "reply": [{"tool": "Bash", "input": {"command": "echo once >> log"}}, {"output": {"n": 1}}]},
    {"when": "/^You were interrupted/", "reply": "Gone on."},
    {"when": "/^End$/", "reply": "Ended."},
]
REPORT = "---\noutput:\n  n: number\n---\nReport"


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as the kernel does when memory is short."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def gone(events: list[Event]) -> None:
    """Wait until nothing that the turns started is left, without any help of ours."""
    until(lambda: not any(marked(marker) for marker in markers(events)))


def has_answer(file: Path, prompt: str) -> bool:
    """Return whether the answer to that prompt is in the transcript."""
    last = exchanges(file.read_bytes())[-1]
    return last.prompt == prompt and (last.finished_output if prompt == "Report" else last.finished)


async def last_words(model: ScriptedModel, tmp_path: Path) -> Session:
    """Run one more turn in the session, and return it."""
    session = Session("s", cwd=tmp_path)
    result = await session.claude("End")
    assert result.text == "Ended."
    assert session.opened.journal.intent is None
    assert model.paid("/^End$/") == 1
    return session


async def test_before_the_prompt_arrived(scripted_model: Start, tmp_path: Path) -> None:
    """Killed before Claude heard of it: nothing was spent, and the next turn is the first to be asked."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    await session.claude("Begin")
    before = files_of(session)
    with owner("s", "Plain", tmp_path) as process:
        await asyncio.to_thread(until, lambda: len(asyncio.run(events_in_store("s"))) >= 5)
        kill(process)
    events = await events_in_store("s")
    assert [event.kind for event in events][4:6] in (["intent"], ["intent", "started"])
    gone(events)
    if not model.paid("/^Plain$/"):
        assert not (tmp_path / "log").exists()
    session = await last_words(model, tmp_path)
    assert [turn.prompt for turn in session.opened.journal.turns] == ["Begin", "End"]
    assert "Plain" not in said(model.requests[-1])
    assert next(iter(files_of(session).values())).startswith(next(iter(before.values())))


@pytest.mark.parametrize("recovery", ["rollback", "continue"])
async def test_during_a_tool(
    scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovery: str
) -> None:
    """Killed in the middle of a tool: every process goes by itself, and the attempt is taken back, or gone on with."""
    model = scripted_model(SCRIPT)
    monkeypatch.setenv("RECOVERY", recovery)
    session = Session("s", cwd=tmp_path)
    await session.claude("Begin")
    before = transcript_of(session).read_bytes()
    with owner("s", "Tool", tmp_path) as process:
        until((tmp_path / "running").exists)
        kill(process)
    gone(await events_in_store("s"))
    with transcript_of(session).open("ab") as file:
        file.write(b'{"type":"assistant","torn')  # a line that was not finished when the power went
    if recovery == "continue":
        result = await session.claude("Tool", key="prompt", recovery="continue")
        assert (result.text, result.turn) == ("Gone on.", 2)
        assert "Now the tool." in said(model.requests[-1])
        assert model.paid("/^Tool$/") == 1
        return
    session = await last_words(model, tmp_path)
    (failed,) = [event for event in session.opened.journal.events if isinstance(event, Failed)]
    assert (failed.error, failed.prompt, failed.text, failed.retryable) == ("died", "Tool", "Now the tool.", True)
    assert failed.cost_usd > 0 or failed.cost_estimated
    assert failed.usage.output_tokens == 20
    assert failed.tail
    assert '"Tool"' not in said(model.requests[-1])
    after = transcript_of(session).read_bytes()
    assert after.startswith(before)
    assert [exchange.prompt for exchange in exchanges(after)] == ["Begin", "End"]


LAST_WORD_LOST = """#!/bin/sh
'{claude}' "$@" | {{ sed -u '/"type":"result"/Q'; kill -s KILL 0; }}
"""


@pytest.mark.parametrize("text", ["Plain", REPORT], ids=["plain", "structured"])
async def test_a_cli_that_died_with_the_answer_written(
    scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Where the whole answer is in the transcript, and only the CLI's last word is lost, it is the turn's answer."""
    model = scripted_model(SCRIPT)
    await Session("s", cwd=tmp_path).claude("Begin")
    (tmp_path / "claude").write_text(LAST_WORD_LOST.format(claude=find_claude()))
    (tmp_path / "claude").chmod(0o700)
    monkeypatch.setenv("CHANNELCODER_CLAUDE_PATH", str(tmp_path / "claude"))
    session = Session("s", cwd=tmp_path)
    prompt = Prompt.parse(text, path="step.md") if text.startswith("---") else text
    result = await session.claude(prompt, tools="Bash")
    assert (result.text, result.output) == (('{"n":1}', {"n": 1}) if text == REPORT else ("The answer.", None))
    assert (result.adopted, result.turn, result.cost_usd > 0, result.cost_estimated) == (True, 2, True, True)
    assert model.paid(f"/^{text.split()[-1]}$/") == 2
    assert (tmp_path / "log").read_text() == "once\n"


@pytest.mark.parametrize("text", ["Plain", REPORT], ids=["plain", "structured"])
@pytest.mark.parametrize("window", ["cli-ended", "cli-alive"])
async def test_the_answer_had_arrived(scripted_model: Start, tmp_path: Path, text: str, window: str) -> None:
    """Killed between the answer's arrival and its record: the turn is adopted as it was, and nothing is paid again."""
    name = text.split()[-1]
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    begun = await session.claude("Begin")
    file = transcript_of(session)
    with owner("s", text, tmp_path, hold=True) as process:
        if window == "cli-ended":
            until((tmp_path / "answered").exists)
        else:
            await asyncio.to_thread(model.wait_for, f"/^{name}$/")
            process.send_signal(signal.SIGSTOP)
            until(lambda: has_answer(file, name))
        kill(process)
    gone(await events_in_store("s"))
    session = await last_words(model, tmp_path)
    journal = session.opened.journal
    assert [turn.prompt for turn in journal.turns] == ["Begin", name, "End"]
    adopted = journal.turns[1]
    assert adopted.adopted
    assert (adopted.text, adopted.output) == (("The answer.", None) if name == "Plain" else ('{"n":1}', {"n": 1}))
    assert (model.paid(f"/^{name}$/"), adopted.model_calls, adopted.usage.output_tokens) == (2, 2, 40)
    assert adopted.cost_usd == pytest.approx(2 * begun.cost_usd)
    if window == "cli-ended":
        assert not adopted.cost_estimated
    assert (tmp_path / "log").read_text() == "once\n"
    assert f'"{name}"' in said(model.requests[-1])
    assert [event for event in journal.events if isinstance(event, Failed | Interactive)] == []


async def test_an_unfinished_first_turn(scripted_model: Start, tmp_path: Path) -> None:
    """A session whose very first turn died begins again, also on a machine that knows nothing of it."""
    model = scripted_model(SCRIPT)
    with owner("s", "Wait", tmp_path) as process:
        await asyncio.to_thread(model.wait_for, "Wait")
        kill(process)
    gone(await events_in_store("s"))
    required = Prompt.parse("---\nsession:\n  required: true\n---\nEnd", path="end.md")
    with pytest.raises(Exception, match="none to continue"):
        await Session("s", cwd=tmp_path).claude(required)
    session = await last_words(model, tmp_path)
    assert [turn.prompt for turn in session.opened.journal.turns] == ["End"]
    assert [exchange.prompt for exchange in exchanges(transcript_of(session).read_bytes())] == ["End"]


async def test_rewinding_past_a_turn_that_died(scripted_model: Start, tmp_path: Path) -> None:
    """`rewind` and `clear` after a crash: the dead turn has its ending first, and its words do not come back."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    await session.claude("Begin")
    await session.claude("Plain", tools="Bash")
    with owner("s", "Wait", tmp_path) as process:
        await asyncio.to_thread(model.wait_for, "Wait")
        kill(process)
    gone(await events_in_store("s"))
    await session.rewind(to=1)
    session = await last_words(model, tmp_path)
    assert [message.content for message in session.messages] == ["Begin", "Begun.", "End", "Ended."]
    assert len([event for event in session.opened.journal.events if isinstance(event, Failed)]) == 1
    assert "Plain" not in said(model.requests[-1])


async def test_on_another_machine(scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that died elsewhere cannot be known here: it is given up, and the session goes on from its own copy."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    await session.claude("Begin")
    with owner("s", "Plain", tmp_path, hold=True) as process:
        until((tmp_path / "answered").exists)
        kill(process)
    gone(await events_in_store("s"))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "other-machine"))
    session = await last_words(model, tmp_path)
    assert [turn.prompt for turn in session.opened.journal.turns] == ["Begin", "End"]
    assert "Begin" in said(model.requests[-1])
    assert projects().is_relative_to(tmp_path / "other-machine")


async def test_a_failure_that_was_recorded_but_not_cut(
    scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a failure's record and its cut: the next turn cuts, and takes the words for nobody's."""
    model = scripted_model([{"when": "Fail", "reply": {"error": 400}}, *SCRIPT])
    session = Session("s", cwd=tmp_path)
    await session.claude("Begin")
    with pytest.raises(Exception, match="refused"):
        await session.claude("Fail")
    (failed,) = [event for event in session.opened.journal.events if isinstance(event, Failed)]
    tail = await session.opened.delta(failed.tail or "")
    with transcript_of(session).open("ab") as file:
        file.write(unpack(tail)[0].data)
    assert exchanges(transcript_of(session).read_bytes())[-1].prompt == "Fail"
    session = await last_words(model, tmp_path)
    assert "Fail" not in said(model.requests[-1])
    assert [event for event in session.opened.journal.events if isinstance(event, Interactive)] == []
    assert len([event for event in session.opened.journal.events if isinstance(event, Turn)]) == 2
    assert os.path.exists(transcript_of(session))
