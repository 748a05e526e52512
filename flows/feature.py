"""A feature from ticket to review, over hours or days. Copy it, and make the prompts yours.

channelcoder flow run flows/feature.py:feature -d name=search -d ticket="Search ignores accents"
"""

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import BaseModel, Field

from channelcoder_flows.flow import turn


class Delivery(BaseModel):
    """What a run of the flow comes to."""

    outcome: Literal["approved", "findings", "tests_fail", "blocked", "no_change"]
    summary: str
    details: list[Any] = []
    session: str


@flow(flow_run_name="feature-{name}")
async def feature(
    ticket: Annotated[str, Field(min_length=1)],
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,60}$")] = "next",
    test_command: Annotated[str, Field(min_length=1)] = "make test",
    rounds: Annotated[int, Field(ge=0, le=10)] = 2,
) -> Delivery:
    """Plan, implement, test and review one piece of work, in one conversation that can be left and taken up again.

    Args:
        ticket: What is wanted, in the words of who wants it.
        name: A short name for the work; its session is called `feature-NAME`, and goes on where it was left.
        test_command: The command that runs the project's tests; exit code 0 means that they pass.
        rounds: How often Claude may mend what the tests show before the flow gives up.
    """
    plan = await turn("prompts/feature/plan.md", session=f"feature-{name}", data={"ticket": ticket})
    if plan.outcome in ("blocked", "no_change"):
        return Delivery(outcome=plan.outcome, summary=plan.output["summary"], session=plan.session.name)

    steps = plan.output["steps"]
    code = await turn("prompts/feature/implement.md", session=plan.session, data={"steps": steps})
    tests = await turn("prompts/feature/test.md", session=code.session, data={"command": test_command})
    for _ in range(rounds):
        if tests.output["passed"]:
            break
        failures = {"steps": steps, "failures": tests.output["failures"]}
        code = await turn("prompts/feature/implement.md", session=tests.session, data=failures)
        tests = await turn("prompts/feature/test.md", session=code.session, data={"command": test_command})
    if not tests.output["passed"]:
        return Delivery(outcome="tests_fail", summary=tests.output["failures"], session=tests.session.name)

    review = await turn("prompts/feature/review.md", session=tests.session, data={"ticket": ticket})
    return Delivery(
        outcome="approved" if review.output["approved"] else "findings",
        summary=review.output["summary"],
        details=review.output["findings"],
        session=tests.session.name,
    )
