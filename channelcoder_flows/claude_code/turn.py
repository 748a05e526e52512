"""One process a turn: started in a place, heard, limited in time, interrupted before it is closed, always ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeSDKClient, ClaudeSDKError

from channelcoder_flows.claude_code.listener import Answer, Listener, OnChunk, died
from channelcoder_flows.claude_code.options import command, process_environment, sdk_options
from channelcoder_flows.claude_code.transport import OnStarted, PlaceTransport
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import TurnError, TurnStalled, TurnTimeout
from channelcoder_flows.places.base import Place, Process
from channelcoder_flows.turn import TurnOptions, TurnRequest

INTERRUPT_WAIT = 3.0
"""Seconds the CLI has to save its partial answer when it is interrupted."""


async def run_turn(
    place: Place,
    request: TurnRequest,
    *,
    claude: Path,
    env: Mapping[str, str],
    session_id: str,
    turn_id: str,
    resume: bool,
    on_chunk: OnChunk,
    on_started: OnStarted,
) -> Answer:
    """Run one turn and return Claude's answer. When this returns or raises, no process of the turn is left.

    Args:
        place: where it runs.
        request: everything the turn is told.
        claude: the CLI's path, as the place sees it.
        env: the whole environment of the CLI.
        session_id: the Claude session id (a UUID).
        turn_id: the uuid of the user message, found again in the transcript.
        resume: whether the conversation has been laid, or begins here.
        on_chunk: called with each piece as it comes.
        on_started: awaited once the process runs, before anything is sent to it.

    Raises:
        TurnError: the turn ended badly; the class says how, `retryable` whether another attempt can help.
        PlaceError: the process could not be started.
    """
    options = sdk_options(request, cwd=place.cwd, env=env, session_id=session_id, resume=resume)
    transport = PlaceTransport(place, command(claude, options), process_environment(options), on_started)
    client = ClaudeSDKClient(options, transport=transport)
    listener = Listener(on_chunk)
    clock = _Clock(request.options)
    limit = asyncio.timeout(clock.left())
    try:
        async with limit:
            await _exchange(client, request.prompt, turn_id, listener, clock, limit)
    except TimeoutError as exc:
        if not limit.expired():
            raise died(exc, listener, transport.process) from exc
        await _interrupt(client)
        raise clock.error(listener) from None
    except asyncio.CancelledError:
        await to_the_end(_interrupt(client))
        raise
    except ClaudeSDKError as exc:
        if listener.result is None:
            raise died(exc, listener, transport.process) from exc
    except Exception as exc:
        # The SDK says so with a bare Exception when the CLI does not answer its first words (within a minute).
        if not str(exc).startswith("Control request timeout"):
            raise
        raise TurnStalled(
            "Claude Code started and said nothing for a minute: try again", retryable=True, text=listener.text()
        ) from exc
    finally:
        await to_the_end(_close(client, transport.process))
    return listener.answer(request, transport.process)


async def _exchange(
    client: ClaudeSDKClient,
    prompt: str,
    turn_id: str,
    listener: Listener,
    clock: _Clock,
    limit: asyncio.Timeout,
) -> None:
    await client.connect()

    async def message() -> AsyncIterator[dict[str, Any]]:
        content = {"role": "user", "content": prompt}
        yield {"type": "user", "message": content, "parent_tool_use_id": None, "uuid": turn_id}

    await client.query(message())
    async for received in client.receive_response():
        listener.take(received)
        clock.sign_of_life()
        limit.reschedule(asyncio.get_running_loop().time() + clock.left())


async def _interrupt(client: ClaudeSDKClient) -> None:
    """Ask the CLI to stop: it saves the partial answer, and ends at once instead of after seconds."""
    with suppress(Exception):
        async with asyncio.timeout(INTERRUPT_WAIT):
            await client.interrupt()
            async for _ in client.receive_response():
                pass


async def _close(client: ClaudeSDKClient, process: Process | None) -> None:
    try:
        await client.disconnect()
    finally:
        if process is not None:
            await process.end()


class _Clock:
    """The two limits of a turn: its whole time, and the time without a sign of life."""

    def __init__(self, options: TurnOptions) -> None:
        self.total, self.idle = options.timeout, options.idle_timeout
        self.began = self.heard = time.monotonic()

    def sign_of_life(self) -> None:
        self.heard = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        return max(0.0, min(self.began + self.total - now, self.heard + self.idle - now))

    def error(self, listener: Listener) -> TurnError:
        if time.monotonic() - self.began >= self.total:
            return TurnTimeout(
                f"the turn took longer than its {self.total:g} s: raise timeout, or make the step smaller",
                retryable=True,
                text=listener.text(),
            )
        return TurnStalled(
            f"Claude said nothing for {self.idle:g} s: try again, or raise idle_timeout if a tool takes that long",
            retryable=True,
            text=listener.text(),
        )
