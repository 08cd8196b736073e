"""What Flower is told, and what it is never told."""

import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flower import options as flower_options
from flower.views.tasks import TASK_COLUMNS as KNOWN_COLUMNS

from config.settings import Settings
from tasks.errors import ConfigError
from workers.dashboard.flower import TASK_COLUMNS, check, defaults


def _options(settings: Settings, **told: Any) -> SimpleNamespace:
    """Flower's options as they are when its command builds the application: its own, ours, the user's."""
    own = {name.replace("-", "_"): option.default for name, option in flower_options.default_options._options.items()}
    return SimpleNamespace(**(own | defaults(settings) | told))


def _checked(settings: Settings, **told: Any) -> SimpleNamespace:
    options = _options(settings, **told)
    check(options, settings)
    return options


def _free_port(host: str = "127.0.0.1") -> str:
    with socket.create_server((host, 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture
def made(settings_for: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings with a free port."""
    return lambda **env: settings_for(THEMES_DASHBOARD__PORT=_free_port(), **env)


def test_every_option_is_one_that_flower_knows(made: Callable[..., Settings]) -> None:
    known = flower_options.default_options
    told = defaults(made(THEMES_DASHBOARD__BASIC_AUTH="me:secret"))
    assert {name for name in told if name not in known} == set()


def test_every_column_is_one_that_flower_has() -> None:
    columns = TASK_COLUMNS.split(",")
    assert set(columns) <= set(KNOWN_COLUMNS)
    assert {"uuid", "args", "state", "received", "runtime", "worker"} == set(columns)


def test_it_listens_on_loopback_runs_nobody_s_file_and_bounds_its_memory(made: Callable[..., Settings]) -> None:
    told = _checked(made())
    assert told.address == "127.0.0.1"
    assert not told.persistent, "its state is a pickle"
    assert told.conf == os.devnull, "its configuration file is a program"
    assert (told.max_tasks, told.purge_offline_workers) == (10_000, 3_600)
    assert not told.basic_auth


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_nobody_else_can_reach_it_without_a_password(host: str, made: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="dashboard.host: .*THEMES_DASHBOARD__BASIC_AUTH"):
        _checked(made(THEMES_DASHBOARD__HOST=host))


def test_others_may_reach_it_with_a_password(made: Callable[..., Settings]) -> None:
    told = _checked(made(THEMES_DASHBOARD__HOST="0.0.0.0", THEMES_DASHBOARD__BASIC_AUTH="me:se:cret"))  # noqa: S104
    assert (told.address, told.basic_auth) == ("0.0.0.0", ["me:se:cret"])  # noqa: S104


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "example.org"])  # noqa: S104
def test_what_flower_is_told_itself_is_held_to_the_same(address: str, made: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="dashboard.host: .* is reachable by others"):
        _checked(made(), address=address)
    # A provider without `auth` asks nobody for anything.
    with pytest.raises(ConfigError, match="is reachable by others"):
        _checked(made(), address=address, auth_provider="flower.views.auth.GithubLoginHandler")


def test_an_address_that_nobody_chose_is_ours_not_every_one(made: Callable[..., Settings]) -> None:
    assert _checked(made(), address="").address == "127.0.0.1"


def test_an_auth_provider_is_as_good_as_a_password(made: Callable[..., Settings]) -> None:
    provider = "flower.views.auth.GithubLoginHandler"
    assert _checked(made(), address="0.0.0.0", auth="me@example.org", auth_provider=provider)  # noqa: S104
    with pytest.raises(ConfigError, match="auth: is set without auth_provider"):
        _checked(made(), auth="me@example.org")


def test_the_empty_password_of_an_empty_variable_is_none(made: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="basic_auth: expected user:password"):
        _checked(made(), basic_auth=[""])


@pytest.mark.parametrize(
    "auth", ["me", "me:", ":secret", ":", "me:a,b", "me:a,you:b", "me:a b", "mé:secret", "me:sécret"]
)
def test_a_password_that_flower_would_read_otherwise_is_refused_and_not_shown(
    auth: str, made: Callable[..., Settings]
) -> None:
    with pytest.raises(ConfigError, match="dashboard.basic_auth: expected user:password") as caught:
        _checked(made(THEMES_DASHBOARD__BASIC_AUTH=auth))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_one_clear_line(host: str, settings_for: Callable[..., Settings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"^dashboard.port: cannot listen on {host}:{port} .*--port`"):
            _checked(settings_for(THEMES_DASHBOARD__HOST=host, THEMES_DASHBOARD__PORT=port))


def test_a_host_that_is_no_address_of_this_machine_is_one_clear_line(made: Callable[..., Settings]) -> None:
    elsewhere = {"THEMES_DASHBOARD__HOST": "192.0.2.1", "THEMES_DASHBOARD__BASIC_AUTH": "me:secret"}
    with pytest.raises(ConfigError, match="^dashboard.port: cannot listen on 192.0.2.1:"):
        _checked(made(**elsewhere))
