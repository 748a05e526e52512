"""The real Claude Code CLI on a scripted model: what is scripted is what happens, and every call is accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest
from claude_agent_sdk import AssistantMessage, ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, StreamEvent

from channelcoder_flows.errors import ConfigError
from channelcoder_flows.testing import ScriptedModel, read_log

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}

Start = Callable[[Any], ScriptedModel]


@dataclass
class Asked:
    """What one turn brought."""

    result: ResultMessage
    pieces: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


@asynccontextmanager
async def client(cwd: Path, **options: Any) -> AsyncIterator[ClaudeSDKClient]:
    """A CLI process as the engine starts it: nothing of the user's, prompts not interpreted, edits allowed."""
    env = {"CLAUDE_CODE_MAX_RETRIES": "3"}
    given = {"permission_mode": "acceptEdits", "setting_sources": [], "verbatim_prompts": True, "env": env, **options}
    async with ClaudeSDKClient(ClaudeAgentOptions(cwd=cwd, include_partial_messages=True, **given)) as sdk:
        yield sdk


def piece(message: Any) -> str:
    """Return the text that a partial message brings."""
    return message.event.get("delta", {}).get("text", "") if isinstance(message, StreamEvent) else ""


async def ask(prompt: str, cwd: Path, **options: Any) -> Asked:
    """Run one turn on the real CLI."""
    async with client(cwd, **options) as sdk:
        await sdk.query(prompt)
        pieces: list[str] = []
        models: list[str] = []
        async for message in sdk.receive_response():
            if text := piece(message):
                pieces.append(text)
            if isinstance(message, AssistantMessage):
                models.append(message.model)
            if isinstance(message, ResultMessage):
                return Asked(message, pieces, models)
    raise AssertionError("the CLI ended without a result")


async def test_text(scripted_model: Start, tmp_path: Path) -> None:
    """A scripted text is Claude's answer, with the scripted tokens, and one call was paid for."""
    model = scripted_model([{"reply": {"text": "Hello.", "usage": {"input_tokens": 7, "output_tokens": 3}}}])
    asked = await ask("Say hello", tmp_path, system_prompt="You are terse.", model="claude-haiku-5-5")
    assert (asked.result.subtype, asked.result.is_error, asked.result.result) == ("success", False, "Hello.")
    assert asked.result.usage is not None
    assert (asked.result.usage["input_tokens"], asked.result.usage["output_tokens"]) == (7, 3)
    (request,) = model.requests
    assert (request.prompt, request.call, request.reply, request.status) == ("Say hello", 0, "text", 200)
    assert request.session == asked.result.session_id
    assert request.model == "claude-haiku-5-5"
    assert "You are terse." in request.system
    assert {"Read", "Edit", "Bash"} <= set(request.tools)
    assert model.paid() == 1


async def test_a_tool_call_really_edits(scripted_model: Start, tmp_path: Path) -> None:
    """A scripted tool call is carried out by the CLI on real files, and its result goes back to the model."""
    file = tmp_path / "plan.md"
    model = scripted_model(
        [{"reply": [{"tool": "Write", "input": {"file_path": str(file), "content": "1. Search\n"}}, "Planned."]}]
    )
    asked = await ask("Plan", tmp_path)
    assert asked.result.result == "Planned."
    assert file.read_text(encoding="utf-8") == "1. Search\n"
    assert [(request.call, request.reply) for request in model.requests] == [(0, "tool"), (1, "text")]
    assert "File created successfully" in json.dumps(model.requests[1].messages)


async def test_two_tools_at_once(scripted_model: Start, tmp_path: Path) -> None:
    """Several tools in one answer are all carried out, and count as one model call."""
    calls = [
        {"name": "Write", "input": {"file_path": str(tmp_path / name), "content": name}} for name in ("a.txt", "b.txt")
    ]
    model = scripted_model([{"reply": [{"text": "Both:", "tools": calls}, "Done both."]}])
    asked = await ask("Write both", tmp_path)
    assert asked.result.result == "Done both."
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in ("a.txt", "b.txt")] == ["a.txt", "b.txt"]
    assert model.paid("Write both") == 2


async def test_structured_output(scripted_model: Start, tmp_path: Path) -> None:
    """A scripted output arrives as structured output, in one model call."""
    model = scripted_model([{"reply": {"output": {"status": "done"}}}])
    asked = await ask("Report", tmp_path, output_format={"type": "json_schema", "schema": STATUS})
    assert asked.result.structured_output == {"status": "done"}
    assert model.paid() == 1


async def test_the_reminder_of_structured_output_belongs_to_the_turn(scripted_model: Start, tmp_path: Path) -> None:
    """When Claude first answers in prose, the CLI asks again: the script's second reply, not a new turn."""
    model = scripted_model([{"when": "/^Report$/", "reply": ["All is done.", {"output": {"status": "done"}}]}])
    asked = await ask("Report", tmp_path, output_format={"type": "json_schema", "schema": STATUS})
    assert asked.result.structured_output == {"status": "done"}
    assert [request.reply for request in model.requests] == ["text", "output"]


async def test_faults_are_met_as_often_as_scripted(scripted_model: Start, tmp_path: Path) -> None:
    """The CLI meets each fault as often as the script says, with its status, and then gets its answer."""
    faults = [{"error": 529, "times": 2}, {"drop": "start"}]
    model = scripted_model([{"reply": [*faults, "Recovered."]}])
    asked = await ask("Try", tmp_path)
    assert (asked.result.is_error, asked.result.result) == (False, "Recovered.")
    assert [(request.status, request.paid) for request in model.requests] == [
        (529, False),
        (529, False),
        (None, False),
        (200, True),
    ]


async def test_a_stall_is_seen_by_the_clients_own_timeout(scripted_model: Start, tmp_path: Path) -> None:
    """A stalled stream brings its first half and then nothing, until the client gives up; it was not paid for."""
    model = scripted_model([{"reply": {"stall": "mid", "text": "Half of it is here."}}])
    async with client(tmp_path) as sdk:
        await sdk.query("Stall")
        messages = sdk.receive_response()
        text = ""
        while not text:
            text = piece(await anext(messages))
        assert "Half of it is here.".startswith(text)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    assert not piece(await anext(messages))
        (request,) = model.requests
        assert not request.ended
        await sdk.interrupt()
    (request,) = await asyncio.to_thread(model.wait_for, lambda request: request.ended)
    assert (request.reply, request.paid) == ("stall", False)


async def test_a_slow_stream_comes_in_pieces(scripted_model: Start, tmp_path: Path) -> None:
    """`chunks` and `slow` are seen as partial messages over time, `delay` before the first."""
    model = scripted_model([{"reply": {"text": "one two three four", "chunks": 6, "slow": 0.05, "delay": 0.2}}])
    started = time.time()
    asked = await ask("Slowly", tmp_path)
    assert asked.pieces == ["one", " tw", "o t", "hre", "e f", "our"]
    assert time.time() - max(started, model.requests[0].time) >= 0.2 + 6 * 0.05


async def test_resumed_sessions_are_matched_by_their_last_prompt(scripted_model: Start, tmp_path: Path) -> None:
    """On a resumed session each turn is answered by its own rule, from its first reply, also when asked again."""
    file = str(tmp_path / "a.txt")
    write = {"tool": "Write", "input": {"file_path": file, "content": "x"}}
    model = scripted_model(
        [
            {"when": "/^Plan$/", "reply": [write, "Planned."]},
            {"when": "/^Build$/", "reply": [{"tool": "Read", "input": {"file_path": file}}, "Built."]},
        ]
    )
    first = await ask("Plan", tmp_path)
    answers = [first.result.result]
    for prompt in ("Build", "Build", "Plan"):
        again = await ask(prompt, tmp_path, resume=first.result.session_id)
        assert again.result.session_id == first.result.session_id
        answers.append(again.result.result)
    assert answers == ["Planned.", "Built.", "Built.", "Planned."]
    assert (model.paid("Plan"), model.paid("Build"), model.paid()) == (4, 4, 8)


@contextmanager
def cli(prompt: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `claude -p` as one would by hand; it does not outlive the block."""
    argv = [CLI, "-p", "--output-format", "json", "--setting-sources", ""]
    with subprocess.Popen(argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(prompt.encode())
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "reply", [{"hold": "never", "text": "x"}, {"delay": 60, "text": "x"}, {"stall": "start"}, {"stall": "mid"}]
)
def test_a_killed_client_has_not_paid(scripted_model: Start, tmp_path: Path, reply: dict[str, Any]) -> None:
    """A client that is killed while it waits is noticed at once, and its call is not counted as paid."""
    model = scripted_model([{"reply": reply}])
    with cli("Wait", tmp_path) as process:
        model.wait_for("Wait")
        assert not model.requests[0].ended
        process.kill()
    (request,) = model.wait_for(lambda request: request.ended, timeout=5)
    assert not request.paid


def test_hold_and_release(scripted_model: Start, tmp_path: Path) -> None:
    """A held answer waits for the test, without sleeps, and then is given."""
    model = scripted_model([{"reply": {"hold": "gate", "text": "At last."}}])
    with cli("One", tmp_path) as one, cli("Two", tmp_path) as two:
        model.wait_for(count=2)
        assert (one.poll(), two.poll(), model.paid()) == (None, None, 0)
        model.release("gate")
        assert one.stdout
        assert two.stdout
        assert [json.load(answer)["result"] for answer in (one.stdout, two.stdout)] == ["At last."] * 2
    assert (model.paid("One"), model.paid("Two")) == (1, 1)


def post(model: ScriptedModel, prompt: str = "Hi", **fields: Any) -> bytes:
    """Ask for an answer without the CLI."""
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
    headers = {"x-api-key": "sk-very-secret", "content-type": "application/json"}
    request = urllib.request.Request(f"{model.url}/v1/messages?beta=true", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def test_the_log_is_the_ledger_and_holds_no_key(tmp_path: Path) -> None:
    """Another process can count from the log what was paid for; of the key there is only a hash."""
    log = tmp_path / "logs" / "model.jsonl"
    with ScriptedModel([{"when": "Hi", "reply": [{"drop": "mid"}, "Hello."]}], log=log) as model:
        with pytest.raises((http.client.HTTPException, OSError)):
            post(model)
        assert b"Hello." in post(model, stream=True)
        urllib.request.urlopen(f"{model.url}/v1/models", timeout=10).close()
        assert read_log(log) == model.requests
        assert [request.paid for request in read_log(log)] == [False, True]
        assert {request.auth for request in model.requests} == {hashlib.sha256(b"sk-very-secret").hexdigest()[:12]}
        assert "sk-very-secret" not in log.read_text(encoding="utf-8")
        assert model.ledger.others == ["GET /v1/models"]
        with ScriptedModel([], log=log) as second:
            post(second)
        assert [request.reply for request in read_log(log)] == ["drop", "text", "unscripted"]


def test_other_endpoints_are_harmless(tmp_path: Path) -> None:
    """What the CLI asks for besides answers is answered, and never counts as a model call."""
    with ScriptedModel([{"reply": "x"}]) as model:
        connection = http.client.HTTPConnection(*model.url.removeprefix("http://").split(":"), timeout=10)
        answers = []
        for method, path, body in (
            ("HEAD", "/", None),
            ("GET", "/api/hello", None),
            ("POST", "/v1/messages/count_tokens", b"{}"),
            ("POST", "/api/event_logging", b"\xff"),
            ("POST", "/v1/messages", b"no json"),
            ("POST", "/v1/messages", b"[]"),
        ):
            connection.request(method, path, body)
            response = connection.getresponse()
            answers.append((response.status, response.read()[:18]))
        connection.close()
        bad_request = b'{"type": "error", '
        assert answers[:4] == [(200, b""), (200, b"{}"), (200, b'{"input_tokens": 1'), (200, b"{}")]
        assert answers[4:] == [(400, bad_request)] * 2
        assert (len(model.ledger.others), model.requests) == (6, [])


def test_without_a_stream(tmp_path: Path) -> None:
    """A client that wants no stream gets the same answer whole, or is cut off the same way."""
    with ScriptedModel([{"when": "Hi", "reply": [{"malformed": "truncated"}, "Hello."]}]) as model:
        with pytest.raises(json.JSONDecodeError):
            json.loads(post(model))
        assert json.loads(post(model))["content"] == [{"type": "text", "text": "Hello."}]
        assert model.paid() == 1


def test_wait_for_says_what_came_instead() -> None:
    """A test that waited in vain reads what did arrive."""
    with ScriptedModel([{"reply": "x"}]) as model:
        post(model, "Something else")
        with pytest.raises(TimeoutError, match=r"fewer than 1 such requests had come; there came: 'Something else'"):
            model.wait_for("Expected", timeout=0)


def test_stop_leaves_nothing_behind() -> None:
    """Held, stalled and idle connections all end with the model: no thread stays, and the port is free again."""
    before = set(threading.enumerate())
    with ScriptedModel([{"when": "hold", "reply": {"hold": "x", "text": "x"}}, {"reply": {"stall": "mid"}}]) as model:
        port = int(model.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used"):
            ScriptedModel([], port=port).start()
        idle = socket.create_connection(("127.0.0.1", port))
        errors: list[Exception] = []

        def call(prompt: str) -> None:
            try:
                post(model, prompt, stream=True)
            except (http.client.HTTPException, OSError) as exc:
                errors.append(exc)

        callers = [threading.Thread(target=call, args=(prompt,)) for prompt in ("hold", "stall")]
        for caller in callers:
            caller.start()
        model.wait_for(count=2)
    for caller in callers:
        caller.join()
    assert len(errors) == 2
    assert idle.recv(1) == b""
    idle.close()
    assert set(threading.enumerate()) <= before
    assert [(request.ended, request.paid) for request in model.requests] == [(True, False)] * 2
    with ScriptedModel([{"reply": "again"}], port=port) as again:
        assert b"again" in post(again)


@pytest.mark.parametrize("fault", [{"drop": "mid"}, {"malformed": "garbage"}, {"malformed": "truncated"}])
def test_an_empty_answer_can_break_off_too(fault: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    """A break with nothing in it breaks off after its beginning; the model itself does not stumble."""
    with ScriptedModel([{"reply": {**fault, "text": ""}}]) as model:
        try:
            said = post(model, stream=True)
        except http.client.IncompleteRead as exc:
            said = exc.partial
        assert b"message_start" in said
        assert b"message_stop" not in said
        assert [(request.status, request.paid) for request in model.requests] == [(200, False)]
    assert capfd.readouterr().err == ""


def test_a_client_that_does_not_wait_its_turn_is_let_go() -> None:
    """A client that sends on while it is stalled cannot keep the model from stopping."""
    with ScriptedModel([{"reply": {"stall": "start"}}]) as model:
        body = b'{"messages": [{"role": "user", "content": "Hi"}]}'
        head = f"POST /v1/messages HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(model.url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(head + body)
            model.wait_for("Hi")
            connection.sendall(head)
            assert connection.recv(1) == b""
        assert [request.paid for request in model.requests] == [False]


SERVE = [sys.executable, "-m", "channelcoder_flows.testing.model"]


def test_as_a_process(tmp_path: Path) -> None:
    """As a process it prints its URL first, logs, takes `release`, and ends with its standard input."""
    script = tmp_path / "script.yaml"
    script.write_text("- reply: {hold: gate, text: Hello.}\n", encoding="utf-8")
    argv = [*SERVE, script, "--log", tmp_path / "log"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        url = process.stdout.readline().strip()
        process.stdin.write("release gate\n")
        process.stdin.flush()
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        with urllib.request.urlopen(f"{url}/v1/messages", body, timeout=10) as response:
            assert json.load(response)["content"][0]["text"] == "Hello."
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    assert [request.paid for request in read_log(tmp_path / "log")] == [True]


def test_a_process_of_a_killed_parent_ends(tmp_path: Path) -> None:
    """A model whose parent was killed does not stay: its end of our pipe closes."""
    script = tmp_path / "script.yaml"
    script.write_text("- reply: Hello.\n", encoding="utf-8")
    parent = f"import subprocess; subprocess.Popen({[*SERVE, str(script)]!r}, stdin=subprocess.PIPE).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        process.kill()
        assert process.stdout.read() == ""
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)


def test_a_process_with_a_wrong_script_says_so(tmp_path: Path) -> None:
    """A script that cannot be used is one line on stderr and exit status 2."""
    run = subprocess.run([*SERVE, tmp_path / "none.yaml"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert run.stderr == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory\n"


async def test_async_context() -> None:
    """In async code the model is a context manager too."""
    async with ScriptedModel([{"reply": "Hello."}]) as model:
        assert b"Hello." in await asyncio.to_thread(post, model)
    with pytest.raises(RuntimeError, match="not running"):
        _ = model.url
