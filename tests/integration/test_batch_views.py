"""A job's batches at providers, wherever a job is shown."""

import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rich.console import Console

from scripts.lib.job_view import Lines, View
from scripts.report import text_of
from scripts.top import line, view
from tasks import keys
from tasks.connection import connect_async
from tasks.jobs import registry as jobs
from tasks.jobs.batches import BOOKED_BY
from tasks.jobs.pauses import format_paused
from tasks.jobs.registry import JobStatus
from tasks.messages import JobOptions, Spent, Usage
from tests.support.batches import batch, put
from tests.support.queueing import Network
from tests.support.stored import announced, done, places
from workers.dashboard.actions import acts_of
from workers.dashboard.job_values import job_values, tag_of
from workers.dashboard.live import LiveReader
from workers.dashboard.prometheus import Scrape
from workers.diagnosis.system import SystemReader, read_system
from workers.diagnosis.verdict import of_job, read_pulse
from workers.observe.measurement_store import read_job_measurements
from workers.observe.measurements import Histogram, JobMeasurements
from workers.report.page import page
from workers.report.report import JobReport, report_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.measurement_keeper import MeasurementKeeper
from workers.results.queries.job_stats import read_job_stats
from workers.results.queries.status import status_of

HOUR = 3600.0
SHOWN = "Batches: 2 open (12,400 requests; 8,100 done there), oldest 1h 20m; 500 wait to be sent"


@pytest.fixture
def job(redis: Redis) -> str:
    """A job of 60 destinations that has done nothing for a quarter of an hour: no chunk is in a worker's hands."""
    job_id = jobs.create(redis, name="cities", options=JobOptions(), compress=False)
    began = time.time() - 900
    redis.hset(keys.job(job_id), mapping={"state": "running", "total": 60, "started_at": began, "rate_at": began})
    return job_id


def _sent(redis: Redis, job_id: str) -> None:
    """Two batches are at the provider, and some questions wait for the next."""
    now = time.time()
    first = batch("a", requests=12_000, done_there=8_100, formed_at=now - 4810, asked_at=now - 4810)
    put(redis, job_id, first, batch("b", requests=400, formed_at=now - 60, asked_at=now - 60), waiting=500)


def _beat(redis: Redis, **fields: Any) -> None:
    report = {"name": "w@h", "at": time.time(), "lanes": 12, "lanes_busy": 0, "connections": 15} | fields
    redis.hset(keys.worker("w@h"), mapping=report)
    redis.expire(keys.worker("w@h"), 60)
    redis.zadd(keys.WORKERS, {"w@h": time.time()})


@pytest.fixture
def themes(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The command line."""
    from scripts.main import cli

    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("THEMES_STATE_DIR", str(tmp_path / "var"))
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def _drawn(shown: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as text:
        console.print(shown)
    return text.get()


def test_a_job_that_waits_for_batches_is_not_stalled_and_every_verb_says_why(
    redis: Redis, job: str, themes: Callable[..., Any]
) -> None:
    _beat(redis)
    assert jobs.status(redis, job).state == "stalled"
    _sent(redis, job)
    said = themes("status", job)
    assert said.exit_code == 0, said.output
    summary, batches, *more = said.output.splitlines()
    assert "cities: waiting" in summary
    assert "waiting: the provider works on batches at llm" in summary
    assert batches.startswith(SHOWN)
    assert not more
    (listed,) = themes("status").output.splitlines()
    assert re.search(r" waiting +0/60 +2 batches +cities", listed)
    status = json.loads(themes("status", job, "--json").output)
    assert (status["state"], status["wait"]["kind"], status["wait"]["endpoint"]) == ("running", "batch", "llm")
    expected = {
        "open": 2, "under_way": 2, "requests": 12_400, "done_there": 8_100, "waiting": 500, "submitted": 12_400,
        "endpoints": ["llm"], "expired": 0, "saved_usd": 0.0,
    }  # fmt: skip
    assert status["batches"].items() >= expected.items()
    known = jobs.status(redis, job)
    assert _drawn(View().render(known)).count(SHOWN) == 1
    assert "stalled" not in _drawn(View().render(known))
    looked = LiveReader(redis).read()
    assert SHOWN in _drawn(view(looked))
    assert SHOWN in line(looked)
    assert looked.as_dict()["jobs"][0]["batches"]["under_way"] == 2
    assert looked.verdict.startswith("Waits for batches at llm: the oldest was sent 1h 20m ago. Nothing is stuck: ")
    assert "too little work" not in looked.verdict
    assert read_system(redis, redis).verdict.resource == "batches"


def test_what_is_more_pressing_than_a_batch_comes_first(redis: Redis, job: str) -> None:
    _sent(redis, job)
    alone = jobs.status(redis, job)
    assert (alone.state, alone.wait) == ("stalled", None), "without a worker nobody reads the answers"
    assert of_job(alone, read_pulse(redis, redis)).resource == "workers"
    _beat(redis)
    redis.hset(keys.job(job), mapping={"rate_per_second": 2.5, "rate_at": time.time()})
    running = jobs.status(redis, job)
    assert (running.state, running.wait) == ("running", None), "destinations come to an end"
    away = {"kind": "away", "endpoint": "east", "since": 1.0, "until": None, "said": "refused"}
    _beat(redis, chunks_held=1, waiting_for=json.dumps(away))
    redis.hset(keys.job(job), "rate_at", 1.0)
    waiting = jobs.status(redis, job)
    assert "east is away" in (waiting.waiting_for or "")
    assert of_job(waiting, read_pulse(redis, redis)).resource == "endpoint"


def test_beside_a_job_at_work_one_that_waits_for_batches_changes_no_verdict(redis: Redis, job: str) -> None:
    _beat(redis, lately=json.dumps({"lanes_busy": 1}))
    _sent(redis, job)
    other = jobs.create(redis, name="towns", options=JobOptions(), compress=False)
    assert LiveReader(redis).read().verdict.startswith("Limited by too little work")
    put(redis, other, batch("c", endpoint="east"))
    assert LiveReader(redis).read().verdict.startswith("Waits for batches at east, llm: the oldest was sent ")


def test_questions_that_are_to_be_sent_are_no_idle_time(redis: Redis, job: str, themes: Callable[..., Any]) -> None:
    _beat(redis)
    put(redis, job, batch("a", state="ready", requests=40, said="the queue is full"), waiting=60)
    said = themes("status", job).output
    assert "cities: waiting" in said
    assert "waiting: its questions wait for a batch" in said
    assert "Batches: 100 wait to be sent; last trouble: the queue is full" in said
    assert LiveReader(redis).read().verdict.startswith("Questions wait for a batch: 100 are to be sent. Nothing is ")
    _beat(redis, chunks_held=1)
    assert jobs.status(redis, job).wait is None, "a worker makes more of them"


def test_what_a_small_budget_keeps_from_being_sent_is_said(redis: Redis, job: str, themes: Callable[..., Any]) -> None:
    _beat(redis)
    put(redis, job, batch("a", requests=10), waiting=40)
    redis.hset(keys.budget(job), mapping={"limit": 10**9, "spent": 2 * 10**8, "batch-a:reserved": 75 * 10**7})
    said = themes("status", job).output
    assert "the budget has $0.05 that is neither spent nor reserved, so 40 wait for what comes back" in said
    redis.hset(keys.budget(job), "limit", 9 * 10**9)
    assert "neither spent nor reserved" not in themes("status", job).output


def test_a_job_without_batches_shows_nothing_new(redis: Redis, job: str, themes: Callable[..., Any]) -> None:
    _beat(redis, chunks_held=1)
    assert "batches" not in json.loads(themes("status", job, "--json").output)
    shown = themes("status", job).output + themes("status").output + themes("top", "--once").output
    assert "atch" not in shown
    assert "batches" not in LiveReader(redis).read().as_dict()["jobs"][0]
    assert job_values(jobs.status(redis, job))["batches"] == ""


def test_a_hash_of_another_type_hides_nothing_of_the_job(redis: Redis, job: str, themes: Callable[..., Any]) -> None:
    _beat(redis, chunks_held=1)
    redis.rpush(keys.batches(job), "a list")
    redis.set(keys.batch_shelves(job), "a string")
    assert (jobs.status(redis, job).state, jobs.status(redis, job).batches) == ("running", None)
    assert themes("status", job).exit_code == 0
    assert read_system(redis, redis).jobs["running"] == 1
    assert read_job_measurements(redis, job).parts == []


def test_where_no_terminal_reads_a_line_tells_of_a_change_and_not_of_the_time(redis: Redis, job: str) -> None:
    _beat(redis)
    _sent(redis, job)
    lines = Lines()
    first = lines.next(jobs.status(redis, job))
    assert first
    assert SHOWN in first.splitlines()[1]
    now = time.time()
    older = batch("a", requests=12_000, done_there=8_100, formed_at=now - 9000, asked_at=now - 9000)
    put(redis, job, older, batch("b", requests=400), waiting=500)
    assert lines.next(jobs.status(redis, job)) is None
    put(redis, job, older, batch("b", requests=400), waiting=501)
    assert "501 wait to be sent" in (lines.next(jobs.status(redis, job)) or "")


def test_pages_have_the_line_and_the_sentence_of_a_job_that_waits(redis: Redis, job: str) -> None:
    _beat(redis)
    _sent(redis, job)
    redis.hset(keys.job(job), "state", "queued")
    status = jobs.status(redis, job)
    values = job_values(status)
    assert values["batches"].startswith(SHOWN)
    assert (values["words"], values["sentence"]) == ("", "0 of 60 finished.")
    assert tag_of(status) == "waiting"


def test_an_endpoint_that_refuses_batches_pauses_the_job_and_names_the_mend(
    redis: Redis, job: str, themes: Callable[..., Any]
) -> None:
    paused = {"paused": "batch", "paused_at": time.time(), "paused_message": "404 page not found"}
    redis.hset(keys.job(job), mapping=paused)
    for verb in (["status", job], ["status"]):
        said = themes(*verb).output
        assert "themes cancel" in said
        assert "resume" not in said
    said = themes("status", job).output
    assert "batches cannot be used: 404 page not found" in said
    assert "enqueue it with another --tier (answers so far are in the cache)" in said
    assert json.loads(themes("status", job, "--json").output)["paused"] == "batch"
    alone = format_paused(jobs.status(redis, job), resume="themes run --resume")
    assert "run it with another --tier (answers so far are in the cache), or mend that" in alone
    assert [act.name for act in acts_of(jobs.status(redis, job))] == ["cancel"]


async def test_metrics_have_the_sums_over_jobs_that_have_not_ended(redis: Redis, job: str) -> None:
    async def found() -> dict[tuple[str, str], float]:
        text = (await Scrape(SystemReader(redis, broker=redis)).text()).decode()
        return {
            (sample.name, sample.labels.get("state", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "_batch" in sample.name
        }

    none = {
        ("themes_batches_open", ""): 0, ("themes_batch_requests", "under_way"): 0,
        ("themes_batch_requests", "waiting"): 0,
    }  # fmt: skip
    assert await found() == none
    _sent(redis, job)
    other, over = (jobs.create(redis, name="towns", options=JobOptions(), compress=False) for _ in range(2))
    put(redis, other, batch("c", answered=30, formed_at=1.0, asked_at=time.time() - 9000), waiting=1)
    put(redis, over, batch("d"))
    redis.hset(keys.job(over), "state", "done")
    series = await found()
    age = series.pop(("themes_batch_oldest_seconds", ""))
    assert series == {
        ("themes_batches_open", ""): 3, ("themes_batch_requests", "under_way"): 12_470,
        ("themes_batch_requests", "waiting"): 501,
    }  # fmt: skip
    assert 9000 <= age < 9000 + HOUR


# --- the report, also when Redis has forgotten the job ---------------------------------------------------------------


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        yield manager


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    async with connect_async(redis_url, socket_timeout_seconds=180.0) as made:
        yield made


async def _report(store: AsyncDatabaseManager, status: JobStatus | None, picture: JobMeasurements) -> JobReport:
    row = await store.job("j")
    assert row
    account = await read_job_stats(store, row, now=time.time())
    known = status or status_of(row)
    return report_of(known, row, account, picture, settings={}, alive=1 if status else None, now=3000.0)


async def _worked(store: AsyncDatabaseManager) -> None:
    """Of three destinations one was finished a quarter of an hour before the others."""
    now = time.time()
    made = [done(town, at=now - (900.0 if not n else 0.5)) for n, town in enumerate(places(3))]
    booked = [Spent("j", town.id, 0, Usage(llm_calls=7), f"{BOOKED_BY}tag{n}", now - 1, 0.0)
              for n, town in enumerate(places(2))]  # fmt: skip
    made = [msgspec.structs.replace(one, elapsed_ms=1000.0) for one in made]
    await store.apply([*announced(*places(3)), *made, *booked])


async def test_a_report_has_what_was_bought_also_when_redis_has_forgotten_the_job(
    store: AsyncDatabaseManager, redis: Redis, client: AsyncRedis
) -> None:
    await _worked(store)
    ended: dict[str, Any] = {"state": "ended", "ended_at": 1900.0}
    put(
        redis, "j", batch("a", **ended, end="completed", answered=99, unanswered=1, saved_usd=1.0),
        batch("b", **ended, end="expired", answered=60, unanswered=40, saved_usd=0.5), batch("c", state="ready"),
    )  # fmt: skip
    redis.zadd(keys.MEASUREMENTS_DUE, {"j": time.time()})
    redis.hset(keys.job("j"), "state", "done")
    live = await _report(store, None, read_job_measurements(redis, "j"))
    assert await MeasurementKeeper(client, store).copy_due() == 1
    redis.flushdb()
    kept = await _report(store, None, JobMeasurements.of(await store.measurements("j")))
    assert live == kept
    assert kept.batches
    assert (kept.batches.sent, kept.batches.answered, kept.batches.expired) == (2, 159, 40)
    shown = "159 of 200 answered, 40 expired, saved $1.50"
    assert "batches 2 159 of 200 answered, 40 expired" in text_of(kept)
    assert shown in page(kept)
    assert json.loads(kept.json())["batches"]["saved_usd"] == 1.5


async def test_the_time_at_a_provider_is_a_finding_and_idle_lanes_are_none(
    store: AsyncDatabaseManager, redis: Redis
) -> None:
    await _worked(store)
    measured, _ = Network(destinations=3, pool=100).run()
    before = await _report(store, None, measured)
    assert [each.resource for each in before.findings].count("work") == 2, "nothing in work for a while, and idle lanes"
    assert "batches" not in json.loads(before.json())
    assert "atches at the provider" not in text_of(before)
    now = time.time()
    bought = batch("a", asked_at=now - 890, state="ended", ended_at=now - 1, requests=48, answered=48)
    put(redis, "j", bought)
    parts = [*measured.parts, *read_job_measurements(redis, "j").parts]
    after = await _report(store, None, JobMeasurements.of(parts))
    finding, *others = after.findings
    assert not {each.resource for each in others} & {"work", "tail"}
    assert (finding.resource, finding.share) == ("batches", pytest.approx(889 / after.seconds, abs=0.02))
    assert "llm had batches of this job: 1 batch, 48 of 48 requests answered" in finding.evidence
    assert (after.account.runs, after.account.retried) == (3, 0), "the books of a batch are no run"
    calls = {each.name: each.calls for each in after.processes}
    assert calls["batches"] == 14
    assert not [name for name in calls if name.startswith(BOOKED_BY)]
    assert after.verdict.text == f"F{finding.evidence[1:]}."
    assert "Bottleneck: batches at the provider" in text_of(after)


async def test_trips_to_redis_beside_batches_do_not_limit_the_job(store: AsyncDatabaseManager, redis: Redis) -> None:
    await _worked(store)
    now = time.time()
    bought = batch("a", asked_at=now - 890, state="ended", ended_at=now - 1, requests=48, answered=48)
    put(redis, "j", bought)
    measured, _ = Network(destinations=3, pool=100).run()
    (worker,) = measured.parts
    trips = Histogram()
    for _ in range(100):
        trips.add(0.02)
    slow = msgspec.structs.replace(worker, spans={"cache.get": trips.as_dict()})
    parts = [slow, *read_job_measurements(redis, "j").parts]
    report = await _report(store, None, JobMeasurements.of(parts))
    assert {each.resource for each in report.findings} & {"batches", "redis"} == {"batches"}
    assert report.verdict.text.startswith("For ")


async def test_a_report_of_a_job_that_waits_names_the_endpoint_and_blames_no_idle_worker(
    store: AsyncDatabaseManager, redis: Redis, job: str
) -> None:
    await _worked(store)
    _beat(redis)
    _sent(redis, job)
    report = await _report(store, jobs.status(redis, job), read_job_measurements(redis, job))
    assert [each.resource for each in report.findings] == ["batches"]
    assert report.verdict.text == "Waits for batches at llm: the oldest was sent 1h 20m ago."
    assert report.verdict.advice.startswith("Nothing is stuck: ")
