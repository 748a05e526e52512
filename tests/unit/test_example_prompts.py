"""The example prompts are what a user copies: nothing is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from channelcoder_flows.prompt import Prompt, check

ROOT = Path(__file__).parents[2]
PROMPTS = sorted((ROOT / "prompts").rglob("*.md"))


def test_nothing_is_wrong_with_them() -> None:
    """`channelcoder prompt check prompts` finds nothing."""
    assert check([ROOT / "prompts"]) == []


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_each_is_bounded_and_typed(path: Path) -> None:
    """Each says what it is for, what it takes and gives, which tools it has, and what it may cost."""
    prompt = Prompt.load(path)
    assert prompt.description
    assert prompt.input_schema
    assert prompt.output_schema
    assert prompt.options.tools
    assert prompt.options.max_turns
    assert prompt.options.max_budget_usd
    assert prompt.options.retry.attempts


def test_the_flow_uses_all_of_them() -> None:
    """Every prompt of the example flow exists, and every later step refuses to run without what came before."""
    named = set(re.findall(r'"(prompts/[^"]+\.md)"', (ROOT / "flows" / "feature.py").read_text(encoding="utf-8")))
    assert named == {str(path.relative_to(ROOT)) for path in PROMPTS}
    required = {path.stem for path in PROMPTS if Prompt.load(path).session.required}
    assert required == {"implement", "test", "review"}
