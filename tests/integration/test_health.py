"""What healthchecks ask: `themes health ROLE`."""

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis

from scripts.main import cli
from tasks import keys
from tasks.worker_reports import CONSUMER, WORKER, Role

HERE = socket.gethostname()


@pytest.fixture
def health(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("REDIS_URL", redis_url)
    return lambda role: CliRunner().invoke(cli, ["health", role], standalone_mode=False)


def _ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _reported(redis: Redis, role: Role[Any], name: str, host: str, pid: int) -> None:
    redis.zadd(role.names, {name: 1})
    redis.hset(role.key_of(name), mapping={"name": name, "host": host, "pid": pid})
    redis.expire(role.key_of(name), keys.WORKER_SECONDS)


@pytest.mark.parametrize(
    ("host", "is_alive", "code"), [(HERE, True, 0), (HERE, False, 1), (f"not-{HERE}", True, 1), (f"{HERE}-2", True, 1)]
)
@pytest.mark.parametrize("role", ["worker", "consumer"])
def test_a_process_of_this_host_that_reports_is_alive(
    role: str, host: str, *, is_alive: bool, code: int, health: Any, redis: Redis
) -> None:
    assert health(role).return_value == 1, "nobody has reported"
    pid = os.getpid() if is_alive else _ended()
    name = f"w@{host}" if role == "worker" else f"{host}-{pid}-abcd"
    _reported(redis, WORKER if role == "worker" else CONSUMER, name, host, pid)
    said = health(role)
    assert said.return_value == code
    assert said.output.startswith("ok: " if code == 0 else "none: ")
    redis.delete((WORKER if role == "worker" else CONSUMER).key_of(name))
    assert health(role).return_value == 1, "its report has expired"


@pytest.mark.parametrize("role", ["worker", "consumer"])
def test_while_redis_is_away_nothing_is_known(role: str, health: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/1")
    said = health(role)
    assert said.return_value == 0
    assert said.output.startswith("not known: Redis at redis://127.0.0.1:1/1 cannot be reached")


def test_a_redis_that_never_answers_is_left_before_the_probe_is_over(
    health: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.health.REDIS_SECONDS", 0.2)
    monkeypatch.setenv("THEMES_REDIS__SOCKET_TIMEOUT_SECONDS", "600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}/1")
        said = health("worker")
    assert said.return_value == 0
    assert "does not answer in time" in said.output


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (500, 1), (404, 1)])
def test_a_dashboard_answers_be_it_with_a_question_for_the_password(
    status: int, code: int, health: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/healthcheck"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        monkeypatch.setenv("THEMES_DASHBOARD__HOST", "0.0.0.0")  # noqa: S104  # asked on this machine
        monkeypatch.setenv("THEMES_DASHBOARD__PORT", str(server.server_port))
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert health("dashboard").return_value == code
        thread.join()
    assert health("dashboard").return_value == 1, "nobody listens"
