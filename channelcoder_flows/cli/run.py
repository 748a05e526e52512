"""`channelcoder run` and `stream`: one prompt, one answer."""

from __future__ import annotations

import asyncio
import difflib
import json
import shlex
import sys
import uuid
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from channelcoder_flows.arguments import step_of
from channelcoder_flows.cli import STDIN, output
from channelcoder_flows.cli.failure import Interrupted
from channelcoder_flows.cli.loading import load_claude_code
from channelcoder_flows.cli.options import PROMPT
from channelcoder_flows.cli.turn_flags import NO_FLAGS, TurnFlags, is_file
from channelcoder_flows.config import Settings
from channelcoder_flows.errors import PromptError, PromptNotFound, UsageError
from channelcoder_flows.prompt import Prompt
from channelcoder_flows.session import Session
from channelcoder_flows.step import check_continues
from channelcoder_flows.storage.memory import MemorySessionStorage
from channelcoder_flows.turn import StreamChunk, TurnRequest, TurnResult

Source = Annotated[
    str | None,
    Parameter(help="A prompt file (it ends in .md, or exists), a text, or - for standard input."),
]
Text = Annotated[
    str | None,
    Parameter(
        name=("-p", "--prompt"),
        metavar="TEXT",
        help="The prompt as text, whatever it looks like.",
        group=PROMPT,
        allow_leading_hyphen=True,
    ),
]


async def run(prompt: Source = None, /, *, text: Text = None, flags: TurnFlags = NO_FLAGS) -> None:
    """Run a prompt and print the answer."""
    source = read_prompt(prompt, text)
    if flags.dry_run:
        return await _dry_run(source, flags)
    result = await _turn(source, flags, _narrator(verbose=flags.verbose))
    if flags.json:
        output.document(as_json(result, kept=flags.name() is not None))
    else:
        output.answer(_answer(result))
        _tell(result, kept=flags.name() is not None)
    return None


async def stream(prompt: Source = None, /, *, text: Text = None, flags: TurnFlags = NO_FLAGS) -> None:
    """Run a prompt and print the answer as it comes; with `--json` each piece is a line, the last has the result."""
    source = read_prompt(prompt, text)
    if flags.dry_run:
        return await _dry_run(source, flags)
    kept = flags.name() is not None
    if flags.json:
        result = await _turn(source, flags, lambda chunk: output.line(chunk.model_dump(mode="json", exclude_none=True)))
        output.line({"type": "result", **as_json(result, kept=kept)})
        return None
    printer = _Printer(_narrator(verbose=flags.verbose), silent=source.output_schema is not None)
    result = await _turn(source, flags, printer.take)
    printer.end(result)
    _tell(result, kept=kept)
    return None


def read_prompt(source: str | None, text: str | None) -> Prompt:
    """Return the prompt that a command was given: a file, a text, or standard input.

    Raises:
        UsageError: none is given, or two are.
        PromptNotFound, PromptError: the file cannot be used.
    """
    if (source is None) == (text is None):
        what = "one prompt at a time" if text is not None else "a prompt is missing"
        raise UsageError(f"{what}: give a file (plan.md), a text in quotes, or - for standard input")
    if STDIN in (source, text):
        return Prompt.inline(_standard_input())
    if text is not None:
        return Prompt.inline(text)
    assert source is not None
    if is_file(source):
        return Prompt.load(source)
    if source.endswith(".md") and "\n" not in source:
        raise _missing(source)
    return Prompt.inline(source)


def _standard_input() -> str:
    if sys.stdin.isatty():
        output.say("type the prompt; Ctrl-D on a line of its own ends it")
    try:
        # As bytes: a text stream would take the carriage returns out.
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise PromptError.at("standard input", 0, "", "is not UTF-8") from exc


def _missing(source: str) -> PromptNotFound:
    folders = (Path(), *Path().glob("*/"), Path(source).parent)
    there = sorted({str(file) for folder in folders if folder.is_dir() for file in folder.glob("*.md")})
    if near := difflib.get_close_matches(source, there, n=1):
        hint = f"did you mean {near[0]}?"
    elif " " in source:
        hint = "a text that ends in .md is given with -p"
    else:
        hint = f"paths start at {Path.cwd()}"
    return PromptNotFound.at(source, 0, "", f"there is no such file: {hint}")


async def _turn(prompt: Prompt, flags: TurnFlags, on_chunk: Callable[[StreamChunk], None]) -> TurnResult:
    session = await _open(flags, flags.settings())
    arguments = flags.arguments(prompt)
    load_claude_code()
    try:
        async with aclosing(session.stream(prompt, **arguments)) as chunks:
            async for chunk in chunks:
                if chunk.result is not None:
                    return chunk.result
                on_chunk(chunk)
    except asyncio.CancelledError:
        where = f", and session {flags.name()!r} is as it was before" if flags.name() else ""
        raise Interrupted(f"interrupted: the turn was taken back{where}; the same command starts it again") from None
    raise AssertionError("a stream ends with its result")


async def _open(flags: TurnFlags, settings: Settings) -> Session:
    if flags.name() is None:
        return Session(storage=MemorySessionStorage(), cwd=flags.cwd, settings=settings)
    if flags.load_session is not None:
        return await Session.load(flags.load_session, cwd=flags.cwd, settings=settings)
    return Session(flags.session, cwd=flags.cwd, settings=settings)


def as_json(result: TurnResult, *, kept: bool) -> dict[str, Any]:
    """Return the object that `run --json` prints. The session's name is null where nothing was kept."""
    session = result.session
    return {
        "text": result.text,
        "output": result.output,
        "outcome": result.outcome,
        "session": {"name": session.name if kept else None, "id": session.id, "seq": session.seq},
        "cost_usd": result.cost_usd,
        "usage": result.usage.model_dump(),
        "duration_s": result.duration_s,
        "replayed": result.replayed,
    }


def _answer(result: TurnResult) -> str:
    return result.text if result.output is None else json.dumps(result.output, ensure_ascii=False, indent=2)


def _narrator(*, verbose: bool) -> Callable[[StreamChunk], None]:
    """Return what tells of a turn beside its answer."""

    def tell(chunk: StreamChunk) -> None:
        match chunk.type:
            case "notice" | "retry":
                output.say(chunk.content)
            case "tool_use" if verbose:
                output.say(f"{chunk.tool} {json.dumps(chunk.input, ensure_ascii=False)[:200]}")
            case _:
                pass

    return tell


class _Printer:
    """Prints an answer as it comes; a structured one only when it is whole."""

    def __init__(self, narrate: Callable[[StreamChunk], None], *, silent: bool) -> None:
        self._narrate, self._silent, self._open = narrate, silent, False

    def take(self, chunk: StreamChunk) -> None:
        """Print one piece."""
        if chunk.type == "text" and chunk.content and not self._silent:
            output.piece(chunk.content)
            self._open = not chunk.content.endswith("\n")
        elif chunk.type in ("tool_use", "notice", "retry"):
            self._end_line()
            self._narrate(chunk)

    def end(self, result: TurnResult) -> None:
        """Print what is left."""
        self._end_line()
        if self._silent:
            output.answer(_answer(result))

    def _end_line(self) -> None:
        if self._open:
            output.piece("\n")
            self._open = False


def _tell(result: TurnResult, *, kept: bool) -> None:
    """Say where the answer stands and what it cost."""
    sys.stdout.flush()
    if result.denials:
        tools = " ".join(dict.fromkeys(result.denials))
        output.say(f'Claude asked for {tools} and was not allowed: allow it with --allowed-tools "{tools}"')
    session = result.session
    where = f"session {session.name!r} · turn {result.turn}" if kept else f"not kept · Claude session {session.id}"
    cost = f"{'~' if result.cost_estimated else ''}{output.dollars(result.cost_usd)}"
    output.say(f"{where} · {cost} · {result.duration_s:.1f} s")


async def _dry_run(prompt: Prompt, flags: TurnFlags) -> None:
    settings = flags.settings()
    request = step_of(prompt, flags.arguments(prompt)).request(settings)
    name = flags.name()
    if name is not None and await Session.exists(name, storage=settings.store):
        session = await Session.load(name, cwd=flags.cwd, settings=settings)
    else:
        session = await _open(flags, settings)
    check_continues(prompt, session.opened.journal)
    cwd = (flags.cwd or Path.cwd()).absolute()
    document: dict[str, Any] = {
        "prompt": request.prompt,
        "options": {**request.options.model_dump(mode="json"), "output_schema": request.output_schema},
        "place": {"kind": "host", "cwd": str(cwd)},
        "session": None if name is None else {"name": session.name, "id": session.id, "seq": session.ref.seq},
    }
    if flags.verbose:
        document["argv"] = _argv(request, settings, cwd, session)
    if flags.json:
        output.document(document)
    else:
        output.answer(_readable(document, session.turns))


def _argv(request: TurnRequest, settings: Settings, cwd: Path, session: Session) -> list[str]:
    from channelcoder_flows import claude_code

    claude = claude_code.find_claude(settings.claude_path)
    session_id = session.id or str(uuid.uuid4())
    resume = bool(session.turns)
    return claude_code.command(
        claude, claude_code.sdk_options(request, cwd=cwd, env={}, session_id=session_id, resume=resume)
    )


def _readable(document: dict[str, Any], turns: int) -> str:
    session = document["session"]
    if session is None:
        where = "none: the turn will not be kept"
    else:
        where = f"{session['name']!r}, {f'goes on after turn {turns}' if turns else 'a new one'}"
    options = {name: value for name, value in document["options"].items() if value not in (None, [], {})}
    lines = [
        f"session  {where}",
        f"place    {document['place']['kind']} {document['place']['cwd']}",
        *(f"{name}  {json.dumps(value, ensure_ascii=False)}" for name, value in options.items()),
        *([f"argv  {shlex.join(document['argv'])}"] if "argv" in document else []),
        "",
        document["prompt"],
    ]
    return "\n".join(lines)
