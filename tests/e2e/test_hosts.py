"""Roles on hosts of their own: Redis behind TLS, delay and loss on every wire, and half a minute without Redis."""

import base64
import contextlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.processes import spawn
from tests.e2e.conftest import Engine, until
from tests.support.compose import ROOT
from tests.support.hosts import Host, Wires, hosts, why_not
from tests.support.redis_cli import DEBIANS, tls_server
from tests.support.tls import certificate

NAMES = ("redis", "llm", "consumer", "east", "west", "dashboard", "operator")
COUNT, PROMPTS, LANES = 120, 16, 6
#: Seconds that hosts are cut off: longer than a lease (15), a worker's report (15), a time-out (10), heartbeats (4).
CUT_SECONDS = 30.0
PASSWORD, LOGIN = "a-Password_1", "me:a-secret-word"


@dataclass
class Site:
    """Hosts, the wires between them, and what runs on each."""

    wires: Wires
    hosts: dict[str, Host]
    engines: dict[str, Engine]
    authority: Path

    @property
    def redis_url(self) -> str:
        return f"rediss://themes:{PASSWORD}@{self.hosts['redis'].address}:6379/1?ssl_ca_certs={self.authority}"

    def status(self, job_id: str) -> Any:
        """What `themes status` says on the operator's host."""
        ran = self.engines["operator"].run("status", job_id, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def asked(self) -> int:
        """Requests of the job that the LLM has seen: without those by which `doctor` tries the LLM."""
        stats = self.hosts["llm"].do(lambda: self.engines["llm"].ask_sandbox("/stats"))
        return sum(count for stage, count in stats["by_stage"].items() if stage not in {"unknown", "doctor"})

    def page(self, path: str, login: str = "") -> tuple[int, str]:
        """A page of the dashboard as the operator's browser gets it."""
        request = urllib.request.Request(f"http://{self.hosts['dashboard'].address}:5555/{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")

        def asked() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as exc:
                with exc:
                    return exc.code, exc.read().decode()

        return self.hosts["operator"].do(asked)

    def heartbeat(self, worker: str) -> float:
        """When Flower has last heard of a worker."""
        workers = json.loads(self.page("workers?json=1", LOGIN)[1])["data"]
        return max([0.0, *(beat for one in workers if one["hostname"] == worker for beat in one["heartbeats"])])


@pytest.fixture
def site(engine: Engine, tmp_path: Path) -> Iterator[Site]:
    """Everything runs, each role on its host with a state directory of its own."""
    why = why_not() or ("" if DEBIANS.exists() else f"needs {DEBIANS} (Debian: apt-get install redis-tools)")
    if why and os.environ.get("CI"):
        pytest.fail(f"{why}: .ci/run runs as root and installs iproute2 and redis-tools")
    if why:
        pytest.skip(why)
    wires = Wires(delay_seconds=0.02, jitter_seconds=0.005, loss=0.005)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(hosts(wires, *NAMES))
        address = {name: host.address for name, host in made.items()}
        authority, key = certificate(tmp_path, "redis", f"IP:{address['redis']}")
        site = Site(wires, made, {}, authority)
        assert engine.forks is not None
        for name, host in made.items():
            (tmp_path / name).mkdir()
            env = engine.env | {
                "THEMES_STATE_DIR": str(tmp_path / name / "var"),
                "REDIS_URL": site.redis_url,
                "THEMES_LOGGING__FORMAT": "json",
            }
            site.engines[name] = Engine(tmp_path / name, env, engine.forks.on(host))
            stack.callback(site.engines[name].stop)
        _start_redis(site, key, tmp_path)
        _start_roles(site)
        yield site


def _start_redis(site: Site, key: Path, folder: Path) -> None:
    """As the guide has it, with TLS and without a port beside it."""
    redis, engine = site.hosts["redis"], site.engines["redis"]
    (engine.folder / "data").mkdir()
    tls = ["--port", "0", "--tls-port", "6379", "--tls-cert-file", str(site.authority), "--tls-key-file", str(key)]
    start = [str(ROOT / "deploy/redis/start.sh"), *tls, "--tls-auth-clients", "no", "--bind", redis.address]
    engine.processes["redis"] = spawn(
        ["nsenter", f"--net={redis.namespace}", *start, "--dir", str(engine.folder / "data")],
        env={
            "REDIS_PASSWORD": PASSWORD,
            "TMPDIR": str(engine.folder),
            "PATH": f"{tls_server(folder / 'bin')}:{os.environ['PATH']}",
        },
        log=engine.folder / "redis.log",
    )
    until("Redis to listen", redis.listening)


def _start_roles(site: Site) -> None:
    engines, address = site.engines, {name: host.address for name, host in site.hosts.items()}
    engines["llm"].sandbox("--latency", "250ms", "--host", address["llm"])
    llm = {name: engines["llm"].env[name] for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "THEMES_MODEL")}
    engines["operator"].env |= llm
    engines["consumer"].themes("consumer", "consumer")
    for name in ("east", "west"):
        engines[name].env |= llm
        engines[name].themes("worker", "worker", "--name", name, "--concurrency", str(LANES))
    dashboard = {"HOST": address["dashboard"], "PORT": "5555", "BASIC_AUTH": LOGIN}
    engines["dashboard"].themes(
        "dashboard", "dashboard", **{f"THEMES_DASHBOARD__{name}": value for name, value in dashboard.items()}
    )
    until("the dashboard to listen", site.hosts["dashboard"].listening)


def test_a_job_outlives_half_a_minute_without_redis_on_lossy_wires(site: Site) -> None:
    operator, east, consumer = (site.engines[name] for name in ("operator", "east", "consumer"))
    only_those_who_may_come_in(site)
    said = operator.run("enqueue", "-", "--force", stdin="name\n" + "".join(f"City {one}\n" for one in range(COUNT)))
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.strip()
    until("some destinations to be done", lambda: site.status(job_id)["done"] >= 8)
    site.wires.apart("redis", "east", "consumer", "dashboard")
    cut_at = time.monotonic()
    until("the worker to say so", lambda: east.logged("worker", "redis_wait"))
    until("the consumer to say so", lambda: consumer.logged("consumer", "redis_away"))
    # A probe that failed now would have the process started again, which helps nobody.
    for name, role in (("east", "worker"), ("consumer", "consumer")):
        ran = site.engines[name].run("health", role)
        assert (ran.returncode, ran.stdout[:9]) == (0, "not known"), ran
    only_what_should_listens(site)
    assert "No results consumer is running" in operator.run("status", job_id).stdout
    assert "FAIL consumer: none is running" in operator.run("doctor").stdout
    until("the cut to be long enough", lambda: time.monotonic() > cut_at + CUT_SECONDS)
    site.wires.heal("consumer")

    # The other worker does what the one that is cut off held.
    until("all to be done", lambda: site.status(job_id)["state"] == "done")
    assert not east.logged("worker", "redis_back")
    site.hosts["redis"].forget(site.hosts["east"], site.hosts["dashboard"])
    healed_at = time.time()
    site.wires.heal("east")
    site.wires.heal("dashboard")
    until("the worker to go on", lambda: east.logged("worker", "redis_back"))
    until("Flower to hear of it", lambda: site.heartbeat("east@east") > healed_at)
    until("doctor to find everything well", lambda: operator.run("doctor").returncode == 0)
    assert not east.logged("worker", "restart")
    # Said once when Redis goes, and once when it is back.
    for engine, role, gone, back in (
        (east, "worker", "heartbeat_missed", "heartbeat_back"),
        (east, "worker", "batches_wait", "batches_kept"),
        (consumer, "consumer", "sweep_missed", "sweep_back"),
        (consumer, "consumer", "redis_away", "redis_back"),
    ):
        until(
            f"{gone} and {back} as often",
            lambda: 0 < len(engine.logged(role, gone)) == len(engine.logged(role, back)),  # noqa: B023
        )
    books_are_whole(site, job_id)
    for name in ("worker", "consumer", "dashboard"):
        for engine in site.engines.values():
            assert name not in engine.processes or "Traceback" not in engine.log(name)


def only_what_should_listens(site: Site) -> None:
    """Redis, the dashboard and the sandbox each at the address of their host; the others nowhere."""
    address = {name: host.address for name, host in site.hosts.items()}
    port = site.engines["llm"].llm.split(":")[2].partition("/")[0]
    expected = {
        "redis": {f"tcp {address['redis']}:6379"},
        "dashboard": {f"tcp {address['dashboard']}:5555"},
        "llm": {f"tcp {address['llm']}:{port}"},
    }
    assert {name: host.listening() for name, host in site.hosts.items()} == {
        name: expected.get(name, set()) for name in NAMES
    }


def only_those_who_may_come_in(site: Site) -> None:
    """The dashboard wants its password; Redis wants TLS, and the client its authority."""
    assert site.page("jobs", LOGIN)[0] == 200
    for login in ("", "me:another"):
        code, text = site.page("jobs", login)
        assert code == 401
        assert "<title>" not in text
    other, _ = certificate(site.authority.parent, "other", f"IP:{site.hosts['redis'].address}")
    mends = {
        site.redis_url.replace(str(site.authority), str(other)): "put the file of its authority into REDIS_URL",
        site.redis_url.replace("rediss://", "redis://").partition("?")[
            0
        ]: "it speaks TLS: write rediss:// in REDIS_URL",
    }
    for url, mend in mends.items():
        for verb in ("status", "worker"):
            ran = until("a refusal that is heard", lambda verb=verb, url=url: _refused(site, verb, url))
            assert ran.returncode == 2
            assert mend in ran.stderr
            assert len(ran.stderr.splitlines()) == 1


def _refused(site: Site, verb: str, url: str) -> Any:
    """What a verb says; nothing where wires this lossy let it hear no answer in time."""
    ran = site.engines["operator"].run(verb, REDIS_URL=url)
    return None if "does not answer in time" in ran.stderr else ran


def books_are_whole(site: Site, job_id: str) -> None:
    """Every destination has one row, and every call is booked.

    Paid twice is at most what the worker that was cut off had in its lanes: it may finish these destinations without
    Redis, no new one, while another worker that cannot see its answers asks the same.
    """
    until(
        "the LLM to be idle",
        lambda: site.hosts["llm"].do(lambda: site.engines["llm"].ask_sandbox("/stats"))["in_flight"] == 0,
    )
    asked = site.asked()
    assert COUNT * PROMPTS <= asked <= (COUNT + LANES) * PROMPTS
    until(f"{asked} calls in the books", lambda: site.status(job_id)["llm_calls"] == asked)
    with sqlite3.connect(site.engines["consumer"].folder / "var/themes.db") as database:
        rows = database.execute("SELECT COUNT(*), COUNT(DISTINCT destination_id) FROM profiles").fetchall()
        booked = database.execute("SELECT SUM(llm_calls) FROM attempts").fetchall()
        failures = database.execute("SELECT COUNT(*) FROM failures").fetchall()
    assert (rows, failures, booked) == ([(COUNT, COUNT)], [(0,)], [(asked,)])
