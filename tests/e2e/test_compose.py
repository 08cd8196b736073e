"""What docker-compose.yml starts, as processes of this machine: commands, environments, healthchecks, and a job."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compose import ROOT, Machine, dotenv, free_port, read
from tests.support.redis_cli import redis_binaries

CITIES = "name,country\nKyoto,Japan\nOslo,Norway\nLima,Peru\n"
#: The key that the sandbox asks for; no variable of any container has it.
KEY = "sk-of-the-test"


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
        redis, llm, dashboard = (free_port() for _ in range(3))
        here = {
            "redis:6379": f"127.0.0.1:{redis}", "6379": redis, "sandbox:8089": f"127.0.0.1:{llm}", "8089": llm,
            "0.0.0.0": "127.0.0.1", "5555": dashboard, "/state": str(tmp_path / "state"),  # noqa: S104
            "/data": str(tmp_path / "data"),
            "/etc/themes": str(ROOT / "deploy/redis"), "/run/secrets": str(tmp_path / "secrets"),
        }  # fmt: skip
        made.append(Machine(read(values)["services"], tmp_path, here, redis_binaries(tmp_path / "bin")))
        return made[-1]

    yield machine
    for one in made:
        one.stop()


def _start_all(machine: Machine) -> None:
    machine.start_redis()
    machine.start("sandbox", "--latency", "20ms", "--api-key", KEY)
    machine.until_healthy("sandbox")
    machine.start_healthy("worker", "consumer", "flower")


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
