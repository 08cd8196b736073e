"""`themes run --tier batch`: batches without Redis, each line bought once, whatever is killed."""

import contextlib
import json
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import DEADLINE, Engine
from tests.e2e.test_batches import CALLS, PRICES, billed_usd, books, query, rows
from tests.faults import prompts
from tests.faults.proxy import Mode, Proxy

QUICK = {
    "THEMES_LLM__BATCH_FORM_SECONDS": "0.1",
    "THEMES_LLM__BATCH_POLL_SECONDS": "0.1",
    "THEMES_LLM__BATCH_SETTLE_SECONDS": "0.3",
    "THEMES_DATABASE__FLUSH_INTERVAL_SECONDS": "0.02",
}


@pytest.fixture
def batching(engine: Engine) -> Engine:
    """The sandbox with a price and batches of half a second."""
    engine.env |= PRICES | QUICK
    engine.sandbox("--latency", "0", "--batches", "delay=0")
    return engine


def state(engine: Engine, sql: str) -> list[Any]:
    """What the state file has."""
    with closing(sqlite3.connect(engine.folder / "var" / "run.db")) as database:
        return database.execute(sql).fetchall()


def nothing_is_left(engine: Engine) -> None:
    for table in ("batch_questions", "batch_answers", "batch_bills", "batches WHERE is_open OR reserved_nano"):
        assert state(engine, f"SELECT * FROM {table}") == [], table  # noqa: S608


def run(engine: Engine, count: int, *options: str) -> dict[str, Any]:
    said = engine.run("run", "-", "--tier", "batch", "--json", *options, stdin=rows(count))
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_a_run_in_batches_costs_half_and_each_prompt_once(batching: Engine) -> None:
    job = run(batching, 20)
    assert (job["state"], job["done"], job["failed"]) == ("done", 20, 0)
    stats = batching.ask_sandbox("/stats")
    assert list(stats["billed"]) == ["batch"]
    calls, cost, saved = books(batching, job["job_id"])
    assert calls == 20 * CALLS
    assert cost == pytest.approx(billed_usd(batching))
    assert saved == pytest.approx(cost), "half of the standard price was saved"
    assert stats["batches"]["completed"] >= 2, "the second round follows the first"
    assert stats["batches"]["files"] == 0, "files are deleted"
    nothing_is_left(batching)
    report = json.loads(batching.run("report", job["job_id"], "--json", THEMES_REDIS__ENABLED="false").stdout)
    assert report["batches"]["answered"] == 20 * CALLS
    # What is known costs nothing; a fresh answer is bought once more.
    assert run(batching, 20)["llm_calls"] == 0
    assert run(batching, 20, "--no-cache")["llm_calls"] == 20 * CALLS
    assert batching.ask_sandbox("/stats")["billed"]["batch"]["requests"] == 2 * 20 * CALLS


def test_what_no_batch_answers_is_asked_otherwise(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=0.1,window=0.5,share=0.6,line_errors=0.1")
    job = run(batching, 5)
    assert (job["done"], job["partial"]) == (5, 0)
    stats = batching.ask_sandbox("/stats")
    assert set(stats["billed"]) == {"batch", "flex"}
    assert sum(one["requests"] for one in stats["billed"].values()) == 5 * CALLS
    assert books(batching, job["job_id"])[1] == pytest.approx(billed_usd(batching))
    assert state(batching, "SELECT * FROM batch_questions") == []


def test_at_its_deadline_a_run_leaves_its_batches(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=100")
    job = run(batching, 4, "--deadline", "2s")
    assert (job["done"], job["failed"]) == (4, 0)
    stats = batching.ask_sandbox("/stats")
    assert stats["batches"]["cancelled"] >= 1
    assert "default" in stats["billed"], "flex is no tier for a job in a hurry"
    assert sum(one["requests"] for one in stats["billed"].values()) == 4 * CALLS
    assert books(batching, job["job_id"])[1] == pytest.approx(billed_usd(batching))


def test_an_interrupted_run_leaves_its_batches_to_the_next_one_of_any_job(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=4")
    file = batching.folder / "cities.csv"
    file.write_text(rows(6))
    process = batching.piped("run", str(file), "--tier", "batch")
    line = ""
    while "waiting: the provider works on batches" not in line:
        line = process.stderr.readline()
        assert line, "it ended without a word of batches"
    assert "waiting  0/6 finished" in line
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, said
    assert "1 batch at the provider may go on" in said
    first = out.strip()
    assert f"to go on: themes run --resume {first}" in said
    # Another job with the same prompts and some more waits for them; what they cost is booked for who asked first.
    other = run(batching, 8)
    assert other["done"] == 8
    assert batching.run("run", "--resume", first).returncode == 0
    assert batching.ask_sandbox("/stats")["billed"]["batch"]["requests"] == 8 * CALLS
    assert books(batching, first)[0] > 0
    assert sum(books(batching, one)[1] for one in (first, other["job_id"])) == pytest.approx(billed_usd(batching))
    nothing_is_left(batching)


def test_a_budget_lets_no_batch_through_that_it_does_not_cover(batching: Engine) -> None:
    budget, file = 0.05, batching.folder / "cities.csv"
    file.write_text(rows(30))
    said = batching.run("run", str(file), "--tier", "batch", "--budget", f"{budget}")
    job_id = said.stdout.strip()
    assert said.returncode == 1, said.stderr
    assert "stopped at its budget" in said.stderr
    assert 0 < billed_usd(batching) <= budget
    said = batching.run("run", "--resume", job_id, "--budget", "5", "--json")
    job = json.loads(said.stdout)
    assert job["done"] == 30
    assert batching.ask_sandbox("/stats")["billed"]["batch"]["requests"] == 30 * CALLS
    assert job["spent_usd"] == pytest.approx(billed_usd(batching), abs=1e-6)
    assert books(batching, job_id)[1] == pytest.approx(billed_usd(batching))


def test_the_tier_batch_is_refused_without_the_cache_that_keeps_its_answers(batching: Engine) -> None:
    for verb in ("run", "enqueue"):
        off = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERSISTENT_CACHE": "false"}
        said = batching.run(verb, "-", "--tier", "batch", stdin=rows(3), **off)
        assert said.returncode == 2
        assert "batch needs performance_optimization.enable_persistent_cache, which is off (environment " in said.stderr


def test_a_server_without_batches_ends_the_run_and_is_named(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "off")
    said = batching.run("run", "-", "--tier", "batch", stdin=rows(3))
    assert said.returncode == 1
    assert f"mend that, then: themes run --resume {said.stdout.strip()}" in said.stderr
    assert "takes no batches" in said.stderr
    assert batching.ask_sandbox("/stats")["billed"] == {}
    # The provider has learnt it meanwhile.
    batching.sandbox("--latency", "0", "--batches", "delay=0")
    assert batching.run("run", "--resume", said.stdout.strip()).returncode == 0
    nothing_is_left(batching)


def test_more_questions_than_may_wait_come_in_turns(batching: Engine) -> None:
    batching.env |= {"THEMES_LLM__BATCH_QUEUE_REQUESTS": "40", "THEMES_LLM__BATCH_MAX_REQUESTS": "25"}
    assert run(batching, 8)["done"] == 8
    stats = batching.ask_sandbox("/stats")
    assert stats["billed"]["batch"]["requests"] == 8 * CALLS
    assert stats["batches"]["batches"] >= 8 * CALLS / 25


class Kills:
    """A small run that is killed at one of its calls, and its resumption."""

    def __init__(self, engine: Engine, proxy: Proxy) -> None:
        self.engine, self.proxy = engine, proxy
        self.count = 3
        self.number = 0
        engine.env["THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_MIN_SIZE"] = "0"
        engine.env["THEMES_PIPELINE__PROMPTS_DIR"] = str(prompts.write(engine.folder / "prompts"))
        (_, port) = engine.llm.removesuffix("/v1").rsplit(":", 1)
        engine.env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{proxy.listen('llm', int(port), 'http')}/v1"

    def run(self, nth: int, mode: Mode, **trap: Any) -> bool:
        """Run, kill at a call, resume, and look at what came of it; whether the call was reached."""
        engine = self.engine
        file, billed, usd = self.begin()
        self.proxy.arm("llm", mode=mode, nth=nth, **trap)
        said = engine.run("run", file, "--tier", "batch", "--budget", "1")
        was_killed = bool(self.proxy.sprung("llm"))
        assert was_killed == (said.returncode != 0), said.stderr
        if was_killed:
            said = engine.run("run", file, "--resume", _job_id(engine))
            assert said.returncode == 0, said.stderr
        self.judge(billed, usd, f"call {nth}")
        return was_killed

    def begin(self) -> tuple[str, int, float]:
        """An empty state directory, other rows than before, and what has been billed until now."""
        self.number += 1
        for path in (self.engine.folder / "var").glob("*.db*"):
            path.unlink()
        file = self.engine.folder / "places.csv"
        file.write_text(rows(self.count, f"Place {self.number} of"))
        return str(file), self.billed(), billed_usd(self.engine)

    def judge(self, billed: int, usd: float, when: str) -> None:
        """Every destination is done, each line was bought once, and the books are what was billed since."""
        engine, job_id = self.engine, _job_id(self.engine)
        assert query(engine, "SELECT state, done, failed FROM jobs") == [("done", self.count, 0)], when
        assert query(engine, "SELECT COUNT(*) FROM profiles") == [(self.count,)], when
        calls, booked, _ = books(engine, job_id)
        assert self.billed() - billed == calls == self.count * prompts.CALLS, when
        assert booked == pytest.approx(billed_usd(engine) - usd), when
        assert engine.ask_sandbox("/stats")["batches"]["files"] == 0, when
        nothing_is_left(engine)
        assert state(engine, "SELECT spent_nano, reserved_nano FROM budgets") == [(0, 0)], when
        ((in_batches,),) = state(engine, "SELECT SUM(spent_nano) FROM batches")
        assert in_batches / 1e9 == pytest.approx(booked, rel=1e-6), when

    def billed(self) -> int:
        return sum(one["requests"] for one in self.engine.ask_sandbox("/stats")["billed"].values())


def _job_id(engine: Engine) -> str:
    ((job_id,),) = query(engine, "SELECT job_id FROM jobs")
    return str(job_id)


@pytest.fixture
def kills(batching: Engine) -> Iterator[Kills]:
    with Proxy() as proxy:
        yield Kills(batching, proxy)


@pytest.mark.parametrize("mode", [Mode.KILLED_AFTER, pytest.param(Mode.KILLED_BEFORE, marks=pytest.mark.soak)])
def test_a_run_killed_at_any_of_its_calls_buys_each_line_once(mode: Mode, kills: Kills) -> None:
    nth = 1
    while kills.run(nth, mode):
        nth += 1
    assert nth > 10, "two batches, from their upload to their deletion"


def test_a_kill_after_a_batch_was_created_and_before_it_is_listed_creates_no_other(batching: Engine) -> None:
    batching.sandbox("--latency", "0", "--batches", "delay=0,lag=1")
    batching.env["THEMES_LLM__BATCH_SETTLE_SECONDS"] = "3"
    with Proxy() as proxy:
        kills = Kills(batching, proxy)
        assert kills.run(1, Mode.KILLED_AFTER, commands=["POST /v1/batches"])
    stats = batching.ask_sandbox("/stats")["batches"]
    assert stats["batches"] == stats["completed"] == 2


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_again_and_again_at_any_moment_buys_each_line_once(kills: Kills, seed: int) -> None:
    chance = random.Random(f"run batches/{seed}")
    kills.count = 20
    for number in range(30):
        file, billed, usd = kills.begin()
        process = kills.engine.piped("run", file, "--tier", "batch", "--budget", "1")
        process.stdout.readline()
        for _ in range(3):
            time.sleep(chance.uniform(0, 1.5))
            process.kill()
            process.communicate(timeout=DEADLINE)
            process = kills.engine.piped("run", file, "--resume", _job_id(kills.engine))
        _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, said
        kills.judge(billed, usd, f"turn {number}")


def test_memory_does_not_grow_with_the_destinations_that_wait(batching: Engine) -> None:
    batching.env["THEMES_PIPELINE__PROMPTS_DIR"] = str(prompts.write(batching.folder / "prompts"))
    batching.env["THEMES_LLM__BATCH_FORM_SECONDS"] = "1"
    peaks = [_peak_mb(batching, count) for count in (200, 1_000)]
    assert peaks[1] < peaks[0] + 40, "a destination that waits is a row on the disk"


def _peak_mb(engine: Engine, count: int) -> float:
    """The most memory that a run of so many destinations has had."""
    file = engine.folder / f"{count}.csv"
    file.write_text(rows(count, f"Of {count}"))
    process, peak = engine.piped("run", str(file), "--tier", "batch"), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.05)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    return peak / 2**20
