"""The ledger: every request the scripted model got, and whether it was answered in full (paid for)."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from channelcoder_flows.testing.script import matches
from channelcoder_flows.turn import Frozen


class ModelRequest(Frozen):
    """One request for an answer, and what became of it."""

    id: str
    number: int
    """From 1, in order of arrival."""
    time: float
    """Seconds since the epoch, at arrival."""
    session: str
    """The Claude session id."""
    model: str
    system: str
    tools: tuple[str, ...]
    messages: tuple[dict[str, Any], ...]
    prompt: str
    """The last text a human (or the step) wrote."""
    call: int
    """Which model call of its turn this is, from 0."""
    auth: str
    """The start of the SHA-256 of the key, never the key; empty: there was none."""
    reply: str
    """`text tool output error drop stall garbage truncated`, or `unscripted`: no rule matched."""
    status: int | None = None
    """The HTTP status that was sent; None: none yet."""
    ended: bool = False
    """Nothing more is sent."""
    paid: bool = False
    """The whole answer was handed to a client that was still there."""


When = str | Callable[[ModelRequest], bool] | None
"""Which requests are meant: part of the prompt or `/regex/`, any test of the request, or None for all."""


class Ledger:
    """Requests as they arrive and end, for several threads; also as JSON Lines where there is a `log`.

    A line of the log holds one event: `request` (a whole `ModelRequest`), `end` (its id, status, paid), or `other`
    (something else was asked for). Several processes may append to one file.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._requests: dict[str, ModelRequest] = {}
        self._others: list[str] = []
        self._changed = threading.Condition()
        self._log = log
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()

    @property
    def requests(self) -> list[ModelRequest]:
        """Every request so far, in order of arrival."""
        with self._changed:
            return list(self._requests.values())

    @property
    def others(self) -> list[str]:
        """Everything asked for that is no model call, as `METHOD path`."""
        with self._changed:
            return list(self._others)

    def arrive(self, **fields: Any) -> ModelRequest:
        """Enter a request that has just arrived."""
        with self._changed:
            request = ModelRequest(
                id=f"req_{uuid.uuid4().hex[:24]}", number=len(self._requests) + 1, time=time.time(), **fields
            )
            self._write("request", request.model_dump(mode="json"))
            self._requests[request.id] = request
            self._changed.notify_all()
        return request

    def end(self, request: ModelRequest, *, status: int | None, paid: bool) -> None:
        """Enter how a request ended; the last word counts."""
        with self._changed:
            self._write("end", {"id": request.id, "status": status, "paid": paid})
            ending = {"status": status, "paid": paid, "ended": True}
            self._requests[request.id] = request.model_copy(update=ending)
            self._changed.notify_all()

    def other(self, what: str) -> None:
        """Enter something asked for that is no model call."""
        with self._changed:
            self._write("other", {"what": what, "time": time.time()})
            self._others.append(what)

    def wait_for(self, when: When, *, count: int, timeout: float) -> list[ModelRequest]:
        """Wait until `count` requests are meant by `when`; return them. Raises `TimeoutError`."""
        with self._changed:
            if self._changed.wait_for(lambda: len(select(self._requests.values(), when)) >= count, timeout):
                return select(self._requests.values(), when)
            came = ", ".join(f"{r.prompt[:60]!r} ({r.reply})" for r in self._requests.values()) or "none"
        raise TimeoutError(f"after {timeout:g} s fewer than {count} such requests had come; there came: {came}")

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        if self._log:
            line = json.dumps({"event": event, **fields}).encode() + b"\n"
            # One unbuffered append a line keeps the lines of several processes apart.
            with self._log.open("ab", buffering=0) as file:
                file.write(line)


def select(requests: Iterable[ModelRequest], when: When) -> list[ModelRequest]:
    """Return those of `requests` that `when` means."""
    if callable(when):
        return [request for request in requests if when(request)]
    return [request for request in requests if matches(when, request.prompt)]


def read_log(path: str | Path) -> list[ModelRequest]:
    """Read every request of a log, each as it ended, in order of arrival; also while others are appending."""
    requests: dict[str, ModelRequest] = {}
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        fields = json.loads(line)
        event = fields.pop("event")
        if event == "request":
            requests[fields["id"]] = ModelRequest.model_validate(fields)
        elif event == "end":
            ended = {"status": fields["status"], "paid": fields["paid"], "ended": True}
            requests[fields["id"]] = requests[fields["id"]].model_copy(update=ended)
    return list(requests.values())
