"""The flags that commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from channelcoder_flows.config import Settings, load_settings
from channelcoder_flows.errors import UsageError

PROMPT = Group("Prompt", sort_key=2)
OTHER = Group("Other", sort_key=9)

Json = Annotated[bool, Parameter(help="Print JSON on stdout, and nothing else there.", group=OTHER)]
Verbose = Annotated[bool, Parameter(help="Say on stderr what happens; show the traceback of an error.", group=OTHER)]
Store = Annotated[
    str | None, Parameter(metavar="URL", help="Where sessions live: a directory, or a store's URL.", group=OTHER)
]
Data = Annotated[
    list[str] | None,
    Parameter(
        name=("-d", "--data"),
        metavar="KEY=VALUE",
        help="An input, as often as there are inputs. JSON where it parses, else text.",
        group=PROMPT,
        allow_leading_hyphen=True,
        negative=(),
    ),
]


def settings(store: str | None = None, *, cwd: Path | None = None) -> Settings:
    """Return the settings that hold, with `--store` over all; a relative path starts where the command is typed."""
    if store is not None and ":" not in store.partition("/")[0]:
        store = str(Path(store).expanduser().absolute())
    return load_settings(cwd=cwd, overrides={"store": store})


def read_data(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return the inputs of `-d KEY=VALUE` as they were typed.

    Raises:
        UsageError: one has no `=`, or a key is given twice.
    """
    data: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"-d {pair}: an input is given as KEY=VALUE")
        if key in data:
            raise UsageError(f"-d {pair}: {key} is given twice")
        data[key] = text
    return data
