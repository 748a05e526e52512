"""`channelcoder session …`: the sessions that are kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from channelcoder_flows.cli import output
from channelcoder_flows.cli.options import Json, Store, Verbose, settings
from channelcoder_flows.errors import UsageError
from channelcoder_flows.journal import SessionInfo
from channelcoder_flows.storage import open_storage
from channelcoder_flows.storage.base import not_found
from channelcoder_flows.storage.file import FileSessionStorage
from channelcoder_flows.storage.names import directory_name
from channelcoder_flows.unsaved import remove_unused

if TYPE_CHECKING:
    from channelcoder_flows.session import Session

Name = Annotated[str, Parameter(help="A session's name, or the path that `session list --json` shows.")]


async def list_sessions(*, store: Store = None, json: Json = False, verbose: Verbose = False) -> None:
    """List all sessions."""
    infos = await open_storage(settings(store).store).list()
    if json:
        output.document([info.model_dump(mode="json") for info in infos])
        return
    if not infos:
        output.say('no sessions yet: channelcoder run "…" --session NAME begins one')
        return
    rows = [("NAME", "TURNS", "COST", "LAST ACTIVE")]
    rows += [
        (output.plain(info.name), str(info.turns), output.dollars(info.cost_usd), output.local_time(info.last_active))
        for info in infos
    ]
    output.answer(output.columns(rows))


async def show(name: Name, /, *, store: Store = None, json: Json = False, verbose: Verbose = False) -> None:
    """Show what was said."""
    session, info = await _load(name, store)
    if json:
        state = session.state
        more = state.model_dump(mode="json", include={"session_chain", "current_session_id", "messages"})
        output.document({**info.model_dump(mode="json"), **more})
        return
    output.answer(_summary(session, info))
    for message in session.messages:
        output.answer(f"\n── {message.role} · {output.local_time(message.timestamp)}\n{message.content}")


async def load(name: Name, /, *, store: Store = None, json: Json = False, verbose: Verbose = False) -> None:
    """Show where a session stands, and the command that continues it."""
    session, info = await _load(name, store)
    if json:
        output.document(info.model_dump(mode="json"))
        return
    output.answer(_summary(session, info))
    where = f" --store {output.word(store)}" if store else ""
    output.answer(f"\ngo on with:  channelcoder run -p '…' --load-session {output.word(session.name)}{where}")


async def fork(
    name: Name,
    new: Annotated[str, Parameter(help="The name of the copy.")],
    /,
    *,
    at: Annotated[int | None, Parameter(metavar="TURN", help="Copy up to the end of this turn; all of it.")] = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Copy a session, up to the end of turn `at`, into a new one."""
    original, _ = await _load(name, store)
    await _tell(await original.fork(new, at=at), f"forked from {original.name!r}", store, as_json=json)


async def rewind(
    name: Name,
    /,
    *,
    to: Annotated[int, Parameter(metavar="TURN", help="The last turn to keep; 0 keeps none.")],
    store: Store = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Go back to the end of turn `to`; the later turns stay in the journal."""
    session, _ = await _load(name, store)
    await session.rewind(to=to)
    await _tell(session, "later ones stay in its journal", store, as_json=json)


async def remove(
    *names: Annotated[str, Parameter(help="The sessions to delete.", negative=())],
    yes: Annotated[bool, Parameter(name=("-y", "--yes"), help="Do not ask.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Delete sessions: all that are named, or none when one of them does not exist."""
    if not names:
        raise UsageError("session remove needs the name of a session: `channelcoder session list` shows all")
    kept = open_storage(settings(store).store)
    for name in names:
        if not await kept.exists(name):
            raise not_found(name, [info.name for info in await kept.list()])
    if not yes and sys.stdin.isatty() and not _agreed(names):
        raise UsageError("nothing was removed")
    for name in names:
        await remove_unused(kept, name)
        output.say(f"removed {name!r}")
    if json:
        output.document({"removed": list(names)})


async def _load(name: str, store: str | None) -> tuple[Session, SessionInfo]:
    # A list needs none of what runs turns.
    from channelcoder_flows.session import Session

    session = await Session.load(name, settings=settings(store))
    kept = session.opened.storage
    path = kept.root / directory_name(session.name) if isinstance(kept, FileSessionStorage) else kept.url
    return session, session.opened.journal.totals.info(str(path))


def _summary(session: Session, info: SessionInfo) -> str:
    turns, messages = output.count(info.turns, "turn"), output.count(info.message_count, "message")
    return "\n".join(
        [
            f"{output.plain(info.name)}: {turns}, {messages}, {output.dollars(info.cost_usd)}",
            f"created      {output.local_time(info.created)}",
            f"last active  {output.local_time(info.last_active)}",
            f"kept at      {info.path}",
            f"Claude has it as  {session.id or 'nothing yet'}",
        ]
    )


async def _tell(session: Session, what: str, store: str | None, *, as_json: bool) -> None:
    _, info = await _load(session.name, store)
    if as_json:
        output.document(info.model_dump(mode="json"))
    else:
        output.answer(f"{output.plain(session.name)}: {output.count(session.turns, 'turn')}, {what}")


def _agreed(names: tuple[str, ...]) -> bool:
    what = output.plain(", ".join(names))
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
