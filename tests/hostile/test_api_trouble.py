"""The API in trouble: each trouble ends in its own error or in a recovery, in time, paid for, and taken back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hand import events_of, files_of, nothing_runs, said

from channelcoder_flows import (
    ApiError,
    LimitReached,
    NotLoggedIn,
    OutputInvalid,
    Prompt,
    Session,
    TurnError,
    TurnStalled,
    TurnTimeout,
    stream,
)
from channelcoder_flows.claude_code import turn as one_turn
from channelcoder_flows.journal import Failed
from channelcoder_flows.testing import ScriptedModel

Start = Callable[[Any], ScriptedModel]
HANGS = 60.0
"""Seconds after which a turn that has not ended hangs: each has ended within ten on an idle machine."""
FREE, ONCE = (0.0, 0.0), (0.0008, 0.0014)
HALF = {"text": "Half of it is here", "slow": 0.3, "usage": {"input_tokens": 1000, "output_tokens": 20}}
"""What breaks off, with a moment in which the CLI hears its beginning."""
TOOL = {"tool": "Bash", "input": {"command": "true"}}
SECONDS = {"idle_timeout": 6.0}
OUTPUT = "---\noutput:\n  status: string\n---\n"


@dataclass(frozen=True)
class Trouble:
    """One trouble, and how a turn that meets it ends. `cost` and `retry_after` are ranges."""

    name: str
    reply: Any
    error: type[TurnError] | None
    """None: the turn recovers, and says "Recovered."."""
    kind: str = ""
    retryable: bool = False
    status: int | None = None
    retry_after: tuple[float, float] | None = None
    cost: tuple[float, float] = FREE
    """US dollars: 1000 tokens in are 0.004."""
    text: str = ""
    calls: int = 1
    """How often the API is asked at most, with the one retry that these tests leave to the CLI."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def prompt(self) -> str:
        """A prompt that no other trouble has."""
        return f"Meet {self.name}."


def lasting(status: int, error: type[TurnError] = ApiError, **more: Any) -> Trouble:
    """Return an HTTP error that does not pass."""
    kind = "no-login" if error is NotLoggedIn else f"api/{status}"
    reply = {"error": status, "message": "so it is", **more.pop("reply", {})}
    return Trouble(f"a lasting {more.pop('name', status)}", reply, error, kind, status=status, **more)


def passing(name: str, fault: dict[str, Any], **more: Any) -> Trouble:
    """Return a fault that is met once."""
    return Trouble(f"{name}, once", [fault, "Recovered."], None, **{"calls": 3, **more})


TROUBLES = (
    lasting(401, NotLoggedIn, calls=2),
    lasting(400, calls=6),  # the CLI asks again without each of its newer features
    lasting(413),
    lasting(429, retryable=True, calls=2),
    lasting(429, name="429 for a second", reply={"retry_after": 1}, retryable=True, retry_after=(1, 1.5), calls=2),
    lasting(429, name="429 for an hour", reply={"retry_after": 3600}, retryable=True),
    lasting(500, retryable=True, calls=2),
    lasting(529, retryable=True, calls=2),
    Trouble("a stall at the start", {"stall": "start"}, TurnStalled, "stalled", True, options=SECONDS),
    Trouble(
        "a stall midway",
        {"stall": "mid", **HALF},
        TurnStalled,
        "stalled",
        True,
        cost=(0.004, 0.006),
        text="Half",
        options=SECONDS,
    ),
    Trouble("drops at the start", {"drop": "start"}, ApiError, "api_error", True, calls=2),
    Trouble("drops midway", {"drop": "mid", **HALF}, ApiError, "api_error", True, cost=(0.004, 0.016), calls=3),
    Trouble(
        "garbage",
        {"malformed": "garbage", **HALF},
        ApiError,
        "api_error",
        True,
        cost=(0.004, 0.012),
        text="Half",
        calls=2,
    ),
    Trouble(
        "truncated streams",
        {"malformed": "truncated", **HALF},
        ApiError,
        "api_error",
        True,
        cost=(0.008, 0.016),
        text="Half",
        calls=3,
    ),
    Trouble(
        "a model that never stops, with a limit of calls",
        {**TOOL, "repeat": True},
        LimitReached,
        "max-turns",
        cost=(0.002, 0.004),
        calls=3,
        options={"max_turns": 3},
    ),
    Trouble(
        "a model that never stops, with a budget",
        {**TOOL, "repeat": True},
        LimitReached,
        "max-budget",
        cost=(0.002, 0.006),
        calls=3,
        options={"max_budget_usd": 0.002},
    ),
    Trouble(
        "a model that never stops, with a time limit",
        {**TOOL, "delay": 1.0, "repeat": True},
        TurnTimeout,
        "timeout",
        True,
        cost=(0.0008, 1.0),
        calls=30,
        options={"timeout": 6.0},
    ),
    passing("429 for a second", {"error": 429, "retry_after": 1}, cost=ONCE),
    passing("529", {"error": 529}, cost=ONCE),
    passing("a drop at the start", {"drop": "start"}, cost=ONCE),
    passing("a drop midway", {"drop": "mid", **HALF}, cost=(0.0048, 0.007)),
    passing(
        "a drop within a tool call", {"drop": "mid", "tool": "Bash", "input": {"command": "touch half"}}, cost=ONCE
    ),
    passing("a truncated stream", {"malformed": "truncated", **HALF}, cost=(0.0048, 0.007)),
    passing("garbage", {"malformed": "garbage", **HALF}, cost=(0.0048, 0.007)),
)


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.torture)], ids=["short", "long"])
async def test_each_trouble_has_its_end(
    scripted_model: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Each trouble has its own error, or passes; what it cost is known, its words are gone, no process is left of it.

    In the short form the troubles follow each other in three sessions; in the long one each has a session of its own,
    with a good turn before it and one after.
    """
    monkeypatch.setenv("CLAUDE_CODE_MAX_RETRIES", "1")
    rules = [{"when": trouble.prompt, "reply": trouble.reply} for trouble in TROUBLES]
    model = scripted_model([*rules, {"when": "Go on", "reply": "Fine."}])
    walks = [(trouble,) for trouble in TROUBLES] if apart else [TROUBLES[at::3] for at in range(3)]
    at_once = asyncio.Semaphore(3)

    async def walk(number: int, troubles: Sequence[Trouble]) -> None:
        async with at_once:
            session = Session(f"s{number}", cwd=tmp_path)
            good = ["Go on"]
            await session.claude("Go on")
            for trouble in troubles:
                await meet(session, trouble, model)
                good += [trouble.prompt] * (trouble.error is None)
            assert (await session.claude("Go on")).text == "Fine."
            last = said([request for request in model.requests if request.session == session.id][-1])
            assert [message.content for message in session.messages[::2]] == [*good, "Go on"]
            assert [last.count(trouble.prompt) for trouble in troubles] == [t.prompt in good for t in troubles]

    await asyncio.gather(*(walk(number, troubles) for number, troubles in enumerate(walks)))
    assert not (tmp_path / "half").exists()


async def meet(session: Session, trouble: Trouble, model: ScriptedModel) -> None:
    """Meet one trouble, and look at everything it may have left behind."""
    before, turns, spent, began = files_of(session), session.turns, session.cost_usd, time.monotonic()
    try:
        async with asyncio.timeout(HANGS):
            if trouble.error is None:
                result = await session.claude(trouble.prompt)
                assert (result.text, session.turns) == ("Recovered.", turns + 1)
                cost = result.cost_usd
            else:
                with pytest.raises(trouble.error) as caught:
                    await session.claude(trouble.prompt, tools="Bash", **trouble.options)
                check_failure(trouble, caught.value, session)
                assert (files_of(session), session.turns) == (before, turns)
                cost = caught.value.cost_usd
        assert_within(trouble.cost, cost)
        assert session.cost_usd == pytest.approx(spent + cost)
        assert session.opened.journal.intent is None
        assert nothing_runs(session)
        asked = [request for request in model.requests if request.prompt == trouble.prompt]
        assert 1 <= len(asked) <= trouble.calls
        assert all(request.ended for request in asked)
        assert sum(request.paid for request in asked if request.reply != "tool") == (trouble.error is None)
        assert not any(other.prompt in said(asked[0]) for other in TROUBLES if other.error and other is not trouble)
    except Exception as exc:
        exc.add_note(f"This was {trouble.name}.")
        raise
    end = trouble.error.__name__ if trouble.error else "recovered"
    print(
        f"{trouble.name:46} {end:13} {trouble.kind:11} ${cost:.4f} {len(asked)} calls {time.monotonic() - began:4.1f} s"
    )


def check_failure(trouble: Trouble, error: TurnError, session: Session) -> None:
    """Hold the error, and what the journal has of it, to the trouble's row."""
    assert type(error) is trouble.error
    assert (error.kind, error.retryable, error.status) == (trouble.kind, trouble.retryable, trouble.status), error
    if trouble.retry_after is None:
        assert error.retry_after is None
    else:
        assert_within(trouble.retry_after, error.retry_after)
    assert error.text.startswith(trouble.text)
    assert "Half of it is here".startswith(error.text)
    assert "\n" not in str(error)
    failed = events_of(session, Failed)[-1]
    assert (failed.prompt, failed.error, failed.raised) == (trouble.prompt, error.kind, type(error).__name__)
    assert (failed.retryable, failed.retry_after, failed.cost_usd) == (
        error.retryable,
        error.retry_after,
        error.cost_usd,
    )


def assert_within(span: tuple[float, float], value: float | None) -> None:
    """Assert that a value is in a range."""
    assert value is not None
    assert span[0] <= value <= span[1]


async def test_a_retry_is_told(scripted_model: Start, tmp_path: Path) -> None:
    """Whoever watches a turn reads that the API is in trouble, and that it is asked again; only the answer is paid."""
    model = scripted_model([{"reply": [{"error": 529}, "Recovered."]}])
    chunks = [chunk async for chunk in stream("Try", cwd=tmp_path)]
    assert (chunks[-1].type, chunks[-1].content) == ("result", "Recovered.")
    (retry,) = [chunk.content for chunk in chunks if chunk.type == "retry"]
    assert "529" in retry
    assert (len(model.requests), model.paid()) == (2, 1)


async def test_an_output_that_the_cli_refuses(scripted_model: Start, tmp_path: Path) -> None:
    """A model that never gives the declared output, however often the CLI asks, ends in `OutputInvalid`."""
    scripted_model([{"reply": {"output": {"status": 5}, "repeat": True}}])
    session = Session("s", cwd=tmp_path)
    with pytest.raises(OutputInvalid, match="fit"):
        await session.claude(Prompt.parse(f"{OUTPUT}Report", path="report.md"))
    assert session.cost_usd > 0
    assert nothing_runs(session)


async def test_a_cli_that_says_nothing(tmp_path: Path, claude_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLI that starts and says nothing is given up after its own limit, whatever the turn's, and can be retried."""
    mute = tmp_path / "claude"
    mute.write_text("#!/bin/sh\nexec cat >/dev/null\n")
    mute.chmod(0o700)
    monkeypatch.setenv("CHANNELCODER_CLAUDE_PATH", str(mute))
    monkeypatch.setattr(one_turn, "START_WAIT", 0.5)
    session = Session("s", cwd=tmp_path)
    async with asyncio.timeout(HANGS):
        with pytest.raises(TurnStalled, match=r"started and said nothing for 0\.5 s: try again") as caught:
            await session.claude("Hi")
    assert (caught.value.retryable, caught.value.cost_usd) == (True, 0)
    assert events_of(session, Failed)[-1].error == "stalled"
    assert nothing_runs(session)
