"""The scripted model: a Messages API on loopback that the real Claude Code CLI talks to.

    with ScriptedModel([{"when": "Say hello", "reply": "Hello."}]) as model:
        ...                                  # run anything with ANTHROPIC_BASE_URL=model.url
        assert model.paid("Say hello") == 1

As a process, `python -m channelcoder_flows.testing.model SCRIPT.yaml` prints its URL and serves until its standard
input ends, which happens at the latest when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import selectors
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self, cast

from channelcoder_flows.errors import ConfigError
from channelcoder_flows.testing import wire
from channelcoder_flows.testing.ledger import Ledger, ModelRequest, When, read_log, select
from channelcoder_flows.testing.script import Answer, Break, Refusal, Rule, Said, Script, matches

__all__ = ["ModelRequest", "ScriptedModel", "When", "read_log"]


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
        self.script = script if isinstance(script, Script) else Script.of(script)
        self.ledger = Ledger(log)
        self._port = port
        self._met: Counter[tuple[int, int]] = Counter()
        self._gates: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The base URL, for `ANTHROPIC_BASE_URL`."""
        if self._server is None:
            raise RuntimeError("the scripted model is not running; use it in a with block or call start()")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

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
        with contextlib.suppress(BlockingIOError):
            self._gate(name)[1].send(b"!")

    def start(self) -> Self:
        """Begin to serve. Raises `ConfigError` when the port cannot be used."""
        try:
            self._server = _Server(self, self._port)
        except OSError as exc:
            raise ConfigError(f"port {self._port} on 127.0.0.1 cannot be used: {exc.strerror}; try port 0") from exc
        self._server.start()
        return self

    def stop(self) -> None:
        """End every connection, held and stalled ones too; return when nothing of it is left."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        with self._lock:
            for pair in self._gates.values():
                for end in pair:
                    end.close()
            self._gates.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.stop)

    def pick(self, prompt: str, call: int) -> tuple[str, Answer | Refusal | Break]:
        """Return the reply to a turn's model call number `call` (from 0), and what the ledger calls it."""
        for number, rule in enumerate(self.script.rules):
            if matches(rule.when, prompt):
                reply = self._reply(number, rule, call)
                return reply.kind, reply
        return "unscripted", Answer(text=f"Nothing was scripted for this prompt: {prompt[:500]}")

    def _reply(self, number: int, rule: Rule, call: int) -> Answer | Refusal | Break:
        answers = 0
        last = rule.reply[-1]
        for position, reply in enumerate(rule.reply):
            if isinstance(reply, Answer):
                if answers == call:
                    return reply
                answers += 1
            elif answers == call:
                if reply is last and reply.times is None:
                    return reply
                with self._lock:
                    if self._met[number, position] < (reply.times or 1):
                        self._met[number, position] += 1
                        return reply
        return last if last.kind == "text" and isinstance(last, Answer) else Answer(text="Done.")

    def gate(self, name: str) -> socket.socket:
        """Return what becomes readable, and stays so, when `name` is released."""
        return self._gate(name)[0]

    def _gate(self, name: str) -> tuple[socket.socket, socket.socket]:
        with self._lock:
            if name not in self._gates:
                self._gates[name] = socket.socketpair()
                self._gates[name][1].setblocking(False)
            return self._gates[name]


class _ClientLeft(Exception):
    """The client closed its connection before it was answered."""


class _Server(socketserver.ThreadingTCPServer):
    """One thread a connection; all of them end with `stop`."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: ScriptedModel, port: int) -> None:
        self.model = model
        self._stopping = False
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._loop = threading.Thread(target=self._serve, name="scripted-model", daemon=True)
        super().__init__(("127.0.0.1", port), _Handler)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._stopping = True
        # A connection is what the accepting thread waits for.
        socket.create_connection(("127.0.0.1", int(self.server_address[1]))).close()
        self._loop.join()
        self.server_close()
        for thread, connection in list(self._connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._handle, args=(request, client_address), daemon=True)
        self._connections[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client may leave at any time: tests kill it on purpose.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _serve(self) -> None:
        while not self._stopping:
            self.handle_request()

    def _handle(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def model(self) -> ScriptedModel:
        return cast("_Server", self.server).model

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the ledger has it."""

    def do_HEAD(self) -> None:
        """Answer that we are here."""
        self._other()
        self._headers(200, {"content-length": "0"})

    def do_GET(self) -> None:
        """Answer with nothing in particular."""
        self._other()
        self._json(200, {})

    def do_POST(self) -> None:
        """Answer a model call from the script, anything else harmlessly."""
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0].rstrip("/")
        if path != "/v1/messages":
            self._other()
            self._json(200, {"input_tokens": max(1, len(raw) // 4)} if path.endswith("/count_tokens") else {})
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._other()
            self._json(400, wire.error(400, "the request is not JSON"))
            return
        self._message(body)

    def _message(self, body: dict[str, Any]) -> None:
        prompt, call = wire.last_prompt(body.get("messages") or ())
        kind, reply = self.model.pick(prompt, call)
        key = self.headers.get("x-api-key") or self.headers.get("authorization") or ""
        request = self.model.ledger.arrive(
            session=self.headers.get("x-claude-code-session-id") or "",
            model=body.get("model", ""),
            system="\n\n".join(wire.texts(body.get("system"))),
            tools=tuple(tool.get("name", "") for tool in body.get("tools") or ()),
            messages=tuple(body.get("messages") or ()),
            prompt=prompt,
            call=call,
            auth=hashlib.sha256(key.encode()).hexdigest()[:12] if key else "",
            reply=kind,
        )
        self._status: int | None = None
        try:
            self._wait(gate=reply.hold)
            self._wait(reply.delay)
            if isinstance(reply, Refusal):
                self._refuse(request, reply)
            elif isinstance(reply, Break):
                self._break(request, reply, body)
            else:
                self._answer(request, reply, body)
        except (_ClientLeft, OSError):
            self.close_connection = True
            self._end(request)

    def _refuse(self, request: ModelRequest, reply: Refusal) -> None:
        after = {} if reply.retry_after is None else {"retry-after": f"{reply.retry_after:g}"}
        self._end(request, status=reply.error)
        self._json(reply.error, wire.error(reply.error, reply.message), {**after, **reply.headers})

    def _answer(self, request: ModelRequest, reply: Answer, body: dict[str, Any]) -> None:
        whole = wire.message(reply, model=request.model, tools=request.tools)
        if not body.get("stream"):
            self._leave_unless_there()
            self._end(request, status=200, paid=True)
            self._json(200, whole)
            return
        *pieces, ending = wire.events(whole, chunks=reply.chunks)
        self._stream(pieces, reply)
        self._leave_unless_there()
        # Entered before the last bytes go out: who has the answer finds it in the ledger.
        self._end(request, status=200, paid=True)
        self._chunk(wire.encode(ending))
        self._chunk(b"")

    def _break(self, request: ModelRequest, reply: Break, body: dict[str, Any]) -> None:
        self.close_connection = True
        if "start" not in (reply.drop, reply.stall):
            said = reply if reply.says_something else reply.model_copy(update={"text": "This answer breaks off here."})
            whole = wire.message(said, model=request.model, tools=request.tools)
            if body.get("stream"):
                events = list(wire.events(whole, chunks=max(2, reply.chunks)))
                last = max(at for at, event in enumerate(events) if event["type"] == "content_block_delta")
                self._stream(events[:last], reply)
                if reply.malformed == "garbage":
                    self._chunk(wire.encode(events[last])[:-12] + b"\n\n")
                if reply.malformed:
                    self._chunk(b"")
            else:
                self._half(json.dumps(whole).encode(), as_if_whole=reply.malformed is None)
        if reply.stall:
            self._wait(None)
        self._end(request)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _stream(self, events: Iterable[Mapping[str, Any]], said: Said) -> None:
        self._headers(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        for event in events:
            if event["type"] == "content_block_delta":
                self._wait(said.slow)
            self._chunk(wire.encode(event))

    def _half(self, data: bytes, *, as_if_whole: bool) -> None:
        half = data[: len(data) // 2]
        length = len(data) if as_if_whole else len(half)
        self._headers(200, {"content-type": "application/json", "content-length": str(length)})
        self.wfile.write(half)

    def _end(self, request: ModelRequest, *, status: int | None = None, paid: bool = False) -> None:
        self.model.ledger.end(request, status=status or self._status, paid=paid)

    def _wait(self, seconds: float | None = 0.0, *, gate: str | None = None) -> None:
        """Wait some seconds (None: for ever), or for a gate. Raises `_ClientLeft` as soon as the client is gone."""
        if gate is None and seconds == 0:
            return
        end = None if gate is not None or seconds is None else time.monotonic() + seconds
        opened = None if gate is None else self.model.gate(gate)
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if opened is not None:
                selector.register(opened, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(end and max(0.0, end - time.monotonic()))}
                if self.connection in ready:
                    self._leave_unless_there()
                    # It sent its next request ahead: that says no more about whether it is there.
                    selector.unregister(self.connection)
                if opened in ready or (end is not None and time.monotonic() >= end):
                    return

    def _leave_unless_there(self) -> None:
        try:
            if self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                raise _ClientLeft
        except BlockingIOError:
            return

    def _other(self) -> None:
        self.model.ledger.other(f"{self.command} {self.path}")

    def _json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self._headers(status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})})
        self.wfile.write(data)

    def _headers(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


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
