"""One Claude Code process: started in a place, told one message after another, always ended by its owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeSDKClient, Message, ResultMessage

from channelcoder_flows.claude_code.options import command, process_environment, sdk_options
from channelcoder_flows.claude_code.scrub import Scrub, is_asked_for
from channelcoder_flows.claude_code.transport import OnStarted, PlaceTransport
from channelcoder_flows.ending import to_the_end
from channelcoder_flows.places.base import Place, Process
from channelcoder_flows.turn import TurnRequest

INTERRUPT_WAIT = 3.0
"""Seconds the CLI has to save its partial answer when it is interrupted."""


class Cli:
    """One Claude Code process. Not started before it is told something.

    Args:
        place: where it runs.
        request: everything a turn is told; all but the prompt is fixed for the process's life.
        claude: the CLI's path, as the place sees it.
        env: the whole environment of the CLI.
        session_id: the Claude session id (a UUID).
        resume: whether the conversation has been laid, or begins here.

    Raises:
        UsageError: a value does not fit on a command line.
    """

    def __init__(
        self,
        place: Place,
        request: TurnRequest,
        *,
        claude: Path,
        env: Mapping[str, str],
        session_id: str,
        resume: bool,
    ) -> None:
        options = sdk_options(request, cwd=place.cwd, env=env, session_id=session_id, resume=resume)
        environment = process_environment(options)
        self._scrub: Scrub | None = None
        self._place, self._env = place, environment
        self._transport = PlaceTransport(place, command(claude, options), environment)
        self._client = ClaudeSDKClient(options, transport=self._transport)
        self._messages: AsyncIterator[Message] | None = None
        self._next: asyncio.Task[Message | None] | None = None
        self.session_id = session_id
        again = replace(options, resume=session_id, session_id=None)
        self.told = (place.spec, _identity(place.cwd), command(claude, again), environment)
        """All that is fixed for its life: a turn that is told something else needs another."""
        self.total_cost_usd: float | None = None
        """US dollars of the whole conversation after its last answer; None before the first."""
        self.ended = False

    @property
    def process(self) -> Process | None:
        """Its process; None before it is started."""
        return self._transport.process

    @property
    def idle(self) -> bool:
        """Whether it waits for a message: it runs, and has said nothing since its last answer."""
        return not self.ended and self._next is not None and not self._next.done()

    async def start(self, on_started: OnStarted) -> None:
        """Start it, unless it runs; `on_started` is awaited before anything is sent to it. Raises `PlaceError`."""
        if self.process is not None:
            await on_started(self.process)
            return
        self._transport.on_started = on_started
        if is_asked_for(self._env) and self._place.spec.kind == "host":
            await to_the_end(self._begin_scrub())
        await self._client.connect()
        if self._scrub is not None:
            self._scrub.started()
        self._messages = aiter(self._client.receive_messages())
        self._listen()

    async def _begin_scrub(self) -> None:
        self._scrub = await asyncio.to_thread(Scrub.begin, self._env, self._place.cwd)

    def _listen(self) -> None:
        # Also between two turns: what comes then, comes unasked.
        assert self._messages is not None
        self._next = asyncio.ensure_future(anext(self._messages, None))

    async def ask(self, prompt: str, turn_id: str) -> AsyncIterator[Message]:
        """Send a message under the uuid `turn_id`, and give what the CLI says up to its result.

        Raises:
            ClaudeSDKError: it does not read any more, or ended badly.
        """

        async def message() -> AsyncIterator[dict[str, Any]]:
            content = {"role": "user", "content": prompt}
            yield {"type": "user", "message": content, "parent_tool_use_id": None, "uuid": turn_id}

        await self._client.query(message())
        async for received in self._until_result(turn_id):
            yield received

    async def _until_result(self, turn_id: str = "") -> AsyncIterator[Message]:
        """Give messages up to the result of that turn, or to the next one."""
        while self._next is not None:
            await asyncio.wait([self._next])  # a caller who is cancelled here loses no message
            received = self._next.result()
            self._next = None
            if received is None:
                return
            self._listen()
            if turn_id and isinstance(received, ResultMessage) and not _answers(received, turn_id):
                continue
            yield received
            if isinstance(received, ResultMessage):
                return

    async def interrupt(self) -> None:
        """Ask it to stop: it saves the partial answer, and ends at once instead of after seconds."""
        with suppress(Exception):
            async with asyncio.timeout(INTERRUPT_WAIT):
                await self._client.interrupt()
                async for _ in self._until_result():
                    pass

    async def alone(self) -> bool:
        """Return whether it runs, and nothing that it started does."""
        return self.process is not None and await self.process.alone()

    async def end(self) -> None:
        """End it and everything it started. What is not in the transcript yet is written. Safe to call again."""
        self.ended = True
        await self._close()

    async def kill(self) -> None:
        """End an idle one without a last word: the transcript may be another process's by now."""
        self.ended = True
        self._transport.at_once = True
        await self._close()

    async def _close(self) -> None:
        if self._next is not None and not self._next.cancel() and not self._next.cancelled():
            self._next.exception()  # it is said elsewhere, or of no interest any more
        try:
            try:
                await self._client.disconnect()
            finally:
                if self.process is not None:
                    await self.process.end()
        finally:
            if self._scrub is not None:
                await asyncio.to_thread(self._scrub.end)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return which folder a path leads to now; None: to none. Links change, and so does what was removed and made."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _answers(result: ResultMessage, turn_id: str) -> bool:
    """Return whether a result is that message's. The CLI also answers notes of its own, on commands left behind."""
    if result.user_message_uuids:
        return turn_id in result.user_message_uuids
    return result.origin is None or result.origin["kind"] == "human"
