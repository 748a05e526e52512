"""deployments/prefect.yaml on a real server with a real worker: scheduled ticks run, one at a time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from channelcoder_flows.journal import Journal
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.testing.model import ScriptedModel

from .conftest import wait_until_gone

pytestmark = pytest.mark.xdist_group("prefect")
ROOT = Path(__file__).parents[2]
PREFECT = ("-m", "prefect", "--no-prompt")
TICK = 5
"""Seconds between two ticks, instead of a day."""


class Project:
    """A copy of the example project, with its schedule made shorter and its worker."""

    def __init__(self, folder: Path, env: dict[str, str], api: str) -> None:
        self.folder = folder
        self.log = folder.parent / "log.txt"
        self.env = {
            **os.environ,
            **env,
            "PREFECT_API_URL": api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PWD": str(folder),
        }
        for part in ("flows", "prompts", "deployments"):
            shutil.copytree(ROOT / part, folder / part)
        self.file = folder / "deployments" / "prefect.yaml"
        self.plan = yaml.safe_load(self.file.read_text())
        self.plan["deployments"][0]["schedules"] = [{"interval": TICK}]
        self.file.write_text(yaml.safe_dump(self.plan))

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def call(self, *command: str) -> None:
        process = self.start(*command)
        assert await asyncio.to_thread(process.wait, 120) == 0, self.log.read_text()

    @asynccontextmanager
    async def deployed(self, client: PrefectClient) -> AsyncGenerator[DeploymentResponse]:
        """Deploy as deployments/README.md says, and take it back in the end, so that no further tick comes."""
        await self.call(*PREFECT, "work-pool", "create", "--type", "process", "--overwrite", "claude")
        await self.call(*PREFECT, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        deployment = await client.read_deployment_by_name("feature/backlog")
        try:
            yield deployment
        finally:
            await client.delete_deployment(deployment.id)

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        """Run a worker; it drains and ends on SIGTERM."""
        worker = self.start(*PREFECT, "worker", "start", "--pool", "claude")
        try:
            yield
        finally:
            worker.send_signal(signal.SIGTERM)
            await asyncio.to_thread(worker.wait, 60)


async def wait_for_runs(
    client: PrefectClient, deployment: DeploymentResponse, state: str, count: int, log: Path, *, bad: str = "Failed"
) -> list[FlowRun]:
    """Wait until so many of the deployment's runs are in a state, and none in a bad one."""
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    seen: list[FlowRun] = []
    try:
        async with asyncio.timeout(120):
            while True:
                seen = await client.read_flow_runs(deployment_filter=of_it)
                assert not [run for run in seen if run.state_name == bad], log.read_text()
                if len(found := [run for run in seen if run.state_name == state]) >= count:
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        states = [(run.name, run.state_name) for run in seen if run.state_name != "Scheduled"]
        raise AssertionError(f"no {count} runs became {state}: {states}\n{log.read_text()}") from None


async def test_ticks_of_the_deployment_run(
    tmp_path: Path, scripted_model: Callable[[Any], ScriptedModel], claude_env: dict[str, str], prefect_api: str
) -> None:
    """Two scheduled ticks run, each as a run of its own in the one session; one due meanwhile is cancelled."""
    nothing = {"outcome": "no_change", "summary": "The backlog is empty.", "steps": []}
    model = scripted_model([{"when": "Plan this ticket", "reply": {"hold": "gate", "output": nothing}}])
    project = Project(tmp_path / "project", claude_env, prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        async with get_client() as client, project.worker(), project.deployed(client) as deployment:
            await asyncio.to_thread(model.wait_for, "Plan this ticket", timeout=120)
            await wait_for_runs(client, deployment, "Cancelled", 1, project.log)
            model.release("gate")
            done = await wait_for_runs(client, deployment, "Completed", 2, project.log)
    assert all(run.auto_scheduled for run in done)
    kept = Journal(await FileSessionStorage(claude_env["CHANNELCODER_SESSION_DIR"]).read("feature-backlog"))
    expected = {f"{deployment.id}@{run.expected_start_time.isoformat()}" for run in done if run.expected_start_time}
    completed = {key for key, run in kept.runs.items() if run.status == "completed"}
    assert len(expected) == 2
    assert expected <= completed
    assert {turn.step.run for turn in kept.turns} >= expected
    assert wait_until_gone(tmp_path) == []


async def test_a_killed_tick_is_resumed(
    tmp_path: Path, scripted_model: Callable[[Any], ScriptedModel], claude_env: dict[str, str], prefect_api: str
) -> None:
    """A tick killed in its turn is marked as crashed, the next one says how to resume it, and that command does."""
    nothing = {"outcome": "no_change", "summary": "The backlog is empty.", "steps": []}
    model = scripted_model([{"when": "Plan this ticket", "reply": {"hold": "gate", "output": nothing}}])
    project = Project(tmp_path / "project", claude_env, prefect_api)
    store = FileSessionStorage(claude_env["CHANNELCODER_SESSION_DIR"])
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        async with get_client() as client, project.worker(), project.deployed(client) as deployment:
            await asyncio.to_thread(model.wait_for, "Plan this ticket", timeout=120)
            killed = Journal(await store.read("feature-backlog")).run
            assert killed is not None
            os.kill(int(killed.owner.split("/")[1]), signal.SIGKILL)
            await wait_for_runs(client, deployment, "Crashed", 1, project.log, bad="Completed")
            failed = await wait_for_runs(client, deployment, "Failed", 1, project.log, bad="Completed")
    assert failed[0].state is not None
    assert "go on with `channelcoder flow resume feature-backlog`" in str(failed[0].state.message)
    model.release("gate")
    await project.call("-m", "channelcoder_flows", "flow", "resume", "feature-backlog")
    kept = Journal(await store.read("feature-backlog"))
    assert {key: run.status for key, run in kept.runs.items()} == {killed.run: "completed"}
    assert killed.run.startswith(f"{deployment.id}@")
    assert (len(kept.turns), model.paid()) == (1, 1)
    assert wait_until_gone(tmp_path) == []


async def test_a_tick_cancelled_in_prefect_is_taken_back(
    tmp_path: Path, scripted_model: Callable[[Any], ScriptedModel], claude_env: dict[str, str], prefect_api: str
) -> None:
    """Cancelling a run from Prefect ends its turn, leaves no process, and the session can go on."""
    model = scripted_model(
        [{"when": "Plan this ticket", "reply": {"hold": "gate", "text": "never"}}, {"reply": "Hello."}]
    )
    project = Project(tmp_path / "project", claude_env, prefect_api)
    store = FileSessionStorage(claude_env["CHANNELCODER_SESSION_DIR"])
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        async with get_client() as client, project.worker(), project.deployed(client) as deployment:
            await asyncio.to_thread(model.wait_for, "Plan this ticket", timeout=120)
            (running,) = await wait_for_runs(client, deployment, "Running", 1, project.log)
            await client.pause_deployment(deployment.id)
            await client.set_flow_run_state(running.id, State(type=StateType.CANCELLING))
            async with asyncio.timeout(60):
                while (await client.read_flow_run(running.id)).state_name != "Cancelled":
                    await asyncio.sleep(0.2)
    assert wait_until_gone(tmp_path) == []
    await project.call("-m", "channelcoder_flows", "run", "-p", "Are you there?", "--load-session", "feature-backlog")
    kept = Journal(await store.read("feature-backlog"))
    assert ([turn.text for turn in kept.turns], kept.intent) == (["Hello."], None)


async def test_the_form_explains_itself(tmp_path: Path, claude_env: dict[str, str], prefect_api: str) -> None:
    """What Prefect's UI makes its form from has a type and a description for each parameter, defaults and limits."""
    project = Project(tmp_path / "project", claude_env, prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        async with get_client() as client, project.deployed(client) as deployment:
            schema = deployment.parameter_openapi_schema or {}
            limit = deployment.global_concurrency_limit
            options = deployment.concurrency_options
    fields = schema["properties"]
    assert {name: field["type"] for name, field in fields.items()} == {
        "ticket": "string",
        "name": "string",
        "test_command": "string",
        "rounds": "integer",
    }
    assert all(len(field["description"]) > 20 for field in fields.values())
    assert {name: field["default"] for name, field in fields.items() if "default" in field} == {
        "name": "next",
        "test_command": "make test",
        "rounds": 2,
    }
    assert (schema["required"], fields["rounds"]["maximum"]) == (["ticket"], 10)
    assert deployment.description
    assert deployment.parameters["name"] == "backlog"
    assert limit is not None
    assert options is not None
    assert (limit.limit, options.collision_strategy.value) == (1, "CANCEL_NEW")


async def test_the_crash_automation_is_understood(tmp_path: Path, claude_env: dict[str, str], prefect_api: str) -> None:
    """Prefect takes deployments/crashed.yaml as it stands."""
    project = Project(tmp_path / "project", claude_env, prefect_api)
    await project.call(*PREFECT, "automation", "create", "--from-file", "deployments/crashed.yaml")
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        async with get_client() as client:
            (automation,) = await client.read_automations_by_name("A run without a heartbeat has crashed")
            await client.delete_automation(automation.id)
    assert automation.actions[0].type == "change-flow-run-state"
