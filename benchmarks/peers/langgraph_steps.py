"""Ten steps on LangGraph, each a checkpoint in SQLite before the next begins: langgraph_steps.py SESSION."""

import json
import os
import subprocess
import sys
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

CLAUDE = os.environ["CHANNELCODER_CLAUDE_PATH"]


class State(TypedDict):
    number: int
    session: str
    text: str


def step(state: State) -> dict[str, object]:
    number, session = state["number"], state["session"]
    go_on = ["--resume", session] if number > 1 else ["--session-id", session]
    argv = [CLAUDE, "-p", *go_on, "--output-format", "json"]
    done = subprocess.run(argv, input=f"Part {number}", capture_output=True, text=True, check=True)
    return {"number": number + 1, "text": json.loads(done.stdout)["result"]}


def main(session: str) -> None:
    graph = StateGraph(State)
    names = [f"step-{number}" for number in range(1, 11)]
    for name in names:
        graph.add_node(name, step)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    with SqliteSaver.from_conn_string("steps-langgraph.sqlite") as saver:
        flow = graph.compile(checkpointer=saver)
        first: State = {"number": 1, "session": session, "text": ""}
        flow.invoke(first, {"configurable": {"thread_id": session}, "recursion_limit": 50}, durability="sync")


if __name__ == "__main__":
    main(sys.argv[1])
