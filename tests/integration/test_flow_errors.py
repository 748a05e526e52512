"""Flows that catch an error and go on: a resume is told of the same error again, and pays for nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from test_flow import ECHO, Model, journal, resume, run, work, write

from channelcoder_flows.errors import ChannelCoderError

__all__ = ["work"]
pytestmark = pytest.mark.xdist_group("prefect")

GOES_ON = """
from channelcoder_flows import ApiError, OutputInvalid

@flow
async def goes_on():
    try:
        first = (await turn("prompts/first.md", session="work")).text
    except (ApiError, OutputInvalid) as exc:
        first = f"{type(exc).__name__} {exc.kind}"
    built = await turn("Build it", key="build", session="work")
    die_once()
    return [first, built.text, (await turn("Check it", key="check", session="work")).text]
"""


async def died(entrypoint: str) -> None:
    """Run a flow that dies in the middle."""
    with pytest.raises(ChannelCoderError, match="the power went out"):
        await run(entrypoint)


async def test_a_failure_that_was_caught_is_told_again(scripted_model: Model, work: Path) -> None:
    """A step that failed, and that the flow went on without, fails again in the resume: same class, nothing spent."""
    (work / "prompts" / "first.md").write_text("Try the hard way")
    model = scripted_model([{"when": "hard way", "reply": {"error": 400}}, *ECHO])
    await died(write(GOES_ON))
    tried = [request.prompt for request in model.requests].count("Try the hard way")
    report = await resume("work")
    assert report is not None
    assert report.result == ["ApiError api/400", "Build: done", "Check: done"]
    assert [request.prompt for request in model.requests].count("Try the hard way") == tried
    assert [model.paid(word) for word in ("Build", "Check")] == [1, 1]


async def test_a_changed_step_that_had_failed_is_noticed(scripted_model: Model, work: Path) -> None:
    """Mending the prompt of a step that the flow went on without stops the resume; `--rerun` begins there."""
    first = work / "prompts" / "first.md"
    first.write_text("Try the hard way")
    model = scripted_model(
        [{"when": "hard way", "reply": {"error": 400}}, {"when": "easy way", "reply": "easy"}, *ECHO]
    )
    await died(write(GOES_ON))
    first.write_text("Try the easy way")
    with pytest.raises(ChannelCoderError, match="step 'first' of session 'work' was changed"):
        await resume("work")
    report = await resume("work", on_diverged="rerun")
    assert report is not None
    assert report.result == ["easy", "Build: done", "Check: done"]
    assert [turn.prompt for turn in (await journal()).turns] == ["Try the easy way", "Build it", "Check it"]
    assert model.paid("Build") == 2


async def test_a_wrong_output_that_was_caught_is_told_again(scripted_model: Model, work: Path) -> None:
    """A step whose output never fitted, and that the flow went on without, is not asked and paid for again."""
    (work / "prompts" / "first.md").write_text("---\noutput:\n  score: {type: integer, max: 5}\n---\nJudge it")
    wrong = [{"when": "Judge", "reply": "no form"}, {"when": "does not fit", "reply": "still none"}]
    model = scripted_model([*wrong, *ECHO])
    await died(write(GOES_ON))
    spent = len(model.requests)
    report = await resume("work")
    assert report is not None
    assert report.result == ["OutputInvalid output", "Build: done", "Check: done"]
    assert len(model.requests) == spent + 1
    assert [str(turn.step) for turn in (await journal()).turns] == ["first", "first~2", "build", "check"]


async def test_a_wrong_output_that_the_flow_died_of_goes_on(scripted_model: Model, work: Path) -> None:
    """A flow that ended with a wrong output asks for the right form when it is resumed, in the same step."""
    (work / "prompts" / "first.md").write_text("---\noutput:\n  score: integer\n---\nJudge it")
    scripted_model([{"when": "Judge", "reply": "no form"}, {"when": "does not fit", "reply": "still none"}])
    entrypoint = write(
        """
        @flow
        async def judged():
            return (await turn("prompts/first.md", session="work")).output
        """
    )
    with pytest.raises(ChannelCoderError, match="does not fit the declared output"):
        await run(entrypoint)
    scripted_model([{"when": "does not fit", "reply": {"output": {"score": 3}}}])
    report = await resume("work")
    assert report is not None
    assert report.result == {"score": 3}
    assert [str(turn.step) for turn in (await journal()).turns] == ["first", "first~2", "first~3"]


async def test_what_is_kept_is_not_judged_anew(scripted_model: Model, work: Path) -> None:
    """With `--keep` a recorded output counts, even though the prompt now declares another form."""
    prompt = work / "prompts" / "form.md"
    prompt.write_text("---\noutput:\n  a: string\n---\nForm it")
    model = scripted_model([{"when": "Form", "reply": {"output": {"a": "x"}}}, *ECHO])
    await died(
        write(
            """
            @flow
            async def formed():
                form = await turn("prompts/form.md", session="work")
                await turn("Build it", key="build", session="work")
                die_once()
                return form.output
            """
        )
    )
    prompt.write_text("---\noutput:\n  b: string\n---\nForm it")
    spent = len(model.requests)
    report = await resume("work", on_diverged="keep")
    assert report is not None
    assert (report.result, len(model.requests)) == ({"a": "x"}, spent)


async def test_a_server_that_is_gone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prefect server that does not answer is named; a flow's own trouble with the network is told as it is."""
    own = write(
        """
        import httpx

        @flow
        async def fetches():
            httpx.get("http://127.0.0.1:9/")
        """
    )
    with pytest.raises(ChannelCoderError, match="before its first turn: ConnectError: "):
        await run(own)
    gone = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(gone), pytest.raises(ChannelCoderError, match=r":9/api cannot be reached: see that it"):
        await run(own)
