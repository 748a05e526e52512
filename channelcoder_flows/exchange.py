"""What a transcript says of each exchange in it: who asked, whether the answer is all there, what it cost.

An exchange begins with a user's message and runs to the next one. The rules were read off Claude Code 2.1.330: an
answer is finished by an assistant entry with `stop_reason: end_turn`, or by a `StructuredOutput` call with a successful
result; a `<synthetic>` assistant entry is an API error; `cost-state` lines carry the conversation's running total.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from channelcoder_flows.turn import Message, Usage

OUTPUT_TOOL = "StructuredOutput"
COST_STATE = b'"cost-state"'
_SURROGATES = (b"\\ud", b"\\uD", b"\xed")
"""How a line that holds half a surrogate pair can spell it; so are whole pairs, and Korean."""


class Exchange(NamedTuple):
    """One exchange, from its place in the bytes it was read from."""

    turn_id: str
    start: int
    end: int
    prompt: str
    text: str
    output: Any
    finished: bool
    """A plain answer is all there."""
    finished_output: bool
    """A structured answer is all there."""
    usage: Usage
    model_calls: int
    model: str
    total_cost: float | None
    """US dollars of the whole conversation at its end; None where Claude Code did not come to say."""
    moved: bool
    """Commands run in another directory at its end than at its beginning."""
    began: datetime
    ended: datetime

    def messages(self, session_id: str) -> tuple[Message, ...]:
        """Return what was said, in ChannelCoder's shape."""
        asked = Message(role="user", content=self.prompt, timestamp=self.began, session_id=session_id)
        answered = Message(role="assistant", content=self.text, timestamp=self.ended, session_id=session_id)
        return (asked, answered) if self.text else (asked,)


def exchanges(data: bytes) -> list[Exchange]:
    """Return the exchanges in a transcript, or in the end of one; a torn last line does not count."""
    found: list[_Reader] = []
    gap = 0
    for start, end, entry in _entries(data):
        asked = _asked(entry)
        if asked is not None and not (found and found[-1].asked_same(entry)):
            if found:
                found[-1].end = gap or start
            found.append(_Reader(entry, gap if found and gap else start, asked))
        elif found:
            found[-1].take(entry)
        # What is queued stands before the message it becomes.
        if entry.get("type") != "queue-operation":
            gap = end
    if found:
        found[-1].end = len(data)
    return [reader.exchange() for reader in found]


def is_readable(data: bytes) -> bool:
    """Return whether all of a transcript, or of the end of one, is whole lines of JSON objects."""
    return data.endswith(b"\n") and all(entry for _, _, entry in _entries(data))


def last_total_cost(data: bytes) -> float:
    """Return the conversation's running total in US dollars, as the last `cost-state` line has it."""
    end = len(data)
    while (at := data.rfind(COST_STATE, 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        entry = _entry(data[start : stop if stop >= 0 else len(data)])
        if entry.get("type") == "cost-state":
            return _number(entry.get("totalCostUSD"))
        end = at
    return 0.0


def total_costs(data: bytes) -> list[float]:
    """Return the running totals in US dollars that a transcript, or the end of one, holds: one a process that ended."""
    lines = (_entry(line) for line in data.splitlines() if COST_STATE in line)
    return [_number(entry.get("totalCostUSD")) for entry in lines if entry.get("type") == "cost-state"]


def without(data: bytes, turn_id: str, typed: Collection[str]) -> bytes:
    """Return a transcript's end without the message `turn_id` and all that hangs on it.

    What a person typed (messages of these ids) stays, with its answers and whatever it builds on.
    """
    links = [(data[start:end], *_links(entry)) for start, end, entry in _entries(data)]
    parents = {message: parent for _, message, parent, _ in links if message}
    built_on: set[str] = set()
    for message in typed:
        while (message := parents.get(message, "")) and message not in built_on:
            built_on.add(message)
    ours = {turn_id}
    kept: list[bytes] = []
    for line, message, parent, leaf in links:
        if message in typed or not ours & {message, parent, "" if leaf in built_on else leaf}:
            kept.append(line)
            continue
        if message:
            ours.add(message)
        if message in built_on:
            kept.append(line)
    return b"".join(kept)


def _links(entry: dict[str, Any]) -> tuple[str, str, str]:
    message, parent, leaf = (entry.get(key) for key in ("uuid", "parentUuid", "leafUuid"))
    return str(message or ""), str(parent or ""), str(leaf or "")


class _Reader:
    """Reads one exchange, entry by entry."""

    def __init__(self, entry: dict[str, Any], start: int, prompt: str) -> None:
        self.start, self.end, self.prompt = start, start, prompt
        self.turn_id = str(entry.get("uuid") or "")
        self.prompt_id = entry.get("promptId")
        self.began = self.ended = _time(entry)
        self.texts: dict[str, list[str]] = {}
        self.usages: dict[str, Usage] = {}
        self.model = ""
        self.stopped = False
        self.over = False
        self.calls: dict[str, Any] = {}
        self.output: Any = None
        self.output_given = False
        self.total_cost: float | None = None
        self.cwds = [entry.get("cwd")]

    def asked_same(self, entry: dict[str, Any]) -> bool:
        """Return whether a user entry belongs to this exchange, such as the note of an interruption."""
        return self.prompt_id is not None and entry.get("promptId") == self.prompt_id

    def take(self, entry: dict[str, Any]) -> None:
        kind = entry.get("type")
        if kind == "cost-state":
            self.total_cost = _number(entry.get("totalCostUSD"))
        if entry.get("isSidechain"):
            return
        if "cwd" in entry:
            self.cwds[1:] = [entry["cwd"]]
        # What follows a whole answer that way is said to a note of Claude Code's own.
        self.over |= _is_note(entry) and (self.stopped or self.output_given)
        if self.over:
            return
        if kind == "assistant":
            self._take_answer(entry, as_object(entry.get("message")))
        elif kind == "user":
            for block in _blocks(entry):
                if block.get("type") == "tool_result" and not block.get("is_error"):
                    call = str(block.get("tool_use_id"))
                    if call in self.calls:
                        self.output, self.output_given = self.calls[call], True

    def _take_answer(self, entry: dict[str, Any], message: dict[str, Any]) -> None:
        if message.get("model") == "<synthetic>":
            self.stopped = self.stopped and not entry.get("isApiErrorMessage")
            return
        self.ended = _time(entry)
        key = str(message.get("id") or len(self.usages))
        self.model = str(message.get("model") or self.model)
        self.usages[key] = usage_of(message.get("usage"))
        self.stopped = message.get("stop_reason") in ("end_turn", "stop_sequence")
        texts = self.texts.setdefault(key, [])
        for block in _blocks({"message": message}):
            if block.get("type") == "text":
                texts.append(str(block.get("text") or ""))
            elif block.get("type") == "tool_use" and block.get("name") == OUTPUT_TOOL:
                self.calls[str(block.get("id"))] = block.get("input")

    def exchange(self) -> Exchange:
        said = [texts for texts in self.texts.values() if texts]
        return Exchange(
            turn_id=self.turn_id,
            start=self.start,
            end=self.end,
            prompt=self.prompt,
            text="".join(said[-1]) if said else "",
            output=self.output,
            finished=self.stopped,
            finished_output=self.output_given,
            usage=sum(self.usages.values(), Usage()),
            model_calls=len(self.usages),
            model=self.model,
            total_cost=self.total_cost,
            moved=self.cwds[0] != self.cwds[-1],
            began=self.began,
            ended=self.ended,
        )


def usage_of(raw: Any) -> Usage:
    """Return the tokens of one `usage` object of the Messages API."""
    counts = {field: as_object(raw).get(field) for field in Usage.model_fields}
    return Usage(**{field: count for field, count in counts.items() if isinstance(count, int)})


def _asked(entry: dict[str, Any]) -> str | None:
    """Return the text of a message that someone sent, None for everything else."""
    if entry.get("type") != "user" or entry.get("isMeta") or entry.get("isSidechain") or entry.get("isCompactSummary"):
        return None
    if _is_note(entry):
        return None
    content = _content(entry)
    if isinstance(content, str):
        return content
    blocks = _blocks(entry)
    if any(block.get("type") == "tool_result" for block in blocks):
        return None
    texts = [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]
    return "\n".join(texts) if texts else None


def _is_note(entry: dict[str, Any]) -> bool:
    """Return whether Claude Code tells itself something, such as what became of a command in the background."""
    return as_object(entry.get("origin")).get("kind", "human") != "human"


def _content(entry: dict[str, Any]) -> object:
    return as_object(entry.get("message")).get("content")


def _blocks(entry: dict[str, Any]) -> list[dict[str, Any]]:
    content = _content(entry)
    return [as_object(block) for block in cast("list[Any]", content)] if isinstance(content, list) else []


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object as it is, and an empty one for anything else: what others write is never trusted."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _entries(data: bytes) -> Iterator[tuple[int, int, dict[str, Any]]]:
    start = 0
    while (newline := data.find(b"\n", start)) >= 0:
        yield start, newline + 1, _entry(data[start:newline])
        start = newline + 1


def _entry(line: bytes) -> dict[str, Any]:
    try:
        return as_object(read_line(line))
    except ValueError:
        return {}


def read_line(line: bytes) -> Any:
    """Return the JSON that a line of Claude Code's holds. Half a surrogate pair, which is no text, becomes U+FFFD.

    A model's answer can hold one, and no file could keep it.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value = json.loads(line)
        if not any(mark in line for mark in _SURROGATES):
            return value
        text = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        return json.loads(text.decode("utf-16-le", "replace"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _time(entry: dict[str, Any]) -> datetime:
    try:
        at = datetime.fromisoformat(str(entry["timestamp"]))
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)
