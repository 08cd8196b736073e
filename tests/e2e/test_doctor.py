"""`themes doctor` on a whole stack of real processes, and on a dashboard with and without a password."""

import base64
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from redis import Redis

from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _answers(port: int, password: str | None = None) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/")  # ours
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310  # ours
            return bool(answer.status == 200)
    except urllib.error.HTTPError as exc:
        return exc.code == 401
    except OSError:
        return False


def _checks(stack: Engine, **env: str) -> tuple[int, dict[str, Any]]:
    said = stack.run("doctor", "--json", **env)
    assert "Traceback" not in said.stderr
    return said.returncode, {check["name"]: check for check in json.loads(said.stdout)["checks"]}


def test_a_sound_stack_passes_every_check_and_a_worker_less_one_does_not(stack: Engine) -> None:
    port = _free_port()
    stack.env["THEMES_DASHBOARD__PORT"] = str(port)
    code, checks = _checks(stack)
    assert code == 1
    assert "themes worker" in checks["workers"]["fix"]
    stack.themes("w", "worker", "--name", "w")
    stack.themes("dashboard", "dashboard")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker and the consumer", lambda: fleet.workers(redis) and fleet.consumers(redis))
    until("the dashboard to answer", lambda: _answers(port))
    code, checks = _checks(stack)
    assert [name for name, check in checks.items() if not check["ok"]] == []
    assert code == 0
    assert "answers, to this machine only" in checks["dashboard"]["found"]
    assert "MiB" in checks["workers"]["found"]
    shown = stack.run("doctor")
    assert shown.returncode == 0
    assert "FAIL" not in shown.stdout
    # The password was set after the dashboard was started.
    code, checks = _checks(stack, THEMES_DASHBOARD__BASIC_AUTH="me:hunter2")
    assert code == 1
    assert "start `themes dashboard` again" in checks["dashboard"]["fix"]
    assert "hunter2" not in str(checks)


def test_a_dashboard_with_a_password_is_safe(stack: Engine) -> None:
    port = _free_port()
    stack.env |= {"THEMES_DASHBOARD__PORT": str(port), "THEMES_DASHBOARD__BASIC_AUTH": "me:hunter2"}
    stack.themes("dashboard", "dashboard")
    until("the dashboard to answer", lambda: _answers(port))
    _, checks = _checks(stack)
    assert checks["dashboard"]["ok"]
    assert "asks for a password" in checks["dashboard"]["found"]
    assert "hunter2" not in str(checks)


def test_a_stock_celery_can_be_asked_and_told(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker", lambda: fleet.workers(redis))
    celery = [sys.executable, "-m", "celery", "-A", "workers.app"]
    told = subprocess.run(
        [*celery, "control", "--json", "themes_tune", "max_memory_cache_mb=33"],
        env=stack.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    (answer,) = json.loads(stack.run("tune", "--show", "--json").stdout)["workers"].values()
    shown = answer["ok"]["performance_optimization.max_memory_cache_mb"]
    assert shown == {"value": 33, "origin": "tuned"}
