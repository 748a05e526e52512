"""What Prefect's UI shows of a turn. Best effort: the turn is safe before, and nothing here can fail it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import acreate_markdown_artifact

from channelcoder_flows.turn import TurnResult

PATIENCE = 10.0
"""Seconds until the flow goes on without: Prefect's client tries for minutes to reach a server that is gone."""

LINE_LIMIT = 1000
"""Characters that are shown of one tool call: a file that is written has many."""


async def publish(
    result: TurnResult, prompt: str, tools: Sequence[str], logger: logging.Logger | logging.LoggerAdapter[Any]
) -> None:
    """Show the turn as an artifact: prompt, tool calls, answer, cost and where it stands."""
    try:
        async with asyncio.timeout(PATIENCE):
            await acreate_markdown_artifact(
                key=artifact_key(result.session.name, result.step),
                markdown=as_markdown(result, prompt, tools),
                description=f"Turn {result.turn} of session {result.session.name}",
            )
    except Exception as exc:
        logger.warning("the turn is kept, but Prefect could not show it: %r", exc)


def artifact_key(session: str, step: str) -> str:
    """Return a key that Prefect accepts (a-z, 0-9, dashes), another for each step of each session."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"{session}-{step}".lower()).strip("-")[:60]
    return f"turn-{plain}-{hashlib.sha256(f'{session}/{step}'.encode()).hexdigest()[:8]}"


def as_markdown(result: TurnResult, prompt: str, tools: Sequence[str]) -> str:
    """Return a turn as a Markdown page; `tools` has a line for each tool call."""
    usage = result.usage
    estimate = " (estimated)" if result.cost_estimated else ""
    rows = {
        "session": result.session.name,
        "step": result.step,
        "turn": str(result.turn),
        "outcome": result.outcome + (" (from the journal, nothing spent)" if result.replayed else ""),
        "cost": f"${result.cost_usd:.4f}{estimate}",
        "tokens": f"{usage.input_tokens} in, {usage.output_tokens} out, {usage.cache_read_input_tokens} from cache",
        "model calls": str(result.model_calls),
        "seconds": f"{result.duration_s:.1f}",
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    parts = {"Prompt": prompt, "Tool calls": "\n".join(call[:LINE_LIMIT] for call in tools), "Answer": result.text}
    shown = "\n".join(f"### {title}\n\n{_as_code(text)}\n" for title, text in parts.items() if text)
    return f"| | |\n|---|---|\n{table}\n\n{shown}"


def _as_code(text: str) -> str:
    # Four spaces make it code: what somebody wrote is shown, never rendered.
    return "\n".join(f"    {line}" for line in text.splitlines())


def _cell(text: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))
