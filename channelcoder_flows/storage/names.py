"""Session names as directory names: never two names on one directory, never a way out of the store."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_PLAIN: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,149}")
_OTHER: Final = re.compile(r"[^a-z0-9_-]+")


def directory_name(name: str) -> str:
    """Return the directory a session is kept in.

    A name of up to 150 of `a-z 0-9 . _ -` that does not begin with a dot is its own directory. Any other one becomes
    what is readable of it, `~`, and 32 hexadecimal digits of its sha256: no case or Unicode form to fold, no separator,
    and more digits than anyone can search for a second name of a directory.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = _OTHER.sub("-", name.lower()).strip("-")[:40]
    return f"{readable}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
