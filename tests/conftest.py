"""One Prefect server for all tests of a worker that ask for one; it ends with them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

SERVER = [sys.executable, "-m", "channelcoder_flows.flow.server"]


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real Prefect server, started once."""
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    home = str(tmp_path_factory.mktemp("prefect-server"))
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | quiet | {"PREFECT_HOME": home}
    server = subprocess.Popen(SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdin and server.stdout
    try:
        ready, _, _ = select.select([server.stdout], [], [], 120)
        assert ready, "the Prefect server did not start"
        url = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/api", url)
        yield url
    finally:
        server.stdin.close()
        server.wait(timeout=30)
