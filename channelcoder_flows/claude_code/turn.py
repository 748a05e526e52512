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
    except Exception as exc:
        # The SDK says so with a bare Exception when the CLI does not answer its first words (within a minute).
        if not str(exc).startswith("Control request timeout"):
            raise
        raise TurnStalled(
            "Claude Code started and said nothing for a minute: try again", retryable=True, text=listener.text()
        ) from exc
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
    await cli.start(on_started)
    async for received in cli.ask(prompt, turn_id):
        listener.take(received)
        clock.sign_of_life()
        limit.reschedule(asyncio.get_running_loop().time() + clock.left())


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
