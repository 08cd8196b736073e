"""`themes doctor`: each fault planted with real parts, found, and its fix read."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings, load
from scripts.doctor import _subjects
from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tasks.jobs import registry as jobs
from tasks.messages import JobOptions
from tests.support.habits import server_that
from tests.unit.test_distribution import PROJECT
from workers.doctor.check import Check, examine
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.tables import SCHEMA_VERSION
from workers.sandbox.server import SandboxServer

Look = Callable[..., dict[str, Check]]


@pytest.fixture
def look(tmp_path: Path, redis_url: str) -> Look:
    """Examine some subjects with some settings."""

    def examined(*subjects: str, **env: str) -> dict[str, Check]:
        settings = load(env={"THEMES_STATE_DIR": str(tmp_path / "var"), "REDIS_URL": redis_url, **env})
        chosen = {name: checks for name, checks in _subjects().items() if name in subjects}
        assert len(chosen) == len(subjects)
        return {check.name: check for check in examine(chosen, settings)}

    return examined


def _is_said(check: Check, *words: str, ok: bool = False) -> None:
    assert check.ok is ok, check
    assert check.fix, check
    for word in words:
        assert word in f"{check.found}\n{check.fix}", check


# --- the frame -----------------------------------------------------------------------------------------------


def test_a_check_that_hangs_or_breaks_hides_no_other_and_ends_in_time() -> None:
    def hangs(_: Settings) -> Iterator[Check]:
        yield Check("before", ok=True, found="seen")
        time.sleep(1_000)

    def breaks(_: Settings) -> Iterator[Check]:
        yield Check("first", ok=True, found="seen")
        raise ZeroDivisionError("redis://:secret@host/0 divided")

    def fine(_: Settings) -> Iterator[Check]:
        yield Check("fine", ok=True, found="seen")

    began = time.monotonic()
    subjects = {"hangs": hangs, "breaks": breaks, "fine": fine}
    checks = examine(subjects, load(env={}), seconds=1)
    assert time.monotonic() - began < 500
    assert [check.name for check in checks] == ["before", "hangs", "first", "breaks", "fine"]
    assert [check.ok for check in checks] == [True, False, True, False, True]
    assert "ZeroDivisionError" in checks[3].found
    assert "secret" not in checks[3].found
    assert all(check.fix for check in checks if not check.ok)


# --- Redis ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A server that may be spoilt."""
    with (
        LocalRedis(tmp_path / "redis", os.environ.get("THEMES_REDIS__SERVER", "auto")) as server,
        Redis.from_url(server.url) as client,
    ):
        client.url = server.url  # type: ignore[attr-defined]  # for the test
        yield client


def _url(client: Redis) -> str:
    return str(client.url)  # type: ignore[attr-defined]  # as the fixture has set it


def test_a_sound_redis_is_described_with_its_latency_and_memory(look: Look) -> None:
    checks = look("redis")
    assert all(check.ok for check in checks.values()), checks
    assert "version" in checks["redis"].found
    assert "p99" in checks["redis latency"].found
    assert "p99" in checks["redis latency"].found


def test_a_redis_that_evicts_queued_work(look: Look, own_redis: Redis) -> None:
    own_redis.config_set("maxmemory-policy", "allkeys-lru")
    check = look("redis", REDIS_URL=_url(own_redis))["redis"]
    _is_said(check, "allkeys-lru", "CONFIG SET maxmemory-policy volatile-lru")


def test_a_redis_without_its_file_and_one_that_is_full(look: Look, own_redis: Redis) -> None:
    own_redis.config_set("appendonly", "no")
    own_redis.config_set("maxmemory-policy", "noeviction")
    used = int(own_redis.info("memory")["used_memory"])
    own_redis.config_set("maxmemory", int(used * 1.1))
    checks = look("redis", REDIS_URL=_url(own_redis))
    _is_said(checks["redis persistence"], "loses queued work", "CONFIG SET appendonly yes", ok=True)
    _is_said(checks["redis memory"], "noeviction", "CONFIG SET maxmemory-policy volatile-lru")
    own_redis.config_set("maxmemory-policy", "volatile-lru")
    _is_said(look("redis", REDIS_URL=_url(own_redis))["redis memory"], "CONFIG SET maxmemory")


def test_no_redis_and_what_is_none(look: Look) -> None:
    checks = look("redis", "workers", "consumer", "queue", "jobs", REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert len(checks) == 5
    for check in checks.values():
        _is_said(check, "themes up")
        assert "secret" not in str(check)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        check = look("redis", REDIS_URL=url, THEMES_REDIS__SOCKET_TIMEOUT_SECONDS="1")["redis"]
    _is_said(check, "does not answer in time")


# --- LLM -----------------------------------------------------------------------------------------------------


def _llm(server: SandboxServer, **env: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "right", "THEMES_MODEL": "sandbox", **env}


@contextlib.asynccontextmanager
async def _serving(**options: Any) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(latency="0", **options) as server:
        yield server


async def _in_thread(call: Callable[[], dict[str, Check]]) -> dict[str, Check]:
    return await asyncio.to_thread(call)


async def test_an_endpoint_is_asked_in_every_format(look: Look) -> None:
    async with _serving() as server:
        checks = await _in_thread(lambda: look("llm", "clock", **_llm(server)))
        asked = server.stats()["requests"]
    assert all(check.ok for check in checks.values()), checks
    assert checks["llm formats"].found == "json_schema yes, json_object yes, text yes"
    assert "answered as" in checks["llm"].found
    assert f"({asked} calls of doctor's own, counted in no job)" in checks["llm"].found
    assert "from ours" in checks["clock of llm"].found
    async with _serving(formats=("json_object",)) as server:
        checks = await _in_thread(lambda: look("llm", **_llm(server)))
    assert checks["llm"].ok
    assert checks["llm formats"].found.startswith("json_schema no, json_object yes")
    _is_said(checks["llm formats"], "json_schema", ok=True)


async def test_an_endpoint_is_asked_with_its_headers_and_its_query(look: Look) -> None:
    async with server_that(lambda *_: None) as server:
        env = {"OPENAI_BASE_URL": f"{server.url}?api-version=2026-01-01", "THEMES_MODEL": "sandbox"}
        checks = await _in_thread(lambda: look("llm", **env, THEMES_LLM__HEADERS="{api-key: a-key-of-ours}"))
        assert checks["llm"].ok, checks
        assert set(server.paths) == {"/v1/chat/completions?api-version=2026-01-01"}
        assert all(headers["api-key"] == "a-key-of-ours" for headers in server.headers)


async def test_a_server_that_counts_no_tokens_is_a_note_and_no_log_line(
    look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_that(lambda *_: None, counts=lambda _: {}) as server:
        env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "right", "THEMES_MODEL": "sandbox"}
        checks = await _in_thread(lambda: look("llm", **env))
    _is_said(checks["llm tokens"], "counts no tokens that can be true", "estimated", ok=True)
    assert not [record for record in caplog.records if record.name == "themes.llm"]


async def test_a_wrong_key_is_named_and_not_shown(look: Look) -> None:
    async with _serving(api_key="right") as server:
        checks = await _in_thread(lambda: look("llm", **_llm(server, OPENAI_API_KEY="sk-very-wrong")))
        assert server.stats()["requests"] == 1
    assert "(1 call of doctor's own" in checks["llm"].found
    _is_said(checks["llm"], "401", f"export OPENAI_API_KEY=… with a key of {server.base_url}")
    assert "sk-very-wrong" not in str(checks)


async def test_a_server_that_is_away_one_that_hangs_and_a_wrong_path(look: Look) -> None:
    _is_said(
        look("llm", OPENAI_BASE_URL="http://127.0.0.1:1/v1", OPENAI_API_KEY="k", THEMES_MODEL="m")["llm"],
        "cannot connect",
        "OPENAI_BASE_URL",
    )
    async with _serving(faults=["hang=1"]) as server:
        checks = await _in_thread(lambda: look("llm", "python", **_llm(server)))
        _is_said(checks["llm"], "no answer within")
        assert checks["python"].ok
        assert checks["themes"].found == PROJECT["version"]
        wrong = _llm(server, OPENAI_BASE_URL=server.root_url)
        _is_said((await _in_thread(lambda: look("llm", **wrong)))["llm"], "404", "/v1")


def test_no_endpoint_at_all(look: Look) -> None:
    _is_said(look("llm")["llm"], "no LLM endpoint is set", "themes up --sandbox")


async def test_of_two_endpoints_the_broken_one_is_named(look: Look) -> None:
    async with _serving() as server:
        both = f"{{east: {{base_url: '{server.base_url}'}}, west: {{base_url: 'http://127.0.0.1:1/v1'}}}}"
        checks = await _in_thread(lambda: look("llm", THEMES_LLM__ENDPOINTS=both, THEMES_MODEL="sandbox"))
    assert checks["llm east"].ok
    _is_said(checks["llm west"], "cannot connect", "base_url")


# --- database ------------------------------------------------------------------------------------------------


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """A results database as the consumer makes it."""
    path = tmp_path / "results" / "themes.db"
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{path}"):
        pass
    return path


def _at(path: Path) -> dict[str, str]:
    return {"DATABASE_URL": f"sqlite+aiosqlite:///{path}"}


async def test_a_sound_database_is_written_and_left_as_it_was(look: Look, database: Path) -> None:
    checks = look("database", **_at(database))
    assert all(check.ok and check.fix is None for check in checks.values()), checks
    assert set(checks) == {"disk", "database", "database schema", "database log", "database integrity"}
    assert "written and rolled back, journal mode wal" in checks["database"].found
    with contextlib.closing(sqlite3.connect(database)) as found:
        assert not found.execute("SELECT 1 FROM sqlite_master WHERE name = 'themes_doctor'").fetchall()


async def test_a_database_of_a_newer_version(look: Look, database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as found, found:
        found.execute("UPDATE alembic_version SET version_num = ?", (f"{SCHEMA_VERSION + 1:04d}",))
    _is_said(look("database", **_at(database))["database schema"], f"version {SCHEMA_VERSION + 1}", "upgrading.md")


async def test_a_reader_that_keeps_the_log_from_being_copied_is_named(
    look: Look, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.doctor.database.WAL_HELD_BYTES", 200_000)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE more (filling BLOB)")
        assert look("database", **_at(database))["database log"].ok
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM jobs").fetchall()
            for _ in range(300):
                writer.execute("INSERT INTO more VALUES (zeroblob(4000))")
            _is_said(look("database", **_at(database))["database log"], "4 MiB", "read transaction", "disk is full")
            if sys.platform == "linux":
                assert f"(process {os.getpid()})" in look("database", **_at(database))["database log"].found
        check = look("database", **_at(database))["database log"]
    assert check.ok
    assert "all of it copied" in check.found


async def test_a_database_that_somebody_holds(look: Look, database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        _is_said(look("database", **_at(database))["database"], "held its lock", f"fuser -v {database}")


async def test_a_damaged_database_and_what_is_none(look: Look, database: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as found:
        found.execute("CREATE TABLE filler AS SELECT randomblob(4000) AS b FROM destinations")
        for number in range(50):
            found.execute("INSERT INTO filler VALUES (randomblob(4000))" if number else "SELECT 1")
        found.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 4))
    said = look("database", **_at(database))
    broken = [check for check in said.values() if not check.ok]
    assert broken, said
    for check in broken:
        _is_said(check, str(database))
    text = tmp_path / "text.db"
    text.write_text("this is no database, and never was " * 100)
    _is_said(look("database", **_at(text))["database"], "mv", "backup")
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as found:
        found.execute("CREATE TABLE theirs (x)")
    _is_said(look("database", **_at(foreign))["database schema"], "another application's", "DATABASE_URL")


def test_a_folder_that_cannot_be_written(look: Look) -> None:
    _is_said(look("database", **_at(Path("/proc/themes/themes.db")))["database"], "chmod", "THEMES_STATE_DIR")


async def test_a_file_system_that_is_read_only(look: Look, database: Path) -> None:
    folder = str(database.parent)
    mount = ["mount", "--bind", folder, folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount; a folder that cannot be written is tested without")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        check = look("database", **_at(database))["database"]
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    _is_said(check, "Read-only file system", f"mount -o remount,rw {folder}")


async def test_a_postgresql_server_and_one_that_is_away(look: Look, postgresql_url: str) -> None:
    checks = await _in_thread(lambda: look("database", DATABASE_URL=postgresql_url))
    assert checks["database"].ok, checks
    assert "written and rolled back" in checks["database"].found
    away = "postgresql+asyncpg://me:secret@127.0.0.1:1/themes"
    checks = await _in_thread(lambda: look("database", DATABASE_URL=away))
    _is_said(checks["database"], "DATABASE_URL")
    assert "secret" not in str(checks)


# --- machine, work, dashboard --------------------------------------------------------------------------------


def test_too_few_file_descriptors_name_the_line_to_write(tmp_path: Path) -> None:
    env = {**os.environ, "THEMES_STATE_DIR": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0"}
    doctor = f"ulimit -n 128; exec {sys.executable} -m scripts.main doctor --json"
    said = subprocess.run(["bash", "-c", doctor], env=env, capture_output=True, text=True, check=False, timeout=180)
    assert said.returncode == 1
    checks = {check["name"]: check for check in json.loads(said.stdout)["checks"]}
    assert not checks["file descriptors"]["ok"]
    assert checks["file descriptors"]["fix"].startswith("ulimit -n ")
    assert int(checks["file descriptors"]["fix"].split()[-1]) > 5_000, "for the dashboard's watchers too"
    assert "Traceback" not in said.stderr


def test_memory_below_the_threshold(look: Look) -> None:
    key = "THEMES_PERFORMANCE_OPTIMIZATION__MEMORY_PRESSURE_THRESHOLD_MB"
    _is_said(look("memory", **{key: "1048576"})["memory"], f"export {key}=")
    assert look("memory")["memory"].ok


def test_leftover_jobs_garbage_in_the_queue_and_messages_that_nobody_takes(look: Look, redis: Redis) -> None:
    redis.lpush(keys.queue_keys()[0], "a message")
    redis.lpush(keys.QUEUE_DEAD, "an entry")
    _is_said(look("queue")["queue"], "1 message waiting, 0 lanes", f"LRANGE {keys.QUEUE_DEAD}")
    redis.delete(keys.QUEUE_DEAD)
    _is_said(look("queue")["queue"], "themes worker")
    numbers = itertools.count(1)
    for paused in ({}, {"paused": "user"}):
        job_id = f"20260101-00000{next(numbers)}-aaaaaa"
        entry = {"job_id": job_id, "name": "old", "state": "running", "total": 3, "sealed": 1, "created_at": 1.0}
        redis.hset(keys.job(job_id), mapping={**entry, "options": "{}", "started_at": 1.0, "updated_at": 1.0, **paused})
        redis.zadd(keys.JOBS, {job_id: float(len(paused))})
        redis.hset(keys.chunks(job_id), "chunk", "what is left")
    check = look("jobs")["jobs"]
    _is_said(check, "20260101-000001-aaaaaa", "themes cancel", ok=True)


async def test_a_dashboard_that_is_open_and_a_port_that_is_anothers(look: Look) -> None:
    check = look("dashboard", THEMES_DASHBOARD__HOST="0.0.0.0")["dashboard"]  # noqa: S104  # what is refused
    _is_said(check, "reachable by others", "THEMES_DASHBOARD__BASIC_AUTH")
    async with _serving() as server:
        port = str(server.port)
        checks = await _in_thread(lambda: look("dashboard", THEMES_DASHBOARD__PORT=port))
    _is_said(checks["dashboard"], "another program's", f"--port {server.port + 1}")
    assert look("dashboard", THEMES_DASHBOARD__PORT="1")["dashboard"].ok, "nothing listens there"


def test_settings_that_cannot_be_read_are_the_only_finding_and_no_traceback(tmp_path: Path) -> None:
    env = {**os.environ, "THEMES_WORK__LEASE_SECONDS": "soon"}
    command = [sys.executable, "-m", "scripts.main", "doctor", "--json"]
    said = subprocess.run(command, env=env, cwd=Path.cwd(), capture_output=True, text=True, check=False, timeout=180)
    assert said.returncode == 1
    (check,) = json.loads(said.stdout)["checks"]
    assert check["name"] == "settings"
    assert "themes config check" in check["fix"]
    assert "Traceback" not in said.stderr


def test_a_job_with_nothing_left_to_do_and_rows_missing_is_named(look: Look, redis: Redis) -> None:
    job_id = jobs.create(redis, name="half", options=JobOptions(), compress=False)
    long_ago = time.time() - 10_000
    told = {"state": "running", "sealed": 1, "total": 3, "done": 1, "started_at": long_ago, "rate_at": long_ago}
    redis.hset(keys.job(job_id), mapping=told)
    redis.delete(keys.producer(job_id), keys.RESULTS)
    _is_said(look("jobs")["jobs"], "nothing is left to do", "1 of 3", f"themes retry {job_id}")
    redis.hset(keys.chunks(job_id), "chunk", "left")
    _is_said(look("jobs")["jobs"], f"left over: {job_id} (1 of 3)", ok=True)


# --- prices ----------------------------------------------------------------------------------------------------------


def test_a_model_without_a_price_is_advice_and_a_file_that_cannot_be_used_is_a_fault(
    look: Look, tmp_path: Path
) -> None:
    assert look("llm prices", THEMES_MODEL="sandbox") == look("llm prices") == {}
    _is_said(look("llm prices", THEMES_MODEL="gpt-99")["llm prices"], "no price for gpt-99", "llm.prices", ok=True)
    file = str(tmp_path / "none")
    found = look("llm prices", THEMES_MODEL="gpt-4o-mini", THEMES_LLM__PRICES_FILE=file)
    _is_said(found["llm prices"], f"llm.prices_file: {file} cannot be read", "No such file")
