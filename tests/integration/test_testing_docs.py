"""What docs/testing.md shows is what works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from channelcoder_flows.testing.script import Answer, Break, Refusal

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def test_the_example_passes(tmp_path: Path) -> None:
    """A reader who copies the two files of the page into a folder has a test that passes."""
    files = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
    assert set(files) == {"feature.yaml", "test_feature.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_every_key_of_a_reply_is_explained() -> None:
    """The page's table has each key of a reply, and no other."""
    table = PAGE.partition("## Replies")[2].partition("\n## ")[0]
    keys = {key for model in (Answer, Refusal, Break) for key in model.model_fields}
    first_column = " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert keys <= set(re.findall(r"`(\w+)", table))
    assert set(re.findall(r"`(\w+)", first_column)) <= keys | {"start", "mid", "garbage", "truncated"}
