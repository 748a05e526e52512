"""What happens in the demo, act by act. Each claim is looked up: in the journal, the model's log, the files."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from channelcoder_flows.config import load_settings
from channelcoder_flows.demo.child import Child, started
from channelcoder_flows.demo.screen import Screen
from channelcoder_flows.demo.stage import HERE, Stage, staged
from channelcoder_flows.errors import FlowError
from channelcoder_flows.exchange import exchanges
from channelcoder_flows.journal import Turn
from channelcoder_flows.places.host import alive, marked
from channelcoder_flows.places.spec import ProcessIdent
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.open_session import OpenSession
from channelcoder_flows.testing.ledger import select
from channelcoder_flows.testing.model import ScriptedModel
from channelcoder_flows.transcript import MAIN, Transcript

SESSION = "fix-bill"
BUG = "split(1000, 3) loses a cent"
STEPS = {"plan": "/^Plan how/", "implement": "/^Implement/", "test": "/^Test/", "review": "/^Review/"}
"""The flow's steps, and how their prompts are told apart in the model's log."""
KILLED = "test"
KILLED_IN_CALL = 2
"""The model call of that step, from 0, that the script holds until `HELD` is released."""
HELD = "after the kill"
STEP_LIMIT_USD = 0.25
"""US dollars: `maxBudgetUsd` of each prompt."""
LIVE_LIMIT_USD = STEP_LIMIT_USD * (len(STEPS) + 1)
"""US dollars: each step once, and the killed one again."""
GONE_LIMIT = 10.0
"""Seconds until nothing of a killed flow may be left."""
RUN = ("flow", "run", "fix.py:fix", "-d", f"bug={BUG}", "-d", f"session={SESSION}")
RESUME = ("flow", "resume", SESSION)
SHOW = ("session", "show", SESSION)


async def show(screen: Screen, *, live: bool = False, keep: Path | None = None) -> None:
    """Play the whole demo.

    Args:
        screen: where it is shown.
        live: with the user's own Claude, which costs up to `LIVE_LIMIT_USD`.
        keep: a new directory that everything happens in, and that stays.

    Raises:
        UsageError: `keep` is there already.
        FlowError: something did not happen as it should; the message says where everything is kept.
    """
    begun = time.monotonic()
    _open(screen, live=live)
    with staged(live=live, keep=keep) as stage, _model(stage) as model:
        demo = _Demo(stage, screen, model)
        demo.the_bug()
        async with demo.prefect():
            killed = await demo.run_and_kill()
            await demo.resume()
        demo.account(killed)
        await demo.what_is_left()
        root = stage.root
    screen.say()
    where = "" if keep else ", and nothing of it is left on your disk"
    screen.say(f"That took {time.monotonic() - begun:.0f} s{where}.")
    _try_next(screen, root if keep else None, live=live)


class _Killed(NamedTuple):
    """What was known at the moment of the kill."""

    finished: tuple[Turn, ...]
    requests: int
    """How long the model's log was."""
    calls: int
    """Model calls that the killed turn had paid for."""


class _Demo:
    def __init__(self, stage: Stage, screen: Screen, model: ScriptedModel | None) -> None:
        self.stage, self.screen, self.model = stage, screen, model
        self.env = stage.environment(**({"ANTHROPIC_BASE_URL": model.url} if model else {}))
        self.session = OpenSession.new(FileSessionStorage(stage.sessions), SESSION)
        self.shown = 0

    def the_bug(self) -> None:
        """Act 1: a project whose tests fail."""
        self.screen.act(f"A small project with a bug: {BUG}")
        code = (self.stage.project / "bill.py").read_text(encoding="utf-8")
        self.screen.command(["tail", "-n", "1", "bill.py"], code.splitlines()[-1].strip())
        self._tests()

    @asynccontextmanager
    async def prefect(self) -> AsyncGenerator[None]:
        """Have a Prefect server for both runs."""
        argv = [sys.executable, "-m", "channelcoder_flows.flow.server"]
        async with started(argv, self.env, self.stage.root, self.screen.heard) as server:
            with self.screen.waiting("starting a Prefect server (the longest wait here)"):
                url = await server.first_line()
            if not url.startswith("http"):
                raise FlowError(f"the Prefect server did not start: {_last(server)}")
            self.env["PREFECT_API_URL"] = url
            yield

    async def run_and_kill(self) -> _Killed:
        """Act 2: the flow runs, and is killed in the midst of its third turn."""
        self.screen.act("A flow of four steps sets out to fix it, and is killed")
        async with self._channelcoder(RUN) as flow:
            await self._follow(flow, until=self._is_in_third_turn)
            process = self.session.journal.process
            if flow.ended or process is None:
                raise FlowError(f"the flow ended before it could be killed: {_last(flow)}")
            killed = _Killed(
                finished=tuple(self.session.journal.turns),
                requests=len(self.model.requests) if self.model else 0,
                calls=self._calls_of_open_turn(),
            )
            self.screen.under_way(KILLED, f"{killed.calls} model calls, and waiting for the next answer")
            running = {flow.pid, *marked(process.marker)}
            self.screen.command(["kill", "-9", str(flow.pid)])
            flow.send(signal.SIGKILL)
            await flow.wait()
        await _gone(process)
        self.screen.killed(f"the flow is dead, and its Claude Code with it: 0 of {len(running)} processes are left")
        return killed

    async def resume(self) -> None:
        """Act 3: the run goes on where it was."""
        self.screen.act("The same run goes on, from the journal alone")
        if self.model:
            # Released before the model saw its client die, the answer would be sent, and count as paid.
            await asyncio.to_thread(self.model.wait_for, lambda request: request.ended and not request.paid)
            self.model.release(HELD)
        async with self._channelcoder(RESUME) as flow:
            for turn in self.session.journal.turns:
                self.screen.kept(turn)
            await self._follow(flow)
            if await flow.wait():
                raise FlowError(f"the resumed flow failed: {_last(flow)}")

    def account(self, killed: _Killed) -> None:
        """Act 4: what was paid for, before the kill and after it.

        Raises:
            FlowError: a finished turn was paid for again.
        """
        source = "as Claude Code counted them" if self.model is None else "counted in the model's own log"
        self.screen.act(f"Model calls paid for, {source}")
        before = {turn.step.key: turn.model_calls for turn in killed.finished} | {KILLED: killed.calls}
        after = self._calls_since(killed)
        finished = [turn.step.key for turn in killed.finished]
        if again := [step for step in finished if after[step]]:
            raise FlowError(f"{' and '.join(again)} was paid for again: please report this")
        rows: list[tuple[str, str, str, str]] = []
        for step in STEPS:
            note = "not asked again" if step in finished else "the turn in flight" if step == KILLED else ""
            rows.append((step, str(before.get(step, 0)), str(after[step]), note))
        self.screen.table(("", "before the kill", "by the resume", ""), rows)
        cost = self.session.journal.totals.cost_usd
        if self.model:
            self.screen.say(
                f"${cost:.4f} at list prices, had a real model used as many tokens. Nothing was spent.", indent=3
            )
        else:
            self.screen.say(f"It cost ${cost:.4f}, the killed attempt included.", indent=3)

    async def what_is_left(self) -> None:
        """Act 5: the bug is fixed, and the session tells how."""
        self.screen.act("What is left")
        subject = self.stage.git("log", "--format=%h %s", "--max-count=1").strip()
        self.screen.command(["git", "show", "bill.py"], subject)
        self.screen.change(self.stage.git("show", "--format=", "--unified=0", "bill.py"))
        self._tests()
        async with self._channelcoder(SHOW, quiet=True) as told:
            if await told.wait():
                raise FlowError(f"the session cannot be shown: {_last(told)}")
        self.screen.command(["channelcoder", *SHOW], next(iter(told.lines), ""))

    def _tests(self) -> None:
        tested = self.stage.run("python3", "-m", "unittest")
        lines = tested.stderr.split("\n")
        count = next((line for line in lines if line.startswith("Ran ")), "").partition(" in ")[0]
        verdict = next((line for line in reversed(lines) if line), "")
        self.screen.command(["python3", "-m", "unittest"], f"{count}: {verdict}")

    @asynccontextmanager
    async def _channelcoder(self, words: Sequence[str], *, quiet: bool = False) -> AsyncGenerator[Child]:
        if not quiet:
            self.screen.command(["channelcoder", *words])
        argv = [sys.executable, "-m", "channelcoder_flows", *words]
        async with started(argv, self.env, self.stage.project, self.screen.heard) as child:
            yield child

    async def _follow(self, flow: Child, until: Callable[[], bool] = lambda: False) -> None:
        """Show each turn as it ends, until the flow does or `until` holds."""
        with self.screen.waiting("Claude Code is at work"):
            while True:
                ended = flow.ended
                await self.session.refresh()
                turns = self.session.journal.turns
                for turn in turns[self.shown :]:
                    self.screen.turn(turn)
                self.shown = len(turns)
                if ended or until():
                    return
                await flow.ends_within(0.1)

    def _is_in_third_turn(self) -> bool:
        """Return whether a tool of the turn to be killed has been called, and its answer is being waited for."""
        if self.model:
            return any(request.call == KILLED_IN_CALL for request in select(self.model.requests, STEPS[KILLED]))
        intent = self.session.journal.intent
        return intent is not None and intent.step.key == KILLED and self._calls_of_open_turn() > 0

    def _calls_of_open_turn(self) -> int:
        if self.model:
            return self.model.paid(STEPS[KILLED])
        intent = self.session.journal.intent
        if intent is None:
            return 0
        config_dir = Path(load_settings(cwd=self.stage.project, env=self.env).config_dir)
        contents = Transcript(config_dir, self.stage.project, intent.session_id).read()
        found = (each for each in exchanges(contents.get(MAIN, b"")) if each.turn_id == intent.turn_id)
        return next((each.model_calls for each in found), 0)

    def _calls_since(self, killed: _Killed) -> dict[str, int]:
        if self.model:
            since = self.model.requests[killed.requests :]
            return {step: sum(request.paid for request in select(since, when)) for step, when in STEPS.items()}
        finished = {turn.turn_id for turn in killed.finished}
        since_then = [turn for turn in self.session.journal.turns if turn.turn_id not in finished]
        return {step: sum(turn.model_calls for turn in since_then if turn.step.key == step) for step in STEPS}


@contextmanager
def _model(stage: Stage) -> Generator[ScriptedModel | None]:
    if stage.live:
        yield None
        return
    with ScriptedModel(HERE / "script.yaml", log=stage.log) as model:
        yield model


async def _gone(process: ProcessIdent) -> None:
    """Wait until nothing is left of a turn's process, nor of what it started."""
    try:
        async with asyncio.timeout(GONE_LIMIT):
            while alive(process) or marked(process.marker):  # noqa: ASYNC110 - no child of ours
                await asyncio.sleep(0.05)
    except TimeoutError as exc:
        raise FlowError(f"the flow is dead, but of its Claude Code is left: {marked(process.marker)}") from exc


def _open(screen: Screen, *, live: bool) -> None:
    screen.say("channelcoder demo", "bold")
    screen.say("A flow of four Claude Code turns is killed in the third, and goes on from there.")
    if live:
        screen.say(f"All of it is real and yours to pay: at most ${LIVE_LIMIT_USD:.2f}. It takes a few minutes.")
    else:
        screen.say("All of it is real but the model, which is scripted: no key, nothing is spent.")
        screen.say("It takes about half a minute.")


def _try_next(screen: Screen, kept: Path | None, *, live: bool) -> None:
    screen.act("Try next")
    program = screen.program
    if kept:
        screen.say(f"cd {kept / 'project'}   # its fix.py and prompts/ are the whole flow", indent=3)
        screen.say(f"{Path(program).absolute() if '/' in program else program} session show {SESSION}", indent=3)
        if not live:
            screen.say("less ../model.jsonl   # every request that the model got", indent=3)
        return
    screen.say(f"{program} demo --keep demo   # leaves it all, to look around", indent=3)
    if not live:
        screen.say(f"{program} demo --live        # with your own Claude; asks first", indent=3)
    screen.say(f'{program} run "What is in this folder?" -t "Read Glob"', indent=3)


def _last(child: Child) -> str:
    """Return the last thing a process said."""
    last = next((line for line in reversed(child.lines) if line.strip()), "it said nothing")
    return last.removeprefix("channelcoder: ")
