"""The pages hold together: every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from channelcoder_flows.config import ENVIRONMENT, KEYS, PERSONAL

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!\\)!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def pages() -> list[str]:
    """Return the pages of the project; prompt files are none."""
    folders = (ROOT / name for name in ("docs", "deployments", "benchmarks", "flows"))
    found = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    return sorted(str(page.relative_to(ROOT)) for page in found)


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
