"""Flows on Prefect: each turn is a task, and a killed flow goes on from the journal. Only this package knows Prefect.

from prefect import flow
from channelcoder_flows.flow import turn

@flow
async def feature(name: str):
    plan = await turn("prompts/plan.md", session=f"feature-{name}")
    return (await turn("prompts/implement.md", session=plan.session)).output
"""

from channelcoder_flows.flow.turn import turn

__all__ = ["turn"]
