"""The scripted model: a Messages API on loopback that the real Claude Code CLI talks to.

    with ScriptedModel([{"when": "Say hello", "reply": "Hello."}]) as model:
        ...                                  # run anything with ANTHROPIC_BASE_URL=model.url
        assert model.paid("Say hello") == 1

As a process, `python -m channelcoder_flows.testing.model SCRIPT.yaml` prints its URL and serves until its standard
input ends, which happens at the latest when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from channelcoder_flows.errors import ConfigError
from channelcoder_flows.testing.ledger import Ledger, ModelRequest, When, select
from channelcoder_flows.testing.playback import Playback
from channelcoder_flows.testing.script import Rule, Script
from channelcoder_flows.testing.server import Server


class ScriptedModel:
    """Answers from a script, and keeps a ledger of what it was asked.

    A context manager, sync and async; or call `start` and `stop`.

    Args:
        script: a `Script`, a file of one (`.yaml`, `.json`), or its rules as plain data.
        port: the port on 127.0.0.1; 0: a free one.
        log: a JSON Lines file that the ledger is appended to; see `read_log`.

    Raises:
        ConfigError: the script cannot be used.
    """

    def __init__(
        self,
        script: Script | str | Path | Sequence[Rule | Mapping[str, Any]],
        *,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        if isinstance(script, (str, Path)):
            script = Script.load(script)
        self.ledger = Ledger(log)
        self._playback = Playback(script if isinstance(script, Script) else Script.of(script))
        self._port = port
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The base URL, for `ANTHROPIC_BASE_URL`."""
        if self._server is None:
            raise RuntimeError("the scripted model is not running; use it in a with block or call start()")
        return self._server.url

    @property
    def requests(self) -> list[ModelRequest]:
        """Every model call so far, in order of arrival."""
        return self.ledger.requests

    def paid(self, when: When = None) -> int:
        """Count the requests that were answered in full, of all turns or of those that `when` means."""
        return sum(request.paid for request in select(self.requests, when))

    def wait_for(self, when: When = None, *, count: int = 1, timeout: float = 30.0) -> list[ModelRequest]:
        """Block until `count` requests that `when` means have arrived; return them.

        To wait for an answer instead of an arrival, test for it: `wait_for(lambda r: r.paid)`. In async code:
        `await asyncio.to_thread(model.wait_for, "…")`.

        Raises:
            TimeoutError: `timeout` seconds went by; the message says what arrived.
        """
        return self.ledger.wait_for(when, count=count, timeout=timeout)

    def release(self, name: str) -> None:
        """Let all replies with `hold: name` go on, those that come later too."""
        self._playback.release(name)

    def start(self) -> Self:
        """Begin to serve. Raises `ConfigError` when the port cannot be used."""
        try:
            self._server = Server(self._playback, self.ledger, self._port)
        except OSError as exc:
            raise ConfigError(f"port {self._port} on 127.0.0.1 cannot be used: {exc.strerror}; try port 0") from exc
        self._server.start()
        return self

    def stop(self) -> None:
        """End every connection, held and stalled ones too; return when nothing of it is left."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        self._playback.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a script as a process of its own: the URL on the first line, then until standard input ends.

    A line `release NAME` on standard input releases a hold.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="python -m channelcoder_flows.testing.model", description=main.__doc__)
    parser.add_argument("script", type=Path, help="a .yaml or .json script")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0: a free one")
    parser.add_argument("--log", type=Path, help="append the ledger to this file, as JSON Lines")
    options = parser.parse_args(argv)
    try:
        with ScriptedModel(options.script, port=options.port, log=options.log) as model:
            print(model.url, flush=True)
            for line in sys.stdin:
                word, _, name = line.strip().partition(" ")
                if word == "release":
                    model.release(name)
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
