"""A Prefect server of our own for one run, when none is configured.

Prefect's embedded one outlives a flow that is killed; this one dies with its owner. Several runs can share one:
`python -m channelcoder_flows.flow.server` prints its URL, and serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from channelcoder_flows.errors import FlowError
from channelcoder_flows.places.base import Process
from channelcoder_flows.places.host import HostPlace

START_LIMIT = 90.0
"""Seconds a Prefect server may take to start (13 the first time, with its migrations; 5 after)."""

DRAIN_LIMIT = 5.0
"""Seconds for what Prefect still has to tell its server when a run ends."""


@asynccontextmanager
async def prefect_server(say: Callable[[str], None]) -> AsyncGenerator[str]:
    """Give the URL of the configured Prefect API, or of a server that ends with this block.

    Raises:
        FlowError: the server did not start.
    """
    configured = PREFECT_API_URL.value()
    if configured:
        try:
            yield configured
        finally:
            await _tell_the_rest()
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    say(
        "starting a Prefect server for this run; to keep one: `prefect server start`, then "
        "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`"
    )
    place = HostPlace(Path.cwd(), Path.home())
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = await place.start(argv, environment)
    drain = asyncio.create_task(_drain(server))
    try:
        await _wait_until_healthy(url, server)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        await _tell_the_rest()
        # It reads no standard input, so to close that and wait would only take time.
        with suppress(ProcessLookupError):
            os.kill(int(server.ident.id), signal.SIGTERM)
        await server.end()
        drain.cancel()


def is_unreachable(api: str, exc: BaseException) -> bool:
    """Return whether an error comes of the Prefect server at `api` not answering, and not of what a flow asks for."""
    cause: BaseException | None = exc
    while cause is not None:
        # An error that httpx has not raised itself has no request, and says so with a RuntimeError.
        with suppress(RuntimeError):
            if isinstance(cause, httpx.TransportError) and str(cause.request.url).startswith(api):
                return True
        cause = cause.__cause__
    return False


async def _tell_the_rest() -> None:
    """Let Prefect send what it still has for the server; at exit it would do so after our own last words."""
    for service in (EventsWorker, APILogWorker):
        waiting = service.drain_all(timeout=DRAIN_LIMIT, at_exit=False)
        if inspect.isawaitable(waiting):
            await waiting


async def _wait_until_healthy(url: str, server: Process) -> None:
    ended = asyncio.ensure_future(server.wait())
    try:
        async with asyncio.timeout(START_LIMIT), httpx.AsyncClient() as client:
            while not ended.done():
                with suppress(httpx.HTTPError):
                    if (await client.get(f"{url}/health")).is_success:
                        return
                await asyncio.wait([ended], timeout=0.1)
    except TimeoutError:
        pass
    finally:
        ended.cancel()
    said = server.stderr_tail().strip().splitlines()[-1:] or ["it said nothing"]
    raise FlowError(f"the Prefect server did not start ({said[0]}): start one with `prefect server start`")


async def _drain(server: Process) -> None:
    async for _ in server.stdout():
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _serve() -> None:
    async with prefect_server(lambda line: None) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
