"""Eight turns of every kind, for killing: text, tools that edit files, structured output, an overloaded API."""

from prefect import flow

from channelcoder_flows.flow import turn


@flow
async def eight_turns(name: str) -> list[str]:
    """Run eight turns in the session `name`."""
    answers: list[str] = []
    session = name
    for number in range(1, 9):
        prompt = "prompts/decide.md" if number in (3, 7) else "prompts/work.md"
        done = await turn(prompt, session=session, data={"number": number, "name": name})
        session = done.session
        answers.append(f"{done.step}: {done.output or done.text}")
    return answers
