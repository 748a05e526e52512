"""The public calls as a user writes them; `make check` type-checks this file under pyright strict."""

from __future__ import annotations

from typing import assert_type

from channelcoder_flows import (
    FileSessionStorage,
    Message,
    Session,
    SessionInfo,
    StreamChunk,
    TurnResult,
    claude,
    stream,
)
from channelcoder_flows.flow import turn


async def sessions() -> None:
    """Everything ChannelCoder's guide shows."""
    s = Session(name="learning-typescript", storage=FileSessionStorage("./sessions"), auto_save=True, cwd=".")
    result = await s.claude("What is {topic}?", data={"topic": "TypeScript"}, tools="Read Grep", max_turns=5)
    assert_type(result, TurnResult)
    assert_type(await s.run("prompts/plan.md", system="Be brief", model="haiku", timeout=60), TurnResult)
    async for chunk in s.stream("Show me an example", verbose=True):
        assert_type(chunk, StreamChunk)
    assert_type(await s.save("ts-day-1", overwrite=True), str)
    assert_type(s.id, str | None)
    assert_type(s.messages, list[Message])
    s.set_id("00000000-0000-4000-8000-000000000000")
    s.clear()
    loaded = await Session.load("ts-day-1")
    assert_type(list(await Session.list()), list[SessionInfo])
    assert_type(await Session.exists("x"), bool)
    await Session.remove("x")
    assert_type(await loaded.fork("ts-day-1b", at=2), Session)
    await loaded.rewind(to=3)


async def without_a_session() -> None:
    """The same functions without a session."""
    assert_type(await claude("What is TypeScript?"), TurnResult)
    async for chunk in stream("What is TypeScript?"):
        assert_type(chunk.content, str)


async def flows() -> None:
    """A flow carries the session through its results."""
    plan = await turn("prompts/plan.md", session="feature", data={"ticket": "T-1"})
    assert_type(await turn("prompts/implement.md", session=plan.session), TurnResult)
