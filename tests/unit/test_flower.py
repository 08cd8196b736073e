"""What Flower is told, and what it is never told."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from flower import options as flower_options
from flower.views.tasks import TASK_COLUMNS as KNOWN_COLUMNS

from config.settings import Settings, load
from tasks.errors import ConfigError
from workers.dashboard.flower import TASK_COLUMNS, arguments


def _told(settings: Settings) -> dict[str, str]:
    return dict(each.removeprefix("--").split("=", 1) for each in arguments(settings))


def _free_port(host: str = "127.0.0.1") -> str:
    with socket.create_server((host, 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture
def made(settings_for: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings with a free port."""
    return lambda **env: settings_for(THEMES_DASHBOARD__PORT=_free_port(), **env)


def test_every_option_is_one_that_flower_knows(made: Callable[..., Settings]) -> None:
    known = flower_options.default_options
    told = _told(made(THEMES_DASHBOARD__BASIC_AUTH="me:secret"))
    assert {name for name in told if name not in known} == set()


def test_every_column_is_one_that_flower_has() -> None:
    columns = TASK_COLUMNS.split(",")
    assert set(columns) <= set(KNOWN_COLUMNS)
    assert {"name", "args", "state", "received", "runtime", "worker"} == set(columns)


def test_it_listens_on_loopback_keeps_its_state_and_bounds_its_memory(
    made: Callable[..., Settings], tmp_path: Path
) -> None:
    told = _told(made())
    assert told["address"] == "127.0.0.1"
    assert told["persistent"] == "True"
    assert Path(told["db"]).is_absolute()
    assert Path(told["db"]).parent.is_dir()
    assert Path(told["db"]).is_relative_to(tmp_path)
    assert (told["max_tasks"], told["state_save_interval"]) == ("10000", "30000")
    assert "basic_auth" not in told


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_nobody_else_can_reach_it_without_a_password(host: str, made: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="dashboard.host: .*THEMES_DASHBOARD__BASIC_AUTH"):
        arguments(made(THEMES_DASHBOARD__HOST=host))


def test_others_may_reach_it_with_a_password(made: Callable[..., Settings]) -> None:
    told = _told(made(THEMES_DASHBOARD__HOST="0.0.0.0", THEMES_DASHBOARD__BASIC_AUTH="me:se:cret"))  # noqa: S104
    assert (told["address"], told["basic_auth"]) == ("0.0.0.0", "me:se:cret")  # noqa: S104


@pytest.mark.parametrize(
    "auth", ["me", "me:", ":secret", ":", "me:a,b", "me:a,you:b", "me:a b", "mé:secret", "me:sécret"]
)
def test_a_password_that_flower_would_read_otherwise_is_refused_and_not_shown(
    auth: str, made: Callable[..., Settings]
) -> None:
    with pytest.raises(ConfigError, match="dashboard.basic_auth: expected user:password") as caught:
        arguments(made(THEMES_DASHBOARD__BASIC_AUTH=auth))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_one_clear_line(host: str, settings_for: Callable[..., Settings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"^dashboard.port: cannot listen on {host}:{port} .*--port$"):
            arguments(settings_for(THEMES_DASHBOARD__HOST=host, THEMES_DASHBOARD__PORT=port))


def test_a_host_that_is_no_address_of_this_machine_is_one_clear_line(made: Callable[..., Settings]) -> None:
    elsewhere = {"THEMES_DASHBOARD__HOST": "192.0.2.1", "THEMES_DASHBOARD__BASIC_AUTH": "me:secret"}
    with pytest.raises(ConfigError, match="^dashboard.port: cannot listen on 192.0.2.1:"):
        arguments(made(**elsewhere))


def test_a_state_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="^state_dir: .* cannot be written"):
        arguments(load(env={"THEMES_STATE_DIR": str(tmp_path / "file"), "THEMES_DASHBOARD__PORT": _free_port()}))
