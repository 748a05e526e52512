"""Hostile prompt files: each is a prompt or a refusal that says where, on one line, at once and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from prompt_corpus import Case, cases

from channelcoder_flows.errors import PromptError
from channelcoder_flows.prompt import Prompt, check

CASES = list(cases())
SECONDS, MEGABYTES = 0.1, 50


def test_the_corpus_is_one() -> None:
    """There are over 200 files, no two of one name."""
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:40].encode("ascii", "replace").decode())
def test_a_hostile_file_is_a_prompt_or_a_refusal(case: Case, tmp_path: Path) -> None:
    """Each file is read for certain, or refused on one line that names the file, and the line and key where it can."""
    path = case.make(tmp_path)
    refusal = refused(path)
    if refusal is None:
        assert not case.refusal
        return
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(path))
    assert case.refusal and str(refusal).startswith(shown + case.refusal), str(refusal)
    assert str(refusal).isprintable()
    assert len(str(refusal)) < len(shown) + 600
    assert check([path])[0].message == refusal.message or path.is_dir()


@pytest.mark.torture
def test_a_refusal_is_quick_and_small(tmp_path: Path) -> None:
    """Nothing in the corpus takes over 100 ms of CPU or 50 MB, refused or not."""
    found: list[tuple[float, float, str]] = []
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = case.make(folder)
        found.append((*cost(path), case.name))
    slowest, biggest = max(found), max(found, key=lambda each: each[1])
    print(f"{len(found)} files; slowest: {slowest[0] * 1000:.0f} ms, {slowest[2]}")
    print(f"biggest: {biggest[1]:.1f} MB, {biggest[2]}")
    assert slowest[0] < SECONDS
    assert biggest[1] < MEGABYTES


def refused(path: Path) -> PromptError | None:
    """Return what a prompt file is refused with."""
    try:
        Prompt.load(path)
    except PromptError as exc:
        return exc
    return None


def cost(path: Path) -> tuple[float, float]:
    """Return the CPU seconds (the least of three times) and the peak megabytes of reading a prompt file."""
    seconds: list[float] = []
    for _ in range(3):
        begin = time.process_time()
        refused(path)
        seconds.append(time.process_time() - begin)
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak / 1e6
