"""The commands as a new user runs them: the demo, the stack, rubbish, and Ctrl-C."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tasks.connection import ADDRESS_FILE
from tests.e2e.conftest import Engine, until
from tests.faults.stack import is_up
from tests.support.forks import Forked


def _left_of(engine: Engine) -> list[str]:
    """Command lines of processes that belong to this test's stack and still run."""
    state_dir = engine.env["THEMES_STATE_DIR"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            # A forked one shows the environment that its parent was started with, and writes into the stack's logs.
            is_ours = process.environ().get("THEMES_STATE_DIR") == state_dir or any(
                file.path.startswith(f"{state_dir}/") for file in process.open_files()
            )
            if is_ours and process.pid != os.getpid():
                found.append(" ".join(process.cmdline()))
    return found


def _profiles(engine: Engine) -> list[tuple[str, str, int]]:
    """Job, status and number of categories of every profile."""
    with sqlite3.connect(Path(engine.env["THEMES_STATE_DIR"]) / "themes.db") as database:
        return database.execute(
            "SELECT p.job_id, p.status, COUNT(DISTINCT t.category) FROM profiles p JOIN themes t USING (job_id, "
            "destination_id) GROUP BY p.job_id, p.destination_id"
        ).fetchall()


def test_the_demo_makes_25_profiles_from_nothing_and_the_second_time_from_the_cache(engine: Engine) -> None:
    first = engine.run("demo")
    assert first.returncode == 0, first.stderr
    made = _profiles(engine)
    assert len(made) == 25
    assert all(status == "ok" and categories >= 3 for _, status, categories in made)
    assert "Kyoto, Japan" in first.stdout
    assert "400 LLM calls" in first.stderr
    assert re.search(r"dashboard +http://127\.0\.0\.1:\d+", first.stderr)
    assert _left_of(engine) == []
    second = engine.run("demo")
    assert second.returncode == 0, second.stderr
    assert "0 LLM calls, 400 cache hits" in second.stderr
    assert "nothing was asked, nothing was paid" in second.stderr
    assert len(_profiles(engine)) == 50
    assert _left_of(engine) == []
    assert not (Path(engine.env["THEMES_STATE_DIR"]) / ADDRESS_FILE).exists()


#: Moments of a demo, and how each is seen from outside.
MOMENTS: dict[str, Callable[[Engine], bool]] = {
    "the settings are imported": lambda engine: _imported(engine, "config.settings"),
    "the verb is imported": lambda engine: _imported(engine, "scripts.lib.stack"),
    "Redis stands": lambda engine: (Path(engine.env["THEMES_STATE_DIR"]) / ADDRESS_FILE).exists(),
    "the workers start": lambda engine: "starting Redis" in engine.log("demo"),
    "the stack stands": lambda engine: "the stack is up" in engine.log("demo"),
}


def _imported(engine: Engine, module: str) -> bool:
    """Whether a demo that runs with PYTHONPROFILEIMPORTTIME has imported a module."""
    return re.search(rf"\| +{re.escape(module)}$", engine.log("demo"), re.MULTILINE) is not None


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_the_demo_and_running_it_again_completes(moment: str, engine: Engine) -> None:
    if "imported" in moment:
        engine.forks = None
        engine.env["PYTHONPROFILEIMPORTTIME"] = "1"
    demo = engine.themes("demo", "demo")
    until(moment, lambda: MOMENTS[moment](engine))
    demo.send_signal(signal.SIGINT)
    demo.wait(180)
    assert demo.returncode == 130
    assert "Traceback" not in engine.log("demo")
    assert _left_of(engine) == []
    if "imported" not in moment:
        again = engine.run("demo")
        assert again.returncode == 0, again.stderr
        assert len([status for _, status, _ in _profiles(engine) if status == "ok"]) >= 25


def test_the_demo_can_be_kept_for_a_look(engine: Engine) -> None:
    demo = engine.themes("demo", "demo", "--keep", "--latency", "10ms")
    until("the demo to end its job", lambda: "Ctrl-C stops everything" in engine.log("demo") or demo.poll() is not None)
    assert demo.poll() is None, engine.log("demo")
    (job,) = [json.loads(line) for line in engine.run("status", "--json").stdout.splitlines()]
    assert (job["state"], job["done"]) == ("done", 25)
    demo.send_signal(signal.SIGTERM)
    demo.wait(180)
    assert _left_of(engine) == []


def test_a_killed_stack_leaves_no_process_behind(engine: Engine) -> None:
    up = engine.themes("up", "up", "--sandbox", "--workers", "1")
    until("the stack to stand", lambda: "ready:" in engine.log("up") or up.poll() is not None)
    assert up.poll() is None, engine.log("up")
    assert len(_left_of(engine)) >= 5
    os.kill(up.pid, signal.SIGKILL)
    up.wait()
    until("its processes to follow", lambda: not _left_of(engine), seconds=25)


def test_up_serves_another_terminal_and_ends_on_ctrl_c(engine: Engine, tmp_path: Path) -> None:
    up = engine.themes("up", "up", "--sandbox")
    until("the stack to stand", lambda: "ready:" in engine.log("up") or up.poll() is not None)
    cities = tmp_path / "cities.txt"
    cities.write_text("Kyoto, Japan\n# a comment\nMaldives\n")
    said = engine.run("enqueue", str(cities), "--wait")
    assert said.returncode == 0, said.stderr
    assert re.fullmatch(r"[0-9a-f-]+\n", said.stdout), "the job's id, alone on its line"
    assert "2 rows" in said.stderr
    listed = [json.loads(line) for line in engine.run("status", "--json").stdout.splitlines()]
    assert [job["job_id"] for job in listed] == [said.stdout.strip()]
    assert engine.run("status").stdout.startswith(said.stdout.strip()[-6:])
    doctor = json.loads(engine.run("doctor", "--json").stdout)
    assert {check["name"]: check["ok"] for check in doctor["checks"]}["workers"] is True
    up.send_signal(signal.SIGINT)
    assert up.wait(180) == 0
    assert _left_of(engine) == []


def test_up_says_that_the_llm_cannot_be_reached_and_goes_on(engine: Engine) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "k", "THEMES_MODEL": "m"}
    up = engine.themes("up", "up", "--workers", "1", "--no-dashboard", **env)
    until("it to be said", lambda: "the LLM does not answer" in engine.log("up") or up.poll() is not None)
    assert "http://127.0.0.1:1/v1: cannot connect" in engine.log("up")
    assert "ready:" in engine.log("up")
    assert up.poll() is None
    engine.end("up")


def test_a_role_that_dies_at_start_ends_the_stack_with_its_last_words(engine: Engine) -> None:
    url = f"sqlite+aiosqlite:///{engine.folder}"
    said = engine.run("up", "--sandbox", "--workers", "1", "--no-dashboard", DATABASE_URL=url)
    assert said.returncode == 1
    assert re.search(rf"consumer ended with code \d+: .*{engine.folder}", said.stderr), said.stderr
    assert _left_of(engine) == []


def _up(engine: Engine, name: str = "up", **env: str) -> subprocess.Popen[bytes] | Forked:
    """A small stack that stands."""
    up = engine.themes(name, "up", "--sandbox", "--workers", "1", **env)
    until("the stack to stand", lambda: "ready:" in engine.log(name) or up.poll() is not None)
    assert up.poll() is None, engine.log(name)
    return up


def test_up_takes_the_next_free_port_for_the_dashboard_and_says_it(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _up(engine, THEMES_DASHBOARD__PORT=str(port))
    said = engine.log("up")
    found = re.search(r"^dashboard +http://127\.0\.0\.1:(\d+)/jobs$", said, re.MULTILINE)
    assert found, said
    assert int(found[1]) != port
    assert f"dashboard.port {port} is taken: the dashboard listens on {found[1]}" in said
    until("it to answer", lambda: is_up(int(found[1])))
    engine.end("up")
    assert _left_of(engine) == []


def test_a_dashboard_that_cannot_start_ends_nothing_else(engine: Engine) -> None:
    up = _up(engine, THEMES_DASHBOARD__HOST="0.0.0.0")  # noqa: S104
    until("it to be said", lambda: "no dashboard, everything else goes on" in engine.log("up"))
    assert engine.log("up").count("THEMES_DASHBOARD__BASIC_AUTH") == 1
    assert engine.run("enqueue", "-", "--wait", stdin="Kyoto\n").returncode == 0
    assert up.poll() is None


def test_a_second_stack_in_one_folder_is_refused_with_the_process_of_the_first(engine: Engine) -> None:
    up = _up(engine)
    for verb in (["up", "--sandbox"], ["demo"]):
        said = engine.run(*verb)
        assert said.returncode == 2, verb
        (line,) = [line for line in said.stderr.splitlines() if "process" in line]
        assert f"(process {up.pid})" in line
        assert "THEMES_STATE_DIR" in line
    assert engine.run("enqueue", "-", "--wait", stdin="Kyoto\n").returncode == 0, "the first goes on"
    # A killed one keeps no other out.
    os.kill(up.pid, signal.SIGKILL)
    up.wait()
    until("its processes to follow", lambda: not _left_of(engine))
    _up(engine, "next")


def _one_line(said: subprocess.CompletedProcess[str], code: int) -> str:
    assert said.returncode == code, said.stderr
    assert said.stdout == ""
    lines = said.stderr.strip().splitlines()
    assert len(lines) == 1, said.stderr
    return lines[0]


NOWHERE = "redis://127.0.0.1:1/1"


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["enqueue", "FILE"], {"REDIS_URL": NOWHERE}, "127.0.0.1:1/1 cannot be reached"),
        (["worker"], {"REDIS_URL": NOWHERE}, "themes up"),
        (["consumer"], {"REDIS_URL": NOWHERE}, "REDIS_URL"),
        (["status"], {"REDIS_URL": NOWHERE}, "REDIS_URL"),
        (["watch"], {"REDIS_URL": NOWHERE}, "REDIS_URL"),
        (["up", "--sandbox"], {"REDIS_URL": NOWHERE}, "REDIS_URL"),
        (["demo"], {"REDIS_URL": NOWHERE}, "REDIS_URL"),
        (["enqueue", "FILE"], {"REDIS_URL": "nonsense"}, "redis_url: expected redis://"),
        (["up"], {}, "OPENAI_BASE_URL"),
        (["status"], {"THEMES_WORK__LEASE_SECOND": "3"}, "did you mean THEMES_WORK__LEASE_SECONDS?"),
        (["status"], {"THEMES_CONFIG": "/no/such/file.yaml"}, "/no/such/file.yaml: cannot be read"),
        (["results", "nope"], {}, "there is no results database yet"),
        (["sandbox-llm", "--latency", "soon"], {}, "soon"),
        (["dashboard", "--host", "0.0.0.0"], {}, "BASIC_AUTH"),  # noqa: S104
    ],
)
def test_what_cannot_work_is_one_clear_line(
    arguments: list[str], env: dict[str, str], says: str, engine: Engine, tmp_path: Path
) -> None:
    cities = tmp_path / "cities.txt"
    cities.write_text("Kyoto\n")
    if arguments[0] == "dashboard":
        arguments = [*arguments, "--port", "1"]
        with LocalRedis(Path(engine.env["THEMES_STATE_DIR"])) as server:
            line = _one_line(engine.run(*arguments, REDIS_URL=server.url), 2)
    else:
        line = _one_line(engine.run(*[str(cities) if word == "FILE" else word for word in arguments], **env), 2)
    assert says in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "no destinations: it has no rows"),
        (b"name,country\n", "no destinations: it has no rows"),
        (b"country;code\nJapan;1\n", "which column holds the names?"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook"),
        (b"1\n2\n", "are numbers"),
        (b"\x00\x01\x02", "binary"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(
    content: bytes | None, says: str, stack: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "cities.txt"
    if content is not None:
        path.write_bytes(content)
    line = _one_line(stack.run("enqueue", str(path)), 2)
    assert str(path) in line
    assert says in line
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert not list(redis.scan_iter("themes:job:*"))


def test_bad_rows_are_told_by_line_and_skipped_or_stop_a_strict_run(stack: Engine) -> None:
    rows = "name,lat\nKyoto,35\n,1\nParis,900\nOslo,59\nKYOTO ,35\n"
    said = stack.run("enqueue", "-", stdin=rows)
    assert said.returncode == 0
    assert "line 3: no name" in said.stderr
    assert "line 4: lat: expected -90 to 90 degrees, got '900'; its coordinates are left out" in said.stderr
    assert "enqueued 3 destinations (5 rows, 1 duplicate, 1 rejected)" in said.stderr
    assert "themes: read as CSV, delimiter ',', UTF-8, header on line 1; sent: name, lat\n" in said.stderr
    assert "themes: first: Kyoto | Paris | Oslo\n" in said.stderr
    strict = stack.run("enqueue", "-", "--strict", stdin=rows)
    assert strict.returncode == 2
    assert "standard input: line 3: no name" in strict.stderr
    limited = stack.run("enqueue", "-", "--limit", "1", stdin=rows)
    assert "enqueued 1 destination (" in limited.stderr


def test_a_refused_key_pauses_the_job_and_says_why(stack: Engine) -> None:
    stack.sandbox("--latency", "0", "--api-key", "right")
    stack.env["OPENAI_API_KEY"] = "wrong"
    line = stack.run("enqueue", "-", stdin="Kyoto\n").stderr.splitlines()[-1]
    assert re.search(r"^themes: nothing was enqueued, the LLM refuses: .*401.*check OPENAI_API_KEY.*--force$", line)
    assert stack.run("status", "--json").stdout == ""
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", "-", "--force", "--wait", stdin="Kyoto\n")
    assert said.returncode == 1
    assert re.search(r"stopped, because .*check OPENAI_API_KEY.*themes resume", said.stderr)
    status = stack.status(said.stdout.strip())
    assert (status["paused"], status["failed"]) == ("account", 0)
    assert "OPENAI_API_KEY" in status["paused_message"]


def test_an_llm_that_is_not_there_fails_the_job_and_says_where(stack: Engine) -> None:
    stack.end("sandbox")
    stack.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "1",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.05",
        "THEMES_LLM__WAIT_FOR_ENDPOINT_SECONDS": "0",
    }
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", "-", "--wait", stdin="Kyoto\n")
    assert "themes: the LLM does not answer: " in said.stderr
    assert said.returncode == 1
    assert re.search(rf"^themes: 1 failed: .*{re.escape(stack.llm)}.*cannot connect", said.stderr, re.MULTILINE)
    failure = json.loads(stack.run("failures", said.stdout.strip(), "--json").stdout)
    assert "cannot connect" in failure["message"]
    assert stack.llm in failure["message"]
    assert stack.status(said.stdout.strip())["llm_calls"] == 0


def test_a_database_folder_that_cannot_be_made_is_one_clear_line(stack: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = _one_line(stack.run("consumer", THEMES_STATE_DIR=str(tmp_path / "file" / "var")), 2)
    assert str(tmp_path / "file") in line


def test_debug_shows_the_traceback(engine: Engine) -> None:
    said = engine.run("--debug", "status", REDIS_URL=NOWHERE)
    assert said.returncode == 2
    assert "Traceback" in said.stderr


def test_the_verbs_of_the_manual_are_there(engine: Engine) -> None:
    said = engine.run("--help").stdout
    verbs = "demo up enqueue watch status results failures cancel pause resume cache worker consumer dashboard"
    for verb in [*verbs.split(), "sandbox-llm", "doctor", "config"]:
        assert re.search(rf"^  {verb} ", said, re.MULTILINE), verb
        assert engine.run(verb, "--help").returncode == 0
    assert engine.run("enqueue").returncode == 2


@pytest.mark.parametrize("group", [[], ["cache"], ["config"]])
def test_help_says_whole_sentences_as_wide_as_the_terminal(group: list[str], engine: Engine) -> None:
    for columns in ("60", "100", "200"):
        said = engine.run(*group, "--help", COLUMNS=columns).stdout
        shown = re.sub(
            r"^\w+:\n", "", said.partition("\n\n" + ("Commands:" if group else "Start:"))[2], flags=re.MULTILINE
        ).partition("\n\n  Example: ")[0]
        assert "..." not in shown
        assert max(map(len, said.splitlines())) <= int(columns)
        # A verb's name stands at the left, what it does beside it.
        rows = re.split(r"^  (?=\S)", shown, flags=re.MULTILINE)[1:]
        for row in rows:
            name, summary = row.split(maxsplit=1)
            assert " ".join(summary.split()).endswith("."), name
    assert "Run Redis (if none is set), workers, consumer and dashboard here until Ctrl-C." in said or group


def test_importing_the_producer_is_light() -> None:
    # Where OpenTelemetry is installed (an extra), redis-py imports all of it by itself.
    code = (
        "import sys; sys.modules['opentelemetry'] = None; import tasks.queue.producer, tasks.jobs.events; "
        "print(sorted({'aiohttp', 'sqlalchemy', 'aiosqlite', 'psutil', 'rich', 'flower'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


#: Verbs that print for people and end by themselves; JOB is a short id. With the exit code where that is not 0.
PIPED = {
    "status": 0, "status JOB": 0, "results JOB": 0, "failures JOB --partial": 1, "failures JOB --all": 1,
    "report JOB": 0, "report JOB --full": 0, "watch JOB": 1, "top --once": 0, "doctor": 0, "cache stats": 0,
    "cache stats JOB": 0, "config show": 0, "tune --show": 0, "enqueue FILE --dry-run": 0, "run FILE --dry-run": 0,
    "worker-memory start": 0, "worker-memory compare": 0, "worker-memory stop": 0, "--help": 0, "pause JOB": 2,
    "retry JOB --only NoSuchError": 0,
}  # fmt: skip


def test_nothing_is_cut_where_no_terminal_reads_and_a_short_id_is_enough(stack: Engine, tmp_path: Path) -> None:
    name, title = "Winding Surroundings " * 8 + "東京 🗼", "A catalogue with a long name" + " and more" * 15
    cities = tmp_path / "cities.csv"
    cities.write_text(f"name,country\n{name},Wales\n{name} again,Wales\nKyoto,Japan\n")
    stack.ask_sandbox("/faults", ["400=1,match=again", "400=1,match=give the price level"])
    stack.themes("w", "worker", "--name", "w")
    job = stack.run("enqueue", str(cities), "--name", title, "--wait").stdout.strip()
    shown = {}
    for verb, code in PIPED.items():
        words = [{"JOB": job[-6:], "FILE": str(cities)}.get(word, word) for word in verb.split()]
        said = stack.run(*words, COLUMNS="80")
        assert said.returncode == code, (verb, said.stderr)
        shown[verb] = said.stdout + said.stderr
        assert "…" not in shown[verb], verb
    for verb in ("status", "status JOB", "report JOB", "watch JOB"):
        assert title in shown[verb], verb
    assert f"{name}, Wales" in shown["results JOB"]
    assert f"{name} again, Wales" in shown["failures JOB --partial"]
