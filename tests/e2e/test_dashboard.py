"""Flower with our arguments, as a person sees it."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tests.e2e.conftest import Engine, until
from tests.support.browser import page

#: Flower's list of tasks, as its page asks for it.
TASKS = "/tasks/datatable?draw=1&start=0&length=9&search[value]=&order[0][column]=0&order[0][dir]=asc&" + "&".join(
    f"columns[{n}][data]={name}" for n, name in enumerate(("uuid", "args", "state"))
)

#: Commands to Redis in 10 s of a dashboard that nobody looks at, those inside of scripts too: some 130.
MOST_COMMANDS = 300


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get(url: str, user: str | None = None, seconds: float = 10) -> tuple[int, str]:
    request = urllib.request.Request(url)  # noqa: S310
    if user:
        request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, ""
    except OSError:
        return 0, ""


def _dashboard(engine: Engine, *options: str, **env: str) -> str:
    port = _free_port()
    engine.themes("dashboard", "dashboard", "--port", str(port), *options, **env)
    url = f"http://127.0.0.1:{port}"
    until("the dashboard to answer", lambda: _get(f"{url}/healthcheck")[0])
    return url


@pytest.mark.browser
async def test_a_person_sees_destinations_workers_and_the_queue(stack: Engine, chromium: str, tmp_path: Path) -> None:
    url = _dashboard(stack)
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\nXi'an, China\nMaldives\n").returncode == 0
    # Wait for another terminal's job that nobody works on, so that the queue has messages.
    stack.end("w")
    for name in ("Oslo", "Bergen"):
        said = stack.run("enqueue", "-", stdin=f"{name}, Norway\n")
        assert f"see {url}/jobs/{said.stdout.strip()}\n" in said.stderr
    until("the tasks to be known", lambda: _get(url + TASKS)[1].count("SUCCESS") == 3)
    async with page(chromium) as tab:
        await tab.size(1400, 900)
        await tab.open(f"{url}/tasks")
        await tab.until("document.body.innerText.split('SUCCESS').length > 3")
        tasks = await tab.text()
        for name in ("Kyoto, Japan", "Xi'an, China", "Maldives", "A Celery task is a chunk", "w@"):
            assert name in tasks
        await tab.picture(tmp_path / "tasks.png")
        assert (tmp_path / "tasks.png").stat().st_size > 10_000
        await tab.open(f"{url}/workers")
        await tab.until("document.body.innerText.includes('w@')")
        await tab.open(f"{url}/broker")
        assert "themes" in await tab.text()
        assert await tab.value("[...document.querySelectorAll('td')].some(cell => cell.textContent.trim() === '2')")
    log = stack.log("dashboard")
    assert "Inspect method" not in log
    assert "Traceback" not in log


def test_with_a_password_the_pages_ask_for_it(stack: Engine) -> None:
    url = _dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH="me:secret")
    assert _get(f"{url}/tasks")[0] == 401
    assert _get(f"{url}/tasks", "me:wrong")[0] == 401
    assert _get(f"{url}/tasks", "me:secret")[0] == 200
    for place in ("/metrics", "/healthcheck"):
        assert _get(f"{url}{place}")[0] == 401, "Flower leaves them open"
        assert _get(f"{url}{place}", "me:secret")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_without_a_traceback_even_while_redis_says_nothing(
    number: signal.Signals, stack: Engine
) -> None:
    url = _dashboard(stack)
    process = stack.processes["dashboard"]
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        server = redis.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        # Flower's threads ask the workers through it, and would wait for it for ever.
        assert _get(f"{url}/workers?refresh=1", seconds=0.5)[0] in {0, 200}
        process.send_signal(number)
        assert process.wait(180) == 0
    finally:
        os.kill(server, signal.SIGCONT)
    assert "Traceback" not in stack.log("dashboard")


def test_a_dashboard_that_nobody_looks_at_asks_redis_little(engine: Engine, tmp_path: Path) -> None:
    with (
        LocalRedis(tmp_path / "var", engine.env["THEMES_REDIS__SERVER"]) as server,
        Redis.from_url(server.url) as redis,
    ):
        engine.env["REDIS_URL"] = server.url
        _dashboard(engine)

        with redis.pubsub() as workers:
            workers.psubscribe("*pidbox*")

            def is_asked() -> bool:
                """Whether Flower has asked all workers for events, as it does every 5 s."""
                message = workers.get_message(ignore_subscribe_messages=True, timeout=1)
                return message is not None and b"enable_events" in b64decode(json.loads(message["data"])["body"])

            commands = []
            for _ in range(3):
                until("Flower to ask", is_asked)
                commands.append(int(redis.info("stats")["total_commands_processed"]))
        assert commands[2] - commands[0] < MOST_COMMANDS, commands
        engine.stop()
