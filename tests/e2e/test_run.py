"""`themes run`: a job in one process, without Redis and without Celery."""

import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.lib.local_redis import LocalRedis
from tests.e2e.conftest import DEADLINE, Engine, until

PRICES = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}
#: Prompts of one destination.
PROMPTS = 16
#: Connections of a run: so many calls can be under way when it is killed.
CONNECTIONS = 15


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name,country\n" + "".join(f"City {number},Country {number % 7}\n" for number in range(count)))
    return str(path)


def _query(engine: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _rows(engine: Engine) -> int:
    """Profiles in the database; 0 while there is none."""
    try:
        return int(_query(engine, "SELECT COUNT(*) FROM profiles")[0][0])
    except sqlite3.Error:
        return 0


def _books_are_right(engine: Engine, count: int) -> dict[str, Any]:
    """Every destination exactly once, and the job's counters as the rows say."""
    ((state,),) = _query(engine, "PRAGMA integrity_check")
    assert state == "ok"
    rows = _query(engine, "SELECT destination_id FROM profiles")
    assert len(rows) == len(set(rows)) == count
    ((state, total, done, failed, calls),) = _query(engine, "SELECT state, total, done, failed, llm_calls FROM jobs")
    assert (state, total, done, failed) == ("done", count, count, 0)
    assert _query(engine, "SELECT SUM(llm_calls) FROM attempts") == [(calls,)]
    return {"llm_calls": calls}


def _job_id(engine: Engine) -> str:
    ((job_id,),) = _query(engine, "SELECT job_id FROM jobs")
    return str(job_id)


def test_a_run_needs_no_redis_opens_no_connection_to_one_and_imports_no_celery(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    with socket.create_server(("127.0.0.1", 0)) as redis:
        redis.settimeout(0.1)
        code = (
            "import sys\n"
            "from scripts.main import cli\n"
            f"code = cli.main(['run', {_file(engine.folder, 5)!r}], standalone_mode=False)\n"
            "heavy = {name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'flower'}\n"
            "assert not heavy, heavy\n"
            "sys.exit(code)\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={**engine.env, "REDIS_URL": f"redis://127.0.0.1:{redis.getsockname()[1]}/0"},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        with pytest.raises(TimeoutError):
            redis.accept()
    (job_id,) = said.stdout.splitlines()
    assert job_id == _job_id(engine)
    assert _books_are_right(engine, 5) == {"llm_calls": 5 * PROMPTS}
    lines = engine.run("results", job_id, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"City {number}" for number in range(5)]
    assert engine.run("failures", job_id).returncode == 0
    assert "5/5" in said.stderr


def test_the_report_of_a_run_has_what_was_measured_in_its_one_process(engine: Engine) -> None:
    engine.sandbox("--latency", "20ms")
    engine.env["THEMES_REDIS__ENABLED"] = "false"
    job_id = engine.run("run", _file(engine.folder, 6)).stdout.strip()
    said = engine.run("report", job_id, "--json")
    assert (said.returncode, said.stderr) == (0, "")
    report = json.loads(said.stdout)
    assert report["is_profiled"]
    assert report["usage"]["llm_calls"] == 6 * PROMPTS
    (process,) = report["processes"]
    assert process["name"] == _query(engine, "SELECT DISTINCT worker FROM attempts")[0][0]
    (writes,) = (one for one in report["optimisations"] if one["name"] == "Batched writes")
    assert writes["brought"].startswith("6 results in "), writes


def test_the_second_run_of_a_file_asks_nothing_and_a_resumed_job_that_is_done_neither(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    count = 3
    file = _file(engine.folder, count)
    first = json.loads(engine.run("run", file, "--json").stdout)
    assert (first["state"], first["done"], first["llm_calls"]) == ("done", count, count * PROMPTS)
    second = json.loads(engine.run("run", file, "--json").stdout)
    assert (second["done"], second["llm_calls"], second["cache_hits"]) == (count, 0, count * PROMPTS)
    said = engine.run("run", "--resume", first["job_id"])
    assert (said.returncode, said.stdout) == (0, "")
    assert "nothing is missing" in said.stderr
    assert engine.run("run", file, "--only-missing").returncode == 0
    assert engine.ask_sandbox("/stats")["requests"] == count * PROMPTS
    fresh = json.loads(engine.run("run", file, "--json", "--no-cache").stdout)
    assert fresh["llm_calls"] == count * PROMPTS


def test_a_run_killed_ten_times_ends_with_one_row_a_destination_and_its_books_are_what_the_server_saw(
    engine: Engine,
) -> None:
    engine.sandbox("--latency", "20ms")
    count, kills = 70, 10
    process, said = engine.piped("run", _file(engine.folder, count)), ""
    for kill in range(1, kills + 1):
        until("some more profiles", lambda n=kill: _rows(engine) >= n * 5)
        process.kill()
        said += process.communicate(timeout=DEADLINE)[1]
        job_id = _job_id(engine)
        process = engine.piped("run", "--resume", job_id)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert out.strip() == job_id
    booked = _books_are_right(engine, count)["llm_calls"]
    paid = engine.ask_sandbox("/stats")["requests"]
    # Under way when it was killed: sent, or answered a moment ago.
    assert count * PROMPTS <= paid <= count * PROMPTS + kills * 2 * CONNECTIONS
    # A call that was being handed to the system in the moment of a kill is counted, sent or not.
    uncertain = sum(int(number) for number in re.findall(r"uncertain\D+(\d+)", said + err))
    assert paid <= booked <= paid + uncertain
    assert _query(engine, "SELECT COUNT(*) FROM attempts WHERE outcome NOT IN ('ok', 'lost')") == [(0,)]
    assert list((engine.folder / "var" / "calls").iterdir()) == []


@pytest.mark.parametrize("booker", ["another run", "a consumer"])
def test_what_a_killed_run_had_in_hand_is_booked_by_the_next_process_of_its_state_directory(
    booker: str, engine: Engine
) -> None:
    engine.sandbox("--latency", "200ms")
    process = engine.piped("run", _file(engine.folder, 40))
    until("some profiles", lambda: _rows(engine) >= 3)
    process.kill()
    process.communicate(timeout=DEADLINE)
    ((before,),) = _query(engine, "SELECT llm_calls FROM jobs")
    booked = "SELECT llm_calls FROM jobs ORDER BY created_at LIMIT 1"
    if booker == "another run":
        said = engine.run("run", "-", "--no-cache", stdin="Elsewhere\n").stderr
    else:
        with LocalRedis(engine.folder / "redis", engine.env["THEMES_REDIS__SERVER"]) as server:
            engine.themes("consumer", "consumer", REDIS_URL=server.url)
            until("the consumer to book them", lambda: _query(engine, booked)[0][0] != before)
            engine.end("consumer")
            said = engine.log("consumer")
    (uncertain,) = re.findall(r"uncertain\D+(\d+)", said)
    paid = engine.ask_sandbox("/stats")["requests"] - (PROMPTS if booker == "another run" else 0)
    assert before < paid <= _query(engine, booked)[0][0] <= paid + int(uncertain)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_under_way_and_says_how_to_go_on(number: int, engine: Engine) -> None:
    engine.sandbox("--latency", "100ms")
    count = 60
    process = engine.piped("run", _file(engine.folder, count))
    until("some profiles", lambda: _rows(engine) >= 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    job_id = out.strip()
    assert f"to go on: themes run --resume {job_id}" in err
    assert _rows(engine) < count
    asked = engine.ask_sandbox("/stats")["requests"]
    assert _query(engine, "SELECT llm_calls FROM jobs") == [(asked,)], "also what came to no end is booked"
    said = engine.run("run", "--resume", job_id)
    assert said.returncode == 0, said.stderr
    _books_are_right(engine, count)
    assert engine.ask_sandbox("/stats")["requests"] == count * PROMPTS, "nothing was paid twice"


def test_a_second_ctrl_c_waits_for_no_answer(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.ask_sandbox("/faults", ["hang=1"])
    process = engine.piped("run", _file(engine.folder, 3))
    until("calls to be under way", lambda: engine.ask_sandbox("/stats")["requests"] >= 10)
    process.send_signal(signal.SIGINT)
    until("it to say that it waits", lambda: "stopping" in process.stderr.readline())
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert out.strip() == _job_id(engine)
    assert _query(engine, "SELECT state, done FROM jobs") == [("running", 0)]


def test_a_run_that_waits_for_its_input_can_be_interrupted_and_goes_on_with_the_file(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    process = engine.piped("run", "-")
    process.stdin.write("name\n" + "".join(f"Town {number}\n" for number in range(60)))
    process.stdin.flush()
    until("the first page to be done", lambda: _rows(engine) >= 50)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 130
    process.communicate(timeout=DEADLINE)
    job_id = _job_id(engine)
    said = engine.run("run", "--resume", job_id)
    assert said.returncode == 2
    assert f"themes run FILE --resume {job_id}" in said.stderr
    whole = "name\n" + "".join(f"Town {number}\n" for number in range(70))
    said = engine.run("run", "-", "--resume", job_id, stdin=whole)
    assert said.returncode == 0, said.stderr
    _books_are_right(engine, 70)
    assert engine.ask_sandbox("/stats")["requests"] == 70 * PROMPTS


def test_a_run_without_an_endpoint_makes_no_job_and_prints_no_id(engine: Engine) -> None:
    said = engine.run("run", _file(engine.folder, 2), THEMES_MODEL="a-model")
    assert (said.returncode, said.stdout) == (2, "")
    assert "OPENAI_BASE_URL" in said.stderr
    assert _query(engine, "SELECT * FROM jobs") == []


def test_nothing_is_made_of_an_input_that_is_none(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    said = engine.run("run", "-", stdin="")
    assert (said.returncode, said.stdout) == (2, "")
    assert "no destinations" in said.stderr
    assert engine.run("run").returncode == 2
    assert engine.run("run", str(engine.folder / "nowhere.csv")).returncode == 2
    assert engine.run("run", "--resume", "nope").returncode == 2
    rows = "name,lat\n" + "".join(f"City {number},1\n" for number in range(200)) + "Bad,200\n"
    said = engine.run("run", "-", "--strict", stdin=rows)
    assert said.returncode == 2
    assert "--strict" in said.stderr
    assert _query(engine, "SELECT DISTINCT state FROM jobs") == [("cancelled",)]


def test_failed_destinations_are_named_and_asked_again_when_the_job_is_resumed(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
    }
    engine.ask_sandbox("/faults", ["503=1,match=City 3"])
    said = engine.run("run", _file(engine.folder, 8))
    assert said.returncode == 1
    job_id = said.stdout.strip()
    assert "1 failed" in said.stderr
    assert "City 3" in engine.run("failures", job_id).stdout
    engine.ask_sandbox("/faults", [])
    before = engine.ask_sandbox("/stats")["requests"]
    again = engine.run("run", "--resume", job_id)
    assert again.returncode == 0, again.stderr
    _books_are_right(engine, 8)
    assert engine.ask_sandbox("/stats")["requests"] - before == PROMPTS
    assert engine.run("failures", job_id).returncode == 0


def test_a_budget_is_kept_without_redis_and_raised_when_the_job_is_resumed(engine: Engine) -> None:
    engine.env |= PRICES
    engine.sandbox("--latency", "0")
    file = _file(engine.folder, 40)
    whole = json.loads(engine.run("run", file, "--limit", "4", "--json").stdout)["cost_usd"] * 10
    limit = round(whole / 2, 4)
    said = engine.run("run", file, "--budget", f"{limit}", "--json")
    assert said.returncode == 1, said.stderr
    status = json.loads(said.stdout)
    assert (status["state"], status["paused"], status["budget_usd"]) == ("stalled", "budget", limit)
    assert 0 < status["spent_usd"] <= limit
    assert status["spent_usd"] == pytest.approx(status["cost_usd"])
    assert 4 < status["done"] < 40
    assert "--budget USD" in said.stderr
    assert engine.run("run", "--resume", status["job_id"]).returncode == 1, "the budget is still used up"
    said = engine.run("run", "--resume", status["job_id"], "--budget", f"{whole * 3}", "--json")
    assert said.returncode == 0, said.stderr
    status = json.loads(said.stdout)
    assert (status["done"], status["failed"]) == (40, 0)
    assert status["spent_usd"] == pytest.approx(status["cost_usd"])
    assert engine.ask_sandbox("/stats")["requests"] == 40 * PROMPTS


def test_a_rate_limit_is_kept_without_redis(engine: Engine) -> None:
    engine.sandbox("--latency", "0", "--rate-limit", "100/s,burst=30")
    engine.env |= {"THEMES_LLM__REQUESTS_PER_MINUTE": "6000", "THEMES_LLM__REQUEST_BURST": "20"}
    began = time.monotonic()
    assert engine.run("run", _file(engine.folder, 20)).returncode == 0
    assert time.monotonic() - began > (20 * PROMPTS - 30) / 100
    stats = engine.ask_sandbox("/stats")
    assert stats["requests"] == 20 * PROMPTS, stats


def test_a_database_that_is_deleted_ends_the_run_at_once(engine: Engine) -> None:
    engine.sandbox("--latency", "30ms")
    process = engine.piped("run", _file(engine.folder, 300))
    until("some profiles", lambda: _rows(engine) >= 5)
    (engine.folder / "var" / "themes.db").unlink()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "was deleted" in err
    assert "Traceback" not in err
    assert engine.ask_sandbox("/stats")["requests"] < 300 * PROMPTS / 2, "what could not be kept was not asked for"


def test_one_run_at_a_time_works_in_a_state_directory(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    process = engine.piped("run", "-")
    until("it to hold the directory", (engine.folder / "var" / "run.db").exists)
    said = engine.run("run", _file(engine.folder, 1))
    assert said.returncode == 2
    assert f"process {process.pid}" in said.stderr
    process.terminate()
    assert process.wait(DEADLINE) == 130
    process.communicate(timeout=DEADLINE)
    assert engine.run("run", _file(engine.folder, 1)).returncode == 0


def test_without_stealing_and_without_a_kept_cache_the_profiles_are_the_same(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    file = _file(engine.folder, 8)
    first = engine.run("run", file).stdout.strip()
    off = {
        f"THEMES_PERFORMANCE_OPTIMIZATION__{name.upper()}": "false"
        for name in ("enable_persistent_cache", "enable_work_stealing", "enable_streaming_results")
    }
    second = engine.run("run", file, **off).stdout.strip()
    assert engine.ask_sandbox("/stats")["requests"] == 2 * 8 * PROMPTS, "nothing was kept, so all is asked again"
    themes = "SELECT destination_id, rank, name, description FROM themes WHERE job_id = '{}' ORDER BY 1, 2"
    assert _query(engine, themes.format(first)) == _query(engine, themes.format(second)) != []


def test_a_job_of_the_workers_is_left_to_them(stack: Engine) -> None:
    job_id = stack.run("enqueue", _file(stack.folder, 3)).stdout.strip()
    until("the consumer to know it", lambda: _query_or_nothing(stack))
    said = stack.run("run", "--resume", job_id)
    assert said.returncode == 2
    assert f"themes retry {job_id}" in said.stderr
    said = stack.run("run", "--resume", job_id, THEMES_REDIS__ENABLED="false")
    assert said.returncode == 0, said.stderr
    assert _books_are_right(stack, 3) == {"llm_calls": 3 * PROMPTS}


def _query_or_nothing(engine: Engine) -> list[Any]:
    try:
        return _query(engine, "SELECT 1 FROM jobs WHERE sealed = 1")
    except sqlite3.Error:
        return []


@pytest.mark.parametrize("verb", [["enqueue", "-"], ["watch"], ["cancel", "x"], ["worker"], ["consumer"], ["up"]])
def test_a_verb_that_needs_redis_says_so_in_one_line_and_names_the_other_way(verb: list[str], engine: Engine) -> None:
    engine.env |= {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "none", "THEMES_MODEL": "m"}
    said = engine.run(*verb, stdin="Kyoto\n", THEMES_REDIS__ENABLED="false")
    assert said.returncode == 2
    (line,) = said.stderr.strip().splitlines()
    assert "redis.enabled" in line
    assert "`themes run FILE`" in line


def test_redis_lost_at_the_start_is_answered_with_what_to_do(engine: Engine) -> None:
    said = engine.run("enqueue", "-", stdin="Kyoto\n", REDIS_URL="redis://127.0.0.1:1/0")
    assert said.returncode == 2
    (line,) = said.stderr.strip().splitlines()
    assert "`themes up`" in line
    assert "`themes run FILE`" in line


def test_the_demo_without_redis_is_one_process(engine: Engine) -> None:
    processes: set[int] = set()
    demo = engine.themes("demo", "demo", "--latency", "0", THEMES_REDIS__ENABLED="false")
    while demo.poll() is None:
        with contextlib.suppress(psutil.Error):
            processes.update(child.pid for child in psutil.Process(demo.pid).children(recursive=True))
        time.sleep(0.05)
    said = engine.log("demo")
    assert demo.returncode == 0, said
    assert "Kyoto, Japan" in said
    assert "25 profiles, 0 failed" in said
    assert not processes
    assert _books_are_right(engine, 25) == {"llm_calls": 25 * PROMPTS}


def test_a_run_says_what_is_one_place_and_sends_the_columns_that_are_named(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    rows = "code,name,country,type\nA,Lisboa,Portugal,city\nB,Córdoba,Spain,city\n"
    rows += "A,Lisbon,Portugal,town\nC,Cordoba,Spain,\n"
    said = engine.run("run", "-", "--id-column", "code", "--column", "TYPE", stdin=rows)
    assert said.returncode == 0, said.stderr
    duplicate = "line 4: Lisbon, Portugal: a duplicate of line 2 (same code A; what else differs is that of the first)"
    likely = "line 5: Cordoba, Spain: may be the same place as line 3, Córdoba, Spain (the same name but for accents"
    for line in (duplicate, likely, "read 4 rows, 1 duplicate, 0 rejected, 1 may be the same place as another"):
        assert line in said.stderr
    assert "columns not sent" not in said.stderr
    table = engine.run("results", said.stdout.strip()).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["id", "A", "B", "C"]
    asked = engine.ask_sandbox("/stats")["requests"]
    assert asked == 3 * PROMPTS
    again = engine.run("run", "-", "--id-column", "code", "--column", "type", "--only-missing", stdin=rows)
    assert "nothing to do: all 3 have a current profile" in again.stderr
    # Without the column these are other prompts, and other profiles: only Cordoba had no type to send.
    other = engine.run("run", "-", "--id-column", "code", "--only-missing", stdin=rows)
    assert "columns not sent to the model: type (--column 'type' sends one)" in other.stderr
    assert engine.ask_sandbox("/stats")["requests"] == asked + 2 * PROMPTS
    refused = engine.run("run", "-", "--column", "typ", stdin=rows)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no column 'typ'; the header has: code, name, country, type" in refused.stderr
