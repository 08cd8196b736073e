"""The least rights on Redis with which everything works; less is refused at the start with the rule that is missing."""

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from scripts.lib.local_redis import LocalRedis
from scripts.main import VERBS
from tasks.connection import check_rights, connect
from tasks.errors import RedisUnavailableError
from tests.e2e.conftest import Engine, until
from tests.support.servers import node, on_path

LEAST = "~themes:* &themes:* &themes:/1.celery.pidbox &themes:/1.celeryev/* +@all -@dangerous"
USERS = (Path(__file__).parents[2] / "deploy/redis/users.acl").read_text()
#: The rights of the user in deploy/redis, which are fewer, and INFO.
DEPLOYED = USERS.partition("user themes on #PASSWORD ")[2].strip()
#: Every verb but those that start something: `engine` starts these below.
EVERY_VERB = [
    "status JOB", "status", "watch JOB", "top --once", "report JOB", "results JOB", "failures JOB", "prices sandbox",
    "retry JOB", "retry JOB --partial", "extend JOB --fields rationale", "pause JOB", "resume JOB", "cancel JOB",
    "tune llm.max_completion_tokens=9000", "tune --show", "tune --reset", "worker-memory start", "worker-memory stop",
    "cache stats", "cache stats JOB", "cache clear --yes", "doctor", "health worker", "health consumer", "config show",
    "enqueue FILE --dry-run", "enqueue FILE --only-missing", "teams",
]  # fmt: skip
#: How servers say so; 6.2 knows no functions, and allows DEBUG to nobody where its settings do not.
REFUSED = "(?i)no permissions|can't access|can't run|acl failure|noperm|debug command not allowed|unknown command"
STARTED = {"demo", "up", "run", "worker", "consumer", "dashboard", "sandbox-llm"}


@pytest.fixture(autouse=True)
def _team(engine: Engine) -> None:
    engine.env["THEMES_TEAMS__BUDGETS"] = "{research: {usd_per_day: 5}}"


@pytest.fixture
def choice(request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which server is started: the bundled one, or the oldest, put on the path."""
    if getattr(request, "param", "") == "oldest":
        monkeypatch.setenv("PATH", on_path("redis 6.2", engine.folder / "bin"))
        return "system"
    return "bundled"


@pytest.fixture
def as_user(engine: Engine, choice: str) -> Iterator[Any]:
    """Makes a user with a rule, and gives the address that it logs in at."""
    with LocalRedis(engine.folder / "var", choice) as server, Redis.from_url(server.url) as admin:

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


@pytest.mark.parametrize(
    ("rule", "choice"), [(LEAST, "newest"), (DEPLOYED, "newest"), (DEPLOYED, "oldest")], indirect=["choice"]
)
def test_a_job_runs_to_its_end_with_the_least_rights(rule: str, engine: Engine, as_user: Any) -> None:
    engine.env["REDIS_URL"] = as_user(rule)
    engine.sandbox("--latency", "20ms")
    engine.themes("consumer", "consumer")
    engine.themes("worker", "worker")
    engine.themes("dashboard", "dashboard", "--port", "0", THEMES_LOGGING__FORMAT="json")
    rows = "name\n" + "".join(f"City {number}\n" for number in range(20))
    said = engine.run("enqueue", "-", "--wait", "--budget", "5", stdin=rows)
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.strip()
    (engine.folder / "cities.txt").write_text("Bergen\n")
    for words in EVERY_VERB:
        ran = engine.run(*words.replace("JOB", job_id).replace("FILE", str(engine.folder / "cities.txt")).split())
        assert not re.search("SETUSER|NOPERM|permission|Traceback", ran.stderr + ran.stdout), (words, ran.stderr)
    port = until("the dashboard", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", engine.log("dashboard")))[1]
    for page in ("jobs", f"jobs/{job_id}", "llm", "metrics", "workers", "tasks"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=180) as answer:
            assert answer.status == 200
    denied = [(entry["reason"], entry["object"]) for entry in map(_texts, as_user.admin.execute_command("ACL", "LOG"))]
    # Asked for and not needed: INFO, which the deployed user has, and on 6.2 CLIENT SETINFO, which it does not know.
    spare = {("command", "info")} if rule == LEAST else {("command", "client")}
    assert [one for one in denied if one not in spare] == []


def test_a_job_runs_where_what_is_dangerous_has_no_name(engine: Engine) -> None:
    """As offers of Redis that is rented have it; INFO too, which they have."""
    gone = [
        "CONFIG",
        "INFO",
        "DEBUG",
        "KEYS",
        "FLUSHALL",
        "FLUSHDB",
        "SHUTDOWN",
        "SAVE",
        "MONITOR",
        "SLOWLOG",
        "LATENCY",
        "ACL",
        "REPLICAOF",
        "MODULE",
        "ROLE",
    ]
    with node(engine.folder / "rented", *(f'rename-command {name} ""' for name in gone)) as rented:
        engine.env["REDIS_URL"] = f"redis://127.0.0.1:{rented.port}/1"
        engine.sandbox("--latency", "20ms")
        for role in ("consumer", "worker", "dashboard"):
            engine.themes(role, role, THEMES_LOGGING__FORMAT="json")
        said = engine.run("enqueue", "-", "--wait", "--budget", "5", stdin="name\nOslo\nLima\n")
        assert said.returncode == 0, said.stderr
        (engine.folder / "cities.txt").write_text("Bergen\n")
        for words in EVERY_VERB:
            file, job_id = str(engine.folder / "cities.txt"), said.stdout.strip()
            ran = engine.run(*words.replace("JOB", job_id).replace("FILE", file).split())
            assert not re.search("unknown command|Traceback", ran.stderr + ran.stdout), (words, ran.stderr)
            if words == "doctor":
                assert "append-only file, memory and eviction policy are unknown" in ran.stdout
        assert "unknown command" not in "".join(engine.log(role) for role in ("consumer", "worker", "dashboard"))
        engine.stop()


def test_every_verb_is_tried() -> None:
    assert {words.split()[0] for words in EVERY_VERB} | STARTED == set(VERBS)


@pytest.mark.parametrize("choice", ["newest", "oldest"], indirect=True)
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "FLUSHDB", "CONFIG SET maxmemory 1", "CONFIG GET *", "KEYS *", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE",
        "ACL LIST", "ACL SETUSER themes +@all", "MONITOR", "REPLICAOF NO ONE", "SAVE", "SWAPDB 0 1", "RANDOMKEY",
        "SCRIPT FLUSH", "FUNCTION LIST", "CLIENT LIST", "CLIENT KILL TYPE normal", "RESTORE themes:a 0 x",
        "SORT themes:a",
        "GET other", "SET other 1", "DEL other", "XADD other * a b", "BRPOP other 1", "COPY themes:a other",
        "RENAME themes:a other", "PUBLISH other 1", "SUBSCRIBE other", "PSUBSCRIBE *",
        "EVAL return{redis.call('GET','x')} 0",
        "GET themesx",
    ],
)  # fmt: skip
def test_the_user_of_deploy_may_do_nothing_else(command: str, as_user: Any) -> None:
    with connect(as_user(DEPLOYED), socket_timeout_seconds=180) as client:
        with pytest.raises(ResponseError, match=REFUSED):
            client.execute_command(*command.split())
        client.set("themes:x", 1)


def test_no_other_user_can_log_in() -> None:
    assert USERS.splitlines()[0] == "user default off"
    assert len(USERS.splitlines()) == 2


def _texts(entry: Any) -> dict[str, str]:
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {_text(key): _text(value) for key, value in pairs}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
