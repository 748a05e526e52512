"""Steps on Prefect as one writes them by hand: sync tasks that run `claude -p` and go on with the session.

prefect_by_hand.py SESSION [STEPS]: with KEPT=1 the results are kept, so that a second run takes them from there;
with DIE_AT=N the flow fails before step N.
"""

import json
import os
import subprocess
import sys

import memory
from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE

CLAUDE = os.environ["CHANNELCODER_CLAUDE_PATH"]
KEPT = os.environ.get("KEPT") == "1"


@task(persist_result=KEPT, cache_policy=INPUTS if KEPT else NO_CACHE)
def step(number: int, session: str) -> str:
    go_on = ["--resume", session] if number > 1 else ["--session-id", session]
    argv = [CLAUDE, "-p", *go_on, "--output-format", "json"]
    done = subprocess.run(argv, input=f"Part {number}", capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["result"]


@flow
def steps(session: str, count: int) -> None:
    for number in range(1, count + 1):
        if os.environ.get("DIE_AT") == str(number):
            raise RuntimeError("the power went out")
        step(number, session)
        memory.note(number)


if __name__ == "__main__":
    steps(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 10)
