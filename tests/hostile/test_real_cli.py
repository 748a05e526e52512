"""Hostile texts through the real Claude Code CLI: what the model gets is the text, and nothing else happens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import ALL, COMMANDS, FILES, FLAGS, MARKUP, TEMPLATES, UNICODE

from channelcoder_flows import Session
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.testing import ScriptedModel
from channelcoder_flows.testing.ledger import ModelRequest

Start = Callable[[Any], ScriptedModel]
SCRIPT = [
    {"when": "write it", "reply": [{"tool": "Write", "input": {"file_path": "pwned", "content": "x"}}, "Done."]},
    {"reply": "Well."},
]
BATCH = Prompt.parse("---\ninput: {first: string, second: string}\n---\n<{first}>\n<{second}>{return}")
TURNS = 200


async def test_hostile_texts_are_only_texts(scripted_model: Start, tmp_path: Path) -> None:
    """Commands, files, flags and markup, a whole prompt or all of them in one: each is answered once."""
    values = [text for text in ALL if "\0" not in text]
    prompts = ["/compact", "/clear\n", "@/etc/passwd", *_batches(["\n".join(values)])]
    await _ask(scripted_model(SCRIPT), tmp_path, prompts, random.Random(1))


async def test_a_rule_grants_no_other_tool(scripted_model: Start, tmp_path: Path) -> None:
    """A tool rule with brackets in it, as hostile as we accept it, does not let Claude write."""
    scripted_model(SCRIPT)
    rules = ["Bash(Write, (x))", "Bash((Write, Edit))", "Bash(a, b(Write, Edit))"]
    result = await Session("s", cwd=tmp_path).claude("write it", allowed_tools=rules)
    assert result.denials == ("Write",)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.torture
async def test_200_hostile_texts(scripted_model: Start, tmp_path: Path, seed: int) -> None:
    """The same with 200 turns: each text as a whole prompt, as a value, and as a system prompt or a model."""
    chance = random.Random(seed)
    whole = [text for text in ALL if "\0" not in text and text.strip("\ufeff \n\r\t\x85\u2028")]
    made = ["".join(chance.choices(whole, k=chance.randint(2, 5))) for _ in range(TURNS)]
    prompts = [*whole, *_batches(made)][:TURNS]
    model = scripted_model(SCRIPT)
    await _ask(model, tmp_path, prompts, chance)
    kinds = {"flags": FLAGS, "commands": COMMANDS, "files": FILES, "templates": TEMPLATES}
    kinds |= {"unicode": UNICODE, "markup": MARKUP}
    told = ", ".join(f"{len(texts)} {kind}" for kind, texts in kinds.items())
    print(
        f"{len(prompts)} turns ({len(whole)} whole prompts: {told}, and others): {model.paid()} requests, all verbatim"
    )


def _batches(values: list[str]) -> Iterator[str]:
    """Yield prompts of two hostile values each, filled in by a template; they hold the values as they are."""
    for first, second in zip(values, values[::-1], strict=True):
        text = BATCH.bind({"first": first, "second": second})
        assert text == f"<{first}>\n<{second}>{{return}}"
        yield text


async def _ask(model: ScriptedModel, folder: Path, prompts: list[str], chance: random.Random) -> None:
    for number, prompt in enumerate(prompts):
        flag = chance.choice(FLAGS)
        option = chance.choice(["system", "append_system", "model", "fallback_model"])
        # A session each ten turns: `/clear` and `/compact` would show in what the later ones are sent.
        session = Session(f"s{number // 10}", cwd=folder)
        before = len(model.requests)
        result = await session.claude(prompt, timeout=60, **{option: flag})  # pyright: ignore
        (request,) = model.requests[before:]
        assert result.text == "Well."
        assert said_by_user(request) == prompts[number // 10 * 10 : number + 1], f"turn {number}"
        told = json.dumps(request.model_dump(mode="json"))
        assert "root:x:0:0" not in told and "BEGIN OPENSSH" not in told
        assert option not in ("system", "append_system") or flag in request.system
        assert option != "model" or request.model == flag
    assert not (folder / "pwned").exists()


def said_by_user(request: ModelRequest) -> list[str]:
    """Return every text of the user's in a request as it was sent, without what Claude Code adds."""
    found: list[str] = []
    for message in request.messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "user":
            assert {block["type"] for block in blocks} == {"text"}, "something was attached"
            found += [block["text"] for block in blocks]
    return [text for text in found if not text.startswith("<system-reminder>\nAttribution for git commits")]
