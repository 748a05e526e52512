"""Four turns of every kind, for killing: text, tools that edit files, structured output, an overloaded API."""

from prefect import flow

from channelcoder_flows.flow import turn

PROMPTS = ("work", "work", "decide", "work")


@flow
async def four_turns(name: str) -> list[str]:
    """Run four turns in the session `name`."""
    answers: list[str] = []
    session = name
    for number, prompt in enumerate(PROMPTS, start=1):
        done = await turn(f"prompts/{prompt}.md", session=session, data={"number": number, "name": name})
        session = done.session
        answers.append(f"{done.step}: {done.output or done.text}")
    return answers
