"""Fixes a bug in four steps: each is a prompt file, all are turns of one session."""

from typing import Any

from prefect import flow

from channelcoder_flows.flow import turn


@flow
async def fix(bug: str, session: str) -> Any:
    """Plan, implement, test and review; return what the review found."""
    plan = await turn("prompts/plan.md", session=session, data={"bug": bug})
    code = await turn("prompts/implement.md", session=plan.session)
    tests = await turn("prompts/test.md", session=code.session)
    review = await turn("prompts/review.md", session=tests.session)
    return review.output
