"""A run: one execution of a flow, and which of its steps are done. Knows no Prefect.

A resumed flow is a new process with the same run key. It asks for the same steps in the same order, and each that has
its turn in the journal is answered from there: by the digest of its request first, so that a repeated step finds its
own turn; where only the name fits, the step was changed since, and going on would build on an answer to something else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from channelcoder_flows.config import OnUnfinished, Settings, load_settings
from channelcoder_flows.errors import RunTakenOver, SessionBusy, SessionDiverged, SessionUnfinished, UsageError
from channelcoder_flows.journal import Attach, Failed, Intent, Journal, Rewind, StepRef, Turn
from channelcoder_flows.journal import Run as RunEvent
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.open_session import OpenSession

if TYPE_CHECKING:
    from channelcoder_flows.claude_code import LiveClis

OnDiverged = Literal["fail", "keep", "rerun"]
Asker = tuple[str, ...]
"""Who asks for a step: the flow and the subflows it is asked in, outermost first."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the journal has of a step."""

    key: str
    first: int
    """The number of the session's turn that its first one is, or would have been."""
    digest: Mapping[str, str]
    turns: tuple[Turn, ...] = ()
    """Its turns, oldest first; none where it failed, and the flow went on without it."""
    failed: Failed | None = None
    passed_over: bool = False
    """The run did something else in the session after it."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What a run did in a session, and how many turns the session had right after."""

    position: int
    number: int
    event: Turn | Failed | Rewind | Attach


@dataclass(frozen=True, slots=True)
class Match:
    """What the journal says of a step that is asked for."""

    step: StepRef
    recorded: Recorded | None = None
    rewind_to: int | None = None
    """Go back to the end of this turn first: the step is to be run again."""
    as_recorded: bool = False
    """What was recorded counts, whatever the prompt says now."""


async def _hold_nothing(session: OpenSession) -> None:
    pass


class Run:
    """One execution of a flow. One object per process; what is done stands in the journals."""

    hold: Callable[[OpenSession], Awaitable[None]]
    """Awaited under the session's lock before the run enters it, to make sure that no other process has the run."""
    asked_by: Callable[[], Asker]
    """Says who asks for the present step."""

    def __init__(
        self,
        key: str,
        *,
        owner: str,
        flow: str = "",
        entrypoint: str = "",
        parameters: Mapping[str, Any] | None = None,
        on_diverged: OnDiverged = "fail",
        on_unfinished: OnUnfinished = "fail",
    ) -> None:
        self.key = key
        self.owner = owner
        self.flow = flow
        self.entrypoint = entrypoint
        self.parameters = dict(parameters or {})
        self.on_diverged: OnDiverged = on_diverged
        self.on_unfinished: OnUnfinished = on_unfinished
        self.settings: Settings | None = None
        """What holds for its turns and sessions; None: what is found where each of them is."""
        self.cost_usd = 0.0
        """US dollars spent by this process, failed attempts included."""
        self.turns = 0
        """Turns paid for by this process."""
        self.sessions: dict[str, str] = {}
        """The sessions this run has entered: name to store URL."""
        self._clis: LiveClis | None = None
        self.hold = _hold_nothing
        self.asked_by = tuple
        self._matched: dict[str, dict[str, Asker]] = {}
        self._operations: dict[tuple[str, str], dict[int, Asker]] = {}
        self._busy: dict[str, Asker] = {}

    def live_clis(self) -> LiveClis:
        """Return where CLIs wait for the next turns of this run's sessions; whoever holds the run closes it."""
        from channelcoder_flows.claude_code import LiveClis

        self._clis = self._clis or LiveClis()
        return self._clis

    async def end_clis(self) -> None:
        """End the CLIs that wait."""
        if self._clis is not None:
            await self._clis.close()

    def begin_again(self, asker: str) -> None:
        """Take what was asked for in this flow or subflow as not asked for yet: it begins again."""
        tables: list[dict[Any, Asker]] = [*self._matched.values(), *self._operations.values(), self._busy]
        for asked in tables:
            for key in [key for key, path in asked.items() if asker in path]:
                del asked[key]

    def count(self, cost_usd: float, *, turns: int = 0) -> None:
        """Add up what this process spent."""
        self.cost_usd += cost_usd
        self.turns += turns

    def enter(
        self, name: str, store: str, journal: Journal, *, on_unfinished: OnUnfinished | None = None
    ) -> list[RunEvent]:
        """Take part in a session; return what is to be appended before the first turn.

        `on_unfinished` is what to do, this once, when the session's last run did not end; the run's own unless given.

        Raises:
            SessionUnfinished: its last run did not end, and this one may neither go on from there nor begin anew.
            RunTakenOver: another process resumed this run.
        """
        known = journal.runs.get(self.key)
        if name in self.sessions:
            if known and known.owner != self.owner:
                raise RunTakenOver(f"run {self.key} was taken over by another process: this one stops here")
            return []
        last = journal.run
        if known is None and last is not None and last.status != "completed":
            self._face_unfinished(name, store, last, on_unfinished or self.on_unfinished)
        self.sessions[name] = store
        return [self.event("started")]

    def _face_unfinished(self, name: str, store: str, last: RunEvent, policy: OnUnfinished) -> None:
        if policy == "fail":
            raise SessionUnfinished(
                f"the last run of session {name!r} did not end: go on with `{resume_command(name, store)}`, "
                'or begin anew with --on-unfinished new (in Python: on_unfinished="new")',
                name=name,
                run_key=last.run,
            )
        if policy == "resume":
            if self.sessions:
                raise SessionUnfinished(
                    f"session {name!r} belongs to an unfinished run, and this one has begun already: go on with "
                    f"`{resume_command(name, store)}`",
                    name=name,
                    run_key=last.run,
                )
            self.key = last.run

    def event(self, status: Literal["started", "completed", "failed"]) -> RunEvent:
        """Return the run as an event."""
        return RunEvent(
            run=self.key,
            status=status,
            owner=self.owner,
            flow=self.flow,
            entrypoint=self.entrypoint,
            parameters=self.parameters,
        )

    def match(self, session: str, journal: Journal, name: str, digest: Mapping[str, str]) -> Match:
        """Find the step in the journal.

        Raises:
            SessionDiverged: the journal has the step, done with another request; or has later steps done.
        """
        recorded = self._recorded(journal)
        matched = self._matched.setdefault(session, {})
        open_steps = [step for step in recorded if step.key not in matched]
        same_name = [step for step in open_steps if base_of(step.key) == name]
        exact = next((step for step in same_name if step.digest == dict(digest)), None)
        found = exact or (same_name[0] if same_name and self.on_diverged == "keep" else None)
        if found is None and open_steps and self.on_diverged != "keep":
            first = same_name[0] if same_name else open_steps[0]
            if self.on_diverged != "rerun":
                raise self._diverged(session, name, first, digest, changed=bool(same_name))
            # From the first that was not asked for: a step that the flow has no more goes too.
            start = min(step.first for step in open_steps)
            key = next_key(name, [step for step in recorded if step.first < start])
            matched[key] = self.asked_by()
            return Match(StepRef(run=self.key, key=key), rewind_to=min(start - 1, len(journal.turns)))
        key = found.key if found else next_key(name, recorded)
        matched[key] = self.asked_by()
        return Match(StepRef(run=self.key, key=key), found, as_recorded=found is not None and found is not exact)

    def _recorded(self, journal: Journal) -> list[Recorded]:
        """Return the run's steps in a session, oldest first.

        A step that only failed is one of them when the flow went on without it: a resumed flow is told so again. One
        that the flow died of is not: it is to be run again.
        """
        history = self._history(journal)
        intents = {event.turn_id: event for event in journal.events if isinstance(event, Intent)}
        steps: dict[str, list[_Done]] = {}
        for done in history:
            if isinstance(done.event, Turn | Failed):
                steps.setdefault(done.event.step.key, []).append(done)
        found: list[Recorded] = []
        for key, tries in steps.items():
            turns = [done for done in tries if isinstance(done.event, Turn)]
            last, first = tries[-1], (turns or tries)[0]
            passed_over = any(done.position > last.position and done.event.step.key != key for done in history)
            if turns or passed_over:
                found.append(
                    Recorded(
                        key,
                        first=first.number if turns else first.number + 1,
                        digest=dict(_digest_of(first.event, intents)),
                        turns=tuple(done.event for done in turns if isinstance(done.event, Turn)),
                        failed=last.event if isinstance(last.event, Failed) else None,
                        passed_over=passed_over,
                    )
                )
        return found

    def has_done(self, journal: Journal, step: StepRef) -> bool:
        """Return whether an operation of the flow is in the journal: a resumed flow does not repeat it."""
        return any(done.event.step == step for done in self._history(journal))

    def stands(self, journal: Journal, turn_id: str) -> bool:
        """Return whether a turn of anyone's is in a session still, but for what the flow itself went back over."""
        return any(isinstance(done.event, Turn) and done.event.turn_id == turn_id for done in self._standing(journal))

    def _history(self, journal: Journal) -> list[_Done]:
        """Return what this run has done in a session and nobody has undone, oldest first."""
        return [
            done
            for done in self._standing(journal)
            if done.event.step.run == self.key and not (isinstance(done.event, Turn) and done.event.inherited)
        ]

    def _standing(self, journal: Journal) -> list[_Done]:
        """Return what was done in a session, by anyone, and nobody has undone, oldest first.

        A turn that the flow itself went back over stays done: a resumed flow asks for it again, and then goes back as
        it did before. What anybody else went back over, and all that came after it, is to be done again.
        """
        live: list[int] = []
        standing: list[_Done] = []
        for position, event in enumerate(journal.events):
            if isinstance(event, Turn):
                live.append(position)
            elif isinstance(event, Rewind):
                dropped, live = live[event.to :], live[: event.to]
                if event.forked_from:
                    standing = []
                elif event.step.run != self.key and dropped:
                    standing = [done for done in standing if done.position < dropped[0]]
            if isinstance(event, Turn | Failed | Rewind | Attach):
                standing.append(_Done(position, len(live), event))
        return standing

    def _diverged(
        self, session: str, name: str, found: Recorded, digest: Mapping[str, str], *, changed: bool
    ) -> SessionDiverged:
        ways = (
            f"go on with what was recorded: `{resume_command(session, self.sessions.get(session, ''))} --keep`; "
            "or run again from there: `--rerun`"
        )
        if not changed:
            return SessionDiverged(
                f"step {name!r} now comes before {found.key!r}, which is done in session {session!r}: {ways}",
                name=session,
                step=name,
            )
        parts = tuple(part for part in digest if found.digest.get(part) != digest[part])
        return SessionDiverged(
            f"step {found.key!r} of session {session!r} was changed since it ran ({', '.join(parts)}): {ways}",
            name=session,
            step=found.key,
            changed=parts,
        )

    def operation(self, session: str, name: str) -> StepRef:
        """Return the step of a fork, rewind or the like: the n-th of its kind in a session is the same in each try."""
        asked = self._operations.setdefault((session, name), {})
        number = next(number for number in count(1) if number not in asked)
        asked[number] = self.asked_by()
        return StepRef(run=self.key, key=name if number == 1 else f"{name}#{number}")

    @contextmanager
    def one_turn(self, session: str) -> Generator[None]:
        """Refuse a second turn of the same session while one runs: which came first would be chance."""
        if session in self._busy:
            raise SessionBusy(
                f"two turns of session {session!r} at once in one flow: give one of them a fork of the session",
                name=session,
            )
        self._busy[session] = self.asked_by()
        try:
            yield
        finally:
            self._busy.pop(session, None)


_find: list[Callable[[], Run | None]] = []


def find_run_with(find: Callable[[], Run | None]) -> None:
    """Let a scheduler of flows say which run the present code belongs to."""
    _find.append(find)


def current_run() -> Run | None:
    """Return the run that the present code belongs to; None outside a flow."""
    return next((run for find in _find if (run := find()) is not None), None)


def _digest_of(event: Turn | Failed | Rewind | Attach, intents: Mapping[str, Intent]) -> Mapping[str, str]:
    if isinstance(event, Failed):
        return intents[event.turn_id].digest if event.turn_id in intents else {}
    return event.digest if isinstance(event, Turn) else {}


def base_of(key: str) -> str:
    """Return the step's name without its count: `test` of `test#2`."""
    return re.sub(r"#\d+$", "", key)


def next_key(name: str, recorded: Sequence[Recorded]) -> str:
    """Return the key of one more step of that name."""
    number = sum(base_of(step.key) == name for step in recorded) + 1
    return name if number == 1 else f"{name}#{number}"


def check_step_name(name: str) -> str:
    """Return `name` when a step can be called that.

    Raises:
        UsageError: it is empty or holds what counts repetitions (`#`) and attempts (`~`).
    """
    if not name.strip() or "#" in name or "~" in name:
        raise UsageError(f"{name!r} cannot be a step's key: use a word without # and ~")
    return name


def resume_command(session: str, store: str) -> str:
    """Return the command that resumes the run which a session belongs to.

    `store` is the URL of the session's store; the command names it unless it is the one that is used anyway.
    """
    elsewhere = store and store != open_storage(load_settings().store).url
    return f"channelcoder flow resume {quoted(session)}" + (f" --store {quoted(store)}" if elsewhere else "")


def quoted(text: str) -> str:
    """Return `text` as one word of a shell command."""
    return shlex.quote(text)
