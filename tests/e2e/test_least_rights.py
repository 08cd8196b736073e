"""The least rights on Redis with which everything works; less is refused at the start with the rule that is missing."""

import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tasks.connection import check_rights, connect
from tasks.errors import RedisUnavailableError
from tests.e2e.conftest import Engine, until

LEAST = "~themes:* &themes:* &themes:/1.celery.pidbox &themes:/1.celeryev/* +@all -@dangerous"


@pytest.fixture
def as_user(engine: Engine) -> Iterator[Any]:
    """Makes a user with a rule, and gives the address that it logs in at."""
    with LocalRedis(engine.folder / "var", "bundled") as server, Redis.from_url(server.url) as admin:

        def make(rule: str) -> str:
            admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rule.split())
            admin.execute_command("ACL", "LOG", "RESET")
            return re.sub(r"//:[^@]*@", "//app:pw@", server.url)

        make.admin = admin  # type: ignore[attr-defined]
        yield make
        engine.stop()


@pytest.mark.parametrize(
    "rule",
    ["~themes:* +@all", "~themes:* &themes:* +@all", "~other:* &other +@all", f"{LEAST} -@pubsub", f"{LEAST} -eval"],
)
def test_less_is_refused_with_the_command_that_gives_what_is_missing(rule: str, as_user: Any) -> None:
    with connect(as_user(rule), socket_timeout_seconds=180) as client:
        with pytest.raises(RedisUnavailableError) as caught:
            check_rights(client)
        command = re.search(r"`ACL SETUSER app (.*)`", str(caught.value))
        assert command
        # What it says is what mends it.
        as_user.admin.execute_command("ACL", "SETUSER", "app", *command[1].split())
        check_rights(client)


def test_a_role_without_its_rights_ends_with_one_line(engine: Engine, as_user: Any) -> None:
    url = as_user("~themes:* &themes:* +@all")
    for verb in ("worker", "consumer", "dashboard"):
        said = engine.run(verb, REDIS_URL=url, OPENAI_BASE_URL="http://127.0.0.1:9/v1", THEMES_MODEL="m")
        assert said.returncode == 2
        assert "ACL SETUSER app ~themes:*" in said.stderr
        assert "Traceback" not in said.stderr


def test_a_job_runs_to_its_end_with_the_least_rights(engine: Engine, as_user: Any) -> None:
    engine.env["REDIS_URL"] = as_user(LEAST)
    engine.sandbox("--latency", "20ms")
    engine.themes("consumer", "consumer")
    engine.themes("worker", "worker")
    engine.themes("dashboard", "dashboard", "--port", "0", THEMES_LOGGING__FORMAT="json")
    rows = "name\n" + "".join(f"City {number}\n" for number in range(20))
    said = engine.run("enqueue", "-", "--wait", "--budget", "5", stdin=rows)
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.strip()
    for verb in (
        ["status", job_id],
        ["watch", job_id],
        ["pause", job_id],
        ["cache", "stats"],
        ["cache", "clear", "--yes"],
    ):
        assert "SETUSER" not in engine.run(*verb).stderr
    port = until("the dashboard", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", engine.log("dashboard")))[1]
    for page in ("jobs", f"jobs/{job_id}", "llm", "metrics", "workers", "tasks"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=180) as answer:
            assert answer.status == 200
    denied = [(entry["reason"], entry["object"]) for entry in map(_texts, as_user.admin.execute_command("ACL", "LOG"))]
    assert [one for one in denied if one != ("command", "info")] == []


def _texts(entry: Any) -> dict[str, str]:
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {_text(key): _text(value) for key, value in pairs}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
