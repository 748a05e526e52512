"""The append-only record of a session, and what it adds up to: data only.

An event never changes once it is written. Everything else (messages, the current Claude session id, what it cost,
where the transcript stands, what is unfinished) is the fold of the events in their order: `Journal`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter

from channelcoder_flows.places.spec import PlaceSpec, ProcessIdent
from channelcoder_flows.turn import CamelFrozen, Frozen, Message, Outcome, Recovery, Usage

FORMAT = 1
"""The journal's format version. A journal of a later one is refused, never guessed at."""


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


class StepRef(Frozen):
    """Which step of which run an event belongs to."""

    run: str = Field(default="", description="The run key; empty outside a flow.")
    key: str = Field(default="", description="The step key, such as `implement` or `implement#2`.")
    attempt: int = Field(default=1, ge=1, description="`implement~2` is the step's second turn.")

    def __str__(self) -> str:
        return self.key if self.attempt == 1 else f"{self.key}~{self.attempt}"


class FileMark(Frozen):
    """Where one file of a transcript stands: `path` is relative, empty for the conversation itself."""

    path: str = ""
    length: int = Field(ge=0, description="Bytes.")
    sha256: str


class EventBase(Frozen):
    """What every event has."""

    at: datetime = Field(default_factory=now)


class ForkOrigin(Frozen):
    """Where a fork came from."""

    name: str
    turn: int
    turn_id: str = Field(default="", description="Which turn that was; empty: none, or an early journal.")


class Created(EventBase):
    """The session begins."""

    kind: Literal["session"] = "session"
    format: int = FORMAT
    name: str
    session_id: str = Field(description="The Claude session id of the first turn.")
    labels: Mapping[str, str] = {}
    forked_from: ForkOrigin | None = None
    step: StepRef = StepRef()


class Run(EventBase):
    """A flow's run began, ended, or was resumed by another process (`owner`)."""

    kind: Literal["run"] = "run"
    run: str
    status: Literal["started", "completed", "failed"]
    owner: str = ""
    flow: str = ""
    entrypoint: str = ""
    parameters: Mapping[str, Any] = {}
    """JSON data. A secret is `{"$secret": "its parameter's name"}`: `resume` asks for it again."""


class Intent(EventBase):
    """A turn is about to start. Durable before the first byte is sent."""

    kind: Literal["intent"] = "intent"
    turn_id: str = Field(description="The uuid of the user message.")
    session_id: str
    step: StepRef = StepRef()
    digest: Mapping[str, str] = {}
    prompt: str
    place: PlaceSpec = PlaceSpec()
    cwd: str = ""
    snapshot: str | None = None
    structured: bool = False
    recovery: Recovery = "rollback"
    total_usd: float | None = Field(
        default=None,
        description="What the conversation had cost before, as its CLI counts; None: as the transcript has it.",
    )


class Started(EventBase):
    """The turn's process runs."""

    kind: Literal["started"] = "started"
    turn_id: str
    process: ProcessIdent


class Turn(EventBase):
    """The exchange has ended well."""

    kind: Literal["turn"] = "turn"
    turn_id: str
    session_id: str
    step: StepRef = StepRef()
    digest: Mapping[str, str] = {}
    prompt: str
    text: str
    output: Any = None
    outcome: Outcome = "done"
    cost_usd: float = 0.0
    cost_estimated: bool = False
    usage: Usage = Usage()
    started: datetime
    duration_s: float = 0.0
    model_calls: int = 0
    model: str = ""
    denials: tuple[str, ...] = ()
    place: PlaceSpec = PlaceSpec()
    commit: str | None = None
    adopted: bool = False
    inherited: bool = Field(default=False, description="Copied from the session this one was forked from.")
    files: tuple[FileMark, ...] = Field(default=(), description="The transcript files this turn changed.")
    delta: str | None = Field(default=None, description="The sha256 of the transcript delta.")


class Failed(EventBase):
    """An attempt ended badly. Nothing that was paid for or typed is thrown away."""

    kind: Literal["failed"] = "failed"
    turn_id: str
    step: StepRef = StepRef()
    error: str = Field(description="The kind of error, as `TurnError.kind`.")
    raised: str = Field(default="TurnError", description="The error's class, for a flow that is told of it again.")
    message: str
    retryable: bool = False
    retry_after: float | None = None
    prompt: str
    text: str = ""
    cost_usd: float = 0.0
    cost_estimated: bool = False
    usage: Usage = Usage()
    tail: str | None = Field(default=None, description="The sha256 of what was cut off the transcript.")
    files: tuple[FileMark, ...] = Field(default=(), description="With `recovery: continue`, what was kept.")
    delta: str | None = None
    rescue: str | None = None


class Check(EventBase):
    """A check's verdict on a step."""

    kind: Literal["check"] = "check"
    step: StepRef
    name: str
    passed: bool
    message: str = ""


class Rewind(EventBase):
    """Go back to the end of turn `to` (0: the beginning) under a new Claude session id."""

    kind: Literal["rewind"] = "rewind"
    to: int = Field(ge=0)
    session_id: str
    message_count: int = Field(ge=0, description="How many messages are left, for the running totals.")
    reason: str = ""
    step: StepRef = StepRef()
    forked_from: ForkOrigin | None = Field(default=None, description="Of a fork made anew: what follows is from here.")


class Moved(EventBase):
    """The same conversation goes on under another Claude session id: in a fork, or beside a changed transcript."""

    kind: Literal["moved"] = "moved"
    session_id: str
    reason: str = ""


class Attach(EventBase):
    """Go on from a conversation that Claude Code has and this session had not."""

    kind: Literal["attach"] = "attach"
    session_id: str
    files: tuple[FileMark, ...] = ()
    delta: str | None = None
    step: StepRef = StepRef()


class Interactive(EventBase):
    """What a person typed into `claude --resume` between two turns."""

    kind: Literal["interactive"] = "interactive"
    session_id: str
    messages: tuple[Message, ...] = ()
    cost_usd: float = 0.0
    files: tuple[FileMark, ...] = ()
    delta: str | None = None


Event = Annotated[
    Created | Run | Intent | Started | Turn | Failed | Check | Rewind | Moved | Attach | Interactive,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Event, ...])


class Totals(Frozen):
    """The running totals a store keeps beside the journal, so that listing never reads answers."""

    name: str = ""
    created: datetime | None = None
    last_active: datetime | None = None
    messages: int = 0
    turns: int = 0
    cost_usd: float = 0.0

    def after(self, event: Event) -> Totals:
        """Return the totals with `event` counted."""
        name, created = self.name, self.created
        messages, turns, cost_usd = self.messages, self.turns, self.cost_usd
        match event:
            case Created():
                name, created = event.name, event.at
            case Turn():
                turns, messages = turns + 1, messages + 2
                cost_usd += 0.0 if event.inherited else event.cost_usd
            case Failed():
                cost_usd += event.cost_usd
            case Interactive():
                messages += len(event.messages)
                cost_usd += event.cost_usd
            case Rewind():
                turns, messages = event.to, event.message_count
            case _:
                pass
        # Not validated again: a long session has thousands of events, and each is counted whenever it is loaded.
        return Totals.model_construct(
            name=name,
            created=created,
            last_active=max(self.last_active or event.at, event.at),
            messages=messages,
            turns=turns,
            cost_usd=cost_usd,
        )

    def info(self, path: str) -> SessionInfo:
        """Return the totals of a session as a line of `session list`."""
        created = self.created or now()
        return SessionInfo(
            name=self.name,
            path=path,
            created=created,
            last_active=self.last_active or created,
            message_count=self.messages,
            turns=self.turns,
            cost_usd=round(self.cost_usd, 9),
        )


class SessionInfo(CamelFrozen):
    """One line of `session list`."""

    name: str
    path: str
    created: datetime
    last_active: datetime
    message_count: int
    turns: int = 0
    cost_usd: float = Field(default=0.0, alias="cost_usd")


class Metadata(CamelFrozen):
    """A session's metadata, in ChannelCoder's shape."""

    name: str | None = None
    created: datetime
    last_active: datetime
    message_count: int = 0


def _from_base64(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Blob = Annotated[bytes, BeforeValidator(_from_base64), PlainSerializer(_to_base64, when_used="json")]


class SessionState(CamelFrozen):
    """A session as data: ChannelCoder's shape, and the journal it is the fold of.

    `model_dump_json()` and `model_validate_json()` are all a custom store needs. A store with only `save`, `load` and
    `list` is handed the whole of it, `deltas` (sha256 to compressed transcript bytes) included.
    """

    session_chain: tuple[str, ...] = ()
    current_session_id: str | None = None
    messages: tuple[Message, ...] = ()
    metadata: Metadata
    journal: tuple[Event, ...] = ()
    deltas: Mapping[str, Blob] = {}


Entry = Turn | Interactive | Attach | Failed
"""What the transcript is made of: each event that may carry a delta."""


class Journal:
    """The fold of a session's events. `apply` is the only thing that changes it."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = []
        self.entries: list[Entry] = []
        """What the conversation is made of, in order; a rewind takes the later ones off."""
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.chain: list[str] = []
        self.session_id: str | None = None
        """The Claude session id of the next turn."""
        self.mark: dict[str, FileMark] = {}
        """Where each file of the transcript stands, by path."""
        self.runs: dict[str, Run] = {}
        """The last word on each run, by run key; the latest run is last."""
        self.intent: Intent | None = None
        """A turn that began and has no ending yet."""
        self.process: ProcessIdent | None = None
        """The process of that turn."""
        self.totals = Totals()
        self.created: Created | None = None
        self.origin: ForkOrigin | None = None
        """What it is a fork of."""
        for event in events:
            self.apply(event)

    @property
    def seq(self) -> int:
        """How many events there are: the sequence number of the last one."""
        return len(self.events)

    @property
    def name(self) -> str:
        """The session's name."""
        return self.totals.name

    @property
    def run(self) -> Run | None:
        """The latest run of this session."""
        return next(reversed(self.runs.values())) if self.runs else None

    def deltas(self) -> list[str]:
        """Return the ids of the deltas that make up the transcript, oldest first."""
        start = max((i for i, entry in enumerate(self.entries) if isinstance(entry, Attach)), default=0)
        return [entry.delta for entry in self.entries[start:] if entry.delta]

    def apply(self, event: Event) -> None:
        """Add one event."""
        self.events.append(event)
        self.totals = self.totals.after(event)
        match event:
            case Created():
                self.created, self.origin = event, event.forked_from
                self._continue_as(event.session_id)
            case Run():
                self.runs.pop(event.run, None)
                self.runs[event.run] = event
            case Intent():
                self.intent, self.process = event, None
            case Started():
                self.process = event.process
            case Turn():
                self._settle(event.turn_id)
                self._continue_as(event.session_id)
                self._enter(event)
            case Failed():
                self._settle(event.turn_id)
                if event.delta:
                    self._enter(event)
            case Attach() | Interactive():
                self._continue_as(event.session_id)
                self._enter(event)
            case Moved():
                self._continue_as(event.session_id)
            case Rewind():
                self._continue_as(event.session_id)
                self._keep_turns(event.to)
                self.origin = event.forked_from or self.origin
            case Check():
                pass

    def _settle(self, turn_id: str) -> None:
        if self.intent and self.intent.turn_id == turn_id:
            self.intent = self.process = None

    def _continue_as(self, session_id: str) -> None:
        if self.session_id != session_id:
            self.session_id = session_id
            self.chain.append(session_id)

    def _enter(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.messages.extend(messages_of(entry))
        if isinstance(entry, Turn):
            self.turns.append(entry)
        if isinstance(entry, Attach):
            self.mark = {}
        self.mark.update({mark.path: mark for mark in entry.files})

    def _keep_turns(self, to: int) -> None:
        kept = self.entries_to(to)
        self.entries, self.turns, self.messages, self.mark = [], [], [], {}
        for entry in kept:
            self._enter(entry)

    def entries_to(self, turn: int) -> list[Entry]:
        """Return the entries up to the end of turn `turn`; none for 0."""
        kept: list[Entry] = []
        for entry in self.entries:
            if turn == 0:
                break
            kept.append(entry)
            turn -= isinstance(entry, Turn)
        return kept

    def message_count(self, to: int) -> int:
        """Return how many messages are left after a rewind to turn `to`."""
        return sum(len(messages_of(entry)) for entry in self.entries_to(to))

    def number_of(self, turn: Turn) -> int:
        """Return the turn's number, from 1; 0 when it was taken back."""
        numbers = (n for n in range(len(self.turns), 0, -1) if self.turns[n - 1].turn_id == turn.turn_id)
        return next(numbers, 0)

    def seq_of(self, turn: Turn) -> int:
        """Return the sequence number of the event that is this turn; 0 when there is none."""
        events = ((n, self.events[n - 1]) for n in range(self.seq, 0, -1))
        return next((n for n, event in events if isinstance(event, Turn) and event.turn_id == turn.turn_id), 0)

    def state(self, deltas: Mapping[str, bytes] | None = None) -> SessionState:
        """Return the session as frozen data."""
        created = self.created.at if self.created else now()
        return SessionState(
            session_chain=tuple(self.chain),
            current_session_id=self.session_id,
            messages=tuple(self.messages),
            metadata=Metadata(
                name=self.name or None,
                created=created,
                last_active=self.totals.last_active or created,
                message_count=len(self.messages),
            ),
            journal=tuple(self.events),
            deltas=deltas or {},
        )


def messages_of(entry: Entry) -> tuple[Message, ...]:
    """Return the messages an entry adds to the conversation: two for a turn."""
    match entry:
        case Turn():
            asked = Message(role="user", content=entry.prompt, timestamp=entry.started, session_id=entry.session_id)
            answered = Message(role="assistant", content=entry.text, timestamp=entry.at, session_id=entry.session_id)
            return asked, answered
        case Interactive():
            return entry.messages
        case _:
            return ()


def deltas_of(event: Event) -> tuple[str, ...]:
    """Return the ids of the deltas that an event names."""
    names = (getattr(event, "delta", None), getattr(event, "tail", None))
    return tuple(name for name in names if name)
