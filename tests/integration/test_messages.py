"""Every message that a newcomer can meet in the first hour, provoked for real and kept as it was read and found kind.

tests/snapshots/messages has them; after a change, `UPDATE_SNAPSHOTS=1` writes them anew, to be read again.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import channelcoder, check_snapshot, start, transcript

from channelcoder_flows.testing.model import ScriptedModel

FILES = {
    "plan.md": "---\ntools: Read\ninput:\n  ticket: string\n  priority?: number\n---\nPlan {ticket}\n",
    "typo.md": "---\nmodle: opus\n---\nPlan the work\n",
    "broken.md": "---\ntools: [Read\nmodel: opus\n---\nPlan the work\n",
    "more.md": "---\nsession:\n  required: true\n---\nGo on\n",
    "flow.py": "from prefect import flow\n\n\n@flow\nasync def feature(name: str) -> str:\n    return name\n",
}

TWO_TURNS = """
from prefect import flow
from channelcoder_flows.flow import turn


@flow
async def two() -> str:
    plan = await turn("Plan it", session="work")
    return (await turn("Build it", session=plan.session)).text
"""

TYPED_WRONG = {
    "no-prompt": ("run",),
    "two-prompts": ("run", "Plan the work", "-p", "Plan it again"),
    "unquoted-text": ("run", "Plan", "the", "work"),
    "empty-prompt": ("run", ""),
    "typo-in-a-path": ("run", "plna.md"),
    "wrong-path": ("run", "prompts/plan.md"),
    "text-that-ends-in-md": ("run", "Summarise README.md"),
    "typo-in-a-flag": ("run", "Plan the work", "--sesion", "my-project"),
    "unknown-flag": ("run", "Plan the work", "--quickly"),
    "flag-without-a-value": ("run", "Plan the work", "--session"),
    "typo-in-a-value": ("run", "Plan the work", "--effort", "hihg"),
    "number-that-is-none": ("run", "Plan the work", "--max-turns", "few"),
    "number-too-small": ("run", "Plan the work", "--max-turns", "0"),
    "timeout-that-is-none": ("run", "Plan the work", "--timeout", "soon"),
    "tool-that-is-none": ("run", "Plan the work", "-t", "Read Bash(git"),
    "two-sessions": ("run", "Plan the work", "--session", "a", "--load-session", "b"),
    "typo-in-a-command": ("rnu", "Plan the work"),
    "typo-in-a-subcommand": ("session", "lits"),
    "unknown-command": ("frobnicate",),
    "command-of-a-shell": ("session", "rm"),
    "no-name": ("session", "show"),
    "typo-in-a-frontmatter-key": ("run", "typo.md"),
    "bad-yaml": ("run", "broken.md"),
    "missing-input": ("run", "plan.md"),
    "typo-in-an-input": ("run", "plan.md", "-d", "tiket=Search"),
    "input-of-another-type": ("run", "plan.md", "-d", "ticket=Search", "-d", "priority=high"),
    "input-without-a-value": ("run", "plan.md", "-d", "ticket"),
    "prompt-that-needs-a-session": ("run", "more.md"),
    "missing-session": ("run", "Go on", "--load-session", "my-project"),
    "missing-session-as-json": ("run", "Go on", "--load-session", "my-project", "--json"),
    "no-such-directory": ("run", "Plan the work", "--cwd", "nowhere"),
    "no-sessions-yet": ("session", "list"),
    "prompt-check": ("prompt", "check", "plan.md", "typo.md", "broken.md", "plna.md"),
    "prompt-check-of-a-good-one": ("prompt", "check", "plan.md"),
    "flow-without-a-name": ("flow", "run", "flow.py"),
    "typo-in-a-flow": ("flow", "run", "flow.py:featrue", "-d", "name=search"),
    "wrong-path-of-a-flow": ("flow", "run", "flows/flow.py:feature"),
    "missing-parameter-of-a-flow": ("flow", "run", "flow.py:feature"),
    "typo-in-a-parameter-of-a-flow": ("flow", "run", "flow.py:feature", "-d", "nmae=search"),
    "two-ways-on": ("flow", "resume", "my-project", "--keep", "--rerun"),
    "resume-of-a-missing-session": ("flow", "resume", "my-project"),
}

Start = Callable[[Any], ScriptedModel]


@pytest.fixture
def project(tmp_path: Path, claude_env: dict[str, str]) -> Path:
    """Return a newcomer's project."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def shown(project: Path, *argv: str, **env: str) -> str:
    """Return what a newcomer sees who types this."""
    run = channelcoder(*argv, cwd=project, **env)
    return transcript(argv, run.returncode, run.stdout, run.stderr, paths(project))


def paths(project: Path) -> dict[str, str]:
    """Return the names of the paths that differ from run to run."""
    return {str(project): "/project", str(project.parent / "home"): "~", str(project.parent): "/tmp"}


@pytest.mark.parametrize("name", TYPED_WRONG)
def test_what_was_typed_wrong(name: str, project: Path) -> None:
    """One line says what is wrong and what to type instead; nothing was spent, and there is no traceback."""
    text = shown(project, *TYPED_WRONG[name])
    assert "Traceback" not in text
    check_snapshot(f"messages/{name}.txt", text)


def test_a_session_with_another_name(project: Path, scripted_model: Start) -> None:
    """A typo in a session's name is answered with the nearest names, by every command that takes one."""
    scripted_model([{"reply": "Done."}])
    assert channelcoder("run", "Start", "--session", "my-project", cwd=project).returncode == 0
    for command in ("show", "load", "remove"):
        check_snapshot(f"messages/typo-in-a-session-{command}.txt", shown(project, "session", command, "my-projct"))
    text = shown(project, "run", "Go on", "--load-session", "my-projct")
    check_snapshot("messages/typo-in-a-session-run.txt", text)


def test_the_first_turns(project: Path, scripted_model: Start) -> None:
    """The answer, where it stands, what it cost; the second run goes on, and `load` says how to."""
    scripted_model([{"when": "Go on", "reply": "Still here."}, {"reply": "Done."}])
    check_snapshot("messages/first-run.txt", shown(project, "run", "Start", "--session", "my-project"))
    check_snapshot("messages/second-run.txt", shown(project, "run", "Go on", "--session", "my-project"))
    check_snapshot("messages/not-kept.txt", shown(project, "run", "Start"))


def test_a_tool_that_was_not_allowed(project: Path, scripted_model: Start) -> None:
    """When Claude asks for a tool in vain, the flag that allows it is named."""
    scripted_model([{"reply": [{"tool": "Write", "input": {"file_path": "a.txt", "content": "a"}}, "I could not."]}])
    check_snapshot("messages/tool-not-allowed.txt", shown(project, "run", "Write a file"))


def test_no_key(project: Path, scripted_model: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without key and login: what is missing and both ways to get it; not the API's own words alone."""
    scripted_model([{"reply": "Done."}])
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    check_snapshot("messages/no-key.txt", shown(project, "run", "Start", "--session", "my-project"))
    check_snapshot("messages/no-key-as-json.txt", shown(project, "run", "Start", "--json"))


def test_a_wrong_key(project: Path, scripted_model: Start) -> None:
    """A key that the API refuses is told apart from none."""
    message = "invalid x-api-key"
    scripted_model([{"reply": {"error": 401, "message": message, "times": 99}}])
    check_snapshot("messages/wrong-key.txt", shown(project, "run", "Start"))


def test_no_cli(project: Path) -> None:
    """A CLI that is not there is named, and the setting that says where it is."""
    text = shown(project, "run", "Start", "--session", "s", CHANNELCODER_CLAUDE_PATH="/opt/claude")
    check_snapshot("messages/no-cli.txt", text)


def test_a_limit(project: Path, scripted_model: Start) -> None:
    """A turn that reached its limit says which, and how to raise it."""
    scripted_model([{"reply": [{"tool": "Glob", "input": {"pattern": "*"}}, "Done."]}])
    text = shown(project, "run", "Start", "-t", "Glob", "--max-turns", "1", "--session", "s")
    check_snapshot("messages/max-turns.txt", text)


def test_a_store_that_cannot_be_written(project: Path) -> None:
    """A store that cannot be written is known before anything is spent."""
    (project / "sessions").write_text("a file is in the way")
    for name, argv in {
        "unwritable-store": ("run", "Start", "--session", "s", "--store", "sessions"),
        "unwritable-store-list": ("session", "list", "--store", "sessions"),
        "unknown-store": ("session", "list", "--store", "s3://bucket"),
    }.items():
        check_snapshot(f"messages/{name}.txt", shown(project, *argv))


def test_settings_that_cannot_be_read(project: Path) -> None:
    """A typo in the settings names the file, the key and the nearest."""
    (project / "channelcoder.toml").write_text('modle = "opus"\n')
    check_snapshot("messages/typo-in-the-settings.txt", shown(project, "run", "Start"))


@pytest.mark.parametrize(
    ("name", "signal_number", "session"),
    [
        ("ctrl-c", signal.SIGINT, ("--session", "my-project")),
        ("ctrl-c-without-a-session", signal.SIGINT, ()),
        ("sigterm", signal.SIGTERM, ("--session", "my-project")),
    ],
)
def test_interrupted(
    name: str, signal_number: int, session: tuple[str, ...], project: Path, scripted_model: Start
) -> None:
    """Ctrl-C and SIGTERM end a turn with one line: what became of it, and how to go on."""
    model = scripted_model([{"reply": {"hold": "never", "text": "Too late."}}])
    argv = ("run", "Start", *session)
    process = start(*argv, cwd=project)
    model.wait_for("Start")
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal_number
    text = transcript(argv, process.returncode, stdout, stderr, paths(project))
    check_snapshot(f"messages/{name}.txt", text)


def test_interrupted_in_a_flow(project: Path, scripted_model: Start) -> None:
    """Ctrl-C in a flow names the command that goes on from the last finished turn, and that command does."""
    model = scripted_model([{"when": "Plan", "reply": "Planned."}, {"reply": {"hold": "gate", "text": "Built."}}])
    (project / "two.py").write_text(TWO_TURNS)
    process = start("flow", "run", "two.py:two", cwd=project)
    model.wait_for("Build", timeout=120)  # a new PREFECT_HOME has its migrations to do first
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("channelcoder: "))
    check_snapshot("messages/ctrl-c-in-a-flow.txt", line + "\n")
    model.release("gate")
    resumed = channelcoder(*shlex.split(line.rpartition(": ")[2])[1:], cwd=project)
    assert (resumed.returncode, resumed.stdout) == (0, "Built.\n"), resumed.stderr
    assert model.paid("Plan") == 1


@pytest.mark.xdist_group("prefect")
def test_a_flow_that_fails(
    project: Path, scripted_model: Start, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow that the API refuses says so, and how to go on; every wrong way on is told, and names the right one."""
    for name, value in {"PREFECT_API_URL": prefect_api, "CLAUDE_CODE_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    flow = project / "two.py"

    def told(name: str, *argv: str) -> None:
        run = channelcoder(*argv, cwd=project)
        # Prefect's own log stands around it, with times.
        stderr = "".join(line for line in run.stderr.splitlines(keepends=True) if " | " not in line)
        assert "Traceback" not in stderr
        check_snapshot(f"messages/{name}.txt", transcript(argv, run.returncode, run.stdout, stderr, paths(project)))

    scripted_model([{"when": "Plan", "reply": "Planned."}, {"reply": {"error": 529, "message": "Overloaded"}}])
    flow.write_text(TWO_TURNS)
    told("overloaded-in-a-flow", "flow", "run", "two.py:two")
    told("run-that-did-not-end", "flow", "run", "two.py:two")
    flow.write_text(TWO_TURNS.replace("Plan it", "Plan it well"))
    told("step-that-changed", "flow", "resume", "work")
    flow.write_text(TWO_TURNS)

    model = scripted_model([{"when": "Build", "reply": {"hold": "gate", "text": "Built."}}])
    process = start("flow", "resume", "work", cwd=project)
    try:
        model.wait_for("Build")
        told("run-that-is-alive", "flow", "resume", "work")
        model.release("gate")
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (0, "Built.\n"), stderr
    told("nothing-to-resume", "flow", "resume", "work")
    assert not [request for request in model.requests if "Plan" in request.prompt]


def test_doctor(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` says in one line each what is there, and what to do about what is not."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    run = channelcoder("doctor", cwd=project)
    assert run.returncode == 1
    line = next(line for line in run.stdout.splitlines() if "login" in line)
    assert line == "fail  login: no key and no login"
    assert "ANTHROPIC_API_KEY" in run.stdout
