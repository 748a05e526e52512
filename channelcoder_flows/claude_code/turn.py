"""One turn of a CLI: heard, limited in time, interrupted before it is closed, always ended unless it is to stay."""

from __future__ import annotations

import asyncio
import time

from claude_agent_sdk import ClaudeSDKError

from channelcoder_flows.claude_code.cli import Cli
from channelcoder_flows.claude_code.listener import Answer, Listener, OnChunk, died
from channelcoder_flows.claude_code.transport import OnStarted
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.errors import TurnError, TurnStalled, TurnTimeout
from channelcoder_flows.turn import TurnOptions, TurnRequest

START_WAIT = 50.0
"""Seconds that the CLI has for its first words: less than the minute after which the SDK gives up in its own way."""


async def run_turn(
    cli: Cli,
    request: TurnRequest,
    *,
    turn_id: str,
    on_chunk: OnChunk,
    on_started: OnStarted,
    stay: bool = False,
) -> Answer:
    """Run one turn and return Claude's answer. When this returns or raises, no process of the turn is left.

    Args:
        cli: what runs it: not started yet, or idle after an earlier turn that was told the same.
        request: everything the turn is told.
        turn_id: the uuid of the user message, found again in the transcript.
        on_chunk: called with each piece as it comes.
        on_started: awaited once the process runs, before anything is sent to it.
        stay: leave the CLI itself, idle, for the next turn, where this one left nothing behind in it.

    Raises:
        TurnError: the turn ended badly; the class says how, `retryable` whether another attempt can help.
        PlaceError: the process could not be started.
    """
    listener = Listener(on_chunk)
    clock = _Clock(request.options)
    limit = asyncio.timeout(clock.left())
    stays = False
    try:
        async with limit:
            await _exchange(cli, request.prompt, turn_id, on_started, listener, clock, limit)
        stays = stay and listener.left_nothing and await cli.alone() and cli.idle
    except TimeoutError as exc:
        if not limit.expired():
            raise died(exc, listener, cli.process) from exc
        await cli.interrupt()
        raise clock.error(listener) from None
    except asyncio.CancelledError:
        await to_the_end(cli.interrupt())
        raise
    except ClaudeSDKError as exc:
        if listener.result is None:
            raise died(exc, listener, cli.process) from exc
    finally:
        if not stays:
            await to_the_end(cli.end())
    answer = listener.answer(request, cli.process)
    cli.total_cost_usd = answer.total_cost_usd
    return answer


async def _exchange(
    cli: Cli,
    prompt: str,
    turn_id: str,
    on_started: OnStarted,
    listener: Listener,
    clock: _Clock,
    limit: asyncio.Timeout,
) -> None:
    def alive() -> None:
        clock.sign_of_life()
        limit.reschedule(asyncio.get_running_loop().time() + clock.left())

    await cli.start(on_started)
    alive()
    async for received in cli.ask(prompt, turn_id):
        listener.take(received)
        alive()


class _Clock:
    """The limits of a turn: its whole time, the time without a sign of life, and that until the first one."""

    def __init__(self, options: TurnOptions) -> None:
        self.total, self.idle = options.timeout, options.idle_timeout
        self.began = time.monotonic()
        self.heard: float | None = None

    def sign_of_life(self) -> None:
        self.heard = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        silence = min(START_WAIT, self.idle) if self.heard is None else self.idle
        return max(0.0, min(self.began + self.total - now, (self.heard or self.began) + silence - now))

    def error(self, listener: Listener) -> TurnError:
        if time.monotonic() - self.began >= self.total:
            return TurnTimeout(
                f"the turn took longer than its {self.total:g} s: raise timeout, or make the step smaller",
                retryable=True,
                text=listener.text(),
            )
        if self.heard is None:
            return TurnStalled(
                f"Claude Code started and said nothing for {min(START_WAIT, self.idle):g} s: try again", retryable=True
            )
        return TurnStalled(
            f"Claude said nothing for {self.idle:g} s: try again, or raise idle_timeout if a tool takes that long",
            retryable=True,
            text=listener.text(),
        )
