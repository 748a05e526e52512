"""Flows on a real Prefect server, with the real Claude Code CLI on a scripted model."""

from __future__ import annotations

import asyncio
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hand import said
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from channelcoder_flows.config import load_settings
from channelcoder_flows.errors import (
    ApiError,
    FlowError,
    FlowNotFound,
    RunAlive,
    RunTakenOver,
    SessionConflict,
    SessionDiverged,
    SessionError,
    SessionNotFound,
    SessionUnfinished,
    UsageError,
)
from channelcoder_flows.flow.launch import FlowReport, load_flow, resume_flow, run_flow
from channelcoder_flows.flow.running import run_key_of
from channelcoder_flows.journal import Failed, Journal, Rewind, Started
from channelcoder_flows.places.host import marked
from channelcoder_flows.storage import open_storage
from channelcoder_flows.testing.model import ScriptedModel

pytestmark = pytest.mark.xdist_group("prefect")

Model = Callable[[Any], ScriptedModel]
HEAD = """
import asyncio
from pathlib import Path
from prefect import flow
from pydantic import SecretStr
from channelcoder_flows import Session
from channelcoder_flows.flow import turn

def die_once():
    if not Path("mended").exists():
        Path("mended").touch()
        raise RuntimeError("the power went out")
"""
TWO_STEPS = """
@flow
async def two_steps(name: str = "work"):
    plan = await turn("Plan it", key="plan", session=name)
    die_once()
    return (await turn("Build it", key="build", session=plan.session)).text
"""
ECHO = [{"when": word, "reply": f"{word}: done"} for word in ("Plan", "Build", "Check", "Extra")]


@pytest.fixture(autouse=True)
def work(
    prefect_api: str, claude_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty project in which the flows run, on the shared Prefect server."""
    folder = tmp_path / "work"
    (folder / "prompts").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLAUDE_CODE_MAX_RETRIES", "0")
    with temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield folder
        APILogHandler().flush()


def write(body: str) -> str:
    """Write a flow's file and return its entrypoint; the flow's name in Prefect is like no other test's."""
    body = textwrap.dedent(body)
    function = re.findall(r"async def (\w+)", body)[-1]
    body = body.replace(
        f"@flow\nasync def {function}", f'@flow(name="{function}-{uuid4().hex[:8]}")\nasync def {function}'
    )
    Path("flow.py").write_text(HEAD + body)
    return f"flow.py:{function}"


async def run(entrypoint: str, **data: Any) -> FlowReport:
    """Run a flow as `channelcoder flow run` does."""
    return await run_flow(entrypoint, data, settings=load_settings())


async def resume(session: str, **given: Any) -> FlowReport | None:
    """Resume a run as `channelcoder flow resume` does."""
    return await resume_flow(session, given.pop("data", {}), settings=load_settings(), **given)


async def journal(name: str = "work") -> Journal:
    """Return what the store has of a session."""
    return Journal(await open_storage(load_settings().store).read(name))


async def runs_of(entrypoint: str) -> tuple[list[FlowRun], list[TaskRun]]:
    """Return what Prefect's server has of a flow."""
    named = FlowFilter(name=FlowFilterName(any_=[load_flow(entrypoint).name]))
    async with get_client() as client:
        flow_runs = await client.read_flow_runs(flow_filter=named)
        return flow_runs, await client.read_task_runs(flow_filter=named)


async def settled(entrypoint: str, tasks: int) -> tuple[FlowRun, list[TaskRun]]:
    """Wait until the server knows the end of the flow's only run and of its tasks."""
    async with asyncio.timeout(30):
        while True:
            flow_runs, task_runs = await runs_of(entrypoint)
            ended = [task for task in task_runs if task.state and task.state.is_final()]
            if len(flow_runs) == 1 and len(ended) == tasks:
                return flow_runs[0], sorted(ended, key=lambda task: task.start_time or datetime.max)
            await asyncio.sleep(0.05)  # its events are processed when they are


async def test_a_turn_is_a_task(scripted_model: Model, tmp_path: Path) -> None:
    """Prefect shows each turn as a completed task with its step's name, its log and its cost, and stores no result."""
    scripted_model([{"when": "Plan", "reply": [{"tool": "Bash", "input": {"command": "pwd"}}, "Plan: done"]}, *ECHO])
    entrypoint = write(
        """
        @flow
        async def shown():
            plan = await turn("Plan it", key="plan", session="work", tools="Bash")
            return (await turn("Build it", key="build", session=plan.session)).text
        """
    )
    report = await run(entrypoint)
    assert (report.result, report.turns, report.sessions) == ("Build: done", 2, ("work",))
    flow_run, tasks = await settled(entrypoint, 2)
    assert [(task.name, task.state_name) for task in tasks] == [("plan", "Completed"), ("build", "Completed")]
    assert [task.cache_key for task in tasks] == [None, None]
    assert not list((tmp_path / "results").rglob("*"))
    async with get_client() as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        artifacts = await client.read_artifacts(artifact_filter=of_run)
        assert sorted(str(artifact.description) for artifact in artifacts) == [
            "Turn 1 of session work",
            "Turn 2 of session work",
        ]
        (shown,) = (str(artifact.data) for artifact in artifacts if "Plan: done" in str(artifact.data))
        assert "| cost | $0" in shown
        assert re.findall("(?m)^### .*|^    .*", shown)[:4] == [
            "### Prompt",
            "    Plan it",
            "### Tool calls",
            '    Bash {"command": "pwd"}',
        ]
        async with asyncio.timeout(30):
            while True:
                logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id])))
                if any("turn 2 of session 'work': done" in log.message for log in logs):
                    break
                await asyncio.sleep(0.05)  # logs are sent in batches


async def test_what_can_pass_is_tried_again(scripted_model: Model, work: Path) -> None:
    """A step with `retry` meets an overloaded API twice and succeeds the third time, as one turn."""
    (work / "prompts" / "plan.md").write_text("---\nretry: {attempts: 2, delay: 0}\n---\nPlan it")
    model = scripted_model([{"when": "Plan", "reply": [{"error": 529, "times": 2}, "planned"]}])
    entrypoint = write(
        """
        @flow
        async def tried():
            return (await turn("prompts/plan.md", session="work")).text
        """
    )
    assert (await run(entrypoint)).result == "planned"
    assert ([r.status for r in model.requests], model.paid()) == ([529, 529, 200], 1)
    kept = await journal()
    assert ([turn.step.key for turn in kept.turns], len(kept.messages)) == (["plan"], 2)
    _, (task,) = await settled(entrypoint, 1)
    assert (task.run_count, task.state_name) == (3, "Completed")


async def test_what_cannot_pass_is_not_tried_again(scripted_model: Model, work: Path) -> None:
    """A request that the API refuses for what it is is sent once, whatever `retry` says."""
    (work / "prompts" / "plan.md").write_text("---\nretry: 3\n---\nPlan it")
    model = scripted_model([{"when": "Plan", "reply": {"error": 400, "message": "no such model"}}])
    entrypoint = write(
        """
        @flow
        async def refused():
            return (await turn("prompts/plan.md", session="work")).text
        """
    )
    with pytest.raises(ApiError, match=r"channelcoder flow resume work$") as failed:
        await run(entrypoint)
    assert (failed.value.kind, failed.value.status, failed.value.session) == ("api/400", 400, "work")
    kept = await journal()
    assert [event.message[:60] for event in kept.events if isinstance(event, Failed)] == [
        "the API refused the turn: API Error: 400 no such model (chan"
    ]
    assert (model.paid(), {r.status for r in model.requests}) == (0, {400})


async def test_prefects_own_retry_of_a_flow_pays_nothing_twice(scripted_model: Model) -> None:
    """`@flow(retries=1)`: the second try takes the finished turn from the journal."""
    model = scripted_model(ECHO)
    report = await run(write(TWO_STEPS.replace("@flow", "@flow(retries=1)")))
    assert (report.result, report.turns, report.cost_usd > 0) == ("Build: done", 2, True)
    assert (model.paid("Plan"), model.paid("Build")) == (1, 1)
    kept = await journal()
    assert kept.run is not None
    assert (kept.run.status, len(kept.runs), len(kept.turns)) == ("completed", 1, 2)


async def test_a_retried_subflow_pays_nothing_twice(scripted_model: Model) -> None:
    """A subflow with retries takes its finished turns from the journal, and what its caller did stays done."""
    model = scripted_model(ECHO)
    entrypoint = write(
        """
        @flow(retries=1)
        async def part(name):
            await turn("Build it", key="build", session=name)
            die_once()
            return await turn("Check it", key="check", session=name)

        @flow
        async def whole():
            plan = await turn("Plan it", key="plan", session="work")
            again = await turn("Extra", key="build", session=plan.session)
            checked = await part(again.session.name)
            return (await turn("Plan it", key="plan", session=checked.session)).step
        """
    )
    report = await run(entrypoint)
    assert report.result == "plan#2"
    kept = await journal()
    assert [turn.step.key for turn in kept.turns] == ["plan", "build", "build#2", "check", "plan#2"]
    assert {turn.step.run for turn in kept.turns} == {report.run_key}
    assert (model.paid("Build"), model.paid("Check"), model.paid("Extra"), model.paid("Plan")) == (1, 1, 1, 2)


async def test_a_resumed_flow_pays_only_for_what_is_missing(scripted_model: Model) -> None:
    """`flow resume` needs nothing but the session's name; resuming what has ended does nothing."""
    model = scripted_model(ECHO)
    entrypoint = write(TWO_STEPS)
    with pytest.raises(FlowError, match=r"the power went out; to go on from there: channelcoder flow resume 'my work'"):
        await run(entrypoint, name="my work")
    report = await resume("my work")
    assert report is not None
    assert (report.result, report.turns) == ("Build: done", 1)
    assert (model.paid("Plan"), model.paid("Build")) == (1, 1)
    assert await resume("my work") is None


async def test_a_session_without_a_name_is_found_again(scripted_model: Model) -> None:
    """A turn without `session=` has one of its own in each run, and a resumed run finds it."""
    model = scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def unnamed():
            plan = await turn("Plan it", key="plan")
            other = await turn("Extra", key="plan")
            die_once()
            return [plan.session.name, other.session.name, (await turn("Build it", session=plan.session)).session.name]
        """
    )
    with pytest.raises(FlowError) as failed:
        await run(entrypoint)
    *_, session = shlex.split(failed.value.message.rpartition("channelcoder ")[2])
    report = await resume(session)
    assert report is not None
    first, second, third = report.result
    assert (first == third, first == second, second == session) == (True, False, True)
    assert (model.paid("Plan"), model.paid("Extra"), model.paid("Build")) == (1, 1, 1)
    again = await run(entrypoint)
    assert set(again.sessions).isdisjoint(report.result)


async def test_branches_without_names_keep_what_is_theirs(scripted_model: Model) -> None:
    """Turns without `session=` in branches side by side get their own answers again, whichever comes first."""
    model = scripted_model([{"when": "Plan A", "reply": {"hold": "gate", "text": "planned"}}, *ECHO])
    entrypoint = write(
        """
        async def branch(name, checked):
            await turn(f"Plan {name}", key="plan", session=name)
            if name == "B" and Path("mended").exists():
                await checked.wait()
            check = await turn(f"Check {name}", key="check")
            checked.set()
            return check

        @flow
        async def branches():
            checked = asyncio.Event()
            checks = await asyncio.gather(branch("A", checked), branch("B", checked))
            die_once()
            return [check.replayed for check in checks]
        """
    )
    first = asyncio.create_task(run(entrypoint))
    await asyncio.to_thread(model.wait_for, "Check B")
    model.release("gate")
    with pytest.raises(FlowError, match="the power went out"):
        await first
    report = await resume("A")
    assert report is not None
    assert (report.result, report.turns) == ([True, True], 0)


async def test_turns_may_start_side_by_side(scripted_model: Model) -> None:
    """A flow whose first act is two turns at once is not in its own way."""
    scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def abreast():
            both = await asyncio.gather(turn("Plan it", session="a"), turn("Build it", session="b"))
            return [each.text for each in both]
        """
    )
    assert (await run(entrypoint)).result == ["Plan: done", "Build: done"]


THREE_METHODS = """
from channelcoder_flows.storage import open_storage

class Shelf:
    def __init__(self):
        self.kept = open_storage("shelf")

    async def save(self, state, name=None):
        return await self.kept.save(state, name)

    async def load(self, name):
        return await self.kept.load(name)

    async def list(self):
        return await self.kept.list()
"""


async def test_a_store_without_a_url_is_found_again(scripted_model: Model) -> None:
    """`session=plan.session` goes on where the plan was made, also in a store of three methods; so does the run."""
    model = scripted_model(ECHO)
    entrypoint = write(
        THREE_METHODS
        + """
@flow
async def shelved():
    plan = await turn("Plan it", key="plan", session="work", storage=Shelf())
    die_once()
    return (await turn("Build it", key="build", session=plan.session)).turn
"""
    )
    with pytest.raises(FlowError, match=r"to go on from there: channelcoder flow run \S+ … --run-key mine$"):
        await run_flow(entrypoint, {}, settings=load_settings(), run_key="mine")
    report = await run_flow(entrypoint, {}, settings=load_settings(), run_key="mine")
    assert (report.result, report.turns, model.paid("Plan")) == (2, 1, 1)
    assert await open_storage(load_settings().store).list() == []


async def test_a_store_that_cannot_be_found_is_asked_for(scripted_model: Model) -> None:
    """A session of an unknown store is not begun anew in another one."""
    model = scripted_model(ECHO)
    entrypoint = write(
        """
        from channelcoder_flows import SessionRef

        @flow
        async def lost():
            await turn("Build it", session=SessionRef(name="elsewhere", seq=5))
        """
    )
    with pytest.raises(UsageError, match="is in a store that has no URL: pass the store as storage="):
        await run(entrypoint)
    assert model.paid() == 0


@pytest.mark.parametrize(
    ("meanwhile", "error"),
    [
        ("await Session.remove('work')", SessionNotFound),
        ("await Session.remove('work'); await turn('Extra', key='extra', session='work')", SessionConflict),
    ],
)
async def test_a_session_that_is_gone_is_not_begun_anew(
    scripted_model: Model, meanwhile: str, error: type[SessionError]
) -> None:
    """Going on from a turn whose session was removed or replaced is an error: Claude would know nothing of it."""
    model = scripted_model(ECHO)
    entrypoint = write(
        f"""
        @flow
        async def bereft():
            plan = await turn("Plan it", key="plan", session="work")
            {meanwhile}
            await turn("Build it", key="build", session=plan.session)
        """
    )
    with pytest.raises(error, match="since the turn to go on from: pass "):
        await run(entrypoint)
    assert model.paid("Build") == 0


async def test_a_chosen_store_holds_all_of_a_run(scripted_model: Model, work: Path) -> None:
    """`flow run --store` keeps every session of the run there, and the command that resumes it says so."""
    scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def moved():
            await Session("aside").claude("Check it")
            plan = await turn("Plan it", key="plan", session="work")
            die_once()
            return plan.replayed
        """
    )
    chosen = load_settings(overrides={"store": "mine"})
    with pytest.raises(FlowError) as failed:
        await run_flow(entrypoint, {}, settings=chosen)
    command = f"channelcoder flow resume work --store {(work / 'mine').as_uri()}"
    assert failed.value.message.endswith(f"; to go on from there: {command}")
    with pytest.raises(SessionUnfinished, match=re.escape(f"`{command.replace(' work', ' aside')}`")):
        await run_flow(entrypoint, {}, settings=chosen)
    assert [await open_storage(store).exists("work") for store in ("mine", load_settings().store)] == [True, False]
    assert await open_storage("mine").exists("aside")
    report = await resume_flow("work", {}, settings=chosen)
    assert report is not None
    assert report.result is True


async def test_a_live_cli_ends_with_the_run(scripted_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `live` a run's turns of one session share a process, also in its forks' company; the run ends them all."""
    scripted_model(ECHO)
    monkeypatch.setenv("CHANNELCODER_LIVE", "1")
    flow = write(
        """
        @flow
        async def all_in_one(name: str = "work"):
            plan = await turn("Plan it", session=name)
            await (await Session.load(name)).fork("other")
            await turn("Extra", session="other")
            await turn("Build it", session=plan)
            return (await turn("Check it", session=name)).text
        """
    )
    assert (await run(flow)).result == "Check: done"
    used = [event.process.marker for event in (await journal()).events if isinstance(event, Started)]
    assert len(used) == 3
    assert len(set(used)) == 1
    assert not any(marked(marker) for marker in used)


async def test_a_session_in_a_flow_counts(scripted_model: Model) -> None:
    """The report has the turns and the cost of a `Session` that the flow uses itself, and of an answer asked twice."""
    form, output = "Form it", {"a": "x"}
    scripted_model([{"when": "does not fit", "reply": {"output": output}}, {"when": form, "reply": "no form"}, *ECHO])
    Path("prompts/form.md").write_text(f"---\noutput: {{a: string}}\n---\n{form}")
    entrypoint = write(
        """
        @flow
        async def direct():
            session = Session("work")
            await session.claude("Plan it")
            await session.claude("prompts/form.md")
            return session.cost_usd
        """
    )
    report = await run(entrypoint)
    assert (report.turns, report.cost_usd) == (3, pytest.approx(report.result))


@pytest.mark.parametrize("call", ["claude('Plan it')", "turn('Plan it', storage='memory:')"])
async def test_what_is_not_kept_is_not_for_flows(scripted_model: Model, call: str) -> None:
    """A turn whose session nobody keeps is refused in a flow, with what to use instead."""
    model = scripted_model(ECHO)
    entrypoint = write(
        f"""
        from channelcoder_flows import claude

        @flow
        async def forgetful():
            await {call}
        """
    )
    with pytest.raises(UsageError, match=r"cannot be resumed: use turn\(\)"):
        await run(entrypoint)
    assert model.paid() == 0


async def test_a_sync_flow_is_told_what_to_write(scripted_model: Model) -> None:
    """A flow that cannot await is refused in one line, before anything is spent."""
    model = scripted_model(ECHO)
    Path("flow.py").write_text(HEAD + '\n@flow\ndef plain():\n    return turn("Plan it").text\n')
    with pytest.raises(FlowError, match=r"turn\(\) is asynchronous: write `async def plain` and `await turn"):
        await run("flow.py:plain")
    assert model.paid() == 0


async def test_a_turn_outside_a_flow_is_told_where_to_go() -> None:
    """`turn()` where no flow runs names what to use instead."""
    from channelcoder_flows.flow import turn

    with pytest.raises(FlowError, match=r"outside of one, use Session or claude\(\)"):
        await turn("Plan it")


async def test_a_secret_is_kept_nowhere(scripted_model: Model, claude_env: dict[str, str]) -> None:
    """A secret parameter is in no journal and not with Prefect; a resume asks for it by name, and then has it."""
    scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def sealed(token: SecretStr, name: str):
            plan = await turn("Plan it", key="plan", session=name)
            die_once()
            return f"{len(token.get_secret_value())} {plan.replayed}"
        """
    )
    with pytest.raises(FlowError, match="the power went out"):
        await run(entrypoint, token="hunter2-hunter2", name="work")
    sessions = Path(claude_env["CHANNELCODER_SESSION_DIR"])
    assert not [file for file in sessions.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    flow_run, tasks = await settled(entrypoint, 1)
    assert "hunter2" not in flow_run.model_dump_json() + tasks[0].model_dump_json()
    with pytest.raises(UsageError, match=r"token was secret and is not kept: pass it again with -d token=…"):
        await resume("work")
    report = await resume("work", data={"token": "hunter2-hunter2"})
    assert report is not None
    assert report.result == "15 True"


async def test_a_secret_left_at_its_default_is_not_asked_for(scripted_model: Model) -> None:
    """Only a secret that was given has to be given again."""
    scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def ajar(token: SecretStr = SecretStr("none")):
            await turn("Plan it", session="work")
            die_once()
            return token.get_secret_value()
        """
    )
    await died(entrypoint)
    report = await resume("work")
    assert report is not None
    assert report.result == "none"


async def died(entrypoint: str, **data: Any) -> None:
    """Run a flow that dies half-way."""
    with pytest.raises(FlowError, match="the power went out"):
        await run(entrypoint, **data)


async def test_a_new_run_does_not_pick_up_a_failed_one(scripted_model: Model) -> None:
    """By default a run that finds the session's last one unfinished spends nothing and says how to resume that."""
    model = scripted_model(ECHO)
    await died(entrypoint := write(TWO_STEPS))
    with pytest.raises(SessionUnfinished, match="go on with `channelcoder flow resume work`"):
        await run(entrypoint)
    assert model.paid() == 1


@pytest.mark.parametrize(
    ("policy", "plans", "runs"), [("resume", 1, ["completed"]), ("new", 2, ["failed", "completed"])]
)
async def test_a_new_run_may_face_a_failed_one(
    scripted_model: Model, monkeypatch: pytest.MonkeyPatch, policy: str, plans: int, runs: list[str]
) -> None:
    """`on_unfinished`: with `resume` a new run becomes the old one and ends it; with `new` it does all its steps."""
    model = scripted_model(ECHO)
    await died(entrypoint := write(TWO_STEPS))
    monkeypatch.setenv("CHANNELCODER_ON_UNFINISHED", policy)
    assert (await run(entrypoint)).result == "Build: done"
    assert (model.paid("Plan"), model.paid("Build")) == (plans, 1)
    kept = await journal()
    assert [run.status for run in kept.runs.values()] == runs


async def test_what_one_turn_may_do_is_its_own(scripted_model: Model) -> None:
    """`on_unfinished=` of one turn holds for that turn's session, not for the sessions that come after."""
    scripted_model(ECHO)
    await died(write(TWO_STEPS), name="dead")
    entrypoint = write(
        """
        @flow
        async def particular():
            await turn("Plan it", key="plan", session="fresh", on_unfinished="new")
            await turn("Build it", key="build", session="dead")
        """
    )
    with pytest.raises(SessionUnfinished, match="the last run of session 'dead' did not end"):
        await run(entrypoint)


@pytest.mark.parametrize("policy", ["fail", "resume", "new"])
async def test_no_run_goes_on_in_a_session_that_another_is_in(
    scripted_model: Model, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """A run between two turns is no unfinished one: whatever the policy, another run leaves it alone."""
    model = scripted_model([{"when": "Extra", "reply": {"hold": "gate", "text": "done"}}, *ECHO])
    entrypoint = write(
        """
        @flow
        async def busy():
            await turn("Plan it", key="plan", session="work")
            await turn("Extra", key="side", session="side")
            return (await turn("Build it", key="build", session="work")).text
        """
    )
    monkeypatch.setenv("CHANNELCODER_ON_UNFINISHED", policy)
    first = asyncio.create_task(run(entrypoint))
    await asyncio.to_thread(model.wait_for, "Extra")
    with pytest.raises(RunAlive, match="is still going on in session 'work'"):
        await run(entrypoint)
    model.release("gate")
    assert (await first).result == "Build: done"
    assert [model.paid(word) for word in ("Plan", "Extra", "Build")] == [1, 1, 1]


async def test_a_living_run_is_not_resumed_unless_it_is_taken_over(scripted_model: Model) -> None:
    """`flow resume` of a run that goes on is refused; with takeover it goes on here, and the other one stops.

    Once the other one is gone, the run is this one's like any other: a third is refused.
    """
    words = ("Extra", "Build", "Check")
    model = scripted_model([*({"when": word, "reply": {"hold": word, "text": "done"}} for word in words), *ECHO])
    entrypoint = write(
        """
        @flow
        async def contested():
            await turn("Plan it", key="plan", session="work")
            await turn("Extra", key="side", session="side")
            await turn("Build it", key="build", session="work")
            return (await turn("Check it", key="check", session="work")).text
        """
    )
    first = asyncio.create_task(run(entrypoint))
    await asyncio.to_thread(model.wait_for, "Extra")
    with pytest.raises(RunAlive, match="or take it over with --takeover"):
        await resume("work")
    second = asyncio.create_task(resume("work", takeover=True))
    async with asyncio.timeout(60):
        while sum(event.kind == "run" for event in (await journal()).events) < 2:
            await asyncio.sleep(0.02)  # it has to write itself into the session first
    model.release("Extra")
    with pytest.raises(RunTakenOver, match=r"was taken over by another process: this one stops here$"):
        await first
    model.release("Build")
    await asyncio.to_thread(model.wait_for, "Check")
    with pytest.raises(RunAlive):
        await resume("work")
    model.release("Check")
    report = await second
    assert report is not None
    assert report.result == "done"
    assert [model.paid(word) for word in ("Plan", *words)] == [1, 1, 1, 1]


DIVERGING = """
@flow
async def diverging():
    plan = await turn("prompts/plan.md", session="work")
    await turn("Build it", key="build", session=plan.session)
    die_once()
    return (await turn("Check it", key="check", session=plan.session)).text
"""


async def diverged(model: ScriptedModel, work: Path) -> None:
    """Let a flow die after two steps, then change the first."""
    (work / "prompts" / "plan.md").write_text("Plan it")
    await died(write(DIVERGING))
    (work / "prompts" / "plan.md").write_text("Plan it better")
    assert model.paid() == 2


async def test_a_changed_step_stops_the_resume(scripted_model: Model, work: Path) -> None:
    """Editing a finished step stops the resume before anything is spent, and names step, change and ways on."""
    model = scripted_model(ECHO)
    await diverged(model, work)
    with pytest.raises(SessionDiverged) as stopped:
        await resume("work")
    assert stopped.value.changed == ("prompt",)
    assert "to go on from there" not in stopped.value.message
    assert "step 'plan' of session 'work' was changed since it ran (prompt)" in stopped.value.message
    assert "--keep" in stopped.value.message
    assert "--rerun" in stopped.value.message
    assert model.paid() == 2


async def test_what_was_recorded_can_be_kept(scripted_model: Model, work: Path) -> None:
    """`--keep` goes on with the recorded answers and pays for the missing step only."""
    model = scripted_model(ECHO)
    await diverged(model, work)
    report = await resume("work", on_diverged="keep")
    assert report is not None
    assert report.result == "Check: done"
    assert [model.paid(word) for word in ("Plan", "Build", "Check")] == [1, 1, 1]


async def test_what_was_changed_can_be_run_again(scripted_model: Model, work: Path) -> None:
    """`--rerun` runs the changed step and all after it again; the old turns stay in the journal."""
    model = scripted_model(ECHO)
    await diverged(model, work)
    report = await resume("work", on_diverged="rerun")
    assert report is not None
    assert report.result == "Check: done"
    assert [model.paid(word) for word in ("Plan it better", "Build", "Check")] == [1, 2, 1]
    kept = await journal()
    assert [turn.prompt for turn in kept.turns] == ["Plan it better", "Build it", "Check it"]
    assert sum(event.kind == "turn" for event in kept.events) == 5


async def test_fork_rewind_and_save_happen_once(scripted_model: Model) -> None:
    """What a flow's body does to its sessions between turns is not done again by a resume."""
    model = scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def crafted():
            await turn("Plan it", key="plan", session="work")
            work = await Session.load("work")
            await turn("Extra", key="try", session=work)
            fork = await work.fork("aside")
            await turn("Check it", key="check", session=fork)
            await work.rewind(to=1)
            await work.save("kept")
            die_once()
            return (await turn("Build it", key="build", session="work")).turn
        """
    )
    await died(entrypoint)
    before = [info.name for info in await open_storage(load_settings().store).list()]
    report = await resume("work")
    assert report is not None
    assert (report.result, report.turns) == (2, 1)
    assert sorted(info.name for info in await open_storage(load_settings().store).list()) == sorted(before)
    assert sorted(before) == ["aside", "kept", "work"]
    kept = await journal()
    assert [turn.step.key for turn in kept.turns] == ["plan", "build"]
    assert sum(isinstance(event, Rewind) for event in kept.events) == 1
    assert [turn.step.key for turn in (await journal("aside")).turns] == ["plan", "try", "check"]
    assert [model.paid(word) for word in ("Plan", "Extra", "Check", "Build")] == [1, 1, 1, 1]


async def test_what_was_made_of_a_changed_step_is_made_again(scripted_model: Model, work: Path) -> None:
    """`--rerun` makes forks and saved copies of the changed step anew: what is done on them is paid and sees it."""
    model = scripted_model(ECHO)
    (work / "prompts" / "plan.md").write_text("Plan it one way")
    (work / "prompts" / "look.md").write_text("---\nsession: {required: true, mode: fork}\n---\nExtra look")
    entrypoint = write(
        """
        @flow
        async def copied():
            plan = await turn("prompts/plan.md", session="work")
            work = await Session.load("work")
            fork = await work.fork("aside")
            await turn("Check it", key="check", session=fork)
            look = await turn("prompts/look.md", session=plan.session)
            await work.save("kept")
            await turn("Build it", key="build", session=work)
            if not Path("over").exists():
                raise RuntimeError("the power went out")
            return look.session.name
        """
    )
    await died(entrypoint)
    (work / "prompts" / "plan.md").write_text("Plan it another way")
    with pytest.raises(FlowError, match="the power went out"):
        await resume("work", on_diverged="rerun")
    again = model.requests[4:]
    assert [r.prompt for r in again] == ["Plan it another way", "Check it", "Extra look", "Build it"]
    assert ["another way" in said(r) and "one way" not in said(r) for r in again] == [True] * 4
    (work / "over").touch()
    report = await resume("work")
    assert report is not None
    assert (report.turns, model.paid()) == (0, 8)
    for name, key in (("aside", "check"), (report.result, "look"), ("kept", "build")):
        kept = await journal(name)
        assert [turn.step.key for turn in kept.turns] == ["plan", key]
        paid = [event for event in kept.events if event.kind == "turn" and not event.inherited]
        assert [turn.step.key for turn in paid] == [key, key], "what was paid for is still there"
        assert kept.totals.cost_usd == pytest.approx(sum(turn.cost_usd for turn in paid))


async def test_two_turns_at_once_need_a_fork(scripted_model: Model) -> None:
    """The second of two turns in flight in one session is refused, and told to take a fork."""
    model = scripted_model(ECHO)
    entrypoint = write(
        """
        @flow
        async def crowded():
            both = (turn("Plan it", session="work"), turn("Build it", session="work"))
            done = await asyncio.gather(*both, return_exceptions=True)
            return sorted(str(each) for each in done)
        """
    )
    _, refused = (await run(entrypoint)).result
    assert refused == "two turns of session 'work' at once in one flow: give one of them a fork of the session"
    assert model.paid() == len((await journal()).turns) == 1


async def test_forks_run_side_by_side(scripted_model: Model) -> None:
    """Turns on forks run at the same time under `asyncio.gather`, and a resume finds each of them done."""
    model = scripted_model(
        [{"when": f"Extra {n}", "reply": {"hold": f"gate-{n}", "text": f"idea {n}"}} for n in (1, 2, 3)] + ECHO
    )
    entrypoint = write(
        """
        @flow
        async def parallel():
            plan = await turn("Plan it", key="plan", session="work")
            work = await Session.load(plan.session.name)
            forks = [await work.fork(f"idea-{n}") for n in (1, 2, 3)]
            ideas = await asyncio.gather(*(turn(f"Extra {n}", key="idea", session=f) for n, f in enumerate(forks, 1)))
            die_once()
            return [idea.text for idea in ideas]
        """
    )
    first = asyncio.create_task(run(entrypoint))
    for number in (1, 2, 3):  # all are asked before any is answered
        await asyncio.to_thread(model.wait_for, f"Extra {number}")
    for number in (1, 2, 3):
        model.release(f"gate-{number}")
    with pytest.raises(FlowError, match="the power went out"):
        await first
    report = await resume("work")
    assert report is not None
    assert (report.result, report.turns) == (["idea 1", "idea 2", "idea 3"], 0)
    assert model.paid("Extra") == 3


async def test_a_cancelled_flow_can_be_resumed(scripted_model: Model) -> None:
    """A cancelled flow's turn ends and is taken back, and the run is recorded as failed."""
    model = scripted_model([{"when": "Build", "reply": {"hold": "gate", "text": "built"}}, *ECHO])
    Path("mended").touch()
    first = asyncio.create_task(run(write(TWO_STEPS)))
    await asyncio.to_thread(model.wait_for, "Build")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    kept = await journal()
    assert kept.run is not None
    assert (kept.run.status, len(kept.turns), kept.intent) == ("failed", 1, None)
    model.release("gate")
    report = await resume("work")
    assert report is not None
    assert (report.result, report.turns, model.paid("Plan")) == ("built", 1, 1)


FEATURE = f"{Path(__file__).parents[2] / 'flows' / 'feature.py'}:feature"


def feature_script(*, passed: bool) -> list[dict[str, Any]]:
    """Return what the model says to the example flow."""
    plan = {"outcome": "done", "summary": "Fold accents.", "steps": ["fold", "test"]}
    finding = {"file": "search.py", "line": 3, "severity": "nit", "text": "a longer name"}
    answers = {
        "Plan this ticket": plan,
        "Build the plan": {"summary": "Folded.", "files": ["search.py"]},
        "The tests failed": {"summary": "Mended.", "files": ["search.py"]},
        "Run `make test`": {"passed": passed, "failures": "" if passed else "test_accents: é != e"},
        "Review the change": {"approved": True, "summary": "Good.", "findings": [finding]},
    }
    return [{"when": when, "reply": {"output": output}} for when, output in answers.items()]


async def test_the_example_flow_delivers(scripted_model: Model) -> None:
    """Plan, implement, test and review share a session, and the review leaves it as it is."""
    model = scripted_model(feature_script(passed=True))
    report = await run(FEATURE, ticket="Search ignores accents", name="search")
    assert (report.result["outcome"], report.result["summary"], report.turns) == ("approved", "Good.", 4)
    assert report.result["details"][0]["file"] == "search.py"
    kept = await journal("feature-search")
    assert [turn.step.key for turn in kept.turns] == ["plan", "implement", "test"]
    review = model.requests[-1]
    assert "You are a reviewer who did not write this code" in review.system
    assert {"Edit", "Write"}.isdisjoint(review.tools)
    assert "Fold accents." in str(review.messages)


async def test_the_example_flow_mends_what_the_tests_show(scripted_model: Model) -> None:
    """Failing tests go back to Claude as often as `rounds` says; then the flow gives up before the review."""
    model = scripted_model(feature_script(passed=False))
    report = await run(FEATURE, ticket="Search ignores accents", name="search", rounds="2")
    assert (report.result["outcome"], report.result["summary"]) == ("tests_fail", "test_accents: é != e")
    kept = await journal("feature-search")
    steps = ["plan", "implement", "test", "implement#2", "test#2", "implement#3", "test#3"]
    assert [turn.step.key for turn in kept.turns] == steps
    assert "test_accents: é != e" in kept.turns[3].prompt
    assert (model.paid("Build the plan"), model.paid("The tests failed"), model.paid("Review")) == (1, 2, 0)


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("flow.py", "flow.py: name the flow in the file as well, as in flow.py:my_flow"),
        ("flou.py:two_steps", "flou.py: there is no such file here"),
        ("flow.py:two_stebs", "flow.py has no flow 'two_stebs'"),
        ("broken.py:two_steps", "broken.py cannot be loaded: SyntaxError"),
    ],
)
async def test_a_flow_that_is_not_there(entrypoint: str, message: str) -> None:
    """A wrong path, name or file is answered with what is wrong."""
    write(TWO_STEPS)
    Path("broken.py").write_text("async def (")
    with pytest.raises(FlowNotFound, match=re.escape(message)):
        await run(entrypoint)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nane": "x", "count": 1}, "takes no 'nane': did you mean 'name'?"),
        ({"name": "x"}, "needs 'count': pass it with -d count=…"),
        ({"name": "x", "count": "many"}, "count"),
    ],
)
async def test_parameters_that_do_not_fit(data: dict[str, Any], message: str) -> None:
    """An unknown, missing or mistyped parameter is named before the flow starts."""
    entrypoint = write("@flow\nasync def typed(name: str, count: int): ...")
    with pytest.raises(UsageError, match=re.escape(message)):
        await run(entrypoint, **data)


async def test_parameters_are_read_as_what_they_are() -> None:
    """Typed text becomes what the parameter takes, and a text parameter keeps its text."""
    entrypoint = write(
        "@flow\nasync def typed(name: str, count: int, tags: list[str]):\n    return [name, count, tags]"
    )
    report = await run(entrypoint, name="42", count="3", tags='["a"]')
    assert report.result == ["42", 3, ["a"]]


def test_a_scheduled_run_is_known_by_deployment_and_time() -> None:
    """Each tick is a run of its own, the same when Prefect runs it again, and when times are told in another zone."""
    deployment, tick = uuid4(), datetime(2026, 11, 22, 6, 0, tzinfo=UTC)

    def key(when: datetime, *, scheduled: bool = True) -> str:
        planned = {"deployment_id": deployment, "expected_start_time": when, "auto_scheduled": scheduled}
        return run_key_of(FlowRun(flow_id=uuid4(), **planned))

    assert key(tick) == key(tick.astimezone(timezone(timedelta(hours=2)))) == f"{deployment}@2026-11-22T06:00:00+00:00"
    assert key(tick) != key(tick + timedelta(days=1))
    assert key(tick, scheduled=False) != key(tick, scheduled=False)
