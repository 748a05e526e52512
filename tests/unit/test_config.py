"""Settings come from where the reader expects, say where that was, and refuse what they do not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelcoder_flows.config import ENVIRONMENT, KEYS, PERSONAL, Secret, Settings, child_environment, load_settings
from channelcoder_flows.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory without settings."""
    (folder := tmp_path / "home" / ".channelcoder").mkdir(parents=True)
    return folder.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory without settings."""
    (folder := tmp_path / "project").mkdir()
    return folder


def load(project: Path, home: Path, /, overrides: dict[str, object] | None = None, **env: str) -> Settings:
    """Load the settings of `project` with `home` as the home directory."""
    return load_settings(cwd=project, env={"HOME": str(home), **env}, overrides=overrides)


def test_nothing_set(project: Path, home: Path) -> None:
    """Without any settings, sessions live in ~/.channelcoder/sessions and everything else is left to the turn."""
    settings = load(project, home)
    assert settings.store == f"{home}/.channelcoder/sessions"
    assert settings.config_dir == f"{home}/.claude"
    assert settings.on_unfinished == "fail"
    assert (settings.model, settings.timeout, settings.permission_mode, settings.claude_path) == (None,) * 4
    assert settings.sources == dict.fromkeys(KEYS, "default")


def test_each_source_wins_over_the_next(project: Path, home: Path) -> None:
    """Flag beats environment beats project file beats user file, and each setting says which it was."""
    user_file, project_file = home / ".channelcoder/config.toml", project / "channelcoder.toml"

    user_file.write_text('model = "user"')
    settings = load(project, home)
    assert (settings.model, settings.sources["model"]) == ("user", str(user_file))

    project_file.write_text('model = "project"')
    settings = load(project, home)
    assert (settings.model, settings.sources["model"]) == ("project", str(project_file))

    settings = load(project, home, CHANNELCODER_MODEL="environment")
    assert (settings.model, settings.sources["model"]) == ("environment", "environment CHANNELCODER_MODEL")

    settings = load(project, home, {"model": "flag"}, CHANNELCODER_MODEL="environment")
    assert (settings.model, settings.sources["model"]) == ("flag", "flag --model")


def test_not_given_never_wins(project: Path, home: Path) -> None:
    """A flag that was not given and an empty variable leave the file's word standing."""
    (project / "channelcoder.toml").write_text("timeout = 30")
    assert load(project, home, {"timeout": None}, CHANNELCODER_TIMEOUT="").timeout == 30.0


def test_files_add_up(project: Path, home: Path) -> None:
    """A project file that sets one thing does not hide what the user file says of another."""
    (home / ".channelcoder/config.toml").write_text('model = "user"\npass_env = ["GITHUB_TOKEN"]')
    (project / "channelcoder.toml").write_text("lock_wait = 5")
    settings = load(project, home)
    assert (settings.model, settings.pass_env, settings.lock_wait) == ("user", ("GITHUB_TOKEN",), 5.0)


def test_found_upwards_and_nearest_only(project: Path, home: Path) -> None:
    """The nearest project file counts, however deep in the project we stand."""
    (deep := project / "a" / "b").mkdir(parents=True)
    (project / "channelcoder.toml").write_text('model = "far"\ntimeout = 1')
    (project / "a" / "pyproject.toml").write_text('[project]\nname = "no settings here"')
    assert load(deep, home).model == "far"
    (project / "a" / "pyproject.toml").write_text('[tool.channelcoder]\nmodel = "near"')
    settings = load(deep, home)
    assert (settings.model, settings.timeout) == ("near", None)
    assert settings.sources["model"] == f"{project}/a/pyproject.toml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sessions", "{file}/sessions"),
        ("../common", "{file}/../common"),
        ("/srv/sessions", "/srv/sessions"),
        ("~/sessions", "{home}/sessions"),
        ("postgresql://db/sessions", "postgresql://db/sessions"),
        ("memory:", "memory:"),
    ],
)
def test_paths_start_at_their_file(project: Path, home: Path, text: str, expected: str) -> None:
    """A store's relative path means the same from every directory of the project; a URL is left alone."""
    (deep := project / "deep").mkdir()
    (project / "channelcoder.toml").write_text(f'store = "{text}"')
    expected = expected.format(file=project, home=home).replace(f"{project}/..", str(project.parent))
    assert load(deep, home).store == expected


def test_session_dir(project: Path, home: Path) -> None:
    """CHANNELCODER_SESSION_DIR moves the sessions; CHANNELCODER_STORE is the last word."""
    assert load(project, home, CHANNELCODER_SESSION_DIR="kept").store == f"{project}/kept"
    settings = load(project, home, CHANNELCODER_SESSION_DIR="kept", CHANNELCODER_STORE="redis://host")
    assert (settings.store, settings.sources["store"]) == ("redis://host", "environment CHANNELCODER_STORE")


def test_command_names_are_looked_up_later(project: Path, home: Path) -> None:
    """`claude_path = claude` is a command in PATH, not a file of the current directory."""
    assert load(project, home, CHANNELCODER_CLAUDE_PATH="claude").claude_path == "claude"
    assert load(project, home, CHANNELCODER_CLAUDE_PATH="./claude").claude_path == f"{project}/claude"


def test_lists_in_the_environment(project: Path, home: Path) -> None:
    """A list in a variable is separated by commas."""
    settings = load(project, home, CHANNELCODER_SETTING_SOURCES="user, project", CHANNELCODER_PASS_ENV="DB_*,")
    assert (settings.setting_sources, settings.pass_env) == (("user", "project"), ("DB_*",))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('stroe = "x"', "{file}: stroe: there is no such setting; did you mean store?"),
        ("idle-timeout = 3", "{file}: idle-timeout: there is no such setting; did you mean idle_timeout?"),
        ("sources = {}", "{file}: sources: there is no such setting; did you mean store?"),
        ('timeout = "long"', "{file}: timeout: input should be a valid number, not 'long'"),
        ("timeout = true", "{file}: timeout: input should be a valid number, not True"),
        ("timeout = 0", "{file}: timeout: input should be greater than 0, not 0"),
        ("timeout = nan", "{file}: timeout: input should be a finite number, not nan"),
        ('on_unfinished = "retry"', "{file}: on_unfinished: input should be 'fail', 'resume' or 'new', not 'retry'"),
        ('store = ""', "{file}: store: string should have at least 1 character, not ''"),
        ("model = [", "{file}: cannot be read: "),
    ],
)
def test_wrong_settings(project: Path, home: Path, toml: str, message: str) -> None:
    """A wrong key or value is one line that names the file, the key and what would be right."""
    (file := project / "channelcoder.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(project, home)
    assert str(caught.value).startswith(message.format(file=file))
    assert "\n" not in str(caught.value)


def test_unknown_key_without_a_near_one(project: Path, home: Path) -> None:
    """A key that resembles nothing is answered with the list of what there is."""
    (project / "channelcoder.toml").write_text("zzz = 1")
    with pytest.raises(ConfigError, match=r"zzz: there is no such setting; the settings are store, claude_path,"):
        load(project, home)


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\nchannelcoder = 1"])
def test_tool_must_be_a_table(project: Path, home: Path, text: str) -> None:
    """A pyproject.toml whose table is no table says how to write it."""
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"must be a table; write \[tool\.channelcoder\]"):
        load(project, home)


def test_unreadable_file(project: Path, home: Path) -> None:
    """A settings file that cannot be read is an error: going on without it could lift a limit."""
    (project / "channelcoder.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(ConfigError, match=r"channelcoder\.toml: cannot be read: "):
        load(project, home)


def test_wrong_variable(project: Path, home: Path) -> None:
    """A wrong value in the environment names the variable."""
    with pytest.raises(ConfigError, match=r"^environment CHANNELCODER_TIMEOUT: timeout: .*not 'soon'$"):
        load(project, home, CHANNELCODER_TIMEOUT="soon")


@pytest.mark.parametrize("key", sorted(PERSONAL))
def test_a_clone_cannot_choose_what_runs(project: Path, home: Path, key: str) -> None:
    """A project file that came with a clone cannot name a program, hooks, or secrets to hand over."""
    (project / "channelcoder.toml").write_text(f'{key} = "anything"')
    with pytest.raises(ConfigError, match=f"{key}: a project cannot set this; .* or as {ENVIRONMENT[key][0]}$"):
        load(project, home)


def test_settings_cannot_be_changed(project: Path, home: Path) -> None:
    """Settings are read once and stay as they are."""
    with pytest.raises(ValueError, match="frozen"):
        load(project, home).model = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_every_setting_has_a_variable() -> None:
    """Whatever a file can set, the environment can."""
    assert set(ENVIRONMENT) == set(KEYS)


SETTINGS = Settings(store="/store", config_dir="/home/me/.claude")


def child(settings: Settings = SETTINGS, **environ: str) -> set[str]:
    """Return the names that reach the CLI."""
    return set(child_environment(settings, environ))


def test_secrets_stay_behind() -> None:
    """Commands that Claude runs see no credentials; also none that only begins as Claude's own settings do."""
    names = ["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "PREFECT_API_KEY", "DATABASE_URL", "ANTHROPIC_ADMIN_KEY"]
    assert child(PATH="/bin", **dict.fromkeys([*names, "CLAUDE_CODE_SLACK_TOKEN"], "x")) == {"PATH"}


def test_settings_of_claude_code_pass() -> None:
    """What Claude Code is set up with reaches it: models, limits, gateways, a client's certificate."""
    needed = ["ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_MAX_OUTPUT_TOKENS"]
    needed += ["CLAUDE_CODE_API_KEY_HELPER_TTL_MS", "CLAUDE_CODE_CLIENT_KEY", "DISABLE_TELEMETRY"]
    assert child(**dict.fromkeys(needed, "x")) == set(needed)


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("ANTHROPIC_API_KEY", "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR"),
    ],
)
def test_the_key_goes_over_a_pipe(name: str, pipe: str) -> None:
    """The key stands in no environment, unless `pass_env` says so; a traceback does not show it either."""
    environ = child_environment(SETTINGS, {name: "sk-secret"})
    assert (list(environ), environ[pipe]) == ([pipe], "sk-secret")
    assert isinstance(environ[pipe], Secret)
    assert "sk-secret" not in repr(environ)
    for entry in (name, "*"):
        allowed = SETTINGS.model_copy(update={"pass_env": (entry,)})
        assert child_environment(allowed, {name: "sk-secret"}) == {name: "sk-secret"}
    assert child_environment(SETTINGS, {name: ""}) == {name: ""}


def test_what_the_network_needs_passes() -> None:
    """Behind a company proxy with its own certificates, Claude still reaches the API."""
    needed = ["HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "LC_ALL", "GIT_AUTHOR_EMAIL"]
    assert child(**dict.fromkeys(needed, "x")) == set(needed)


def test_named_variables_pass() -> None:
    """`pass_env` lets further variables through, by name or by prefix, and no others."""
    settings = SETTINGS.model_copy(update={"pass_env": ("DATABASE_URL", "MY_*")})
    environ = dict.fromkeys(["DATABASE_URL", "DATABASE_URL_2", "MY_A", "MY_B", "OTHER"], "x")
    assert child(settings, **environ) == {"DATABASE_URL", "MY_A", "MY_B"}


@pytest.mark.parametrize(
    ("switch", "credential"),
    [
        ("CLAUDE_CODE_USE_BEDROCK", "AWS_PROFILE"),
        ("CLAUDE_CODE_USE_VERTEX", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("CLAUDE_CODE_USE_FOUNDRY", "AZURE_CLIENT_SECRET"),
    ],
)
def test_cloud_credentials_only_for_that_cloud(switch: str, credential: str) -> None:
    """Cloud credentials reach the CLI when it is told to use that cloud, and not otherwise."""
    assert credential in child(**{switch: "1", credential: "x"})
    assert credential not in child(**{switch: "0", credential: "x"})
    assert credential not in child(**{credential: "x"})


@pytest.mark.parametrize("pass_env", [(), ("*",), ("CLAUDE*",)])
def test_an_outer_session_does_not_leak_in(pass_env: tuple[str, ...]) -> None:
    """Started from inside Claude Code, a turn is still a session of its own."""
    outer = ["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_SESSION_ID"]
    outer += ["CLAUDE_CODE_CHILD_SESSION", "CLAUDE_CODE_MESSAGING_SOCKET", "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"]
    environ = dict.fromkeys([*outer, "CLAUDE_CODE_MAX_RETRIES"], "x")
    assert child(SETTINGS.model_copy(update={"pass_env": pass_env}), **environ) == {"CLAUDE_CODE_MAX_RETRIES"}


def test_config_dir_is_named_only_when_chosen(project: Path, home: Path) -> None:
    """Claude Code keeps its login where it was: its default directory is left unnamed, a chosen one is named."""
    assert "CLAUDE_CONFIG_DIR" not in child_environment(load(project, home), {})
    chosen = load(project, home, {"config_dir": "/elsewhere"})
    assert child_environment(chosen, {"CLAUDE_CONFIG_DIR": "/old"}) == {"CLAUDE_CONFIG_DIR": "/elsewhere"}


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_nothing_is_invented(environ: dict[str, str]) -> None:
    """Whatever the environment, the child's is a part of it, values unchanged."""
    assert child_environment(SETTINGS, environ).items() <= environ.items()
