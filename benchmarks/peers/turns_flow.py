"""The same steps as turns of a session. With DIE_AT=N the flow fails before step N."""

import asyncio
import os
import sys

import memory
from prefect import flow

from channelcoder_flows.flow import turn


@flow
async def steps(session: str, count: int = 10) -> None:
    for number in range(1, count + 1):
        if os.environ.get("DIE_AT") == str(number):
            raise RuntimeError("the power went out")
        await turn(f"Part {number}", key=f"part-{number}", session=session)
        memory.note(number)


if __name__ == "__main__":
    asyncio.run(steps(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 10))
