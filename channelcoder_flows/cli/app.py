"""The tree of commands. Each is named by where it lives and imported when it is called, so that help is quick."""

from __future__ import annotations

from cyclopts import App, Group, Parameter

from channelcoder_flows.cli.help import TwoColumns

RUN = """Run a prompt and print Claude's answer.

The answer goes to stdout, all else to stderr. With --session the turn is kept: the next one goes on from there, today
or next week. Without, nothing is kept.

  channelcoder run "Start project" --session my-project -t "Read Write"
  channelcoder run -p "Add tests" --load-session my-project
  channelcoder run prompts/plan.md -d ticket="Search is slow" --dry-run
  git diff | channelcoder run - --json"""

STREAM = """Run a prompt and print the answer as it comes.

Takes what `run` takes. With --json, each piece is a line of its own: {"type", "content", …}; the last line has type
"result" and all that `run --json` prints."""

CHECK = """Check prompt files, and print what is wrong with them as file:line: key: message.

A folder stands for all .md files under it. Nothing is run and nothing is spent; exit code 2 when anything is wrong."""

FLOW_RUN = """Run a flow, and print what it returns.

  channelcoder flow run flows/feature.py:feature -d name=search

A flow that fails ends with the command that resumes it."""

FLOW_RESUME = """Go on with a run that did not end.

Steps that are done are answered from the journal: nothing is paid for twice. Exit code 0 when nothing is to be done."""

DOCTOR = """Check that all it takes is there: CLI, login, store, Prefect.

Says what to do about what is not. Exit code 1 when something necessary is missing."""

REMOVE = """Delete sessions: all that are named, or none when one of them does not exist.

On a terminal it asks first."""

BEGIN = """
Begin with      channelcoder run "What is in this folder?" -t "Read Glob"
or, with no key, channelcoder demo
Each command explains itself: channelcoder run --help"""


def version() -> str:
    """Return the version of this package."""
    from channelcoder_flows import __version__

    return __version__


def command(parent: App, name: str, target: str, description: str) -> None:
    """Register what lives at `target` (module:function) as a command; it is listed in the order of these calls."""
    parent.command(
        f"channelcoder_flows.cli.{target}",
        name=name,
        help=description,
        help_epilogue="",
        sort_key=len(list(parent)),
    )


def group(parent: App, name: str, description: str) -> App:
    """Return a new group of commands, listed like a command."""
    new = App(name=name, help=description, help_epilogue="", sort_key=len(list(parent)))
    parent.command(new)
    return new


app = App(
    name="channelcoder",
    help="Durable Claude Code work: Markdown prompts, sessions that are kept, flows that resume.",
    help_epilogue=BEGIN,
    version=version,
    version_format="plaintext",
    help_format="plaintext",
    help_formatter=TwoColumns(),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=(), show_default=False),
    group_commands=Group("Commands", sort_key=0),
    group_arguments=Group("Arguments", sort_key=0),
    group_parameters=Group("Parameters", sort_key=8),
)
app["--version"].help = "Print the version."

command(app, "run", "run:run", RUN)
command(app, "stream", "run:stream", STREAM)
session = group(app, "session", "List, show, fork, rewind or remove sessions.")
prompt = group(app, "prompt", "Check prompt files.")
flow = group(app, "flow", "Run a flow, or resume one that did not end.")
command(app, "demo", "demo:demo", "See a flow killed and resumed, without a key.")
command(app, "doctor", "doctor:doctor", DOCTOR)

command(session, "list", "session:list_sessions", "List all sessions, the latest first.")
command(session, "show", "session:show", "Show what was said in a session.")
command(session, "load", "session:load", "Show where a session stands, and how to go on.")
command(session, "fork", "session:fork", "Copy a session into a new one.")
command(
    session, "rewind", "session:rewind", "Take a session back to an earlier turn; the later ones stay in its journal."
)
command(session, "remove", "session:remove", REMOVE)
command(prompt, "check", "prompt:check", CHECK)
command(flow, "run", "flow:run", FLOW_RUN)
command(flow, "resume", "flow:resume", FLOW_RESUME)
