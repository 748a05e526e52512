"""What README.md and docs/quickstart.md show is what works: each file, command and program, in their order."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import channelcoder, start

from channelcoder_flows import Prompt
from channelcoder_flows.testing import Script, ScriptedModel

pytestmark = pytest.mark.xdist_group("prefect")

ROOT = Path(__file__).parents[2]
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
BLOCK = re.compile(r"(?:^.*?`([\w/]+\.\w+)`.*:\n\n)?^```(\w+)\n([\s\S]*?)^```$|^ {4}(\S.*)$", re.MULTILINE)
Start = Callable[[Any], ScriptedModel]


@pytest.fixture
def project(tmp_path: Path, prefect_api: str, claude_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a reader's own project, with a Prefect server."""
    folder = tmp_path / "project"
    (folder / "prompts").mkdir(parents=True)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    return folder


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield what a page shows, in its order: language (or `shell`), file name (or nothing), text."""
    for name, language, text, line in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        yield (language, name, text) if language else ("shell", "", line)


def follow(page: str, project: Path, model: ScriptedModel, *, dies_in: str) -> dict[str, str]:
    """Do what a page says; its flow is killed while it asks `dies_in`. Return what each command printed."""
    said: dict[str, str] = {}
    for language, name, text in blocks(page):
        if name:
            (project / name).write_text(text, encoding="utf-8")
        match language:
            case "markdown":
                Prompt.load(project / name)
            case "yaml":
                (project / "script.yaml").write_text(text, encoding="utf-8")
                Script.load(project / "script.yaml")
            case "python" if not name:
                program = f"import asyncio\n{text}\nasyncio.run(main())\n"
                run = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
                assert run.returncode == 0, run.stderr
                said["python"] = run.stdout
            case "python":
                compile(text, name, "exec")  # its command comes next
            case "shell" if text.startswith(("make ", "git ")):
                assert re.findall(r"make (\w+)", text)[0] in TARGETS
            case "shell":
                argv = shlex.split(text, comments=True)
                assert Path(argv[0]).name == "channelcoder"
                if argv[1:3] == ["flow", "run"]:
                    killed(argv[1:], project, model, dies_in)
                else:
                    run = channelcoder(*argv[1:], cwd=project)
                    assert run.returncode == 0, text + run.stderr
                    said[" ".join(argv)] = run.stdout
            case _:
                pytest.fail(f"{page} shows {language}, and nobody tries it")
    return said


def killed(argv: list[str], project: Path, model: ScriptedModel, dies_in: str) -> None:
    """Run a flow, and kill it with SIGKILL in the turn that asks `dies_in`; what it asks again is answered."""
    process = start(*argv, cwd=project)
    try:
        model.wait_for(dies_in, timeout=60)
    finally:
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, stderr
    model.wait_for(lambda request: request.ended and dies_in in request.prompt)
    model.release("gate")


def test_readme(project: Path, scripted_model: Start) -> None:
    """Whoever types the README from top to bottom gets what it says, and the killed flow pays for no turn twice."""
    model = scripted_model(
        [
            {"when": "Plan this ticket", "reply": {"output": {"summary": "Add an index.", "steps": ["Build it"]}}},
            {"when": "Which step", "reply": "The index."},
            {"when": "Implement", "reply": "Built."},
            {"when": "Review", "reply": {"hold": "gate", "text": "It is good."}},
        ]
    )
    for name in ("implement", "review"):
        (project / "prompts" / f"{name}.md").write_text(f"{name.title()} it.\n")
    said = follow("README.md", project, model, dies_in="Review")
    assert "Add an index." in said["python"] and said["python"].endswith("The index.")
    assert "Search is slow" in said["channelcoder session show search"]
    assert said["channelcoder flow resume search"] == "It is good.\n"
    asked = {text: model.paid(text) for text in ("Which step", "Implement", "Review")}
    assert asked == {"Which step": 2, "Implement": 1, "Review": 1}
    assert model.paid("Plan this ticket: Search is slow") == 3, "from the shell, from Python, and in the flow"


def test_quickstart(project: Path, scripted_model: Start) -> None:
    """Ten minutes with docs/quickstart.md end in a flow that was killed, and resumed with only the rest to pay."""
    (script,) = (yaml.safe_load(text) for language, _, text in blocks("docs/quickstart.md") if language == "yaml")
    model = scripted_model(
        [
            {"when": "What is in this folder", "reply": "Prompts."},
            {"when": "Which file", "reply": "look.md"},
            {"when": "has retries", "reply": {"hold": "gate", "output": {"found": False, "files": []}}},
            *script,
        ]
    )
    said = follow("docs/quickstart.md", project, model, dies_in="has retries")
    assert "tour" in said["channelcoder session list"]
    assert "Which file would you read first?" in said["channelcoder session show tour"]
    assert json.loads(said["channelcoder flow resume tour-2"]) == ["retries", "a health check"]
    asked = [request.prompt for request in model.requests if request.prompt.startswith("Find out")]
    assert [sum(what in prompt for prompt in asked) for what in ("rate limiter", "retries", "health check")] == [
        2,
        2,
        1,
    ]
    assert model.paid("has retries") == 1
