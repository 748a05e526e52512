"""The public names are all there, all typed, and what is raised can be carried to another process."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
import tomllib
from pathlib import Path

import pytest

import channelcoder_flows
from channelcoder_flows import errors
from channelcoder_flows.errors import ChannelCoderError

ROOT = Path(__file__).parents[2]
ERRORS = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, ChannelCoderError)]


def typed_names() -> set[str]:
    """Return the names that a type checker finds in the package."""
    tree = ast.parse(Path(channelcoder_flows.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("channelcoder_flows")]
    return {alias.name for node in ours for alias in node.names}


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` can be fetched, is what type checkers and `dir` say, and none is forgotten."""
    names = channelcoder_flows.__all__
    for name in names:
        assert getattr(channelcoder_flows, name) is not None
    assert len(names) == len(set(names))
    assert set(names) == typed_names() | {"__version__"} == set(dir(channelcoder_flows))


def test_public_names_have_documentation() -> None:
    """`help()` of every public name says what it is."""
    for name in set(channelcoder_flows.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(channelcoder_flows, name)), name


def test_a_misspelt_name_is_an_attribute_error() -> None:
    """A name that is not there fails like in any other module."""
    with pytest.raises(AttributeError, match="has no attribute 'Sesion'"):
        _ = channelcoder_flows.Sesion


def test_version() -> None:
    """The version is the one the project declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert channelcoder_flows.__version__ == project["version"]


def test_all_errors_are_public() -> None:
    """Every error can be imported from the package, to be caught."""
    names = {error.__name__ for error in ERRORS}
    assert names == set(errors.__all__)
    assert names <= set(channelcoder_flows.__all__)


def test_the_drawn_tree_is_the_real_one() -> None:
    """The tree in the docstring of `errors` shows every error below its parent, with its exit code."""
    drawn: list[tuple[str, str, str]] = []
    path = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([ │├└─]*)([A-Z]\w+) +(\d|exit code)", line):
            indent, name, code = match.groups()
            del path[len(indent) // 4 + 1 :]
            drawn.append((name, path[-1], code))
            path.append(name)
    head, *rest = drawn
    assert head == ("ChannelCoderError", "Exception", "exit code")
    real = [(error.__name__, error.__mro__[1].__name__, str(error.exit_code)) for error in ERRORS]
    assert sorted(rest) == sorted(set(real) - {("ChannelCoderError", "Exception", "1")})


@pytest.mark.parametrize("error", ERRORS)
def test_errors_travel(error: type[ChannelCoderError]) -> None:
    """An error raised in a worker arrives with its message, its data and its notes."""
    fields = {name for cls in error.__mro__ for name in vars(cls).get("__annotations__", {})} - {"exit_code"}
    data = {name: f"value of {name}" for name in fields}
    raised = error("what happened: what to do next", **data)
    raised.add_note("a note")
    for arrived in (pickle.loads(pickle.dumps(raised)), copy.deepcopy(raised)):
        assert type(arrived) is error
        assert (str(arrived), arrived.args, arrived.__notes__) == (str(raised), raised.args, ["a note"])
        assert {name: getattr(arrived, name) for name in fields} == data


@pytest.mark.parametrize("error", ERRORS)
def test_errors_speak_without_a_message(error: type[ChannelCoderError]) -> None:
    """An error without words of its own says what its class says, in one line."""
    assert str(error()) == inspect.getdoc(error)
    assert "\n" not in str(error())


def test_errors_know_their_data() -> None:
    """A misspelt attribute is refused where the error is made, not missed where it is caught."""
    with pytest.raises(TypeError, match="ApiError has no 'retryable_'"):
        errors.ApiError("x", retryable_=True)
