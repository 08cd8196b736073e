"""Every command of the guides, pasted as it stands there, by a reader with a clone and a server that answers."""

import contextlib
import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until
from tests.e2e.test_batches import QUICK, query, rows
from tests.support.forks import Forks
from tests.support.guides import GUIDES, OWN_TERMINAL, ROOT, Command, Shell, made_clone
from tests.support.postgresql import binaries

#: Guides without a command, or whose commands need what is not here; tests/unit/test_docs.py looks at them.
NOT_RUN = {"dashboard", "traces", "web-evidence", "why-is-it-slow"}
#: Guides that say JOB, of which any job with any file does.
OF_A_JOB = ("fields", "report", "running-without-redis", "tuning")
UP = Command("", f"themes up {OWN_TERMINAL}")


@pytest.fixture
def reader(engine: Engine, forks: Forks, tmp_path: Path) -> Iterator[Shell]:
    """A terminal in a clone, with the sandbox as the LLM that the reader has."""
    made_clone(tmp_path, forks)
    with socket.create_server(("127.0.0.1", 0)) as free:
        engine.env["THEMES_DASHBOARD__PORT"] = str(free.getsockname()[1])
    engine.sandbox("--latency", "20ms")
    env = {name: value for name, value in engine.env.items() if not name.startswith("OPENAI")}
    with Shell(tmp_path, env) as shell:
        shell.replaced = {"http://localhost:11434/v1": engine.llm, "qwen3:8b": "sandbox"}
        yield shell


@pytest.fixture
def sqlite() -> None:
    """The program `sqlite3`."""
    if shutil.which("sqlite3") is None:
        if os.environ.get("CI"):
            pytest.fail("sqlite3 is missing: .ci/run installs it")
        pytest.skip("needs sqlite3 (Debian: apt-get install sqlite3)")


def test_quickstart(reader: Shell) -> None:
    said = reader.follow("quickstart")
    assert "25 profiles, 0 failed" in said["1. See it work"]
    assert "FAIL" not in said["3. Your LLM server"]
    assert re.search("16 calls +32 cache hits", said["4. Two destinations first, then all"])
    assert len((reader.folder / "themes.csv").read_text("utf-8").splitlines()) > 3 * 15


@pytest.mark.usefixtures("sqlite")
def test_own_prompts(reader: Shell) -> None:
    said = reader.follow("own-prompts")
    assert re.search(r"^crowds +3 ", said["What will it cost?"], re.MULTILINE)
    assert '"crowds":"' in said["Try it"]
    assert re.findall(r"^(?:crowds|price|rationale) +(\d)", said["Change a prompt"], re.MULTILINE) == ["2", "3", "0"]
    assert "0 destinations" in said["Bring older profiles up to date"]
    assert re.fullmatch(r"([0-9a-f]{12}\n){3}", said["Let workers use them"])


def test_own_model(reader: Shell, engine: Engine) -> None:
    reader.replaced["https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT"] = engine.llm
    said = reader.follow("own-model")
    assert "llm formats: json_schema yes" in said["Does it answer?"]
    assert "llm west: " in said["Several endpoints, several models"]
    assert said["Several endpoints, several models"].count("from llm.prices") == 2
    assert "ok   llm: " in said["Azure and other gateways"]


@pytest.mark.usefixtures("sqlite")
def test_backup(reader: Shell, engine: Engine) -> None:
    """The database is lost in the middle of a job, then Redis, then both."""
    reader.use_llm(engine.llm)
    _shorten_leases(reader)
    (reader.folder / "cities.csv").write_text(rows(90), "utf-8")
    (reader.folder / "later.csv").write_text(rows(3, "Later"), "utf-8")

    def begin() -> None:
        reader.paste(UP)
        _run_slowly(reader, engine, "themes enqueue cities.csv")

    def lose_the_database() -> None:
        reader.run("themes enqueue later.csv --priority 9 --wait")
        _quickly(engine)
        until("the job's end", lambda: _profiles(engine) == 93)
        reader.end_all()
        for file in (reader.folder / "var").glob("themes.db*"):
            file.unlink()

    def lose_redis() -> None:
        assert _profiles(engine) == 93
        _run_slowly(reader, engine, "themes enqueue cities.csv --no-cache")
        reader.end_all()
        _quickly(engine)
        shutil.rmtree(reader.folder / "var" / "redis")

    before = {
        "Back up the database": begin,
        "Restore the database": lose_the_database,
        "Restore Redis": lose_redis,
        "Restore both": reader.end_all,
    }
    said = reader.follow("backup", before)
    assert said["Back up the database"] == "ok\n"
    assert "ok   database integrity: whole" in said["Restore the database"]
    assert "asking again for" in said["Restore the database"]
    assert re.search(r"done +90/90 finished .* 1,\d\d\d cache hits", said["Restore the database"]), "paid twice"
    assert re.search(r"done +3/3 finished .* 0 calls +48 cache hits", said["Restore the database"])
    assert re.search("done +90/90 finished", said["Restore Redis"])
    assert "FAIL" not in said["Restore both"]
    assert re.search("done +90/90 finished", said["Restore both"])


def test_postgresql(reader: Shell, engine: Engine, postgresql_socket: str) -> None:
    reader.use_llm(engine.llm)
    reader.run(f"export PATH=$PATH:{binaries()}")
    reader.replaced |= {
        "scripts/setup --extra postgresql": "true",  # the developers' environment has it
        "PGHOST=localhost PGUSER=postgres": f"PGHOST={postgresql_socket} PGUSER=themes",
        "@localhost/themes": f"@/themes?host={postgresql_socket}",
    }

    def lose_rows() -> None:
        reader.run("themes enqueue config/destinations.csv --wait")
        reader.end_all()
        reader.run("psql themes -c 'DROP TABLE attempts CASCADE'")

    said = reader.follow("postgresql", {"Restore": lose_rows})
    assert "Kyoto, Japan" in said["Run"]
    assert re.search(r"^ food +\| +\d+$", said["Read it"], re.MULTILINE)
    assert "ok   database: postgresql" in said["Restore"]
    assert "nothing to retry: 3 of 3 finished" in said["Restore"]


@pytest.mark.usefixtures("sqlite")
def test_upgrading(reader: Shell, engine: Engine) -> None:
    """The new version is this one: what is tested are the steps, there and back."""
    reader.use_llm(engine.llm)
    _shorten_leases(reader)
    (reader.folder / "cities.csv").write_text(rows(5), "utf-8")
    reader.replaced["git pull"] = "true"
    reader.paste(UP)
    reader.run("job=$(themes enqueue cities.csv)")
    before = {"3. Back up": reader.stop_all, "Going back": reader.stop_all}
    said = reader.follow("upgrading", before)
    assert "version 1, this program's is 1" in said["1. Look"]
    assert "FAIL" not in said["5. Start again"]
    assert re.search(r"^cache hits +80 ", said["5. Start again"], re.MULTILINE)
    assert "0 destinations (5 rows" in said["5. Start again"]
    assert re.search("done +5/5", said["Going back"])


def test_alerts(reader: Shell, engine: Engine) -> None:
    (group,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    guide = (GUIDES / "alerts.md").read_text("utf-8")
    told = dict(re.findall(r"^## (\w+)\n\n(\w+)\. ", guide, re.MULTILINE))
    assert told == {rule["alert"]: rule["labels"]["severity"].capitalize() for rule in group["rules"]}
    reader.use_llm(engine.llm)
    reader.replaced["5555"] = engine.env["THEMES_DASHBOARD__PORT"]
    reader.paste(UP)
    until("the dashboard", lambda: not reader.run("themes health dashboard")[0])
    said = reader.follow("alerts")[""]
    assert re.search(r"^themes_up 1\.0\n(?:.*\n)*themes_workers 2\.0$", said, re.MULTILINE)


def test_capacity(reader: Shell, engine: Engine) -> None:
    reader.use_llm(engine.llm)
    reader.paste(UP)
    said = reader.follow("capacity")["Begin with the provider"]
    assert "a call, from sending to the last byte" in said
    assert re.search(r"^calls +0 ", said, re.MULTILINE)


def test_guides_of_a_job(reader: Shell, engine: Engine) -> None:
    reader.use_llm(engine.llm)
    _shorten_leases(reader)
    reader.replaced["JOB"] = "$job"
    for name in ("cities", "destinations"):
        (reader.folder / f"{name}.csv").write_text(rows(3, name), "utf-8")
    reader.paste(UP)
    reader.run("job=$(themes enqueue cities.csv --fields themes --wait)")
    said = {}
    for guide in OF_A_JOB:
        said[guide] = "".join(reader.follow(guide).values())
        reader.run("themes watch $job")
    assert re.search(r"LLM calls +27 ", said["report"]), (
        "five stages for each of three profiles, and four that were added"
    )
    assert "<style" in (reader.folder / "report.html").read_text("utf-8")
    assert "done  3/3" in said["running-without-redis"]
    assert "llm.requests_per_minute" in said["tuning"]


def test_every_guide_is_followed() -> None:
    """The others stand for themselves, or have a test of their own."""
    followed = set(re.findall(r'follow\(\s*"([\w-]+)"', Path(__file__).read_text("utf-8")))
    assert followed <= {path.stem for path in GUIDES.glob("*.md")}
    others = {path.stem for path in GUIDES.glob("*.md")} - followed - set(OF_A_JOB)
    assert others == {"cluster", "cost"} | NOT_RUN


@dataclass
class Harm:
    """What happens to a stack before the commands that mend it."""

    reader: Shell
    engine: Engine
    anew: str = "themes enqueue cities.csv --no-cache"

    def redis(self) -> Redis:
        return Redis.from_url((self.reader.folder / "var" / "redis.url").read_text().strip())

    def kill_a_worker(self) -> None:
        worker = "themes worker --name first"
        self.reader.paste(Command("", f"{worker} {OWN_TERMINAL}"))
        _run_slowly(self.reader, self.engine, self.anew)
        self.reader.end_all(worker)
        _quickly(self.engine)

    def kill_everything(self) -> None:
        _run_slowly(self.reader, self.engine, self.anew)
        self.reader.end_all()
        _quickly(self.engine)

    def empty_redis(self) -> None:
        _run_slowly(self.reader, self.engine, self.anew)
        with self.redis() as client:
            client.flushdb()
        _quickly(self.engine)

    def tear_the_database(self) -> None:
        self.reader.run(f"{self.anew} --wait")
        self.reader.end_all()
        file = self.reader.folder / "var" / "themes.db"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + b"\x5a" * (len(whole) // 2))

    def refuse_a_destination(self) -> None:
        self.engine.ask_sandbox("/faults", ["400=1,match=Nowhere"])
        self.reader.run("job=$(themes enqueue fails.csv --wait)")
        self.engine.ask_sandbox("/faults", [])

    def pause_a_job(self) -> None:
        _run_slowly(self.reader, self.engine, self.anew)
        self.reader.run("themes pause $job")
        _quickly(self.engine)

    def write_garbage(self) -> None:
        with self.redis() as client:
            client.xadd(keys.RESULTS, {"what": "ever"})
            client.rpush(f"{keys.PREFIX}{keys.QUEUE}", "garbage")
            until("a dead message", lambda: client.llen(keys.QUEUE_DEAD))
        until("a dead letter", lambda: query(self.engine, "SELECT count(*) FROM dead_letters")[0][0])


@pytest.mark.usefixtures("sqlite")
def test_recovery(reader: Shell, engine: Engine) -> None:
    reader.use_llm(engine.llm)
    _shorten_leases(reader)
    (reader.folder / "cities.csv").write_text(rows(40), "utf-8")
    (reader.folder / "fails.csv").write_text("name\nKyoto\nNowhere\n", "utf-8")
    reader.paste(UP)
    harm = Harm(reader, engine)
    said = reader.follow(
        "recovery",
        {
            "A worker is gone": harm.kill_a_worker,
            "Everything is gone": harm.kill_everything,
            "Redis came back empty": harm.empty_redis,
            "The database is damaged": harm.tear_the_database,
            "Destinations failed": harm.refuse_a_destination,
            "A job hangs": harm.pause_a_job,
            "Dead letters": harm.write_garbage,
        },
    )
    for section in ("A worker is gone", "Everything is gone", "Redis came back empty", "A job hangs"):
        assert re.search("done +40/40 finished +took", said[section]), section
    assert "stalled" in said["Redis came back empty"]
    assert re.search("done +40/40 finished .* 0 calls +640 cache hits", said["The database is damaged"])
    assert "1 failed  BadRequestError" in said["Destinations failed"]
    assert re.search("done +2/2 finished +took", said["Destinations failed"])
    assert "paused" in said["A job hangs"]
    assert "no field" in said["Dead letters"]
    assert "1 entry set aside" in said["Dead letters"]


def _shorten_leases(reader: Shell) -> None:
    """What killed processes held goes on within seconds."""
    leases = QUICK | {"THEMES_LLM__FLIGHT_LEASE_SECONDS": "2"}
    reader.run(f"export {' '.join(f'{name}={value}' for name, value in leases.items())}")


def _run_slowly(reader: Shell, engine: Engine, command: str) -> None:
    """Enqueue a job that will not have ended when its first rows are there."""
    engine.sandbox("--latency", "300ms", "--port", engine.llm.split(":")[2].removesuffix("/v1"))
    had = _profiles(engine)
    reader.run(f"job=$({command})")
    until("some rows", lambda: _profiles(engine) >= had + 5)


def _quickly(engine: Engine) -> None:
    engine.sandbox("--latency", "20ms", "--port", engine.llm.split(":")[2].removesuffix("/v1"))


def _profiles(engine: Engine) -> int:
    with contextlib.suppress(sqlite3.OperationalError):
        return int(query(engine, "SELECT count(*) FROM profiles")[0][0])
    return 0
