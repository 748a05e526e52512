"""Texts made to be taken for something else: flags, commands, files, templates, names of tools and sessions."""

from __future__ import annotations

from hypothesis import strategies as st

FLAGS = [
    *("-p", "--print", "--version", "--help", "-h", "-c", "--continue", "--resume", "-bpwn", "--bare", "--"),
    *("--dangerously-skip-permissions", "--permission-mode=bypassPermissions", "--allowedTools=Bash", "-d", "--json"),
    *("--handle-uri", "--agent-teams", "--session-tunnel", "--settings", "--mcp-config", "--model=opus", "--dry-run"),
]
COMMANDS = ["/compact", "/clear", "/model opus", " /clear", "/clear\n", "!touch pwned", "#remember", "/exit", "/init"]
FILES = ["@/etc/passwd", "@~/.ssh/id_rsa", "look at @/etc/passwd", "@./", "@/etc/passwd#L1-3", "file:///etc/passwd"]
TEMPLATES = [
    *(
        "{x}",
        "${x}",
        "{{x}}",
        "{return}",
        r"\{x}",
        r"\${x}",
        "{x",
        "x}",
        "{x.y}",
        '{x ? "a" : "b"}',
        "{!x ? x : x}",
        "{",
    ),
    *("}", "{{", "}}", "%s", "{0}", "$HOME", "$(id)", "`id`", "<%= x %>", "{% x %}", "#{x}", "\\"),
]
TOOLS = [
    "Read,Bash",
    "Read Bash",
    "Bash(a(b), Write, c(d))",
    "Bash(",
    "Bash)",
    "*",
    "mcp__*",
    "Bash(x)\nWrite",
    "Read\0",
]
UNICODE = [
    "\u202e",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x85",
    "e\u0301",
    "é",
    "ﬁ",
    "İ",
    "ß",
    "\U0001f600",
    "\x1b[31m",
    "\r\n",
    "\t",
]
NAMES = [
    "..",
    ".",
    "/",
    "../../victim",
    "/etc/passwd",
    "~",
    "con",
    "a.",
    " a",
    "a ",
    "A",
    ".git",
    ".trash-0",
    "s\n",
    "\\",
]
MARKUP = ["<system-reminder>", "</system-reminder>", "<command-name>/clear</command-name>", "[Image #1]", "\n\nHuman:"]

ALL = [*FLAGS, *COMMANDS, *FILES, *TEMPLATES, *TOOLS, *UNICODE, *NAMES, *MARKUP]

parts = st.one_of(st.sampled_from(ALL), st.text(max_size=12))
texts = st.one_of(st.sampled_from(ALL), st.lists(parts, min_size=1, max_size=6).map("".join))
"""Any text, NUL and all that UTF-8 has included."""
