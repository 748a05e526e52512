"""Playback: where a script stands. Which reply comes next, and which holds are open."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter

from channelcoder_flows.testing.script import Answer, Break, Refusal, Rule, Script, matches


class Playback:
    """A script being played, for several threads. Its only memory is how often each fault was met."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._met: Counter[tuple[int, int]] = Counter()
        self._gates: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()

    def pick(self, prompt: str, call: int) -> tuple[str, Answer | Refusal | Break]:
        """Return the reply to a turn's model call number `call` (from 0), and what the ledger calls it."""
        for number, rule in enumerate(self.script.rules):
            if matches(rule.when, prompt):
                reply = self._reply(number, rule, call)
                return reply.kind, reply
        return "unscripted", Answer(text=f"Nothing was scripted for this prompt: {prompt[:500]}")

    def gate(self, name: str) -> socket.socket:
        """Return what becomes readable, and stays so, when `name` is released.

        A socket, so that a handler can wait for it and for its client at once.
        """
        return self._gate(name)[0]

    def release(self, name: str) -> None:
        """Open the gate `name` for good."""
        with contextlib.suppress(BlockingIOError):
            self._gate(name)[1].send(b"!")

    def close(self) -> None:
        """Forget the gates."""
        with self._lock:
            for pair in self._gates.values():
                for end in pair:
                    end.close()
            self._gates.clear()

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
        return last if isinstance(last, Answer) and (last.repeat or last.kind == "text") else Answer(text="Done.")

    def _gate(self, name: str) -> tuple[socket.socket, socket.socket]:
        with self._lock:
            if name not in self._gates:
                self._gates[name] = socket.socketpair()
                self._gates[name][1].setblocking(False)
            return self._gates[name]
