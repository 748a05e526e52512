"""The scripted model's HTTP side: connections, replies as they are scripted, and clients that leave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import selectors
import socket
import socketserver
import sys
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

from channelcoder_flows.testing import wire
from channelcoder_flows.testing.ledger import Ledger, ModelRequest
from channelcoder_flows.testing.playback import Playback
from channelcoder_flows.testing.script import Answer, Break, Refusal, Said


class _ClientLeft(Exception):
    """The client closed its connection before it was answered."""


class Server(socketserver.ThreadingTCPServer):
    """Serves on 127.0.0.1, with one thread a connection; all of them end with `stop`. Raises `OSError`."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, playback: Playback, ledger: Ledger, port: int) -> None:
        self.playback = playback
        self.ledger = ledger
        self._stopping = False
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._loop = threading.Thread(target=self._serve, name="scripted-model", daemon=True)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Begin to serve."""
        self._loop.start()

    def stop(self) -> None:
        """End every connection and every thread."""
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
        """Handle a connection in a thread that `stop` knows."""
        thread = threading.Thread(target=self._handle, args=(request, client_address), daemon=True)
        self._connections[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what went wrong, unless a client left: tests kill it on purpose."""
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
    def playback(self) -> Playback:
        return cast("Server", self.server).playback

    @property
    def ledger(self) -> Ledger:
        return cast("Server", self.server).ledger

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
            call = wire.Call.model_validate(json.loads(raw))
        except ValueError:
            self._other()
            self._json(400, wire.error(400, "the request is no JSON object with messages"))
            return
        self._message(call)

    def _message(self, call: wire.Call) -> None:
        prompt, number = wire.last_prompt(call.messages)
        kind, reply = self.playback.pick(prompt, number)
        key = self.headers.get("x-api-key") or self.headers.get("authorization") or ""
        request = self.ledger.arrive(
            session=self.headers.get("x-claude-code-session-id") or "",
            model=call.model,
            system="\n\n".join(wire.texts(call.system)),
            tools=tuple(tool.get("name", "") for tool in call.tools),
            messages=call.messages,
            prompt=prompt,
            call=number,
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
                self._break(request, reply, stream=call.stream)
            else:
                self._answer(request, reply, stream=call.stream)
        except (_ClientLeft, OSError):
            self.close_connection = True
            self._end(request)

    def _refuse(self, request: ModelRequest, reply: Refusal) -> None:
        after = {} if reply.retry_after is None else {"retry-after": f"{reply.retry_after:g}"}
        self._end(request, status=reply.error)
        self._json(reply.error, wire.error(reply.error, reply.message), {**after, **reply.headers})

    def _answer(self, request: ModelRequest, reply: Answer, *, stream: bool) -> None:
        whole = wire.message(reply, model=request.model, tools=request.tools)
        if not stream:
            self._leave_unless_there()
            self._end(request, status=200, paid=True)
            self._json(200, whole)
            return
        *pieces, ending = wire.events(whole, chunks=reply.chunks)
        self._stream(pieces, reply)
        self._leave_unless_there()
        # Entered before the last bytes go out: who has the answer finds it in the ledger.
        self._end(request, status=200, paid=True)
        # One write: a client that has read the last event need not stay for the end of the body.
        self.wfile.write(_chunk(wire.encode(ending)) + _chunk(b""))

    def _break(self, request: ModelRequest, reply: Break, *, stream: bool) -> None:
        self.close_connection = True
        last = b"" if "start" in (reply.drop, reply.stall) else self._begin(request, reply, stream=stream)
        if reply.stall:
            self.wfile.write(last)
            self._wait(None)
        self._end(request)
        self.wfile.write(last)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, request: ModelRequest, reply: Break, *, stream: bool) -> bytes:
        """Send what comes before the break; return the last bytes, still to be sent."""
        said = reply if reply.says_something else reply.model_copy(update={"text": "This answer breaks off here."})
        whole = wire.message(said, model=request.model, tools=request.tools)
        if not stream:
            data = json.dumps(whole).encode()
            half = data[: len(data) // 2]
            length = len(half if reply.malformed else data)
            self._headers(200, {"content-type": "application/json", "content-length": str(length)})
            return half
        events = list(wire.events(whole, chunks=max(2, reply.chunks)))
        deltas = (at for at, event in enumerate(events) if event["type"] == "content_block_delta")
        last = max(deltas, default=1)
        self._stream(events[:last], reply)
        garbage = _chunk(wire.encode(events[last])[:-12] + b"\n\n") if reply.malformed == "garbage" else b""
        return garbage + _chunk(b"") if reply.malformed else b""

    def _stream(self, events: Iterable[Mapping[str, Any]], said: Said) -> None:
        self._headers(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        for event in events:
            if event["type"] == "content_block_delta":
                self._wait(said.slow)
            self.wfile.write(_chunk(wire.encode(event)))

    def _end(self, request: ModelRequest, *, status: int | None = None, paid: bool = False) -> None:
        self.ledger.end(request, status=status or self._status, paid=paid)

    def _wait(self, seconds: float | None = 0.0, *, gate: str | None = None) -> None:
        """Wait some seconds (None: for ever), or for a gate. Raises `_ClientLeft` as soon as the client is gone."""
        if gate is None and seconds == 0:
            return
        opened = None if gate is None else self.playback.gate(gate)
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if opened is not None:
                selector.register(opened, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(seconds if gate is None else None)}
        if self.connection in ready and opened not in ready:
            # Closed, or sending ahead of its answer: either way nobody waits for this one.
            raise _ClientLeft

    def _leave_unless_there(self) -> None:
        try:
            if self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                raise _ClientLeft
        except BlockingIOError:
            return

    def _other(self) -> None:
        self.ledger.other(f"{self.command} {self.path}")

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


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
