"""Sessions as people use them: every promise of the session API, on the real CLI."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hand import events_of, files_of, nothing_runs, owner, said, soon, transcript_of

from channelcoder_flows import (
    FileSessionStorage,
    Prompt,
    Session,
    SessionBusy,
    SessionConflict,
    SessionExists,
    SessionNotFound,
    SessionRequired,
    SessionState,
    StorageError,
    UsageError,
    claude,
    stream,
)
from channelcoder_flows.journal import Event, Failed, Intent, Rewind
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.turn import Usage

Start = Callable[[Any], ScriptedModel]
WELL = [{"reply": "Well."}]


def prompts(request: Any) -> list[str]:
    """Return which of the test's one-word prompts a request carries."""
    text = said(request)
    return [word for word in ("Uno", "Due", "Tre", "Quattro", "Cinque", "Sei") if word in text]


async def test_a_command_left_in_the_background(scripted_model: Start, tmp_path: Path) -> None:
    """It ends with its turn; what Claude Code notes of that is neither the next turn's answer nor anyone's words."""
    background = {"tool": "Bash", "input": {"command": "sleep 300", "run_in_background": True}}
    model = scripted_model([{"when": "Uno", "reply": [background, "Started."]}, *WELL])
    session = Session("s", cwd=tmp_path)
    await session.claude("Uno", tools="Bash")
    assert nothing_runs(session)
    result = await session.claude("Due", tools="Bash")
    assert (result.text, result.model_calls, model.paid("Due")) == ("Well.", 1, 1)
    assert [message.content for message in session.messages] == ["Uno", "Started.", "Due", "Well."]


async def test_cancelled_as_it_begins(scripted_model: Start, tmp_path: Path) -> None:
    """A turn that is cancelled when it is announced, before Claude starts, has its ending at once and costs nothing."""

    class Cancelling(MemorySessionStorage):
        async def append(self, name: str, events: Sequence[Event], **more: Any) -> None:
            await super().append(name, events, **more)
            if any(isinstance(event, Intent) for event in events):
                asking.cancel()

    model = scripted_model(WELL)
    session = Session("s", cwd=tmp_path, storage=Cancelling())
    asking = asyncio.ensure_future(session.claude("Uno"))
    with pytest.raises(asyncio.CancelledError):
        await asking
    (failed,) = events_of(session, Failed)
    assert (failed.error, failed.cost_usd, session.opened.journal.intent, model.requests) == (
        "interrupted",
        0,
        None,
        [],
    )


class TestDayByDay:
    """The guide's own examples."""

    async def test_save_and_load(self, scripted_model: Start, tmp_path: Path) -> None:
        """What was said is remembered, kept after every turn, and gone on with under the name it was saved as."""
        model = scripted_model(WELL)
        session = Session(cwd=tmp_path)
        assert (session.id, session.messages) == (None, [])
        first = await session.claude("Uno")
        assert session.id == first.session.id == session.name
        assert [info.name for info in await Session.list()] == [session.id]
        await session.run("Due")
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        assert await session.save("ts-day-1") == "ts-day-1" == session.name
        assert not await Session.exists(str(first.session.id))
        (info,) = await Session.list()
        assert (info.name, info.message_count, info.turns) == ("ts-day-1", 4, 2)

        again = await Session.load("ts-day-1", cwd=tmp_path)
        assert again.messages == session.messages
        await again.claude("Tre")
        assert await again.save("ts-day-1") == "ts-day-1"
        assert prompts(model.requests[-1]) == ["Uno", "Due", "Tre"]
        by_path = await Session.load(info.path, cwd=tmp_path)
        assert [message.content for message in by_path.messages] == ["Uno", "Well.", "Due", "Well.", "Tre", "Well."]
        assert [message.role for message in by_path.messages] == ["user", "assistant"] * 3
        assert {message.session_id for message in by_path.messages} == {session.id}

        with pytest.raises(SessionNotFound, match="ts-day-1"):
            await Session.load("ts-day-2")
        await Session.remove("ts-day-1")
        assert not await Session.exists("ts-day-1")
        with pytest.raises(SessionNotFound):
            await Session.remove("ts-day-1")

    async def test_saving_under_another_name(self, scripted_model: Start, tmp_path: Path) -> None:
        """A named session forks to the new name; another session's name is refused unless it may be overwritten."""
        model = scripted_model(WELL)
        session = Session("a", cwd=tmp_path)
        await session.claude("Uno")
        first = session.id
        await session.save("b")
        await session.claude("Due")
        assert session.id != first
        assert (await Session.load("a")).turns == 1
        other = Session("c", cwd=tmp_path)
        with pytest.raises(SessionExists, match="'b'"):
            await other.save("b")
        assert await other.save("b", overwrite=True) == "b"
        assert (await Session.load("b")).messages == []
        assert prompts(model.requests[-1]) == ["Uno", "Due"]

    async def test_without_auto_save(self, scripted_model: Start, tmp_path: Path) -> None:
        """`auto_save=False` writes nothing until `save`, then all of it; saving again writes what came since."""
        model = scripted_model(WELL)
        session = Session("notes", cwd=tmp_path, auto_save=False)
        await session.claude("Uno")
        assert await Session.list() == []
        await session.save("a")
        assert session.name == "a"
        await session.claude("Due")
        assert (await Session.load("a")).turns == 1
        await session.save()
        assert (await Session.load("a")).turns == 2
        await session.save("b")
        await session.claude("Tre")
        await session.save()
        a, b = await Session.load("a", cwd=tmp_path), await Session.load("b", cwd=tmp_path)
        assert (a.turns, b.turns) == (2, 3)
        assert a.id != b.id
        await a.claude("Quattro")
        assert prompts(model.requests[-1]) == ["Uno", "Due", "Quattro"]
        await b.claude("Cinque")
        assert prompts(model.requests[-1]) == ["Uno", "Due", "Tre", "Cinque"]
        assert len(b.messages) == 8

    async def test_going_on_without_auto_save(self, scripted_model: Start, tmp_path: Path) -> None:
        """`auto_save=False` goes on from a saved session and leaves that as it is, until `save` adds what is new."""
        model = scripted_model(WELL)
        await Session("s", cwd=tmp_path).claude("Uno")
        aside = Session("s", cwd=tmp_path, auto_save=False)
        assert (await aside.claude("Due")).turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        stored = await Session.load("s", cwd=tmp_path)
        await stored.claude("Tre")
        assert prompts(model.requests[-1]) == ["Uno", "Tre"]
        assert [message.content for message in stored.messages] == ["Uno", "Well.", "Tre", "Well."]
        with pytest.raises(SessionConflict):
            await aside.save()
        await aside.save("aside")
        assert [message.content for message in (await Session.load("aside")).messages] == [
            "Uno",
            "Well.",
            "Due",
            "Well.",
        ]

        again = await Session.load("s", cwd=tmp_path, auto_save=False)
        assert again.messages == stored.messages
        assert (await again.claude("Quattro")).turn == 3
        assert (await Session.load("s")).turns == 2
        assert await again.save() == "s"
        await again.claude("Sei")
        assert (await (await Session.load("s", cwd=tmp_path)).claude("Cinque")).turn == 4
        assert prompts(model.requests[-1]) == ["Uno", "Tre", "Quattro", "Cinque"]
        with pytest.raises(SessionNotFound):
            await Session.load("typo", auto_save=False)

    async def test_ways_back_in_memory(self, scripted_model: Start, tmp_path: Path) -> None:
        """What is not saved yet can be rewound, cleared and attached, and a session in memory removed, as any other."""
        model = scripted_model(WELL)
        session = Session(cwd=tmp_path, auto_save=False)
        first = (await session.claude("Uno")).session.id
        await session.claude("Due")
        await session.rewind(to=1)
        await session.claude("Tre")
        assert prompts(model.requests[-1]) == ["Uno", "Tre"]
        session.clear()
        await session.claude("Quattro")
        assert prompts(model.requests[-1]) == ["Quattro"]
        session.set_id(first)
        await session.claude("Cinque")
        assert prompts(model.requests[-1]) == ["Uno", "Due", "Cinque"]
        store = MemorySessionStorage()
        await Session("s", storage=store, cwd=tmp_path).claude("Sei")
        await Session.remove("s", storage=store)
        assert not await Session.exists("s", storage=store)

    async def test_without_a_session(self, scripted_model: Start, tmp_path: Path) -> None:
        """`claude` and `stream` without a session keep nothing, and say Claude Code's own id."""
        model = scripted_model(WELL)
        one = await claude("Uno", cwd=tmp_path)
        two = [chunk async for chunk in stream("Due", cwd=tmp_path)][-1].result
        assert two is not None
        assert one.session.id != two.session.id == model.requests[-1].session
        assert prompts(model.requests[-1]) == ["Due"]
        assert await Session.list() == []

    async def test_clear_and_set_id(self, scripted_model: Start, tmp_path: Path) -> None:
        """`clear` forgets and keeps the name; `set_id` goes on from any conversation that Claude Code has."""
        model = scripted_model(WELL)
        session = Session("s", cwd=tmp_path)
        await session.claude("Uno")
        first = session.id
        assert first
        session.clear()
        assert (session.id, session.messages) == (None, [])
        await session.claude("Due")
        assert prompts(model.requests[-1]) == ["Due"]
        assert session.id not in (None, first)
        session.set_id(first)
        assert session.id == first
        await session.claude("Tre")
        assert prompts(model.requests[-1]) == ["Uno", "Tre"]
        assert model.requests[-1].session == first
        required = Prompt.parse("---\nsession:\n  required: true\n---\nQuattro", path="go-on.md")
        other = Session("t", cwd=tmp_path)
        with pytest.raises(SessionRequired):
            await other.claude(required)
        assert not await Session.exists("t")
        other.set_id(first)
        assert (await other.claude(required)).turn == 1
        assert prompts(model.requests[-1]) == ["Uno", "Tre", "Quattro"]
        fork = await other.fork("u")
        assert (await fork.claude("Cinque")).turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Tre", "Quattro", "Cinque"]
        with pytest.raises(UsageError, match="UUID"):
            session.set_id("not-an-id")
        session.set_id("00000000-0000-4000-8000-000000000000")
        with pytest.raises(SessionNotFound, match="claude --resume"):
            await session.claude("Sei")

    async def test_a_prompt_file(self, scripted_model: Start, tmp_path: Path) -> None:
        """A path is a prompt file, its inputs come from `data`, and what the call says wins."""
        model = scripted_model(WELL)
        file = tmp_path / "greet.md"
        file.write_text(
            "---\nsystemPrompt: You are Alpha.\nmodel: claude-haiku-5-5\ninput:\n  name: string\n---\nHi {name}"
        )
        result = await Session("s", cwd=tmp_path).claude(str(file), data={"name": "Bob"}, system="You are Bravo.")
        (request,) = model.requests
        assert (request.prompt, request.model, result.step) == ("Hi Bob", "claude-haiku-5-5", "greet")
        assert "Bravo" in request.system
        assert "Alpha" not in request.system


class TestForkAndRewind:
    """Copies and ways back: the parent is unharmed, and nothing is lost."""

    async def test_fork_and_rewind(self, scripted_model: Start, tmp_path: Path) -> None:
        """A fork knows what was said up to its turn, the parent nothing of the fork; a rewind forgets the rest."""
        model = scripted_model([{"reply": [{"tool": "Bash", "input": {"command": "seq 99999"}}, "Well."]}])

        async def ask(session: Session, text: str) -> list[str]:
            await session.claude(text, tools="Bash")
            return prompts(model.requests[-1])

        session = Session("s", cwd=tmp_path)
        for text in ("Uno", "Due", "Tre"):
            await ask(session, text)
        parent = files_of(session)
        assert len(parent) > 1, "a large tool result is a file of its own"
        fork, early, empty = await session.fork("f"), await session.fork("e", at=1), await session.fork("z", at=0)
        assert (fork.turns, early.turns, empty.turns) == (3, 1, 0)
        assert (await ask(fork, "Quattro"), await ask(early, "Cinque"), await ask(empty, "Sei")) == (
            ["Uno", "Due", "Tre", "Quattro"],
            ["Uno", "Cinque"],
            ["Sei"],
        )
        assert files_of(session) == parent
        assert len({session.id, fork.id, early.id, empty.id}) == 4
        assert {Path(path).name for path in files_of(fork)} > {Path(path).name for path in parent if "/tool" in path}
        with pytest.raises(SessionExists):
            await session.fork("f")
        with pytest.raises(UsageError, match="no turn 4"):
            await session.fork("g", at=4)

        before, events = session.id, session.opened.journal.seq
        await session.rewind(to=1)
        assert session.id != before
        assert [message.content for message in session.messages] == ["Uno", "Well."]
        assert await ask(session, "Cinque") == ["Uno", "Cinque"]
        assert files_of(session)
        again = await Session.load("s", cwd=tmp_path)
        assert (again.turns, again.messages) == (2, session.messages)
        assert [turn.prompt for turn in again.opened.journal.events[:events] if turn.kind == "turn"] == [
            "Uno",
            "Due",
            "Tre",
        ]
        assert len(events_of(again, Rewind)) == 1
        with pytest.raises(UsageError, match="no turn 9"):
            await again.rewind(to=9)
        with pytest.raises(UsageError, match="no turn 1"):
            await Session("typo", cwd=tmp_path).rewind(to=1)
        assert not await Session.exists("typo")

    async def test_cost_is_each_turns_own(self, scripted_model: Start, tmp_path: Path) -> None:
        """Cost and usage are those of the turn alone: after other turns, a failure, a fork and a rewind."""
        tokens = {"input_tokens": 1000, "output_tokens": 100}
        scripted_model(
            [
                {
                    "when": "Fail",
                    "reply": [{"tool": "Bash", "input": {"command": "true"}, "usage": tokens}, {"error": 400}],
                },
                {"reply": {"text": "Well.", "usage": tokens}},
            ]
        )
        session = Session("s", cwd=tmp_path)
        results = [await session.claude("Uno"), await session.claude("Due")]
        one = results[0].cost_usd
        assert one > 0
        with pytest.raises(Exception, match="refused") as caught:
            await session.claude("Fail", tools="Bash")
        assert caught.value.cost_usd == pytest.approx(one)
        results.append(await session.claude("Tre"))
        fork = await session.fork("f")
        assert (fork.turns, fork.cost_usd) == (3, 0)
        results.append(await fork.claude("Quattro"))
        await session.rewind(to=1)
        results.append(await session.claude("Cinque"))
        assert [result.cost_usd for result in results] == [pytest.approx(one)] * 5
        assert [result.usage for result in results] == [Usage(**tokens)] * 5
        assert [result.model_calls for result in results] == [1] * 5
        assert session.cost_usd == pytest.approx(5 * one)
        assert fork.cost_usd == pytest.approx(one)
        assert {info.name: info.cost_usd for info in await Session.list()} == {
            "s": pytest.approx(5 * one),
            "f": pytest.approx(one),
        }


class TestStream:
    """A stream is a turn whose pieces can be watched."""

    async def test_a_stream_is_a_turn(self, scripted_model: Start, tmp_path: Path) -> None:
        """Pieces come as they are said, the last one is the very result; the session goes on either way."""
        model = scripted_model(
            [
                {
                    "when": "Due",
                    "reply": [
                        {"text": "Let me see. ", "tool": "Bash", "input": {"command": "echo here"}},
                        {"text": "one two three", "chunks": 3},
                    ],
                },
                {"reply": "Well."},
            ]
        )
        session = Session("s", cwd=tmp_path)
        await session.claude("Uno")
        chunks = [chunk async for chunk in session.stream("Due", tools="Bash")]
        await session.claude("Tre")
        kinds = [chunk.type for chunk in chunks]
        assert kinds == ["text", "tool_use", "tool_result", "text", "text", "text", "result"]
        assert "".join(chunk.content for chunk in chunks if chunk.type == "text") == "Let me see. one two three"
        assert (chunks[1].tool, chunks[1].input) == ("Bash", {"command": "echo here"})
        assert chunks[2].content == "here"
        result = chunks[-1].result
        assert result is not None
        assert (result.text, result.turn, result.model_calls) == ("one two three", 2, 2)
        assert session.messages[3].content == "one two three"
        assert prompts(model.requests[-1]) == ["Uno", "Due", "Tre"]

    @pytest.mark.parametrize("politely", [True, False])
    async def test_leaving_a_stream_takes_the_turn_back(
        self, scripted_model: Start, tmp_path: Path, politely: bool
    ) -> None:
        """Leaving the loop early interrupts the turn; the session is as before, and at once ready for the next."""
        model = scripted_model(
            [
                {"when": "Due", "reply": [{"text": "Here it", "tool": "Bash", "input": {"command": "sleep 300"}}]},
                {"reply": "Well."},
            ]
        )
        session = Session("s", cwd=tmp_path)
        await session.claude("Uno")
        before = files_of(session)
        if politely:
            async with aclosing(session.stream("Due", tools="Bash")) as chunks:
                async for _ in chunks:
                    break
            assert files_of(session) == before
            assert nothing_runs(session)
        else:
            async for _ in session.stream("Due", tools="Bash"):
                break
        assert (await session.claude("Tre")).turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Tre"]
        (failed,) = events_of(session, Failed)
        assert (failed.error, failed.prompt) == ("interrupted", "Due")

    @pytest.mark.parametrize("cancelled", [True, False])
    async def test_leaving_a_stream_hides_no_error(
        self, scripted_model: Start, tmp_path: Path, cancelled: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A turn that could not be taken back says so to who leaves its stream; to a cancelled caller in the log."""

        class Full(MemorySessionStorage):
            async def append(self, name: str, events: Sequence[Event], **more: Any) -> int:
                if any(isinstance(event, Failed) for event in events):
                    raise StorageError("the disk is full")
                return await super().append(name, events, **more)

        scripted_model([{"reply": [{"text": "Here it", "tool": "Bash", "input": {"command": "sleep 300"}}]}])
        session = Session("s", storage=Full(), cwd=tmp_path)
        begun = asyncio.Event()

        async def watch() -> None:
            async with aclosing(session.stream("Uno", tools="Bash")) as chunks:
                async for chunk in chunks:
                    begun.set()
                    if chunk.type == "tool_use" and not cancelled:
                        break

        watching = asyncio.create_task(watch())
        await begun.wait()
        if cancelled:
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
            assert "'s': an interrupted turn: the disk is full" in caplog.text
        else:
            with pytest.raises(StorageError, match="the disk is full"):
                await watching

    async def test_an_error_in_a_stream(self, scripted_model: Start, tmp_path: Path) -> None:
        """A stream raises what the turn raises."""
        scripted_model([{"reply": {"error": 400, "message": "too odd"}}])
        with pytest.raises(Exception, match="too odd"):
            async for _ in Session("s", cwd=tmp_path).stream("Uno"):
                pass

    async def test_verbose(self, scripted_model: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`verbose` says on stderr what Claude does; stdout stays the caller's."""
        scripted_model([{"reply": [{"tool": "Bash", "input": {"command": "true"}}, "Well."]}])
        await Session("s", cwd=tmp_path).claude("Uno", tools="Bash", verbose=True)
        printed = capsys.readouterr()
        assert (printed.out, "Bash" in printed.err) == ("", True)


RACER = """
import asyncio, sys
from channelcoder_flows import Session
async def main():
    for number in range(int(sys.argv[2])):
        print("ready", flush=True)
        sys.stdin.readline()
        await Session("shared").claude(f"{sys.argv[1]}{number}")
asyncio.run(main())
"""


class TestTwoAtOnce:
    """One session, several users: no turn is lost."""

    @pytest.mark.parametrize("races", [10, pytest.param(50, marks=pytest.mark.torture)])
    def test_races(self, scripted_model: Start, tmp_path: Path, races: int) -> None:
        """Two processes go for one session at once: every turn is there, each knows all that came before it."""
        model = scripted_model(WELL)
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, name, str(races)],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for name in ("left", "right")
        ]
        try:
            for _ in range(races):
                for racer in racers:
                    assert racer.stdout and racer.stdout.readline() == b"ready\n"
                for racer in racers:
                    assert racer.stdin
                    racer.stdin.write(b"\n")
                    racer.stdin.flush()
            assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
        finally:
            for racer in racers:
                racer.kill()
                racer.communicate()
        session = asyncio.run(Session.load("shared"))
        asked = [message.content for message in session.messages if message.role == "user"]
        assert sorted(asked) == sorted(f"{name}{number}" for name in ("left", "right") for number in range(races))
        assert [request.prompt for request in model.requests] == asked
        assert all(json.dumps(text) in said(model.requests[-1]) for text in asked)

    async def test_busy(self, scripted_model: Start, tmp_path: Path) -> None:
        """The second waits for its turn and says so, or gets `SessionBusy`; nobody rewinds under a running turn."""
        model = scripted_model([{"when": "Uno", "reply": {"hold": "gate", "text": "Well."}}, *WELL])
        first, second = Session("s", cwd=tmp_path), Session("s", cwd=tmp_path)
        turn = asyncio.create_task(first.claude("Uno"))
        await asyncio.to_thread(model.wait_for, "Uno")
        with pytest.raises(SessionBusy):
            await second.claude("Due", wait=0)
        with pytest.raises(SessionBusy):
            await second.rewind(to=0)
        with pytest.raises(SessionBusy):
            await Session.remove("s")
        waiting = second.stream("Due")
        notice = await anext(waiting)
        assert (notice.type, "busy" in notice.content) == ("notice", True)
        model.release("gate")
        assert (await turn).turn == 1
        assert [chunk async for chunk in waiting][-1].result.turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Due"]

    async def test_a_session_in_use_is_not_overwritten(self, scripted_model: Start, tmp_path: Path) -> None:
        """`save` never takes the place of a session while a turn of it runs: what that pays for would be lost."""
        model = scripted_model([{"when": "Uno", "reply": {"hold": "gate", "text": "Well."}}, *WELL])
        running = asyncio.create_task(Session("s", cwd=tmp_path).claude("Uno"))
        await asyncio.to_thread(model.wait_for, "Uno")
        for auto_save in (True, False):
            other = Session("other", cwd=tmp_path, auto_save=auto_save)
            with pytest.raises(SessionBusy):
                await other.save("s", overwrite=True)
        model.release("gate")
        assert (await running).turn == 1
        assert (await Session.load("s")).turns == 1

    async def test_a_copy_is_of_what_is_there_now(self, scripted_model: Start, tmp_path: Path) -> None:
        """A fork, and a save under a second name, have what others added since, and wait for a turn that runs."""
        model = scripted_model([{"when": "Tre", "reply": {"hold": "gate", "text": "Well."}}, *WELL])
        old = Session("s", cwd=tmp_path)
        await old.claude("Uno")
        other = await Session.load("s", cwd=tmp_path)
        await other.claude("Due")
        assert (await old.fork("f")).turns == 2
        running = asyncio.create_task(other.claude("Tre"))
        await asyncio.to_thread(model.wait_for, "Tre")
        saving = asyncio.create_task(old.save("t"))
        model.release("gate")
        await running
        await saving
        assert [message.content for message in old.messages] == ["Uno", "Well.", "Due", "Well.", "Tre", "Well."]

    async def test_a_copy_has_the_answer_that_had_arrived(self, scripted_model: Start, tmp_path: Path) -> None:
        """A fork of a session whose process died has the last answer where that had arrived: it is not paid again."""
        model = scripted_model(WELL)
        with owner("s", "Uno", tmp_path, hold=True):
            await soon((tmp_path / "answered").exists)
        fork = await (await Session.load("s", cwd=tmp_path)).fork("f")
        assert (await fork.claude("Due")).turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        assert model.paid("Uno") == 1


class ThreeMethods:
    """A store as the guide writes one."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def save(self, state: SessionState, name: str | None = None) -> str:
        key = name or "unnamed"
        self.kept[key] = state.model_dump_json()
        return key

    async def load(self, name_or_path: str) -> SessionState:
        return SessionState.model_validate_json(self.kept[name_or_path])

    async def list(self) -> list[Any]:
        return []


class TestStores:
    """Where sessions are kept."""

    async def test_three_methods_are_enough(self, scripted_model: Start, tmp_path: Path) -> None:
        """A store with ChannelCoder's three methods carries a session to a machine that has only the store."""
        model = scripted_model(WELL)
        store = ThreeMethods()
        session = Session("s", storage=store, cwd=tmp_path)
        await session.claude("Uno")
        fork = await session.fork("f")
        transcript_of(session).unlink()
        again = await Session.load("s", storage=store, cwd=tmp_path)
        await again.claude("Due")
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        await fork.claude("Tre")
        assert prompts(model.requests[-1]) == ["Uno", "Tre"]
        shape = json.loads(store.kept["s"])
        assert [message["content"] for message in shape["messages"]] == ["Uno", "Well.", "Due", "Well."]
        assert shape["sessionChain"] == [shape["currentSessionId"]] == [session.id]
        assert shape["metadata"]["messageCount"] == 4

    async def test_a_session_of_another_directory(self, scripted_model: Start, tmp_path: Path) -> None:
        """A session loaded by its path goes on where it is kept."""
        model = scripted_model(WELL)
        away = FileSessionStorage(tmp_path / "away")
        session = Session("s", storage=away, cwd=tmp_path)
        await session.claude("Uno")
        (info,) = await away.list()
        loaded = await Session.load(info.path, cwd=tmp_path)
        assert (await loaded.claude("Due")).turn == 2
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        assert (await Session.load("s", storage=away)).turns == 2
        assert not await Session.exists("s")

    async def test_a_conversation_outlives_its_transcript(
        self, scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Deleted, cut anywhere, moved to another directory or machine: Claude still knows all that was said."""
        model = scripted_model(WELL)
        asked: list[str] = []

        async def ask_of(session: Session) -> None:
            """Ask one more question, whose request must carry all that were asked before."""
            asked.append(f"Question {len(asked)}.")
            await session.claude(asked[-1])
            assert [text for text in asked if text in said(model.requests[-1])] == asked
            assert len(model.requests) == len(asked)

        session = Session("s", cwd=tmp_path)
        await ask_of(session)
        await ask_of(session)
        file = transcript_of(session)
        file.unlink()
        await ask_of(session)
        for cut in (0.0, 0.3, 0.6, 0.9, 0.999):
            whole = file.read_bytes()
            file.write_bytes(whole[: int(len(whole) * cut)])
            await ask_of(session)
            assert file.read_bytes().startswith(whole)
        whole = file.read_bytes()
        file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
        await ask_of(session)
        assert transcript_of(session) == file

        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        await ask_of(await Session.load("s", cwd=elsewhere))
        monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "other-machine"))
        await ask_of(await Session.load("s", cwd=elsewhere))

    async def test_a_transcript_that_another_program_changed(self, scripted_model: Start, tmp_path: Path) -> None:
        """What was said stays what was said: we go on from our copy under a new id, and leave theirs as it is."""
        model = scripted_model(WELL)
        session = Session("s", cwd=tmp_path)
        await session.claude("Uno")
        before = session.id
        file = transcript_of(session)
        theirs = file.read_bytes().replace(b"Uno", b"Una")
        file.write_bytes(theirs)
        await session.claude("Due")
        assert prompts(model.requests[-1]) == ["Uno", "Due"]
        assert (session.id != before, file.read_bytes()) == (True, theirs)
        assert session.state.session_chain == (before, session.id)
