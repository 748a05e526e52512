"""Changes the code a little, some two thousand times, and runs the tests on each change: `make mutate`.

A mutant that no test notices is a promise that nothing holds. Template, schema and journal are mutated in full, the
machinery of a step in a sample: its tests run the real CLI, and take seconds each. What survives has to stand in
tests/MUTANTS.md, with why it is no different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".mutation"
PACKAGE = "channelcoder_flows"
MUTMUT = Path(sys.executable).with_name("mutmut")
SAMPLE = 40
SEED = 20261122


@dataclass(frozen=True)
class Part:
    """What is mutated, and the tests that are to notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int | None = None
    """How many mutants are tried; None: all."""


PARTS = {
    "whole": Part(
        ("template.py", "schema/*.py", "journal.py"),
        ("unit/test_template.py", "unit/test_schema.py", "unit/test_journal.py"),
    ),
    "step": Part(
        ("step.py", "checkpoint.py"),
        (
            "unit/test_step.py",
            "unit/test_run.py",
            *(f"integration/test_{name}.py" for name in ("keeping", "session", "live", "engine", "recovery")),
        ),
        sample=SAMPLE,
    ),
}
PYTEST = (
    "--hypothesis-profile=mutants",
    *("-p no:cacheprovider", "-p no:cov"),
    # It compares times, and it loads the installed package.
    "--deselect=tests/unit/test_template.py::test_time_is_linear",
    "--deselect=tests/unit/test_schema.py::test_the_short_notation_needs_no_jsonschema",
)
NOT_MUTATED = (r"\bcast\(",)
"""Lines that only a type checker reads."""
ALIVE = ("survived", "no tests", "suspicious", "segfault", "not checked")
LITERAL = re.compile(r"""(["'])XX(.*)XX\1""")


def main() -> int:
    """Run the parts asked for, say what survived, and return 1 when one of it is not explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHANNELCODER_SEED") or SEED))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    explained = (ROOT / "tests" / "MUTANTS.md").read_text(encoding="utf-8")
    unexplained = 0
    for name in asked.parts:
        folder = prepare(name, PARTS[name])
        names = sample(folder, PARTS[name], asked.seed)
        subprocess.run([MUTMUT, "run", f"--max-children={asked.jobs}", *names], cwd=folder, check=True)
        counts: Counter[str] = Counter()
        for status, mutant in results(folder, names):
            if status not in ALIVE:
                counts["killed"] += 1
            elif is_wording(mutant):
                counts["in the wording of a message"] += 1
            elif mutant in explained:
                counts["explained"] += 1
            else:
                counts["unexplained"] += 1
                print(f"\n{status}:\n{mutant}")
        print(f"\n{name}: {counts.total()} mutants, " + ", ".join(f"{n} {what}" for what, n in counts.items()))
        unexplained += counts["unexplained"]
    return 1 if unexplained else 0


def prepare(name: str, part: Part) -> Path:
    """Return a fresh folder with the project in it, and mutmut's settings for one part."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    others = sorted({line.partition("/")[0] for line in tracked.splitlines()})
    for other in others:
        (folder / other).symlink_to(ROOT / other)
    settings = {
        "source_paths": [PACKAGE],
        "also_copy": [other for other in others if other not in (PACKAGE, "tests")],
        "only_mutate": [f"{PACKAGE}/{module}" for module in part.modules],
        "do_not_mutate_patterns": NOT_MUTATED,
        "pytest_add_cli_args": [word for option in PYTEST for word in option.split()],
        "pytest_add_cli_args_test_selection": [f"tests/{test}" for test in part.tests],
    }
    lines = ("\n    ".join([f"{key} =", *values]) for key, values in settings.items())
    (folder / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]), encoding="utf-8")
    return folder


def sample(folder: Path, part: Part, seed: int) -> list[str]:
    """Return the names of the mutants that are tried; none when all of them are."""
    if part.sample is None:
        return []
    os.chdir(folder)
    names = [
        get_mutant_name(Path(PACKAGE, module), name)
        for module in part.modules
        for name in mutate_file_contents(module, Path(PACKAGE, module).read_text(encoding="utf-8")).mutant_names
    ]
    return sorted(random.Random(seed).sample(names, part.sample))


def results(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield how each mutant ended, and what it was: where it is, and the lines before and after."""
    os.chdir(folder)
    for meta in sorted(Path("mutants", PACKAGE).rglob("*.meta")):
        source = meta.relative_to("mutants").with_suffix("")
        for name, code in json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].items():
            if names and name not in names:
                continue
            lines = get_diff_for_mutant(name, path=source).splitlines()
            changed = [f"{line[0]} {line[1:].strip()}" for line in lines if re.match(r"[+-](?![+-])", line)]
            where = re.sub(r"__mutmut_\d+$", "", name).removeprefix(f"{PACKAGE}.")
            where = re.sub(r"\bx_|xǁ", "", where).replace("ǁ", ".")
            yield status_by_exit_code[code], "\n".join([f"@@ {where}", *changed])


def is_wording(mutant: str) -> bool:
    """Whether nothing but the wording of a message differs: a text of several words, in other letters or in XX."""
    _, *changed = mutant.splitlines()
    if len(changed) != 2:
        return False
    before, after = changed[0][2:], changed[1][2:]
    plain = LITERAL.sub(r"\1\2\1", after)
    parts = zip(re.split(r"""("[^"]*"|'[^']*')""", before), re.split(r"""("[^"]*"|'[^']*')""", plain), strict=False)
    differ = [old for old, new in parts if old != new] or [match[2] for match in LITERAL.finditer(after)]
    return plain.lower() == before.lower() and all(" " in text for text in differ)


if __name__ == "__main__":
    sys.exit(main())
