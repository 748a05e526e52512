"""One live CLI over a session's turns: what is said, recorded and paid is the same as with a process a turn."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hand import claude_by_hand, events_of, nothing_runs, owner, said, soon, transcript_of, until

from channelcoder_flows import ApiError, Prompt, Session, StorageError, TurnTimeout, UsageError
from channelcoder_flows.claude_code.live import MOST
from channelcoder_flows.journal import Failed, Interactive, Started, Turn
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.transcript import MAIN

Start = Callable[[Any], ScriptedModel]


def bash(command: str, **more: Any) -> dict[str, Any]:
    """Return a reply that runs a command."""
    return {"tool": "Bash", "input": {"command": command, "description": "work", **more}}


SCRIPT = [
    {"when": "/^Uno/", "reply": "One."},
    {"when": "/^Due/", "reply": [bash("echo due > due.txt; cat due.txt"), "Two."]},
    {"when": "/^Report/", "reply": [{"output": {"n": 3}}]},
    {"when": "/^Home/", "reply": [bash("cd sub"), "Moved."]},
    {"when": "/^Behind/", "reply": [bash("sleep 300", run_in_background=True), "Started."]},
    {"when": "/^Left/", "reply": [bash("(setsid nohup sleep 300 >/dev/null 2>&1 &) ; true"), "Left."]},
    {"when": "/^Fail/", "reply": {"error": 400}},
    {"when": "/^Slow/", "reply": [{"hold": "gate", "text": "Slow."}]},
    {"reply": "Well."},
]
REPORT = Prompt.parse("---\noutput:\n  n: number\n---\nReport", path="report.md")


def processes(session: Session) -> list[str]:
    """Return the process of each attempt of the session, oldest first."""
    return [event.process.marker for event in events_of(session, Started)]


async def converse(session: Session) -> list[Any]:
    """Have one conversation of every kind of turn; return what each turn came to."""
    results = [await session.claude(prompt, tools="Bash") for prompt in ("Uno", "Due", REPORT, "Fine")]
    with pytest.raises(ApiError):
        await session.claude("Fail", tools="Bash")
    results.append(await session.claude("Uno again", tools="Bash"))
    return [(r.text, r.output, r.turn, round(r.cost_usd, 9), r.usage, r.model_calls) for r in results]


async def test_the_same_as_a_process_each(scripted_model: Start, tmp_path: Path) -> None:
    """Live or not, the model is told the same, the results and costs are the same, the journal says the same."""
    model = scripted_model(SCRIPT)
    told: list[Any] = []
    for live in (True, False):
        async with Session(f"live-{live}", cwd=tmp_path, live=live) as session:
            before = len(model.requests)
            results = await converse(session)
            # Claude Code's own reminders name ids and times; what was said does not.
            heard = [
                ([(m["role"], _words(m)) for m in r.messages], r.model, r.tools, r.system)
                for r in model.requests[before:]
            ]
            kinds = [event.kind for event in session.opened.journal.events]
            told.append((results, heard, kinds, [round(t.cost_usd, 9) for t in session.opened.journal.turns]))
            used = processes(session)
            # The structured turn is told something else, and the failed one ends its process.
            assert len(set(used)) == (4 if live else 6), used
    assert told[0] == told[1]


def _words(message: dict[str, Any]) -> Any:
    content = message["content"]
    if isinstance(content, str):
        return content
    words = [block.get("text") or block.get("content") or block.get("input") for block in content]
    return [word for word in words if not (isinstance(word, str) and word.startswith("<system-reminder>"))]


async def test_it_ends_with_the_session(scripted_model: Start, tmp_path: Path) -> None:
    """One process until the block is left; then nothing runs, and the transcript is what the journal says."""
    scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True) as session:
        for prompt in ("Uno", "Due", "Uno"):
            await session.claude(prompt)
        assert len(set(processes(session))) == 1
        assert not nothing_runs(session)
    assert nothing_runs(session)
    assert transcript_of(session).stat().st_size == session.opened.journal.mark[MAIN].length
    assert (await Session("s", cwd=tmp_path).claude("Uno")).turn == 4


async def test_nobody_would_end_it(scripted_model: Start, tmp_path: Path) -> None:
    """Live without an end is refused before anything is spent; the setting alone waits for someone who ends it."""
    model = scripted_model(SCRIPT)
    with pytest.raises(UsageError, match="async with"):
        await Session("s", cwd=tmp_path, live=True).claude("Uno")
    assert model.requests == []


async def rewind(session: Session, tmp_path: Path) -> None:
    """Go back."""
    await session.rewind(to=1)


async def elsewhere(session: Session, tmp_path: Path) -> None:
    """Let another session object, with a process of its own, go on."""
    await Session(session.name, cwd=tmp_path).claude("Elsewhere")


async def by_hand(session: Session, tmp_path: Path) -> None:
    """Type into `claude --resume`."""
    await asyncio.to_thread(claude_by_hand, "Typed", str(session.id), tmp_path)


async def kill_it(session: Session, tmp_path: Path) -> None:
    """Kill the waiting CLI."""
    pid = int(events_of(session, Started)[-1].process.id)
    os.kill(pid, signal.SIGKILL)
    await soon(lambda: nothing_runs(session))


async def lose_the_transcript(session: Session, tmp_path: Path) -> None:
    """Let a clean-up take the transcript."""
    transcript_of(session).unlink()


async def turn_of(session: Session, prompt: str) -> None:
    """Run a turn of the session itself."""
    await session.claude(prompt, tools="Bash")


@pytest.mark.parametrize(
    ("between", "heard", "not_heard"),
    [
        (rewind, ["Uno"], ["Due"]),
        (elsewhere, ["Uno", "Due", "Elsewhere"], []),
        (by_hand, ["Uno", "Due", "Typed"], []),
        (kill_it, ["Uno", "Due"], []),
        (lose_the_transcript, ["Uno", "Due"], []),
        (lambda session, _: turn_of(session, "Home"), ["Uno", "Due", "Home"], []),
        (lambda session, _: turn_of(session, "Behind"), ["Uno", "Due", "Behind"], []),
        (lambda session, _: turn_of(session, "Left"), ["Uno", "Due", "Left"], []),
    ],
    ids=["rewind", "another-process", "typed", "killed", "transcript-lost", "cd", "background", "left-running"],
)
async def test_anything_else_gets_a_new_process(
    scripted_model: Start,
    tmp_path: Path,
    between: Callable[[Session, Path], Awaitable[None]],
    heard: list[str],
    not_heard: list[str],
) -> None:
    """A conversation that was touched, or a process with something left in it, is not gone on with live."""
    (tmp_path / "sub").mkdir()
    model = scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True) as session:
        await session.claude("Uno", tools="Bash")
        await session.claude("Due", tools="Bash")
        waiting = processes(session)[-1]
        await between(session, tmp_path)
        last = processes(session)[-1]
        result = await session.claude("Uno at last", tools="Bash")
        assert result.text == "One."
        assert processes(session)[-1] not in (waiting, last)
        words = said(model.requests[-1])
        assert [word for word in [*heard, "Uno at last"] if word not in words] == []
        assert [word for word in not_heard if word in words] == []
        for _ in range(2):  # the first one may still be told what became of a command in the background
            await session.claude("Uno, and on", tools="Bash")
        assert processes(session)[-1] == processes(session)[-2]
    assert nothing_runs(session)
    costs = [turn.cost_usd for turn in session.opened.journal.entries if isinstance(turn, Turn | Interactive)]
    assert all(0 < cost < 0.003 for cost in costs), costs


async def test_a_limit_and_a_cancellation_end_it(scripted_model: Start, tmp_path: Path) -> None:
    """A turn that is stopped takes its process along, and leaves the session as it was."""
    model = scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True) as session:
        await session.claude("Uno")
        before = transcript_of(session).read_bytes()
        with pytest.raises(TurnTimeout):
            await session.claude("Slow", timeout=1.0)
        assert nothing_runs(session)
        assert transcript_of(session).read_bytes() == before
        await session.claude("Uno")
        task = asyncio.create_task(session.claude("Slow"))
        await asyncio.to_thread(lambda: model.wait_for("/^Slow/", count=2))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing_runs(session)
        assert (await session.claude("Uno")).turn == 3
        assert "Slow" not in said(model.requests[-1])
        assert [failed.error for failed in events_of(session, Failed)] == ["timeout", "interrupted"]


class FullStore(FileSessionStorage):
    """A store with no room for a turn, once."""

    full = True

    async def append(self, name: str, events: Any, **more: Any) -> Any:
        if self.full and any(isinstance(event, Turn) and event.prompt == "Fine" for event in events):
            self.full = False
            raise StorageError("no room")
        return await super().append(name, events, **more)


async def test_a_turn_that_cannot_be_kept_ends_it(scripted_model: Start, tmp_path: Path) -> None:
    """Where the answer could not be recorded, the process that has it in mind is not asked again."""
    scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True, storage=FullStore()) as session:
        await session.claude("Uno")
        with pytest.raises(StorageError) as caught:
            await session.claude("Fine")
        assert caught.value.answer == "Well."
        assert nothing_runs(session)
        assert (await session.claude("Uno")).text == "One."
        assert [turn.prompt for turn in session.opened.journal.turns] == ["Uno", "Fine", "Uno"]  # adopted
        assert [round(turn.cost_usd, 6) for turn in session.opened.journal.turns] == [0.0008] * 3


async def test_our_own_death(scripted_model: Start, tmp_path: Path) -> None:
    """Killed after a live turn's answer: it is adopted at its own price, and no process is left."""
    model = scripted_model(SCRIPT)
    with owner("s", "Due", tmp_path, hold=True, live_after=["Uno", "Uno"]) as process:
        await asyncio.to_thread(until, (tmp_path / "answered").exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    session = await Session.load("s", cwd=tmp_path)
    await soon(lambda: nothing_runs(session))
    await session.claude("Uno")
    turns = session.opened.journal.turns
    assert [turn.prompt for turn in turns] == ["Uno", "Uno", "Due", "Uno"]
    assert turns[2].adopted
    assert [round(turn.cost_usd, 6) for turn in turns] == [0.0008, 0.0008, 0.0016, 0.0008]
    assert model.paid("/^Due/") == 2


async def test_a_block_left_during_a_turn(scripted_model: Start, tmp_path: Path) -> None:
    """A turn that still runs when its session's block is left ends its own process; so does a fork's, later."""
    model = scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True) as session:
        await session.claude("Uno")
        fork = await session.fork("fork")
        running = asyncio.create_task(session.claude("Slow"))
        await asyncio.to_thread(model.wait_for, "/^Slow/")
    model.release("gate")
    assert (await running).text == "Slow."
    assert nothing_runs(session)
    with pytest.raises(UsageError, match="async with"):
        await fork.claude("Uno")


async def test_a_link_that_leads_elsewhere(scripted_model: Start, tmp_path: Path) -> None:
    """A directory that is another one by the next turn is worked in as it is then."""
    scripted_model([{"reply": [bash("pwd -P > $HOME/where; touch here"), "Well."]}])
    here = tmp_path / "current"
    (tmp_path / "home").mkdir(exist_ok=True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    here.symlink_to("one")
    async with Session("s", cwd=here, live=True) as session:
        await session.claude("Uno", tools="Bash")
        here.unlink()
        here.symlink_to("two")
        await session.claude("Due", tools="Bash")
    assert (tmp_path / "two" / "here").exists()


async def test_few_of_them_wait(scripted_model: Start, tmp_path: Path) -> None:
    """However many sessions an owner has, no more than a few processes wait."""
    scripted_model(SCRIPT)
    async with Session("s", cwd=tmp_path, live=True) as session:
        await session.claude("Uno")
        forks = [await session.fork(f"fork-{number}") for number in range(MOST)]
        for fork in forks:
            await fork.claude("Due")
        assert nothing_runs(session)
        assert sum(not nothing_runs(fork) for fork in forks) == MOST
    assert all(nothing_runs(fork) for fork in forks)
