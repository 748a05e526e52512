"""The demo, as a newcomer runs it: the first thing they see of the project has to be true."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acceptance.conftest import wait_until_gone
from channelcoder_flows.demo.show import HELD
from channelcoder_flows.demo.stage import HERE
from channelcoder_flows.testing import ScriptedModel, read_log
from channelcoder_flows.testing.ledger import select

pytestmark = pytest.mark.xdist_group("demo")

DEMO = (sys.executable, "-m", "channelcoder_flows", "demo")


@pytest.fixture
def newcomer(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody with an empty home, who has other accounts configured."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    mine = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "CHANNELCODER_SESSION_DIR": str(tmp_path / "home" / "sessions"),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
    }
    # `make coverage` counts what runs here too.
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return {"PATH": os.environ["PATH"], **mine, **coverage}


def left_in(env: dict[str, str]) -> list[str]:
    """Return what lies in the newcomer's home and temporary directory."""
    return [name for variable in ("HOME", "TMPDIR") for name in os.listdir(env[variable])]


def test_the_demo_keeps_its_promises(newcomer: dict[str, str], tmp_path: Path) -> None:
    """Killed in its third turn, the flow goes on; finished turns are paid for once, the bug is fixed, all is gone."""
    kept = tmp_path / "kept"
    run = subprocess.run([*DEMO, "--keep", kept], env=newcomer, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr + run.stdout
    shown = run.stdout
    assert run.stderr == ""
    assert "\x1b" not in shown
    assert len(shown.splitlines()) <= 48
    assert max(map(len, shown.splitlines())) <= 100 + len(str(kept))
    for promise in (
        "Ran 2 tests: FAILED (failures=1)",
        "kill -9",
        "0 of 2 processes are left",
        "channelcoder flow resume fix-bill",
        "Nothing was spent.",
        "Split bills to the last cent",
        "Ran 3 tests: OK",
        "fix-bill: 4 turns, 8 messages",
        f"cd {kept / 'project'}",
    ):
        assert promise in shown
    table = re.findall(r"^ +(plan|implement|test|review) +(\d+) +(\d+)", shown, re.MULTILINE)
    assert table == [("plan", "2", "0"), ("implement", "3", "0"), ("test", "2", "4"), ("review", "0", "3")]
    requests = read_log(kept / "model.jsonl")
    paid = [sum(r.paid for r in select(requests, w)) for w in ("/^Plan/", "/^Implement/", "/^Test/", "/^Review/")]
    assert paid == [2, 3, 6, 3]
    assert sum(r.paid for r in requests) == sum(paid)
    assert subprocess.run(["git", "-C", kept / "project", "status", "--short"], capture_output=True).stdout == b""
    assert left_in(newcomer) == []
    assert wait_until_gone(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(newcomer: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and a kill end all that the demo started; Ctrl-C clears the disk as well."""
    demo = subprocess.Popen(DEMO, env=newcomer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout and demo.stderr
    for line in demo.stdout:
        if "✓ plan" in line:
            break
    demo.send_signal(number)
    said = demo.communicate(timeout=30)[1]
    assert wait_until_gone(tmp_path) == []
    if number == signal.SIGINT:
        assert (demo.returncode, said) == (130, "channelcoder: interrupted\n")
        assert left_in(newcomer) == []


def test_a_failing_demo_says_what_failed_and_keeps_it(newcomer: dict[str, str], tmp_path: Path) -> None:
    """When a step cannot run, one line says why and where everything is to be found."""
    env = {**newcomer, "CHANNELCODER_CLAUDE_PATH": str(tmp_path / "no-such-claude")}
    run = subprocess.run(DEMO, env=env, capture_output=True, text=True, timeout=180)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "no-such-claude is not a program that can be run" in line
    (kept,) = re.findall(r"\(kept to look at: (.+)\)$", line)
    assert (Path(kept) / "project" / "fix.py").exists()
    assert wait_until_gone(tmp_path) == []


def test_live_without_a_login_says_so(newcomer: dict[str, str]) -> None:
    """`--live` without key and login is refused in one line that says what to do, before anything runs."""
    run = subprocess.run([*DEMO, "--live", "--yes"], env=newcomer, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("channelcoder: login: no key and no login: set ANTHROPIC_API_KEY")
    assert left_in(newcomer) == []


def test_live_never_spends_unasked(newcomer: dict[str, str]) -> None:
    """Where nobody can be asked, `--live` needs `--yes`."""
    env = {**newcomer, "ANTHROPIC_API_KEY": "mine"}
    run = subprocess.run(
        [*DEMO, "--live"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "--yes" in run.stderr
    assert left_in(newcomer) == []


def test_a_directory_that_is_there_is_not_touched(newcomer: dict[str, str], tmp_path: Path) -> None:
    """`--keep` of a directory with something in it is refused."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    run = subprocess.run([*DEMO, "--keep", tmp_path / "mine"], env=newcomer, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "it is there already" in run.stderr
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


def test_live_is_the_same_flow_with_the_users_own_key(newcomer: dict[str, str], tmp_path: Path) -> None:
    """`--live` talks to the API with the user's key, kills in mid-turn too, and leaves only Claude Code's own files."""
    with ScriptedModel(HERE / "script.yaml") as model:
        env = {**newcomer, "ANTHROPIC_API_KEY": "mine", "ANTHROPIC_BASE_URL": model.url}
        demo = subprocess.Popen([*DEMO, "--live", "--yes"], env=env, stdout=subprocess.PIPE, text=True)
        assert demo.stdout
        shown: list[str] = []
        for line in demo.stdout:
            shown.append(line)
            if "kill -9" in line:
                model.release(HELD)
        assert demo.wait(timeout=60) == 0, shown
        mine = hashlib.sha256(b"mine").hexdigest()
        assert all(request.auth and mine.startswith(request.auth) for request in model.requests)
    assert "at most $1.25" in shown[2]
    table = re.findall(r"^ +(plan|implement|test|review) +(\d+) +(\d+)", "".join(shown), re.MULTILINE)
    assert [(step, after) for step, _, after in table] == [
        ("plan", "0"),
        ("implement", "0"),
        ("test", "4"),
        ("review", "3"),
    ]
    assert all(name.startswith(".claude") for name in left_in(newcomer))
    assert wait_until_gone(tmp_path) == []
