"""What tests of all kinds share: one Prefect server a worker, which ends with them, and the seed of what is random."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings
from prefect_server import PrefectServer

# A machine that is busy with something else makes no promise false.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")
# For `make mutate`: the same examples for each mutant, and no search for a smaller one that kills it too.
settings.register_profile(
    "mutants", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)

SEED = int(os.environ.get("CHANNELCODER_SEED") or time.time())
"""Read here, because a test's own environment has nothing of the caller's."""


@pytest.fixture
def seed() -> int:
    """The seed of a long form, printed so that it can be given again: CHANNELCODER_SEED, or the time."""
    print(f"seed {SEED}")
    return SEED


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real Prefect server, started once. Who kills it starts it again."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect-server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prefect_api(prefect_server: PrefectServer) -> str:
    """The API of a real Prefect server."""
    return prefect_server.url
