"""`themes report` as people use it: every state a job can be in, the page in a browser, and the live view."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import load
from scripts.lib.local_redis import LocalRedis
from tests.e2e.conftest import Engine, until
from tests.support import browser
from tests.support.browser import Page
from workers.report.collect import gather
from workers.report.page import page
from workers.report.report import JobReport

NASTY = "<script>window.broken=1</script>\"onmouseover='window.broken=1' & <b>bold"
SECTION = "THEMES_PERFORMANCE_OPTIMIZATION__"


async def _later(what: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(what, *arguments)


def _database(engine: Engine) -> Path:
    return Path(engine.env["THEMES_STATE_DIR"]) / "themes.db"


def _one(engine: Engine, query: str, *arguments: Any) -> Any:
    with contextlib.closing(sqlite3.connect(_database(engine))) as connection:
        return connection.execute(query, arguments).fetchone()


def _json(engine: Engine, job: str, **env: str) -> dict[str, Any]:
    said = engine.run("report", job, "--json", **env)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


@pytest.mark.browser
async def test_the_page_shows_in_a_browser_what_the_database_counts(
    stack: Engine, chromium: str, tmp_path: Path
) -> None:
    stack.env["THEMES_LLM__PRICES"] = "{sandbox: {input_usd: 1.5, output_usd: 6}}"
    stack.themes("w", "worker", "--name", "w")
    names = "\n".join(f'"Town {number}",Utopia' for number in range(8))
    await _later(lambda: stack.run("enqueue", "-", "--wait", stdin=f"name,country\n{names}\n"))
    rows = f'name,country\n{names}\nKyoto,Japan\n"{NASTY.replace(chr(34), chr(34) * 2)}",Utopia\n'
    said = await _later(lambda: stack.run("enqueue", "-", "--name", NASTY, "--wait", stdin=rows))
    job = said.stdout.strip()
    file = tmp_path / "report.html"
    said = await _later(lambda: stack.run("report", job, "-o", str(file)))
    assert (said.returncode, said.stdout) == (0, "")
    calls, hits, tokens_in, tokens_out, cost, done = _one(
        stack,
        "SELECT llm_calls, cache_hits, prompt_tokens, completion_tokens, cost_usd, done FROM jobs WHERE job_id = ?",
        job,
    )
    assert (done, hits) == (10, 128)
    async with browser.page(chromium) as tab:
        await tab.open(file.as_uri())
        shown = await _numbers(tab)
        assert shown["ended"] == done
        assert shown["calls"] == calls == _one(stack, "SELECT sum(llm_calls) FROM attempts WHERE job_id = ?", job)[0]
        assert shown["hits"] == hits
        assert (shown["tokens_in"], shown["tokens_out"]) == (tokens_in, tokens_out)
        assert shown["cost"] == pytest.approx(cost, rel=0.01)
        assert await tab.value("document.querySelector('#saving-cache td:nth-child(2)').textContent") == "128"
        assert await tab.value("document.querySelectorAll('svg.curve').length") == 3
        assert await tab.value("document.querySelectorAll('.slow tbody tr').length") == 10
        text = await tab.text()
        assert NASTY in text
        assert "Batched writes" in text
        assert await tab.value("window.broken") is None
        assert await tab.value("document.querySelectorAll('main b, main [onmouseover], script').length") == 0
        # Colours come from the one style sheet that the page's policy allows.
        light = await tab.value("getComputedStyle(document.body).backgroundColor")
        assert light == "rgb(247, 246, 243)"
        await tab.dark(on=True)
        assert await tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 26)"
        await tab.size(390, 800)
        assert await tab.value("document.documentElement.scrollWidth") <= 390
        printed = await tab.call("Page.printToPDF", preferCSSPageSize=True)
        assert len(printed["data"]) > 20_000
        assert tab.errors == []


async def _numbers(tab: Page) -> dict[str, float]:
    found = await tab.value(
        "Object.fromEntries([...document.querySelectorAll('dd[id]')].map(each => [each.id, each.textContent]))"
    )
    plain = {key: text.replace(",", "").strip("$%s ") for key, text in found.items()}
    return {key: float(text) for key, text in plain.items() if text.replace(".", "", 1).isdigit()}


def _look(engine: Engine, job: str) -> JobReport:
    """The report, made in this process: starting one takes seconds."""
    settings = load(env={name: value for name, value in engine.env.items() if name.startswith(("THEMES_", "REDIS"))})
    return asyncio.run(gather(settings, job))


def _state(engine: Engine, job: str) -> str:
    return str(_look(engine, job).job["state"])


def test_a_job_has_a_report_before_its_start_and_after_redis(engine: Engine, tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "var", engine.env["THEMES_REDIS__SERVER"]) as server:
        engine.env["REDIS_URL"] = server.url
        missing = engine.run("report", "20200101-000000-abcdef", "--json")
        assert missing.returncode == 2
        assert missing.stderr.startswith("themes: no job '20200101-000000-abcdef'")
        # Nobody has made a database yet.
        engine.sandbox("--latency", "30ms", "--fault", "400=1,match=Gotham")
        job = engine.run("enqueue", "-", stdin="Gotham\nKyoto\nLisbon\nRome\nOslo\n").stdout.strip()
        queued = _look(engine, job)
        assert queued.findings[0].resource == "workers"
        assert "there is no results database yet" in " ".join(queued.notes)
        engine.themes("consumer", "consumer")
        until("the database", lambda: "database" not in " ".join(_look(engine, job).notes))
        assert _look(engine, job).account.runs == 0
        engine.themes("w", "worker", "--name", "w", "--concurrency", "2")
        until("the end", lambda: _state(engine, job) == "done")
        ended = _look(engine, job)
        assert (ended.job["done"], ended.job["failed"]) == (4, 1)
        (kind,) = ended.account.failures
        assert kind.error_class == "BadRequestError"
        assert any("destinations failed" in each.evidence for each in ended.findings)
        assert "BadRequestError" in engine.run("report", job).stdout
        until(
            "the consumer to keep what the worker has measured",
            lambda: _one(engine, "SELECT count(*) FROM job_measurements WHERE payload LIKE '%\"destination\"%'")[0],
        )
        with Redis.from_url(server.url) as redis:
            redis.delete(*redis.scan_iter(f"themes:job:{job}*"))
        forgotten = _look(engine, job)
        assert "Redis no longer knows this job" in " ".join(forgotten.notes)
        assert forgotten.usage == ended.usage
    away = _look(engine, job)
    assert "Redis does not answer" in " ".join(away.notes)
    assert away.is_profiled, "the consumer has kept what was measured"
    assert away.usage == ended.usage
    unwritable = engine.run("report", job, "-o", str(tmp_path / "no" / "such" / "report.html"))
    assert unwritable.returncode == 2
    assert "cannot be written" in unwritable.stderr


def test_a_job_has_a_report_while_it_runs_rests_and_is_cancelled(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w", "--concurrency", "2")
    job = stack.run("enqueue", "-", stdin="".join(f"Town {n}\n" for n in range(2_000))).stdout.strip()
    until("some results", lambda: _look(stack, job).job["done"] > 3)
    running = _look(stack, job)
    assert running.job["state"] == "running"
    assert 0 < running.job["done"] < 2_000
    stack.run("pause", job)
    assert "themes resume" in _look(stack, job).findings[0].advice
    stack.run("cancel", job)
    until("the cancellation", lambda: _state(stack, job) == "cancelled")
    assert page(_look(stack, job)).count("cancelled") >= 2


def test_without_profiling_the_report_says_so_and_counts_all_the_same(stack: Engine) -> None:
    off = {f"{SECTION}ENABLE_PERFORMANCE_PROFILING": "false"}
    stack.themes("w", "worker", "--name", "w", **off)
    job = stack.run("enqueue", "-", "--wait", stdin="Kyoto\nRome\n", **off).stdout.strip()
    report = _json(stack, job, **off)
    assert not report["is_profiled"]
    assert "profiling was off" in " ".join(report["notes"])
    assert (report["usage"]["llm_calls"], report["capacities"]) == (32, [])
    assert not [hop for hop in report["hops"] if hop["name"] == "llm.call"]
    text = stack.run("report", job, **off).stdout
    assert "profiling was off" in text


def test_postgresql_gives_the_same_report(stack: Engine, postgresql_url: str) -> None:
    stack.end("consumer")
    stack.env["DATABASE_URL"] = postgresql_url
    stack.themes("consumer", "consumer")
    stack.themes("w", "worker", "--name", "w")
    job = stack.run("enqueue", "-", "--wait", stdin="Kyoto\nRome\nOslo\n").stdout.strip()
    until("the measurements", lambda: _json(stack, job)["is_profiled"], every=0.5)
    report = _json(stack, job)
    assert report["usage"]["llm_calls"] == 48
    assert sum(point["ended"] for point in report["account"]["timeline"]) == 3
    assert len(report["account"]["stages"]) == 16


def test_the_live_view_is_drawn_survives_a_redis_restart_and_ends_with_q(engine: Engine, tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "var", engine.env["THEMES_REDIS__SERVER"]) as server:
        engine.env["REDIS_URL"] = server.url
        engine.sandbox("--latency", "150ms")
        engine.themes("consumer", "consumer")
        engine.themes("w", "worker", "--name", "w")
        until("the worker", lambda: engine.logged("w", "start"))
        engine.run("enqueue", "-", "--name", "for top", stdin="".join(f"Town {n}\n" for n in range(150)))
        once = engine.run("top", "--once", "--json")
        seen = json.loads(once.stdout)
        assert [job["name"] for job in seen["jobs"]] == ["for top"]
        assert seen["workers"][0]["lanes"] == 12
        assert "for top" in engine.run("top", "--once").stdout
        screen = _Terminal([sys.executable, "-m", "scripts.main", "top"], engine.env)
        try:
            until("a picture", lambda: "for top" in screen.text() and "w@" in screen.text())
            until("calls", lambda: "calls/s" in screen.text())
            screen.clear()
            # A stopped server answers nobody, as one that is restarting.
            pid = int(Redis.from_url(server.url).info()["process_id"])
            os.kill(pid, signal.SIGSTOP)
            until("the trouble is told", lambda: "does not answer" in screen.text())
            os.kill(pid, signal.SIGCONT)
            screen.clear()
            until("it goes on", lambda: "for top" in screen.text() and "does not answer" not in screen.fresh())
            screen.press("q")
            assert screen.process.wait(180) == 0
        finally:
            screen.close()


class _Terminal:
    """A program in a terminal of its own, 140 columns wide."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._handle, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        environment = {**env, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
        self.process = subprocess.Popen(command, env=environment, stdin=inner, stdout=inner, stderr=inner)
        os.close(inner)
        os.set_blocking(self._handle, False)
        self._said = ""

    def text(self) -> str:
        """Everything since it was cleared."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self._handle, 65_536):
                self._said += data.decode("utf-8", "replace")
        return self._said

    def fresh(self) -> str:
        """What is drawn within a second and a half."""
        self.clear()
        time.sleep(1.5)
        return self.text()

    def clear(self) -> None:
        self.text()
        self._said = ""

    def press(self, key: str) -> None:
        os.write(self._handle, key.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._handle)
