"""A real Prefect server for tests, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

from channelcoder_flows.places.host import KEEPER

LIMIT = 120.0
"""Seconds a server may take to start, its first migrations included."""


class PrefectServer:
    """A Prefect server on one port and one database. It ends with the test run, however that ends."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        more = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        kept, self._let_go = os.pipe()
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", str(KEEPER), str(kept), uuid.uuid4().hex, *argv],
                env={k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | more,
                pass_fds=(kept,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(kept)
        deadline = time.monotonic() + LIMIT
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log()
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it, as the kernel does when memory is short."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(timeout=60)
        os.close(self._let_go)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            return answer.status == 200
        return False

    def _log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")
