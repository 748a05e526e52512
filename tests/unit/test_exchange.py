"""What a transcript says: read from lines as Claude Code 2.1.330 writes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows.exchange import Exchange, exchanges, last_total_cost, total_costs, without
from channelcoder_flows.turn import Usage

AT = "2026-11-22T15:16:42.346Z"
SESSION = "d05f560b-96e4-41c3-9c19-9788e4192ba3"


def line(kind: str, **fields: Any) -> bytes:
    """Return one line of a transcript."""
    return json.dumps({"type": kind, "sessionId": SESSION, "timestamp": AT, **fields}).encode() + b"\n"


def asked(text: Any, turn_id: str = "u1", **fields: Any) -> bytes:
    """Return a message of a user, as it is written for a turn of ours."""
    message = {"role": "user", "content": text}
    return line("user", uuid=turn_id, promptId=f"p-{turn_id}", isSidechain=False, message=message, **fields)


def answered(*content: dict[str, Any], stop: str | None = "end_turn", id: str = "m1", **fields: Any) -> bytes:
    """Return one entry of an answer."""
    message = {
        "id": id,
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": list(content),
        "stop_reason": stop,
        "usage": {"input_tokens": 100, "output_tokens": 20, "service_tier": "standard", **fields.pop("usage", {})},
    }
    return line("assistant", uuid=f"a-{id}", message={**message, **fields.pop("message", {})}, **fields)


def text(said: str) -> dict[str, Any]:
    """Return a block of text."""
    return {"type": "text", "text": said}


def call(name: str, given: Any, id: str = "t1") -> dict[str, Any]:
    """Return a block that uses a tool."""
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def result(id: str = "t1", turn_id: str = "u1", **fields: Any) -> bytes:
    """Return the result of a tool, which Claude Code writes as the user's."""
    block = {"type": "tool_result", "tool_use_id": id, "content": "ok", **fields}
    return line("user", uuid=f"r-{id}", promptId=f"p-{turn_id}", message={"role": "user", "content": [block]})


def cost(total: float) -> bytes:
    """Return the line with the running total."""
    return line("cost-state", totalCostUSD=total)


QUEUED = line("queue-operation", operation="enqueue", content="Hi") + line("queue-operation", operation="dequeue")
NOISE = line("attachment", uuid="x") + line("api-request", id="y") + line("last-prompt", leafUuid="z") + b"no json\n"


def only(data: bytes) -> Exchange:
    """Return the one exchange there is."""
    (exchange,) = exchanges(data)
    return exchange


def test_a_plain_answer() -> None:
    """A question and its whole answer: who asked, what was said, what it cost."""
    data = QUEUED + asked("Hi") + NOISE + answered(text("Hello."), text(" You.")) + NOISE + cost(0.0008)
    assert only(data) == Exchange(
        turn_id="u1",
        start=len(QUEUED),
        end=len(data),
        prompt="Hi",
        text="Hello. You.",
        output=None,
        finished=True,
        finished_output=False,
        usage=Usage(input_tokens=100, output_tokens=20),
        model_calls=1,
        model="claude-opus-5-5",
        total_cost=0.0008,
        moved=False,
        began=datetime(2026, 11, 22, 15, 16, 42, 346000, tzinfo=UTC),
        ended=datetime(2026, 11, 22, 15, 16, 42, 346000, tzinfo=UTC),
    )


def test_a_note_of_claude_codes_own() -> None:
    """What Claude Code tells itself, such as that a command in the background ended, is nobody's words."""
    note = line("user", uuid="n", message={"content": "<task-notification>"}, origin={"kind": "task-notification"})
    exchange = only(note + asked("Hi") + answered(text("Hello.")))
    assert (exchange.prompt, exchange.text) == ("Hi", "Hello.")


def test_an_answer_to_a_note() -> None:
    """What Claude says to a note of Claude Code's own is not the answer to what was asked before."""
    note = line("user", uuid="n", message={"content": "<task-notification>"}, origin={"kind": "task-notification"})
    begun = answered(call("Bash", {}), stop="tool_use", id="m2")
    for more in (answered(text("Noted."), id="m2"), begun):
        exchange = only(asked("Hi") + answered(text("Hello."), id="m1") + note + more)
        assert (exchange.text, exchange.finished, exchange.model_calls) == ("Hello.", True, 1)


def test_where_commands_run() -> None:
    """A conversation that went to another directory is noticed: a new process would begin in the first one."""
    assert only(asked("Hi", cwd="/a") + answered(text("Hello."), cwd="/a/b")).moved
    assert not only(asked("Hi", cwd="/a") + answered(text("Hello."), cwd="/a") + NOISE).moved


def test_a_turn_with_tools() -> None:
    """The answer is what was said last; calls are counted by message, however many entries a message has."""
    data = (
        asked("Do it")
        + answered(text("First."), stop=None, id="m1")
        + answered(call("Bash", {}), stop="tool_use", id="m1")
        + result()
        + answered(text("Inside."), isSidechain=True, id="m9")
        + answered(text("Done."), id="m2")
    )
    exchange = only(data)
    assert (exchange.text, exchange.finished, exchange.model_calls) == ("Done.", True, 2)
    assert exchange.usage == Usage(input_tokens=200, output_tokens=40)
    assert exchange.total_cost is None


STRUCTURED = asked("Report") + answered(call("StructuredOutput", {"n": 1}), stop="tool_use")


@pytest.mark.parametrize(
    ("data", "finished", "finished_output"),
    [
        (asked("Hi"), False, False),
        (asked("Hi") + answered(text("Hel"), stop=None), False, False),
        (asked("Hi") + answered(text("Hello."), stop="max_tokens"), False, False),
        (asked("Hi") + answered(text("Hello."))[:-2], False, False),
        (asked("Hi") + answered(text("Hello.")), True, False),
        (asked("Hi") + answered(text("x"), call("Bash", {}), stop="tool_use"), False, False),
        (asked("Hi") + answered(text("x"), call("Bash", {}), stop="tool_use") + result(), False, False),
        (STRUCTURED, False, False),
        (STRUCTURED + result(is_error=True), False, False),
        (STRUCTURED + result(id="another"), False, False),
        (STRUCTURED + result(), False, True),
        (asked("Hi") + answered(text("No."), message={"model": "<synthetic>"}, isApiErrorMessage=True), False, False),
        (asked("Hi") + answered(text("x")) + answered(text("No."), message={"model": "<synthetic>"}), True, False),
        (
            asked("Hi")
            + answered(text("x"))
            + answered(text("No."), message={"model": "<synthetic>"}, isApiErrorMessage=True),
            False,
            False,
        ),
        (asked("Hi") + cost(1.0), False, False),
    ],
)
def test_only_a_whole_answer_is_finished(data: bytes, finished: bool, finished_output: bool) -> None:
    """Neither a cut answer, nor a tool call, nor an error of the API, nor a cost proves that Claude had answered."""
    exchange = only(data)
    assert (exchange.finished, exchange.finished_output) == (finished, finished_output)
    if finished_output:
        assert exchange.output == {"n": 1}


def test_an_output_that_was_corrected() -> None:
    """The output is that of the call that was accepted."""
    data = STRUCTURED + result(is_error=True)
    data += answered(call("StructuredOutput", {"n": 2}, id="t2"), stop="tool_use", id="m2") + result(id="t2")
    assert (only(data).output, only(data).model_calls) == ({"n": 2}, 2)


def test_several_exchanges_part_the_bytes() -> None:
    """Each exchange ends where the next one begins, with what is queued for the next one."""
    first = asked("One") + answered(text("1")) + cost(0.1)
    second = (
        QUEUED + asked([text("Two"), text("more")], turn_id="u2") + NOISE + answered(text("2"), id="m2") + cost(0.3)
    )
    one, two = exchanges(first + second)
    assert (one.start, one.end) == (0, len(first))
    assert (two.start, two.end) == (len(first), len(first + second))
    assert (two.prompt, two.text, two.total_cost, one.total_cost) == ("Two\nmore", "2", 0.3, 0.1)
    assert [message.content for message in two.messages("s")] == ["Two\nmore", "2"]
    assert [message.content for message in only(asked("Hi")).messages("s")] == ["Hi"]


def test_what_nobody_typed() -> None:
    """Notes of Claude Code's own are no messages: an interruption, a summary, a reminder, a subagent's prompt."""
    data = (
        asked("Hi")
        + asked("[Request interrupted by user]", turn_id="n1").replace(b"p-n1", b"p-u1")
        + asked("You must call the tool", turn_id="n2", isMeta=True)
        + asked("Summary", turn_id="n3", isCompactSummary=True)
        + asked("Subagent", turn_id="n4").replace(b'"isSidechain": false', b'"isSidechain": true')
    )
    assert [exchange.prompt for exchange in exchanges(data)] == ["Hi"]


def test_running_totals() -> None:
    """The last total counts; the words alone in somebody's message do not."""
    assert (last_total_cost(b""), total_costs(b"")) == (0.0, [])
    data = cost(0.1) + asked('He said "cost-state", totalCostUSD 9') + cost(0.25) + answered(text('"cost-state"'))
    assert last_total_cost(data) == 0.25
    assert total_costs(data) == [0.1, 0.25]
    assert last_total_cost(line("cost-state", totalCostUSD="dear")) == 0.0


def test_taking_out_a_failed_attempt() -> None:
    """Its message and all that hangs on it go; what a person typed beside it stays, and keeps what it builds on."""
    theirs = asked("Typed", turn_id="u2", parentUuid="root") + answered(text("2"), id="m2", parentUuid="u2")
    ours = asked("Ours", parentUuid="root") + line("attachment", uuid="x", parentUuid="u1")
    ours += answered(text("No."), id="m1", parentUuid="x") + line("last-prompt", leafUuid="a-m1")
    head, tail = theirs.splitlines(keepends=True), ours.splitlines(keepends=True)
    mixed = tail[0] + head[0] + tail[1] + head[1] + b"".join(tail[2:])
    assert without(mixed, "u1", ["u2"]) == theirs
    built_on = ours + asked("Typed", turn_id="u2", parentUuid="a-m1")
    assert without(built_on, "u1", ["u2"]) == built_on
    beside = theirs.replace(b"root", b"u1")
    assert without(tail[0] + beside + b"".join(tail[1:]), "u1", ["u2"]) == tail[0] + beside


WHOLE = (
    QUEUED + asked("One") + answered(text("1")) + cost(0.1) + QUEUED + asked("Two", turn_id="u2") + answered(text("2"))
)


@given(st.integers(0, len(WHOLE)))
def test_any_cut_can_be_read(length: int) -> None:
    """Wherever a transcript was cut, what is read of it is a beginning of what was there."""
    full, cut = exchanges(WHOLE), exchanges(WHOLE[:length])
    assert [exchange.prompt for exchange in cut] == [exchange.prompt for exchange in full][: len(cut)]
    assert all(part.finished <= whole.finished for part, whole in zip(cut, full, strict=False))
    assert last_total_cost(WHOLE[:length]) in (0.0, 0.1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {"type": st.sampled_from(["user", "assistant", "cost-state", "system"])},
    optional={
        "message": JSON | st.fixed_dictionaries({"content": JSON, "usage": JSON, "id": JSON}),
        "uuid": JSON,
        "promptId": JSON,
        "timestamp": JSON,
        "totalCostUSD": JSON,
    },
)


@given(st.lists(JSON | ENTRY))
def test_strange_lines_do_no_harm(entries: list[Any]) -> None:
    """What another version, or another program, writes is never an exception."""
    data = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    for exchange in exchanges(data):
        assert exchange.ended >= datetime.min.replace(tzinfo=UTC)
    last_total_cost(data)
    total_costs(data)
    assert without(data, "nobody's", []) == data


def test_a_strange_result_and_time() -> None:
    """A result that names no call is no answer, and a time without a zone is UTC."""
    strange = result().replace(b'"t1"', b'["t1"]').replace(AT.encode(), b"2026-11-22")
    exchange = only(STRUCTURED.replace(AT.encode(), b"2026-11-22") + strange)
    assert (exchange.finished_output, exchange.ended) == (False, datetime(2026, 11, 22, tzinfo=UTC))
