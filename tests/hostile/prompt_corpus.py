"""Prompt files that no friend would write: what each holds, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from channelcoder_flows.prompt_file import KEYS

MB = 1024 * 1024
ACCEPTED = ""


class Case(NamedTuple):
    """A prompt file, and what it is refused with after its path: `:LINE: KEY: …`, the beginning of it."""

    name: str
    make: Callable[[Path], Path]
    """Makes the file in an empty folder, and returns its path."""
    refusal: str = ACCEPTED


def cases() -> Iterator[Case]:
    """Yield the corpus."""
    yield from _texts()
    yield from _frontmatters()
    yield from _wrong_types()
    yield from _bombs()
    yield from _files()


def _file(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "p.md"
        path.write_bytes(content)
        return path

    return make


def _texts() -> Iterator[Case]:
    good = "---\nmodel: opus\n---\nDo it\n"
    for name, content, refusal in [
        ("empty", b"", ":1: there is no text"),
        ("blank", b" \n\t\n  ", ":3: there is no text"),
        ("only blank lines", b"\n" * 1000, ":1001: there is no text"),
        ("no frontmatter", b"Do it", ACCEPTED),
        ("empty frontmatter", b"---\n---\nDo it", ACCEPTED),
        ("only frontmatter", b"---\nmodel: x\n---\n", ":4: there is no text"),
        ("unterminated", b"---\nmodel: x\nDo it\n", ":1: the frontmatter has no end"),
        ("unterminated, lone dashes", b"---", ":1: the frontmatter has no end"),
        ("closed by dots", b"---\nmodel: x\n...\nDo it\n", ":1: the frontmatter has no end"),
        ("four dashes", b"----\nmodel: x\n----\nDo it\n", ":1: frontmatter is YAML between two lines"),
        ("two dashes close", b"---\nmodel: x\n--\nDo it\n", ":1: the frontmatter has no end"),
        ("dashes and a word", b"--- yaml\nmodel: x\n---\nDo it\n", ":1: frontmatter is YAML between two lines"),
        ("dashes and a comment", b"---#\nmodel: x\n---\nDo it\n", ":1: frontmatter is YAML between two lines"),
        ("dashes and blanks", b"---  \nmodel: x\n---\t\nDo it\n", ACCEPTED),
        ("indented end", b"---\nmodel: x\n ---\nDo it\n", ":1: the frontmatter has no end"),
        ("toml", b"+++\nmodel = 'x'\n+++\nDo it\n", ":1: frontmatter is YAML between two lines"),
        ("json fence", b";;;\n{}\n;;;\nDo it\n", ":1: frontmatter is YAML between two lines"),
        ("rule in the text", b"Do it\n---\nmodel: x\n---\n", ACCEPTED),
        ("second document", b"---\nmodel: x\n---\nDo it\n---\nmodel: y\n---\n", ACCEPTED),
        ("document end inside", b"---\nmodel: x\n...\nname: y\n---\nDo it\n", ":4: "),
        ("bom", b"\xef\xbb\xbf" + good.encode(), ACCEPTED),
        ("two boms", b"\xef\xbb\xbf" * 2 + good.encode(), ACCEPTED),
        ("bom and blank lines", b"\xef\xbb\xbf\r\n\r\n" + good.encode(), ACCEPTED),
        ("bom inside a key", good.replace("model", "\ufeffmodel").encode(), ":2: \\ufeffmodel: is not a key"),
        ("windows line ends", good.replace("\n", "\r\n").encode(), ACCEPTED),
        ("lone carriage returns", good.replace("\n", "\r").encode(), ACCEPTED),
        ("mixed line ends", b"---\r\nmodel: x\r---\nDo it", ACCEPTED),
        ("unicode line ends", "---\u2028model: x\u2028---\u2028Do it".encode(), ":1: frontmatter is YAML"),
        ("form feeds", b"---\nmodel: x\n---\n\x0cDo it\x0b", ACCEPTED),
        ("utf-16 le", good.encode("utf-16"), ":1: has a NUL byte"),
        ("utf-16 be", b"\xfe\xff" + good.encode("utf-16-be"), ":1: has a NUL byte"),
        ("utf-32", good.encode("utf-32"), ":1: has a NUL byte"),
        ("utf-7", b"---\nmodel: +AHg-\n---\nDo it", ACCEPTED),
        ("latin-1", "---\nname: é\n---\nDo it".encode("latin-1"), ":2: is not UTF-8"),
        ("cp1252 quotes", b"---\nname: x\n---\nDo \x93it\x94", ":4: is not UTF-8"),
        ("cut character", "Do it é".encode()[:-1], ":1: is not UTF-8"),
        ("overlong slash", b"Do\nit \xc0\xaf", ":2: is not UTF-8"),
        ("surrogate in utf-8", b"Do\n\n\xed\xa0\x80", ":3: is not UTF-8"),
        ("beyond unicode", b"Do \xf5\x80\x80\x80", ":1: is not UTF-8"),
        ("nul in the text", b"---\nmodel: x\n---\nDo\0 it", ":4: has a NUL byte"),
        ("nul in the frontmatter", b"---\nmodel: x\0\n---\nDo it", ":2: has a NUL byte"),
        ("nul at the end", b"Do it\n\0", ":2: has a NUL byte"),
        ("escape codes in the text", b"Do \x1b[31mit\x1b]0;x\x07", ACCEPTED),
        ("right to left", "---\nname: plan\n---\n\u202eti oD\u202c".encode(), ACCEPTED),
        ("zero width", "D\u200bo i\u200dt".encode(), ACCEPTED),
        ("only zero width", "\u200b".encode(), ACCEPTED),
        ("emoji", "👩‍👩‍👧‍👦 {x} 🏴󠁧󠁢󠁥󠁮󠁧󠁿".encode(), ACCEPTED),
        ("combining", ("e" + "\u0301" * 10_000).encode(), ACCEPTED),
        ("private use and noncharacters", "\ue000\uffff\U0010ffff".encode(), ACCEPTED),
        ("elf", b"\x7fELF\x02\x01\x01\x00", ":1: has a NUL byte"),
        ("gzip", b"\x1f\x8b\x08\x00", ":1: has a NUL byte"),
        ("html", b"<script>alert(1)</script>", ACCEPTED),
        ("jinja", b"{% for x in y %}{{ x }}{% endfor %}", ACCEPTED),
    ]:
        yield Case(name, _file(content), refusal)


def _frontmatters() -> Iterator[Case]:
    for name, frontmatter, refusal in [
        ("duplicate keys", "model: a\nmodel: b", ":3: model: is given twice (first on line 2)"),
        ("duplicate keys in quotes", 'model: a\n"model": b', ":3: model: is given twice"),
        ("duplicate keys by escape", 'model: a\n"mod\\u0065l": b', ":3: model: is given twice"),
        ("duplicate keys in two spellings", "max-turns: 1\nmaxTurns: 2", ":3: maxTurns: is given twice"),
        ("duplicate keys inside", "retry: {attempts: 1, attempts: 2}", ":2: retry.attempts: is given twice"),
        ("duplicate inputs", "input: {a: string, a: integer}", ":2: input.a: is given twice"),
        ("input with and without ?", 'input: {a: string, "a?": string}', ":2: input.a: is declared twice"),
        ("anchor", "model: &m opus", ":2: model: anchors and aliases are not read"),
        ("alias", "model: *m", ":2: "),
        ("merge key", "<<: {model: opus}", ":2: <<: is not a key"),
        ("merge of an alias", "x-a: &a {model: x}\n<<: *a", ":2: x-a: anchors and aliases are not read"),
        ("python object", "model: !!python/object/apply:os.system [id]", ":2: model: tags are not read"),
        ("python name", "model: !!python/name:os.system", ":2: model: tags are not read"),
        ("binary", "model: !!binary aGk=", ":2: model: tags are not read"),
        ("set", "tools: !!set {Read, Edit}", ":2: tools: tags are not read"),
        ("own tag", "model: !env KEY", ":2: model: tags are not read"),
        ("str tag", "maxTurns: !!str 3", ":2: maxTurns: tags are not read"),
        ("tag of a key", "!!str model: x", ":2: "),
        ("yaml directive", "%YAML 1.1\nmodel: x", ":3: "),
        ("tag directive", "%TAG ! tag:x,2000:\nmodel: x", ":3: "),
        ("a list", "- model: x", ":2: the frontmatter is a list"),
        ("a flow list", "[model, x]", ":2: the frontmatter is a list"),
        ("a plain value", "opus", ":2: the frontmatter is a plain value"),
        ("a number", "3", ":2: the frontmatter is a plain value"),
        ("null", "~", ACCEPTED),
        ("only a comment", "# model: x", ACCEPTED),
        ("a block text", "|\n  model: x", ":2: the frontmatter is a plain value"),
        ("a mapping in braces", "{model: opus}", ACCEPTED),
        ("on as a key", "on: push", ":2: on: is not a key of a prompt file"),
        ("on as a value", "name: on", ACCEPTED),
        ("yes for true", "session: {required: yes}", ":2: session: required must be true or false"),
        ("norway", "input: {c: {type: string, enum: [no, yes, on, off]}}", ACCEPTED),
        ("octal", "maxTurns: 010", ACCEPTED),
        ("yaml 1.1 octal text", "maxTurns: 0o8", ":2: maxTurns: must be a whole number"),
        ("sexagesimal", "timeout: 1:30", ":2: timeout: must be a number of seconds"),
        ("underscores", "maxTurns: 1_000", ":2: maxTurns: must be a whole number"),
        ("version 1.10", "name: 1.10", ACCEPTED),
        ("a timestamp", "name: 2026-01-02T03:04:05Z", ACCEPTED),
        ("a date as a number", "maxTurns: 2026-01-02", ":2: maxTurns: must be a whole number"),
        ("infinite", "timeout: .inf", ":2: timeout: .inf is not a number"),
        ("not a number", "maxBudgetUsd: .nan", ":2: maxBudgetUsd: .nan is not a number"),
        ("too big a float", "timeout: 1e999", ":2: timeout: 1e999 is not a number"),
        ("arabic digits", "maxTurns: ٣", ":2: maxTurns: must be a whole number"),
        ("negative", "maxTurns: -1", ":2: maxTurns: must be greater"),
        ("zero", "maxTurns: 0", ":2: maxTurns: must be greater"),
        ("no budget", "maxBudgetUsd: 0", ":2: maxBudgetUsd: must be greater"),
        ("tab", "session:\n\trequired: true", ":3: session: cannot be read: there is a tab"),
        ("bad indent", "session:\n  required: true\n mode: new", ":4: "),
        ("unclosed quote", "model: 'x", ":3: model: cannot be read"),
        ("unclosed bracket", "tools: [Read", ":3: "),
        ("unquoted colon", "description: Fix: it", ":2: description: cannot be read; put the value in quotes"),
        ("unquoted star", "tools: *", ":2: tools: cannot be read; put the value in quotes"),
        ("unquoted at", "name: @plan", ":2: name: cannot be read; put the value in quotes"),
        ("unquoted percent", "name: %plan", ":2: name: cannot be read; put the value in quotes"),
        ("value without a key", ": x", ":2: cannot be read"),
        ("a list as a key", "? [a]\n: b", ":2: a key is a text"),
        ("a mapping as a key", "{a: b}: c", ":2: a key is a text"),
        ("control character", "name: \x07", ":2: has a character that YAML refuses"),
        ("delete character", "name: \x7f", ":2: has a character that YAML refuses"),
        ("lone surrogate", 'name: "\\ud800"', ":2: name: has half a character"),
        ("two halves of a character", 'name: "\\ud83d\\ude00"', ACCEPTED),
        ("escaped nul", 'systemPrompt: "a\\0b"', ":2: systemPrompt: has a NUL"),
        ("escaped newline in a line", 'model: "a\\nb"', ":2: model: must be one line"),
        ("escape code in a line", 'model: "\\e[31m"', ":2: model: must be one line"),
        ("right to left in a line", 'name: "\\u202enalp"', ":2: name: must be one line"),
        ("a long line", "model: " + "x" * 201, ":2: model: must be one line of up to 200"),
        ("newline in a key", '"a\\nb": 1', ":2: a\\nb: is not a key of a prompt file"),
        ("escape code in a key", '"\\e[31m": 1', ":2: \\x1b[31m: is not a key of a prompt file"),
        ("right to left in a key", '"\\u202eledom": x', ":2: \\u202eledom: is not a key"),
        (
            "zero width in a key",
            "mod\u200bel: x",
            ":2: mod\\u200bel: is not a key of a prompt file; did you mean 'model'",
        ),
        ("homoglyph in a key", "m\u043edel: x", ":2: m\u043edel: is not a key of a prompt file; did you mean 'model'"),
        ("full width key", "\uff4dodel: x", ":2: \uff4dodel: is not a key of a prompt file; did you mean 'model'"),
        ("another case", "Model: x", ":2: Model: is not a key of a prompt file; did you mean 'model'"),
        ("snake case", "max_turns: 1", ":2: max_turns: is not a key of a prompt file; did you mean 'maxTurns'"),
        ("misspelled", "alowedTools: [Read]", ":2: alowedTools: is not a key of a prompt file; did you mean 'allowedT"),
        ("a key of Claude Code's commands", "argument-hint: x", ":2: argument-hint: is not a key of a prompt file"),
        ("a key of its own", "x-anything: {at: [all]}", ACCEPTED),
        ("not yet", "docker: true", ":2: docker: is not in this version yet"),
        ("two tools in one", 'tools: ["Read,Bash"]', ":2: tools.0: 'Read,Bash' is not a tool name"),
        (
            "a tool after a bracket",
            'tools: ["Bash(a(b), Write, c(d))"]',
            ":2: tools.0: 'Bash(a(b), Write, c(d))' is several",
        ),
        (
            "a flag as a tool",
            "tools: [--dangerously-skip-permissions]",
            ":2: tools.0: '--dangerously-skip-permissions' is",
        ),
        ("a flag in a text of tools", "tools: Read --version", ":2: tools.1: '--version' is not a tool name"),
        ("a tool with a newline", 'tools: ["Read\\nBash"]', ":2: tools.0: 'Read\\nBash' is not a tool name"),
        ("a flag as a model", "model: --version", ACCEPTED),
        ("a flag as a system prompt", "systemPrompt: --handle-uri", ACCEPTED),
        ("unknown mode", "permissionMode: yolo", ":2: permissionMode: must be"),
        ("unknown source", "settingSources: [everything]", ":2: settingSources.0: must be"),
        ("unknown recovery", "recovery: pray", ":2: recovery: must be"),
        ("unknown key of retry", "retry: {attemps: 1}", ":2: retry: has no 'attemps'; did you mean 'attempts'"),
        ("unknown key of session", "session: {resume: x}", ":2: session: has no 'resume'"),
        ("a session of nothing", 'session: {name: ""}', ":2: session.name: must have at least 1"),
        ("a type that is none", "input: {a: strng}", ":2: input.a: 'strng' is not a type; did you mean 'string'"),
        ("a name that is none", 'input: {"a b": string}', ":2: input.a b: a name has letters"),
        ("a name with a newline", 'input: {"a\\nb": string}', ":2: input.a\\nb: a name has letters"),
        ("lists of lists", "input: {a: 'string" + "[]" * 9 + "'}", ":2: input.a: is a list of lists more than 8 deep"),
        ("a reference elsewhere", "input: {$ref: 'https://x/y'}", ":2: input.$ref: $ref 'https://x/y' is refused"),
        (
            "a reference to a file",
            "input: {$ref: 'file:///etc/passwd'}",
            ":2: input.$ref: $ref 'file:///etc/passwd' is",
        ),
        (
            "a reference to itself",
            'input: {type: object, properties: {a: {$ref: "#/properties/a"}}}',
            ":2: input.properties.a.$ref: $ref '#/properties/a' leads back to itself",
        ),
        (
            "a pattern that is none",
            'input: {type: object, properties: {a: {type: string, pattern: "("}}}',
            ":2: input.properties.a.pattern: is not JSON Schema",
        ),
        (
            "an output that is no object",
            "output: {type: array, items: {type: string}}",
            ":2: output: the outermost schema",
        ),
        ("an enum of another type", "input: {a: {type: string, enum: [1]}}", ":2: input.a: enum 1 does not fit"),
        ("min over max", "input: {a: {type: integer, min: 2, max: 1}}", ":2: input.a: min 2 is over max 1"),
        ("a system prompt that is not there", "systemPrompt: gone.md", ":2: systemPrompt: "),
        ("a system prompt from a device", "mcpConfig: /dev/zero", ":2: mcpConfig: /dev/zero: is not a regular file"),
        ("servers without servers", "mcpConfig: {a: 1}", ":2: mcpConfig: has no mcpServers"),
    ]:
        yield Case(name, _file(f"---\n{frontmatter}\n---\nDo it\n".encode()), refusal)
    placeholder = "---\ninput: {ticket: {title: string}}\n---\n\nDo {ticket.titel}\n"
    yield Case("a placeholder that is not declared", _file(placeholder.encode()), ":5: {ticket.titel}: 'titel' is not")


_TEXT = ["[a]", "{a: b}", "", "''", "' '"]
_NUMBER = ["x", "'3'", "true", "[1]", "{a: 1}", ""]
_WRONG = {
    **{key: ["3", "[1]", "{a: b}", ""] for key in ("tools", "allowedTools", "disallowedTools", "settingSources")},
    **dict.fromkeys(("maxTurns", "maxBudgetUsd", "timeout", "idleTimeout"), _NUMBER),
    **{key: ["x", "3", "[string]", ""] for key in ("input", "output")},
    "retry": ["x", "true", "[1]", ""],
    "session": ["x", "true", "[main]", ""],
    "mcpConfig": ["[a]", "true", ""],
}
"""Values of the wrong type for each key; the others are texts."""


def _wrong_types() -> Iterator[Case]:
    for key in KEYS:
        for value in _WRONG.get(key, _TEXT):
            yield Case(f"{key}: {value}", _file(f"---\n{key}: {value}\n---\nDo it\n".encode()), f":2: {key}")


def _bombs() -> Iterator[Case]:
    room = 64 * 1024 - 200
    aliases = "\n".join(f"x-{n}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]" for n in range(9))
    for name, frontmatter, refusal in [
        ("billion laughs", f"x-a: &a [lol]\n{aliases}", ":2: x-a: anchors and aliases are not read"),
        ("500 open brackets", "x-a: " + "[" * 500, ":2: x-a: is nested deeper than 32 levels"),
        ("60,000 open brackets", "x-a: " + "[" * 60_000, ":2: x-a: is nested deeper than 32 levels"),
        ("500 open braces", "x-a: " + "{a: " * 500, ":2: x-a: is nested deeper than 32 levels"),
        ("500 dashes", "x-a:\n" + "- " * 500 + "a", ":3: x-a: is nested deeper than 32 levels"),
        ("300 indents", "\n".join(" " * n + "x-a:" for n in range(300)), ":34: x-a: is nested deeper than 32 levels"),
        ("500 keys in keys", "? " * 500, ":2: "),
        ("60,000 question marks", "? " * (room // 2), ":2: "),
        ("32,000 values", "x-a: [" + "1," * (room // 2 - 4) + "]", ":2: the frontmatter has more than 1000 keys"),
        ("7,000 keys", "\n".join(f"k{n}: 1" for n in range(room // 9)), ":501: the frontmatter has more than 1000"),
        ("400 unknown keys", "\n".join(f"max-turnz{n}: 1" for n in range(400)), ":2: max-turnz0: is not a key"),
        (
            "400 inputs of no type",
            "input:\n" + "\n".join(f"  a{n}: strng" for n in range(400)),
            ":3: input.a0: 'strng'",
        ),
        ("30,000 tools", "tools: " + "1 " * (room // 2 - 4), ":2: tools.0: '1' is not a tool name"),
        ("900 choices", "input: {a: {type: string, enum: [" + "x," * 900 + "1]}}", ":2: input.a: enum 1 does not fit"),
        (
            "200 properties",
            "input: {type: object, properties: {" + ",".join(f"a{n}: {{type: strin}}" for n in range(200)) + "}}",
            ":2: input.",
        ),
        ("a key of 60,000", "k" * 60_000 + ": 1", ":2: " + "k" * 100),
        ("a number of 60,000 digits", "timeout: " + "1" * 60_000, ":2: timeout: 1111"),
        ("a duration of 20,000 days", "idleTimeout: " + "9x" * 20_000, ":2: idleTimeout: must be a number of seconds"),
        ("a text of 60,000 blanks", " " * 60_000 + "[", ":3: [0]: cannot be read"),
        ("60,000 tabs", "\t" * 60_000, ":2: cannot be read: there is a tab"),
        ("20,000 colons", "a: " * 20_000, ":2: a: cannot be read"),
        ("an open quote and 60,000 lines", '"' + "\n" * 60_000, ":60003: cannot be read"),
        ("30,000 quotes", "x-a: '" + "''" * 30_000, ":3: x-a: cannot be read"),
        ("15,000 escapes", 'name: "' + "\\x41" * 15_000 + '"', ":2: name: must be one line"),
        ("frontmatter of 64 KB and more", "x-a: " + "a" * 66_000, ":1: the frontmatter is over 64 KB"),
    ]:
        yield Case(name, _file(f"---\n{frontmatter}\n---\nDo it\n".encode()), refusal)
    declared = "---\ninput: {a: {b: string}}\n---\n"
    for name, text, refusal in [
        ("1 MB without an end", "---\n" + "a: b\n" * 200_000, ":1: the frontmatter has no end"),
        ("1 MB of blank lines", "\n" * 1_000_000, ":1000001: there is no text"),
        ("1 MB and one emoji", "---\nmodle: x\n---\n" + "a" * 1_000_000 + "😀", ":2: modle: is not a key"),
        ("100,000 wrong placeholders", declared + "{a.c}\n" * 150_000, ":4: {a.c}: 'c' is not declared"),
        (
            "100,000 different placeholders",
            declared + "".join(f"{{a.{n}}}" for n in range(100_000)),
            ":4: {a.0}: '0' is not declared",
        ),
        ("1 MB of open braces", declared + "{" * 1_000_000 + "{a.c}", ACCEPTED),
        ("1 MB of open quotes", declared + '{a ? "' + "\\'" * 400_000 + "{a.c}", ":4: {a.c}: 'c' is not declared"),
    ]:
        yield Case(name, _file(text.encode()), refusal)


def _files() -> Iterator[Case]:
    def of(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
        def make_it(folder: Path) -> Path:
            make(folder / name)
            return folder / name

        return make_it

    def holes(size: int) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            with path.open("wb") as file:
                file.truncate(size)

        return make

    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    def link_to_file(path: Path) -> None:
        (path.parent / "real.txt").write_text("Do it")
        path.symlink_to("real.txt")

    def system_link(path: Path) -> None:
        (path.parent / "s.txt").symlink_to("/dev/zero")
        path.write_text("---\nsystemPrompt: s.txt\n---\nDo it")

    def system_pipe(path: Path) -> None:
        os.mkfifo(path.parent / "s.txt")
        path.write_text("---\nsystemPrompt: s.txt\n---\nDo it")

    def system_huge(path: Path) -> None:
        holes(50 * MB)(path.parent / "s.txt")
        path.write_text("---\nsystemPrompt: s.txt\n---\nDo it")

    for name, file, make, refusal in [
        ("50 MB", "p.md", holes(50 * MB), ": is over 1 MB"),
        ("50 GB", "p.md", holes(50 * 1024 * MB), ": is over 1 MB"),
        ("one byte too many", "p.md", lambda path: path.write_bytes(b"a" * (MB + 1)), ": is over 1 MB"),
        ("the most there may be", "p.md", lambda path: path.write_bytes(b"a" * MB), ACCEPTED),
        ("1 MB of holes", "p.md", holes(MB), ":1: has a NUL byte"),
        ("a folder", "p.md", lambda path: path.mkdir(), ": is a folder"),
        ("a pipe", "p.md", os.mkfifo, ": is not a regular file"),
        ("a socket", "p.md", _socket, ": cannot be read"),
        ("no file", "gone.md", lambda path: None, ": there is no such file"),
        ("a folder of a name too long", "a" * 300 + ".md", lambda path: None, ": cannot be read: File name too long"),
        ("inside a file", "p.md/q.md", lambda path: path.parent.write_text("x"), ": cannot be read: Not a directory"),
        ("a link to a file", "p.md", link_to_file, ACCEPTED),
        ("a link to nothing", "p.md", link("gone"), ": there is no such file"),
        ("a link to itself", "p.md", link("p.md"), ": cannot be read: Too many levels of symbolic links"),
        ("a link to a folder", "p.md", link("/"), ": is a folder"),
        ("a link to a device", "p.md", link("/dev/zero"), ": is not a regular file"),
        ("a link to what has no end", "p.md", link("/dev/urandom"), ": is not a regular file"),
        ("a link to the memory of this process", "p.md", link("/proc/self/mem"), ": cannot be read"),
        ("a file of the kernel", "p.md", link("/proc/self/status"), ACCEPTED),
        ("a file with a newline", "a\nb.md", lambda path: path.write_text(""), ":1: there is no text"),
        ("a name with escape codes", "\x1b[31m.md", lambda path: path.write_text(""), ":1: there is no text"),
        ("a name that is no text", "\udcff.md", lambda path: path.write_text(""), ":1: there is no text"),
        ("a name like a flag", "--version.md", lambda path: path.write_text("Do it"), ACCEPTED),
        ("a system prompt that is a device", "p.md", system_link, ":2: systemPrompt: "),
        ("a system prompt that is a pipe", "p.md", system_pipe, ":2: systemPrompt: "),
        ("a system prompt of 50 MB", "p.md", system_huge, ":2: systemPrompt: "),
    ]:
        yield Case(name, of(file, make), refusal)


def _socket(path: Path) -> None:
    import socket

    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)
