"""What Redis holds and this project did not write: one job, one worker is unreadable, all others are as they are."""

import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis, ResponseError
from redis.asyncio import Redis as AsyncRedis
from rich.console import Console

from config.sections import WebhookSettings
from config.settings import Settings
from config.values import Secret
from scripts.top import line, view
from tasks import keys, tuned
from tasks import worker_reports as fleet
from tasks.connection import connect_async
from tasks.errors import UnreadableError
from tasks.jobs import registry as jobs
from tasks.jobs import totals
from tasks.jobs.budget import LIMIT
from tasks.jobs.events import follow
from tasks.messages import JobOptions
from tasks.queue.producer import enqueue
from tests.support.stored import announced, done, places
from workers.dashboard.job_values import job_values
from workers.dashboard.live import LiveReader
from workers.dashboard.llm_values import page_values
from workers.diagnosis.system import read_system
from workers.diagnosis.verdict import read_pulse
from workers.results.announcer import Announcer
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.sweeper import Sweeper
from workers.results.webhook import PauseNotices


def _field(name: str, value: Any) -> Callable[[Redis, str], None]:
    return lambda redis, job: redis.hset(keys.job(job), name, value) and None


def _another_type(redis: Redis, job: str) -> None:
    redis.delete(keys.job(job))
    redis.set(keys.job(job), "a string")


def _no_state(redis: Redis, job: str) -> None:
    redis.hdel(keys.job(job), "state")


def _budget(name: str, value: Any) -> Callable[[Redis, str], None]:
    return lambda redis, job: redis.hset(keys.budget(job), mapping={LIMIT: 5, name: value}) and None


def _budget_of_another_type(redis: Redis, job: str) -> None:
    redis.rpush(keys.budget(job), "a list")


#: What somebody does to a job's keys, and what is said of it.
DAMAGE: dict[str, tuple[Callable[[Redis, str], None], str]] = {
    "nan": (_field("total", "nan"), "total is 'nan'"),
    "1e999": (_field("done", "1e999"), "done is '1e999'"),
    "negative": (_field("failed", "-1"), "failed is '-1'"),
    "bytes": (_field("total", b"\xff\xfe\x00"), "total is '\ufffd\ufffd'"),
    "huge": (_field("llm_calls", "9" * 5_000), "llm_calls is '9999"),
    "no time": (_field("started_at", "noon\x1b[2J"), "started_at is 'noon[2J'"),
    "infinite price": (_field("cost_usd", "inf"), "cost_usd is 'inf'"),
    "a rate": (_field("rate_per_second", "nan"), "rate_per_second is 'nan'"),
    "a state": (_field("state", "wonderful"), "state is 'wonderful'"),
    "no state": (_no_state, "state is ''"),
    "options": (_field("options", b"\x80"), "options: "),
    "another type": (_another_type, "its key holds no hash"),
    "budget": (_budget(LIMIT, "nan"), "limit is 'nan'"),
    "reserved": (_budget("w1:reserved", "-7"), "w1:reserved is '-7'"),
    "budget of another type": (_budget_of_another_type, "its key holds no hash"),
}


@pytest.fixture
def good(redis: Redis) -> str:
    return jobs.create(redis, name="a good one", options=JobOptions(), compress=False)


@pytest.fixture(params=DAMAGE)
def damaged(request: pytest.FixtureRequest, redis: Redis, good: str) -> tuple[str, str]:
    """A job whose keys somebody has written into, and what is said of it."""
    job = jobs.create(redis, name="a bad one", options=JobOptions(), compress=False)
    damage, why = DAMAGE[request.param]
    damage(redis, job)
    return job, why


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    made = connect_async(redis_url, socket_timeout_seconds=180)
    yield made
    await made.aclose()


@pytest.fixture
def themes(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The command line."""
    from scripts.main import cli

    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("THEMES_STATE_DIR", str(tmp_path / "var"))
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_the_list_shows_it_with_its_reason_and_the_others_as_they_are(
    redis: Redis, good: str, damaged: tuple[str, str], themes: Callable[..., Any]
) -> None:
    job, why = damaged
    found = {one.job_id: one for one in jobs.list_jobs(redis)}
    assert (found[good].state, found[good].unreadable) == ("queued", None)
    assert found[job].state == "unreadable"
    assert why in (found[job].unreadable or "")
    said = themes("status", "--json")
    assert said.exit_code == 0, said.output
    assert {one["job_id"]: one["state"] for one in map(json.loads, said.stdout.splitlines())} == {
        good: "queued", job: "unreadable",
    }  # fmt: skip
    assert themes("status").exit_code == 0
    for verb in ("status", "watch", "cancel", "pause", "resume"):
        said = themes(verb, job)
        assert isinstance(said.exception, UnreadableError), (verb, said.output, said.exception)
        assert why in str(said.exception)
        assert job in str(said.exception)
        assert "\n" not in str(said.exception)


def test_the_live_system_and_the_dashboard_show_it(redis: Redis, good: str, damaged: tuple[str, str]) -> None:
    job, why = damaged
    looked = LiveReader(redis).read()
    assert {one.job_id: one.state for one in looked.jobs} == {good: "queued", job: "unreadable"}
    console = Console(width=250, file=io.StringIO())
    with console.capture() as shown:
        console.print(view(looked))
    assert why in shown.get()
    assert "a good one: queued" in line(looked)
    system = read_system(redis, redis)
    assert (system.jobs["queued"], system.jobs["unreadable"]) == (1, 1)
    assert any(job in text and why in text for text in system.unreadable)
    assert any(why in notice["text"] for notice in page_values(system, [])["notices"])
    words = [job_values(one) for one in jobs.list_jobs(redis)]
    assert [one["tag"] for one in words] == ["unreadable", "queued"]
    assert why in words[0]["words"]


def _beat(redis: Redis, name: str, **fields: Any) -> None:
    report = {"at": time.time(), "lanes": 4, "lanes_busy": 1, "chunks_held": 1, "connections": 5} | fields
    redis.hset(keys.worker(name), mapping=report)
    redis.expire(keys.worker(name), 60)
    redis.zadd(keys.WORKERS, {name: time.time()})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lanes": "nan"}, "lanes is 'nan'"),
        ({"lanes_busy": "-3"}, "lanes_busy is '-3'"),
        ({"chunks_held": b"\xff"}, "chunks_held is"),
        ({"at": "1e999"}, "at is '1e999'"),
        ({"restarts": "9" * 400}, "restarts is"),
        ({"pool": "[1]"}, "pool: "),
        ({"pool": '{"routes": {"a/b": {"latency_ms": "soon"}}}'}, "pool: "),
        ({"pool": '{"routes": {"a/b": {"in_use": []}}}'}, "pool: "),
        ({"profile": '{"process": {"cpu_percent": "much"}}'}, "profile: "),
        ({"profile": '{"spans": {"llm.call": 7}}'}, "profile: "),
        ({"settings": '{"a": 1}'}, "settings: "),
    ],
)
def test_a_heartbeat_that_cannot_be_read_is_shown_and_the_other_workers_count(
    redis: Redis, good: str, themes: Callable[..., Any], fields: dict[str, Any], why: str
) -> None:
    _beat(redis, "good@h")
    _beat(redis, "odd@h", **fields)
    looked = LiveReader(redis).read()
    assert list(looked.workers) == ["good@h", "odd@h"]
    assert why in looked.workers["odd@h"].says
    assert looked.workers["good@h"].says == ""
    system = read_system(redis, redis)
    assert next(worker.lanes for worker in system.workers.values()) == 4
    assert any(text.startswith("odd@h: ") and why in text for text in system.unreadable)
    assert page_values(system, [])["workers"]
    assert fleet.live_lanes(redis) >= 4
    assert jobs.status(redis, good).state == "queued"
    assert themes("status").exit_code == 0


def test_a_heartbeat_of_another_type_is_shown(redis: Redis) -> None:
    _beat(redis, "good@h")
    redis.set(keys.worker("odd@h"), "a string", ex=60)
    redis.zadd(keys.WORKERS, {"odd@h": time.time(), b"\xff": time.time()})
    assert fleet.workers(redis)["odd@h"] == fleet.WorkerReport(unreadable="its key holds no hash")
    assert list(read_system(redis, redis).workers) == ["good@h", "odd@h"]


async def test_idle_lanes_are_counted_without_what_is_no_number(redis: Redis, client: AsyncRedis) -> None:
    _beat(redis, "good@h")
    _beat(redis, "odd@h", lanes="nan")
    redis.set(keys.worker("text@h"), "a string", ex=60)
    redis.zadd(keys.WORKERS, {"text@h": time.time()})
    assert await fleet.idle_lanes(client, besides="none") == 3


def test_counters_that_are_no_numbers_are_left_out(redis: Redis) -> None:
    redis.hset(keys.TOTALS, mapping={"llm_calls": 2**60 + 1, "runs": "nan", "cache_hits": b"\xff", "prompt_tokens": -4})
    odd = {"x|y=z": "nan", b"\xff": 1, "span_seconds|b=x|span=llm.call": 1, "span_seconds|b=3": 2, "y": "1e999"}
    redis.hset(keys.METRICS, mapping={"since": 5, "llm_requests_total|outcome=ok": 3} | odd)
    redis.hset(keys.CACHE_STATISTICS, mapping={"since": "soon", "memory_hits": "many", "misses": 2})
    series = keys.series(time.time())
    redis.hset(series, mapping={"calls": "nan", "errors": 2})
    redis.expire(series, 60)
    system = read_system(redis, redis)
    assert system.totals == {"llm_calls": 2**60 + 1}
    assert totals.read_totals(redis)["llm_calls"] == 2**60 + 1
    assert system.metrics.total("llm_requests_total") == 3
    assert (system.cache["misses"], system.cache["memory_hits"]) == (2, 0)
    for key in (keys.TOTALS, keys.METRICS, keys.CACHE_STATISTICS, series):
        redis.delete(key)
        redis.set(key, "a string", ex=60)
    system = read_system(redis, redis)
    assert (system.totals, system.metrics.counters) == ({}, {})
    assert LiveReader(redis).read().calls_per_second is None


def test_kept_changes_of_another_type_are_named(redis: Redis, themes: Callable[..., Any]) -> None:
    redis.set(keys.TUNED, "a string")
    with pytest.raises(UnreadableError, match="themes:tuned: its key holds no hash; `themes tune --reset`"):
        tuned.kept(redis)
    tuned.forget(redis)
    assert tuned.kept(redis) == []


def test_an_event_that_is_none_is_passed_over(redis: Redis) -> None:
    job = jobs.create(redis, name="a job", options=JobOptions(), compress=False)
    redis.xadd(keys.events(job), {"e": b"\xff"})
    redis.xadd(keys.events(job), {"other": b"x"})
    redis.hset(keys.job(job), "state", "done")
    assert [event.type for event in follow(job, redis=redis, timeout_seconds=180)] == ["job.done"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}", pool_size=2) as manager:
        yield manager


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Lines about unreadable jobs."""
    with caplog.at_level(logging.INFO):
        yield lambda: [record.getMessage() for record in caplog.records if "job_unreadable" in record.getMessage()]


async def test_the_consumer_announces_the_others_and_says_it_once(
    redis: Redis, client: AsyncRedis, store: AsyncDatabaseManager, heard: Callable[[], list[str]]
) -> None:
    towns = places(3)
    redis.set(keys.job("bad"), "a string")
    redis.hset(keys.job("odd"), mapping={"job_id": "odd", "state": "queued", "total": "nan", "revision": "1e999"})
    redis.hset(keys.job("good"), mapping={"job_id": "good", "state": "queued"})
    announcer = Announcer(client, Settings())
    entries = [entry for job in ("bad", "good", "odd") for entry in announced(*towns, job=job)]
    await announcer.announce(await store.apply(entries))
    for town in towns:
        await announcer.announce(await store.apply([done(town, job=job) for job in ("bad", "good", "odd")]))
    assert jobs.status(redis, "good").done == 3
    assert jobs.status(redis, "odd").done == 3, "what the consumer tells is right again"
    assert len(heard()) == 1
    assert "job bad" in heard()[0]
    assert totals.read_totals(redis)["runs"] == 9


def _posting(url: str) -> Settings:
    return Settings(webhook=WebhookSettings(url=Secret(url), secret=Secret("s3cr3t")))


async def _ended(redis: Redis, client: AsyncRedis, store: AsyncDatabaseManager, settings: Settings) -> None:
    (town,) = places(1)
    redis.hset(keys.job("j"), mapping={"job_id": "j", "state": "queued"})
    redis.sadd(keys.ACTIVE, "j")
    announcer = Announcer(client, settings)
    await announcer.announce(await store.apply([*announced(town), done(town)]))


async def test_a_job_ends_where_its_notice_cannot_be_kept(
    redis: Redis, client: AsyncRedis, store: AsyncDatabaseManager
) -> None:
    redis.set(keys.WEBHOOKS, "a string")
    await _ended(redis, client, store, _posting("https://example.com/"))
    assert not redis.sismember(keys.ACTIVE, "j")
    assert redis.ttl(keys.job("j")) > 0


async def test_no_notice_is_kept_for_a_url_that_is_empty(
    redis: Redis, client: AsyncRedis, store: AsyncDatabaseManager
) -> None:
    await _ended(redis, client, store, _posting(""))
    assert not redis.sismember(keys.ACTIVE, "j")
    assert not redis.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE)


async def test_totals_that_are_no_numbers_are_told_again(
    redis: Redis, client: AsyncRedis, store: AsyncDatabaseManager
) -> None:
    announcer = Announcer(client, Settings())
    towns = places(2)
    await announcer.announce(await store.apply([*announced(*towns), done(towns[0])]))
    redis.hset(keys.TOTALS, mapping={"runs": "nan", "llm_calls": "many", "destinations_ok": "1e999"})
    await announcer.announce(await store.apply([done(towns[1])]))
    found = totals.read_totals(redis)
    assert (found["runs"], found["llm_calls"], found["destinations_ok"]) == (2, 4, 2)


async def test_the_sweeper_goes_on_with_the_others_and_says_it_once(
    redis: Redis,
    redis_url: str,
    client: AsyncRedis,
    settings_for: Callable[..., Settings],
    heard: Callable[[], list[str]],
) -> None:
    settings = settings_for(REDIS_URL=redis_url)
    good = enqueue(["Kyoto"], settings=settings, redis=redis)
    for number, damage in enumerate((_another_type, _field("options", "{"), _field("total", "nan"))):
        bad = enqueue([f"City {number}"], settings=settings, redis=redis)
        damage(redis, bad.job_id)
    redis.sadd(keys.ACTIVE, b"\xff\xfe")
    redis.delete(*keys.queue_keys())
    sweeper = Sweeper(client, client, settings, url=redis_url)
    for _ in range(4):
        await sweeper.sweep()
    assert sweeper.resent == 1, f"{good} has a chunk and no message"
    assert len(heard()) == 3, "once a job"


async def test_a_pause_ends_by_itself_where_its_notice_cannot_be_kept(
    redis: Redis, redis_url: str, client: AsyncRedis, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(REDIS_URL=redis_url)
    job_id = enqueue(["Kyoto"], settings=settings, redis=redis).job_id
    redis.hset(keys.job(job_id), mapping={"paused": "team", "paused_at": 1, "paused_until": 2})
    redis.set(keys.WEBHOOKS, "a string")
    await Sweeper(client, client, settings, url=redis_url, notices=PauseNotices(client)).sweep()
    assert jobs.status(redis, job_id).paused is None


def test_a_stream_of_another_type_is_an_error_of_redis(redis: Redis) -> None:
    redis.set(keys.RESULTS, "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        read_pulse(redis, redis)
