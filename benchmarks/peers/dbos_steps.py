"""Ten steps on DBOS, each a checkpoint in SQLite: dbos_steps.py SESSION."""

import json
import os
import subprocess
import sys

from dbos import DBOS, DBOSConfig

CLAUDE = os.environ["CHANNELCODER_CLAUDE_PATH"]
config: DBOSConfig = {"name": "steps", "system_database_url": "sqlite:///steps-dbos.sqlite", "run_admin_server": False}
DBOS(config=config)


@DBOS.step()
def step(number: int, session: str) -> str:
    go_on = ["--resume", session] if number > 1 else ["--session-id", session]
    argv = [CLAUDE, "-p", *go_on, "--output-format", "json"]
    done = subprocess.run(argv, input=f"Part {number}", capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["result"]


@DBOS.workflow()
def steps(session: str) -> None:
    for number in range(1, 11):
        step(number, session)


if __name__ == "__main__":
    DBOS.launch()
    steps(sys.argv[1])
    DBOS.destroy()
