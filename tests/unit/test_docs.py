"""The pages hold together: every link leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest

from channelcoder_flows import journal
from channelcoder_flows.config import ENVIRONMENT, KEYS, PERSONAL

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!\\)!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def pages() -> list[str]:
    """Return the pages of the project; prompt files are none, nor what was installed into a hidden folder."""
    folders = (ROOT / name for name in ("docs", "deployments", "benchmarks", "flows"))
    found = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    named = [page.relative_to(ROOT) for page in found]
    return sorted(str(page) for page in named if not any(part.startswith(".") for part in page.parts))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(CODE.sub(lambda code: code[0].strip("`") if "\n" not in code[0] else "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    """Each relative link of a page names a file of the project, and its anchor a heading in it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in LINK.finditer(CODE.sub("", text)):
        link = unquote(match[1] or match[2])
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert file.exists(), f"{page} links to {link}, which is not there"
        assert file.is_relative_to(ROOT), f"{page} links to {link}, outside the project"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {link}: no such heading"


def test_there_are_pages() -> None:
    """The check above has something to look at."""
    assert "CONTRIBUTING.md" in pages()


def test_every_setting_is_explained() -> None:
    """docs/settings.md names each setting, the variables that set it, and whether a project may."""
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert rows.keys() == set(KEYS)
    for key, variables in ENVIRONMENT.items():
        assert all(f"`{variable}`" in rows[key] for variable in variables)
        assert (f"| `{key}` * |" in rows[key]) == (key in PERSONAL)


def test_every_event_of_the_journal_is_named() -> None:
    """docs/design.md lists each kind of event that a journal can hold."""
    section = section_of("docs/design.md", "## Sessions and stores")
    kinds = {
        get_args(event.model_fields["kind"].annotation)[0]
        for event in vars(journal).values()
        if isinstance(event, type) and issubclass(event, journal.EventBase) and event is not journal.EventBase
    }
    assert {"session", "turn", "failed", "moved"} <= kinds
    assert sorted(kind for kind in kinds if f"`{kind}`" not in section) == []


def test_the_layers_are_those_that_are_checked() -> None:
    """docs/design.md draws the layers in the order that the linter of imports holds them to."""
    rows = re.findall(r"^\| (`.*?) \|", section_of("docs/design.md", "## Layers"), re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" | ")) for layer in contracts[0]["layers"]]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [layer for layer in layers if layer != {"__main__"}]


def test_every_module_is_in_the_tree() -> None:
    """CONTRIBUTING.md says of each module and folder of the package what it is for, and of none that is not there."""
    tree = section_of("CONTRIBUTING.md", "## The tree").partition("channelcoder_flows/")[2].partition("\n    flows/")[0]
    named = [line.split("  ")[0].split() for line in re.findall(r"^ {6}(\w.*)", tree, re.MULTILINE)]
    there = [path for path in (ROOT / "channelcoder_flows").iterdir() if not path.name.startswith("_")]
    wanted = [f"{path.name}/" if path.is_dir() else path.name for path in there if path.suffix in ("", ".py")]
    assert sorted(name for names in named for name in names) == sorted(wanted)


def section_of(page: str, heading: str) -> str:
    """Return a page's section, without its heading."""
    found = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    assert found, f"{page} has no section {heading}"
    return found
