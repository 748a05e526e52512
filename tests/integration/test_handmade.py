"""What a person types into `claude --resume` belongs to the session: kept, seen by the next turn, counted once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand import claude_by_hand, events_in_store, events_of, markers, owner, said, transcript_of, until

from channelcoder_flows import ApiError, Session
from channelcoder_flows.journal import Failed, Interactive
from channelcoder_flows.places.host import marked
from channelcoder_flows.testing import ScriptedModel

Start = Callable[[Any], ScriptedModel]
SCRIPT = [
    {"when": "/^Wait/", "reply": [{"hold": "gate", "text": "Waited."}]},
    {"when": "/^Fail/", "reply": [{"hold": "gate", "error": 400}]},
    {"when": "/^Hello/", "reply": "Hello to you."},
    {"reply": "Well."},
]


def contents(session: Session) -> list[str]:
    """Return what the session says was said."""
    return [message.content for message in session.messages]


async def test_between_two_turns(scripted_model: Start, tmp_path: Path) -> None:
    """Typed between two turns: it joins, the next turn's request holds it, and forks and rewinds keep it in place."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    one = await session.claude("One")
    assert claude_by_hand("Hello one", str(session.id), tmp_path) == "Hello to you.\n"
    claude_by_hand("Hello two", str(session.id), tmp_path)
    notices = [chunk.content async for chunk in session.stream("Two") if chunk.type == "notice"]
    assert "2 exchange(s) typed" in notices[0]
    asked = ["One", "Hello one", "Hello two", "Two"]
    assert [text for text in asked if text in said(model.requests[-1])] == asked
    assert contents(session)[::2] == asked
    (typed,) = events_of(session, Interactive)
    assert typed.cost_usd == pytest.approx(2 * one.cost_usd)
    assert session.cost_usd == pytest.approx(4 * one.cost_usd)
    assert session.turns == 2
    assert (await Session.list())[0].message_count == 8

    claude_by_hand("Hello three", str(session.id), tmp_path)
    await session.claude("Three")
    await session.rewind(to=2)
    await session.claude("Four")
    asked = ["One", "Hello one", "Hello two", "Two", "Four"]
    assert contents(session)[::2] == asked
    assert [text for text in [*asked, "Hello three", "Three"] if text in said(model.requests[-1])] == asked


async def test_a_fork_has_what_was_typed_last(scripted_model: Start, tmp_path: Path) -> None:
    """What was typed after the last turn, and is in the journal, goes with a fork and outlives a changed file."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    await session.claude("One")
    claude_by_hand("Hello one", str(session.id), tmp_path)
    with pytest.raises(ApiError):
        model.release("gate")
        await session.claude("Fail")
    assert contents(session)[::2] == ["One", "Hello one"]
    fork = await session.fork("f")
    await fork.claude("Two")
    assert "Hello one" in said(model.requests[-1])
    file = transcript_of(session)
    file.write_bytes(file.read_bytes().replace(b"One", b"Uno"))
    await session.claude("Three")
    assert contents(session)[::2] == ["One", "Hello one", "Three"]
    assert "Hello one" in said(model.requests[-1])


async def test_after_a_crash(scripted_model: Start, tmp_path: Path) -> None:
    """Typed after our process was killed: the dead attempt is recorded, the person's words stay."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    one = await session.claude("One")
    with owner("s", "Wait", tmp_path) as process:
        await asyncio.to_thread(model.wait_for, "Wait")
        process.send_signal(signal.SIGKILL)
        process.wait()
    events = await events_in_store("s")
    until(lambda: not any(marked(marker) for marker in markers(events)))
    claude_by_hand("Hello again", str(session.id), tmp_path)
    two = await session.claude("Two")
    assert contents(session) == ["One", "Well.", "Hello again", "Hello to you.", "Two", "Well."]
    (failed,) = events_of(session, Failed)
    assert (failed.error, failed.prompt) == ("died", "Wait")
    assert "Hello again" in said(model.requests[-1])
    assert two.cost_usd == pytest.approx(one.cost_usd)
    assert session.cost_usd == pytest.approx(3 * one.cost_usd)


async def test_after_an_answer_that_nobody_recorded(scripted_model: Start, tmp_path: Path) -> None:
    """Typed on top of an answer that had arrived before the crash: the answer is adopted, the words join after it."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    one = await session.claude("One")
    with owner("s", "Two", tmp_path, hold=True) as process:
        until((tmp_path / "answered").exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    claude_by_hand("Hello again", str(session.id), tmp_path)
    await session.claude("Three")
    assert contents(session)[::2] == ["One", "Two", "Hello again", "Three"]
    assert [text for text in contents(session)[::2] if text in said(model.requests[-1])] == contents(session)[::2]
    assert [turn.adopted for turn in session.opened.journal.turns] == [False, True, False]
    assert session.cost_usd == pytest.approx(4 * one.cost_usd)


@pytest.mark.parametrize("ours", ["Wait", "Fail"])
async def test_during_our_turn(scripted_model: Start, tmp_path: Path, ours: str) -> None:
    """Typed while a turn of ours runs: it is in the session, whether our turn then ends well or badly."""
    model = scripted_model(SCRIPT)
    session = Session("s", cwd=tmp_path)
    one = await session.claude("One")
    turn = asyncio.create_task(session.claude(ours))
    await asyncio.to_thread(model.wait_for, ours)
    await asyncio.to_thread(claude_by_hand, "Hello there", str(session.id), tmp_path)
    model.release("gate")
    if ours == "Wait":
        assert (await turn).cost_usd == pytest.approx(one.cost_usd)
        expected = ["One", "Wait", "Hello there", "Two"]
    else:
        with pytest.raises(ApiError):
            await turn
        expected = ["One", "Hello there", "Two"]
    await session.claude("Two")
    assert contents(session)[::2] == expected
    request = said(model.requests[-1])
    assert "One" in request
    # Of two branches Claude Code goes on from the later; of a failed turn only what the person built on is left.
    assert ("Wait" if ours == "Wait" else "Hello there") in request
    assert b"Hello there" in transcript_of(session).read_bytes()
    assert session.cost_usd == pytest.approx(len(expected) * one.cost_usd)
