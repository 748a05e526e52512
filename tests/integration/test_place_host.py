"""The host as a place: a process gets exactly what it is given, and never outlives its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hand import soon, until

from channelcoder_flows.errors import PlaceError
from channelcoder_flows.places.host import HostPlace, HostProcess, alive, machine, marked, start_time
from channelcoder_flows.places.spec import ProcessIdent

ENV = {"PATH": os.environ["PATH"]}
STUBBORN = """
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; touch one; sleep 300; sleep 300' &
(nohup sh -c 'touch two; sleep 300' >/dev/null 2>&1 &)
touch three
sleep 300; sleep 300
"""


@pytest.fixture
def place(tmp_path: Path) -> HostPlace:
    """A place in the test's own directory."""
    return HostPlace(tmp_path, tmp_path / "config")


async def output(process: HostProcess) -> str:
    """Return all that a process prints."""
    return b"".join([piece async for piece in process.stdout()]).decode()


def all_run(folder: Path) -> bool:
    """Return whether every part of `STUBBORN` runs."""
    return all((folder / name).exists() for name in ("one", "two", "three"))


async def test_streams_and_surroundings(place: HostPlace, tmp_path: Path) -> None:
    """A process has the directory and environment it is given and nothing else; its streams and status come back."""
    script = "pwd; env | sort; cat; echo 'a word' >&2; exit 3"
    process = await place.start(["/bin/sh", "-c", script], {"LANG": "C", "GIVEN": "x y"})
    await process.write(b"heard\n")
    await process.close_stdin()
    lines = (await output(process)).splitlines()
    assert lines[0] == str(tmp_path)
    assert lines[-1] == "heard"
    names = {line.partition("=")[0] for line in lines[1:-1]}
    assert {"GIVEN=x y", "LANG=C"} <= set(lines)
    assert names <= {"GIVEN", "LANG", "CHANNELCODER_TURN", "PWD", "OLDPWD", "SHLVL", "_"}
    assert await process.wait() == 3
    await soon(lambda: process.stderr_tail() == "a word")
    await process.end()
    await process.end()


async def test_arguments_are_words(place: HostPlace) -> None:
    """No shell reads the arguments on their way."""
    words = ["--", "-c", "$(touch pwned)", "a b", "*", "'", '"', "\\", "ü\n"]
    process = await place.start([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], ENV)
    assert await output(process) == f"{words}\n"
    await process.end()


async def test_what_cannot_start(tmp_path: Path, place: HostPlace) -> None:
    """A directory that is not there is an error that says so."""
    with pytest.raises(PlaceError, match="does not exist: create it"):
        await HostPlace(tmp_path / "none", tmp_path).start(["true"], ENV)
    process = await place.start([str(tmp_path / "none")], ENV)
    assert await process.wait() == 127
    await process.end()


async def test_end_ends_everything(place: HostPlace, tmp_path: Path) -> None:
    """`end` leaves nothing: neither what ignores TERM, nor what has a session of its own."""
    process = await place.start(["/bin/sh", "-c", STUBBORN], ENV)
    await soon(lambda: all_run(tmp_path))
    assert len(marked(process.ident.marker)) >= 4
    await process.end()
    assert marked(process.ident.marker) == []
    assert not alive(process.ident)
    with pytest.raises(PlaceError, match="no more input"):
        await process.write(b"x")


OWNER = """
import asyncio, sys
from pathlib import Path
from channelcoder_flows.places.host import HostPlace
async def main():
    process = await HostPlace(Path.cwd(), Path.cwd()).start(["/bin/sh", "-c", sys.argv[1]], {"PATH": sys.argv[2]})
    print(process.ident.model_dump_json(), flush=True)
    await process.wait()
asyncio.run(main())
"""


def owned(folder: Path) -> tuple[subprocess.Popen[str], ProcessIdent]:
    """Start `STUBBORN` from an owner of its own; return both."""
    argv = [sys.executable, "-c", OWNER, STUBBORN, ENV["PATH"]]
    owner = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    ident = ProcessIdent.model_validate_json(owner.stdout.readline())
    until(lambda: all_run(folder))
    return owner, ident


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_its_owner(tmp_path: Path, how: signal.Signals) -> None:
    """However the owner dies, all that it started goes too, without anybody's help."""
    owner, ident = owned(tmp_path)
    assert alive(ident)
    owner.send_signal(how)
    owner.communicate()
    until(lambda: not marked(ident.marker) and not alive(ident))


async def test_another_process_ends_what_is_left(place: HostPlace, tmp_path: Path) -> None:
    """Who finds a dead owner's process ends it, once; a pid that was given to another process is left alone."""
    owner, ident = owned(tmp_path)
    # The watcher sleeps as if the machine were too busy for it.
    owner.send_signal(signal.SIGSTOP)
    assert await place.end_stale(ident)
    assert marked(ident.marker) == []
    assert not await place.end_stale(ident)
    owner.kill()
    owner.communicate()
    mine = ProcessIdent(host=machine(), id=str(os.getpid()), started="1", marker="nobody's")
    assert start_time(os.getpid()) not in ("", "1")
    assert not await place.end_stale(mine)
    elsewhere = ident.model_copy(update={"host": "another/boot", "id": str(os.getpid())})
    assert not await place.end_stale(elsewhere)
    assert start_time(2**22 + 1) == ""


async def test_a_flood_of_errors_is_read(place: HostPlace) -> None:
    """A process that fills its standard error is not blocked, and its last words are kept."""
    script = "i=0; while [ $i -lt 20000 ]; do echo line-$i >&2; i=$((i+1)); done; echo done"
    process = await place.start(["/bin/sh", "-c", script], ENV)
    async with asyncio.timeout(30):
        assert await output(process) == "done\n"
    await soon(lambda: process.stderr_tail().endswith("line-19999"))
    assert len(process.stderr_tail().splitlines()) <= 40
    await process.end()
