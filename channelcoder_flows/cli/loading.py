"""Loading modules, and no search for garbage among them: it takes as long as the loading, and again at the end."""

from __future__ import annotations

import gc

OBJECTS = 50_000
"""New objects until the collector looks at them (Python's own: 700)."""


def load_calmly() -> None:
    """Let the collector look less often, for the whole of this process."""
    gc.set_threshold(OBJECTS)


def load_claude_code() -> None:
    """Load what a turn needs; then let the collector pass over all that is loaded, which stays to the end anyway.

    To be called before anything of the user's is loaded: what becomes garbage later is found as ever.
    """
    from channelcoder_flows import claude_code as claude_code

    gc.freeze()
