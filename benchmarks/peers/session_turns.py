"""Turns of one session from a Python program: session_turns.py NAME TURNS [live]."""

import asyncio
import sys

from channelcoder_flows import Session


async def main(name: str, turns: int, live: bool) -> None:
    async with Session(name, live=live) as session:
        for number in range(1, turns + 1):
            await session.claude(f"Part {number}")


asyncio.run(main(sys.argv[1], int(sys.argv[2]), "live" in sys.argv[3:]))
