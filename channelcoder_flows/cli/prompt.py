"""`channelcoder prompt check`: what is wrong with prompt files, before they cost anything."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from channelcoder_flows.cli import output
from channelcoder_flows.cli.options import Json, Verbose
from channelcoder_flows.errors import PromptError, UsageError
from channelcoder_flows.prompt import check as check_prompts


def check(
    *paths: Annotated[str, Parameter(help="Prompt files, and folders of them.", negative=())],
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Print all that is wrong, a line each, and return 2 if there is anything."""
    if not paths:
        raise UsageError("prompt check needs a file or folder: `channelcoder prompt check prompts/`")
    problems = check_prompts(paths)
    if json:
        output.document([{"file": p.file, "line": p.line, "key": p.key, "message": p.problem} for p in problems])
    else:
        for problem in problems:
            output.answer(problem.message)
    if not problems:
        output.say("nothing is wrong")
    return PromptError.exit_code if problems else 0
