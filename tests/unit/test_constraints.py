"""A fresh install gets what was tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINNED = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_constraints_satisfy_the_project(extra: str) -> None:
    """Every library the project names is pinned, to a version the project allows."""
    for text in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        pinned = PINNED.get(canonicalize_name(requirement.name))
        assert pinned, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pinned), f"{text}, but constraints.txt says {pinned}"


def test_names_and_versions_only() -> None:
    """No address and no local path: the file means the same on every machine and index."""
    assert list(PINNED) == sorted(PINNED)
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+]*", line)
