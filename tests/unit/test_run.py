"""A run finds in the journal what it has done: nothing is done twice, and nothing is taken for something else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from channelcoder_flows.branching import rewind_event
from channelcoder_flows.errors import (
    RunTakenOver,
    SessionBusy,
    SessionDiverged,
    SessionUnfinished,
    UsageError,
)
from channelcoder_flows.journal import Created, Failed, ForkOrigin, Intent, Journal, Rewind, StepRef, Turn, now
from channelcoder_flows.run import Match, OnDiverged, Run, base_of, check_step_name, next_key, quoted

Asked = tuple[str, str]
"""A step: its name, and what its prompt says."""
ASKED = st.tuples(st.sampled_from(["plan", "test", "review"]), st.sampled_from(["x", "y"]))
STEPS = st.lists(ASKED, max_size=7)


class Flow:
    """A flow over one session: it asks for steps, and does those that are not done."""

    def __init__(self, key: str = "run") -> None:
        self.key = key
        self.journal = Journal([Created(name="s", session_id="c")])

    def execute(self, steps: list[Asked], on_diverged: OnDiverged = "fail") -> list[str]:
        """Run the flow in a new process; return what was paid for, in order."""
        run = Run(self.key, owner="me", on_diverged=on_diverged)
        paid: list[str] = []
        for name, prompt in steps:
            match = self.ask(run, name, prompt)
            if match.recorded is None:
                self.do(match, prompt)
                paid.append(f"{match.step} {prompt}")
        return paid

    def ask(self, run: Run, name: str, prompt: str) -> Match:
        return run.match("s", self.journal, name, {"prompt": prompt, "model": "m"})

    def fail(self, match: Match, prompt: str) -> None:
        turn_id = f"f{self.journal.seq}"
        digest = {"prompt": prompt, "model": "m"}
        self.journal.apply(Intent(turn_id=turn_id, session_id="c", step=match.step, digest=digest, prompt=prompt))
        self.journal.apply(Failed(turn_id=turn_id, step=match.step, error="api", message="no", prompt=prompt))

    def do(self, match: Match, prompt: str) -> None:
        if match.rewind_to is not None:
            self.journal.apply(rewind_event(self.journal, match.rewind_to))
        turn_id = f"t{self.journal.seq}"
        digest = {"prompt": prompt, "model": "m"}
        self.journal.apply(
            Turn(
                turn_id=turn_id,
                session_id="c",
                step=match.step,
                digest=digest,
                prompt=prompt,
                text=turn_id,
                started=now(),
            )
        )

    def did(self) -> list[str]:
        return [f"{turn.step} {turn.prompt}" for turn in self.journal.turns]


@given(STEPS, st.integers(0, 7))
def test_a_resumed_run_pays_for_what_is_missing(steps: list[Asked], killed_after: int) -> None:
    """Killed after any step and run again, a flow does the rest and nothing twice; a third time it does nothing."""
    whole = Flow()
    keys = whole.execute(steps)
    flow = Flow()
    done = flow.execute(steps[:killed_after])
    assert done + flow.execute(steps) == keys
    assert flow.did() == whole.did() == keys
    assert flow.execute(steps) == []


@given(STEPS, STEPS)
def test_what_was_changed_is_never_replayed(old: list[Asked], new: list[Asked]) -> None:
    """Whatever became of the flow's steps, each that is answered from the journal was asked with that very prompt."""
    flow = Flow()
    flow.execute(old)
    run = Run("run", owner="me")
    try:
        for name, prompt in new:
            match = flow.ask(run, name, prompt)
            if match.recorded is None:
                flow.do(match, prompt)
            else:
                assert (base_of(match.recorded.key), match.recorded.turns[0].prompt) == (name, prompt)
    except SessionDiverged as exc:
        assert old[: len(new)] != new
        assert "--keep" in str(exc) and "--rerun" in str(exc)


@given(STEPS, STEPS)
def test_rerun_ends_as_if_it_had_always_been_so(old: list[Asked], new: list[Asked]) -> None:
    """`--rerun` from the first change: the session is that of the new flow, and what stands before it is not paid."""
    common = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    # A later step that was asked for in just this way is found out of order, which is right where steps are reordered.
    assume(all(step not in old[common:] for step in new[common:]))
    flow, fresh = Flow(), Flow()
    flow.execute(old)
    fresh.execute(new)
    flow.execute(new, "rerun")
    if len(new) > common:
        assert flow.did() == fresh.did()
    else:
        assert flow.did()[: len(new)] == fresh.did()


def test_a_changed_step() -> None:
    """A changed prompt is an error that names the step and what changed, and says the two ways on."""
    flow = Flow()
    flow.execute([("plan", "x"), ("test", "x"), ("review", "x")])
    changed = [("plan", "x"), ("test", "y"), ("review", "x")]
    with pytest.raises(
        SessionDiverged, match=r"step 'test' .*changed since it ran \(prompt\).*--keep.*--rerun"
    ) as caught:
        flow.execute(changed)
    assert (caught.value.step, caught.value.changed, caught.value.exit_code) == ("test", ("prompt",), 4)
    assert flow.execute(changed, "keep") == []
    assert flow.did() == ["plan x", "test x", "review x"]
    assert flow.execute(changed, "rerun") == ["test y", "review x"]
    assert flow.did() == ["plan x", "test y", "review x"]


def test_an_inserted_step() -> None:
    """A step that comes before what is done is an error; kept, it is done at the end; rerun, what follows it too."""
    flow = Flow()
    flow.execute([("plan", "x"), ("review", "x")])
    inserted = [("plan", "x"), ("test", "x"), ("review", "x")]
    with pytest.raises(SessionDiverged, match="'test' now comes before 'review'"):
        flow.execute(inserted)
    assert flow.execute(inserted, "rerun") == ["test x", "review x"]
    assert flow.did() == ["plan x", "test x", "review x"]
    flow = Flow()
    flow.execute([("plan", "x"), ("review", "x")])
    assert flow.execute(inserted, "keep") == ["test x"]


def test_repeated_steps_are_told_apart() -> None:
    """The same step in a loop: the same prompt is another turn, a resumed loop finds each of them by its prompt."""
    flow = Flow()
    assert flow.execute([("test", "x"), ("test", "x"), ("test", "y")]) == ["test x", "test#2 x", "test#3 y"]
    run = Run("run", owner="me")
    found = [flow.ask(run, "test", prompt).recorded for prompt in ("y", "x", "x")]
    assert [recorded and recorded.key for recorded in found] == ["test#3", "test", "test#2"]
    assert str(flow.ask(run, "test", "x").step) == "test#4"


def test_another_runs_steps_are_not_ours() -> None:
    """A second run of the same flow in the same session does everything anew."""
    flow = Flow("monday")
    steps = [("plan", "x"), ("test", "x")]
    flow.execute(steps)
    flow.key = "tuesday"
    assert flow.execute(steps) == ["plan x", "test x"]
    assert len(flow.did()) == 4


def test_a_step_that_the_flow_died_of_is_asked_again() -> None:
    """A step that failed is the same step when it is tried again, by this process or the next."""
    flow = Flow()
    run = Run("run", owner="me")
    flow.fail(flow.ask(run, "plan", "x"), "x")
    for execution in (run, Run("run", owner="you")):
        again = flow.ask(execution, "plan", "x")
        assert (again.recorded, str(again.step)) == (None, "plan")


def test_a_step_that_the_flow_went_on_without_stays_failed() -> None:
    """A resumed flow is told of a failure that it had caught; asked for once more, it is another step."""
    flow = Flow()
    run = Run("run", owner="me")
    flow.fail(flow.ask(run, "plan", "x"), "x")
    flow.do(flow.ask(run, "test", "x"), "x")
    resumed = Run("run", owner="you")
    told = flow.ask(resumed, "plan", "x").recorded
    assert told is not None
    assert (told.turns, told.failed is not None) == ((), True)
    assert flow.ask(resumed, "test", "x").recorded is not None
    assert str(flow.ask(resumed, "plan", "x").step) == "plan#2"


class TestEntering:
    """Which run a session belongs to."""

    def begun(self, status: str = "started", owner: str = "me") -> Journal:
        journal = Journal([Created(name="s", session_id="c")])
        journal.apply(Run("old", owner=owner).event(status))  # pyright: ignore[reportArgumentType]
        return journal

    def test_an_unfinished_run(self) -> None:
        """The last run did not end: refused with the command that resumes it, resumed, or left behind."""
        for status in ("started", "failed"):
            with pytest.raises(SessionUnfinished, match="channelcoder flow resume s") as caught:
                Run("new", owner="me").enter("s", "", self.begun(status))
            assert caught.value.run_key == "old"
        resuming = Run("new", owner="me", on_unfinished="resume")
        assert [event.run for event in resuming.enter("s", "", self.begun())] == ["old"]
        anew = Run("new", owner="me", on_unfinished="new")
        assert [event.run for event in anew.enter("s", "", self.begun())] == ["new"]
        assert Run("new", owner="me").enter("s", "", self.begun("completed"))[0].status == "started"

    def test_a_run_that_was_taken_over(self) -> None:
        """A process whose run another one resumed stops at its next step."""
        journal = self.begun()
        run = Run("old", owner="me")
        assert run.enter("s", "", journal)
        assert run.enter("s", "", journal) == []
        journal.apply(Run("old", owner="another").event("started"))
        with pytest.raises(RunTakenOver):
            run.enter("s", "", journal)

    def test_two_turns_at_once(self) -> None:
        """Two turns of one session at once in one flow is an error that says to fork; one after another is fine."""
        run = Run("run", owner="me")
        with run.one_turn("s"), run.one_turn("t"), pytest.raises(SessionBusy, match="fork"), run.one_turn("s"):
            pass
        with run.one_turn("s"):
            pass


def test_operations_are_counted() -> None:
    """The second fork of a run is the second one in each try."""
    run = Run("run", owner="me")
    run.asked_by = lambda: ("flow",)
    asked = ("fork a", "rewind", "rewind", "fork a")
    assert [str(run.operation("s", name)) for name in asked] == ["fork a", "rewind", "rewind#2", "fork a#2"]
    run.begin_again("flow")
    assert str(run.operation("s", "rewind")) == "rewind"


def test_a_flow_that_begins_again_in_the_same_process() -> None:
    """Prefect's own retry of a flow finds what was done, as a new process would; another flow's steps stay asked."""
    flow, run = Flow(), Run("run", owner="me")
    run.asked_by = lambda: ("outer",)
    flow.do(flow.ask(run, "plan", "x"), "x")
    run.asked_by = lambda: ("outer", "inner")
    flow.do(flow.ask(run, "test", "x"), "x")
    run.begin_again("inner")
    assert flow.ask(run, "test", "x").recorded
    run.begin_again("outer")
    assert flow.ask(run, "plan", "x").recorded
    assert flow.ask(run, "test", "x").recorded


def test_names() -> None:
    """A step's name cannot be mistaken for a counted one."""
    assert (base_of("test#12"), base_of("test"), next_key("test", [])) == ("test", "test", "test")
    assert quoted("a b'c") == "'a b'\"'\"'c'"
    for name in ("", "  ", "a#2", "a~2"):
        with pytest.raises(UsageError, match="step's key"):
            check_step_name(name)
    assert check_step_name("Plan the work") == "Plan the work"


def test_a_turn_stands_unless_somebody_else_went_back_over_it() -> None:
    """What the flow itself goes back over it does again on a resume; what anybody else took back is gone."""
    flow, run = Flow(), Run("run", owner="me")
    for name in ("plan", "test"):
        flow.do(flow.ask(run, name, "x"), "x")
    plan, test = flow.journal.turns
    flow.journal.apply(rewind_event(flow.journal, 1, step=StepRef(run="run", key="rewind")))
    assert (run.stands(flow.journal, plan.turn_id), run.stands(flow.journal, test.turn_id)) == (True, True)
    flow.journal.apply(rewind_event(flow.journal, 0))
    assert (run.stands(flow.journal, plan.turn_id), run.stands(flow.journal, test.turn_id)) == (False, False)


def test_nothing_done_on_a_fork_counts_once_it_is_made_anew() -> None:
    """Turns and ways back on a fork that was made anew are done again, even where none of its turns was left."""
    flow, run = Flow(), Run("run", owner="me")
    flow.do(flow.ask(run, "plan", "x"), "x")
    cleared = StepRef(run="run", key="clear")
    flow.journal.apply(rewind_event(flow.journal, 0, step=cleared))
    assert run.has_done(flow.journal, cleared)
    origin = ForkOrigin(name="parent", turn=0)
    flow.journal.apply(Rewind(to=0, session_id="c", message_count=0, forked_from=origin))
    resumed = Run("run", owner="you")
    assert not resumed.has_done(flow.journal, cleared)
    assert flow.ask(resumed, "plan", "x").recorded is None
