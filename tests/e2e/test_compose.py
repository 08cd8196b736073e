"""What docker-compose.yml starts, as processes of this machine: commands, environments, healthchecks, and a job."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.lib.local_redis import find_binary
from tests.e2e.conftest import until
from tests.support.compose import ROOT, Machine, dotenv, read
from tests.support.redis_cli import redis_cli

CITIES = "name,country\nKyoto,Japan\nOslo,Norway\nLima,Peru\n"
#: The key that the sandbox asks for; no variable of any container has it.
KEY = "sk-of-the-test"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _binaries(folder: Path) -> Path:
    """A folder with `redis-server`, and with `redis-cli` where there is one."""
    folder.mkdir()
    (folder / "redis-server").symlink_to(find_binary("bundled"))
    found = redis_cli()
    if found:
        (folder / "redis-cli").symlink_to(found)
    return folder


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes the machine for the variables of .env.example and these."""
    made: list[Machine] = []

    def machine(**env: str) -> Machine:
        (tmp_path / "secrets").mkdir(mode=0o700)
        (tmp_path / "secrets" / "llm_api_key").write_text(f"{KEY}\n")
        values = dotenv((ROOT / ".env.example").read_text())
        values |= {"REDIS_PASSWORD": "a-Password_1", "THEMES_DASHBOARD__BASIC_AUTH": "me:another-password", **env}
        redis, llm, dashboard = (str(_free_port()) for _ in range(3))
        here = {
            "redis:6379": f"127.0.0.1:{redis}", "6379": redis, "sandbox:8089": f"127.0.0.1:{llm}", "8089": llm,
            "0.0.0.0": "127.0.0.1", "5555": dashboard, "/state": str(tmp_path / "state"),  # noqa: S104
            "/data": str(tmp_path / "data"),
            "/etc/themes": str(ROOT / "deploy/redis"), "/run/secrets": str(tmp_path / "secrets"),
        }  # fmt: skip
        made.append(Machine(read(values)["services"], tmp_path, here, _binaries(tmp_path / "bin")))
        return made[-1]

    yield machine
    for one in made:
        one.stop()


def _start_all(machine: Machine) -> None:
    (machine.folder / "data").mkdir()
    machine.start("redis", "--bind", "127.0.0.1", "--port", machine.here["6379"])
    if (machine.binaries / "redis-cli").exists():
        until("redis to be healthy", lambda: machine.is_healthy("redis") or _ended(machine, "redis"))
    machine.start("sandbox", "--latency", "20ms", "--api-key", KEY)
    until("the sandbox to be healthy", lambda: machine.is_healthy("sandbox"))
    names = ("worker", "consumer", "flower")
    for name in names:
        assert not machine.is_healthy(name), f"{name} runs already"
        machine.start(name)
    for name in names:
        until(f"{name} to be healthy", lambda name=name: machine.is_healthy(name) or _ended(machine, name))


def _ended(machine: Machine, name: str) -> bool:
    assert machine.processes[name].poll() is None, machine.log(name)
    return False


def test_every_service_runs_as_the_file_says_and_they_do_a_job(make: Make) -> None:
    machine = make()
    _start_all(machine)
    # The key is the workers': who enqueues has none, and asks nothing.
    said = machine.run("themes", "enqueue", "-", "--wait", stdin=CITIES)
    assert said.returncode == 0, said.stderr
    status = json.loads(machine.run("themes", "status", said.stdout.strip(), "--json").stdout)
    assert (status["state"], status["done"], status["failed"]) == ("done", 3, 0)
    assert status["llm_calls"] == 3 * 16
    url = f"http://127.0.0.1:{machine.here['5555']}/metrics"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=180)
    for name in ("worker", "consumer", "flower"):
        process = machine.processes.pop(name)
        process.terminate()
        assert process.wait(180) == 0, machine.log(name)
        assert not machine.is_healthy(name)
        assert "Traceback" not in machine.log(name)
    redis = machine.processes.pop("redis")
    redis.terminate()
    redis.wait(180)
    assert machine.is_healthy("worker"), "while Redis is away nothing is known, and a new start helps nobody"
    assert not any(KEY in str(machine.environment(name)) for name in machine.services)


def test_the_results_go_to_postgresql_where_that_is_set(make: Make, postgresql_url: str) -> None:
    machine = make(DATABASE_URL=postgresql_url)
    _start_all(machine)
    said = machine.run("themes", "enqueue", "-", "--wait", stdin=CITIES)
    assert said.returncode == 0, said.stderr
    listed = machine.run("themes", "results", said.stdout.strip(), "--format", "jsonl").stdout
    assert {json.loads(line)["name"] for line in listed.splitlines()} == {"Kyoto", "Oslo", "Lima"}
    assert not list((machine.folder / "state").glob("*.db"))
