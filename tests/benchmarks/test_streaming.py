"""How soon a watcher sees what has become durable, and what watchers cost. Stacks of real processes."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings, load
from tasks import keys
from tasks.connection import connect_async
from tasks.jobs.events import PAGE, encode, entries_of, follow_async
from tasks.messages import Chunk, Destination, Event, JobInputs, JobOpened, JobOptions, JobSealed
from tasks.queue.ledger import Ledger, write_chunks
from tasks.queue.producer import enqueue
from tasks.storable import entry_fields
from tests.benchmarks.costs import Costs
from tests.benchmarks.figures import knob, repeats, tell, tell_quantiles
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard
from tests.support.full import full_results
from workers.results.publisher import BUFFER, EventPublisher
from workers.results.stream import ResultsStream, decode

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
RATE = 1_000
SECONDS = knob("DESTINATIONS", 8 * RATE) / RATE
ROUNDS = 20
CROWD = knob("WATCHERS", 1_000)
#: Entries beside bare commands, at most.
BARE = knob("DESTINATIONS", 5_000)
#: Destinations of the watched job.
WATCHED = 150


@pytest.fixture
def engine(tmp_path: Path, redis_url: str) -> Iterator[Engine]:
    """Processes on the test's own Redis database."""
    import os

    env = {k: v for k, v in os.environ.items() if not k.startswith(("THEMES_", "OPENAI_", "REDIS"))}
    env |= {"THEMES_STATE_DIR": str(tmp_path / "var"), "REDIS_URL": redis_url}
    made = Engine(tmp_path, env)
    yield made
    made.stop()


def _settings(engine: Engine) -> Settings:
    names = ("THEMES_STATE_DIR", "REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "THEMES_MODEL")
    return load(env={name: engine.env[name] for name in names if name in engine.env})


async def _events(session: aiohttp.ClientSession, url: str) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    async with session.get(url) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: "):
                yield time.perf_counter(), json.loads(line[6:])


def _open_job(redis: Redis, towns: list[Destination], job: str = "j") -> None:
    redis.hset(keys.job(job), mapping={"job_id": job, "name": "a job", "state": "queued", "sealed": 1})
    redis.sadd(keys.ACTIVE, job)
    redis.xadd(keys.RESULTS, entry_fields(JobOpened(job, "a job", 900.0, JobOptions())))
    for at in range(0, len(towns), 500):
        redis.xadd(keys.RESULTS, entry_fields(JobInputs(job, tuple(towns[at : at + 500]))))
    redis.xadd(keys.RESULTS, entry_fields(JobSealed(job, len(towns))))


async def _feed(redis: Redis, packed: list[Any], sent: list[float]) -> None:
    """Publish results at `RATE` a second, ten at a time."""
    began = time.perf_counter()
    for at in range(0, len(packed), 10):
        await asyncio.sleep(max(0.0, began + at / RATE - time.perf_counter()))
        with redis.pipeline(transaction=False) as pipe:
            for fields in packed[at : at + 10]:
                pipe.xadd(keys.RESULTS, fields)
            sent += [time.perf_counter()] * 10
            pipe.execute()


async def test_from_a_workers_publish_to_a_watcher(engine: Engine, redis: Redis) -> None:
    """Layer: consumer and dashboard. Full results of 31 KB come at 1,000 a second; BENCH_DESTINATIONS of them."""
    url = _dashboard(engine)
    engine.themes("consumer", "consumer")
    towns, results = full_results(int(RATE * SECONDS), job_id="j")
    _open_job(redis, towns)
    until("the inputs to be stored", lambda: redis.xlen(keys.RESULTS) == 0)
    packed, sent, seen = [entry_fields(result) for result in results], [], {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        feeding = asyncio.create_task(_feed(redis, packed, sent))
        async for at, event in _events(session, f"{url}/jobs/j/events"):
            if event["type"] == "destination.done":
                seen[event["destination_id"]] = at
            if event["type"] == "job.done":
                break
        await feeding
    assert len(seen) == len(towns)
    late = [seen[town.id] - at for town, at in zip(towns, sent, strict=True)]
    tell_quantiles(f"{RATE:,} destinations a second", "from a worker's publish to its event (SSE)", late)


async def test_from_enqueue_of_one_cached_destination_to_its_event(engine: Engine) -> None:
    """Whole system. One destination at a time, all of its sixteen answers by the sandbox and cached."""
    engine.sandbox("--latency", "0")
    url = _dashboard(engine)
    engine.themes("consumer", "consumer")
    engine.themes("w", "worker", "--name", "w")
    assert engine.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").returncode == 0
    settings, took = _settings(engine), []
    async with aiohttp.ClientSession() as session:
        for _ in range(ROUNDS):
            await asyncio.sleep(0.7)
            began = time.perf_counter()
            job = await asyncio.to_thread(enqueue, ["Kyoto, Japan"], settings=settings)
            async for at, event in _events(session, f"{url}/jobs/{job}/events"):
                if event["type"] == "destination.done":
                    assert event["cache_hits"] == 16
                    took.append(at - began)
                    break
    tell_quantiles("one cached destination", "from `enqueue` to its event (SSE)", took)


async def test_results_beside_bare_xadd_and_xread(redis: Redis, redis_url: str) -> None:
    """Layer: the results stream, results of 31 KB, one at a time, then read a hundred at a time.

    Ours encodes a result, ticks its destination off its chunk in the same step, reads in a group, decodes and
    acknowledges. Bare XADD and XREAD carry the same bytes, and leave them as they are.
    """
    towns, results = full_results(min(BARE, 1_000), job_id="j")
    packed = [entry_fields(result) for result in results]
    client = connect_async(redis_url, socket_timeout_seconds=10)
    ledger, stream = Ledger(client, token="t", lease_seconds=60), ResultsStream(client, consumer="c")
    writes, reads = Costs(redis, len(towns)), Costs(redis, len(towns))
    chunks = [Chunk("j", f"c{at}", tuple(towns[at : at + 25])) for at in range(0, len(towns), 25)]
    for _ in range(repeats() + 1):
        redis.flushdb()
        with redis.pipeline() as pipe:
            write_chunks(pipe, "j", [(chunk, "") for chunk in chunks], compress=True)
            pipe.execute()
        redis.delete(keys.RESULTS)
        await stream.ensure_group()
        with writes.of("ours"):
            for number, result in enumerate(results):
                assert await ledger.finish(chunks[number // 25], [result]) == [True]
        with writes.of("XADD"):
            for fields in packed:
                await client.xadd("bare", fields)
        got = 0
        with reads.of("ours"):
            while got < len(results):
                batch = decode(await stream.gather(count=100, flush_seconds=0.05))
                got += len(batch.entries)
                await stream.ack(batch.ids)
        with reads.of("XREAD"):
            assert await _read_bare(client, "bare") == len(results)
    await client.aclose()
    writes.tell("written", "result")
    reads.tell("read", "result")


async def test_events_beside_bare_xadd_and_xread(redis: Redis, redis_url: str, settings_for: MakeSettings) -> None:
    """Layer: a job's stream of events, `stage.done`, written and read 500 at a time.

    Ours encodes, bounds the stream's length and drops what is too much; `follow_async` decodes. Bare XADD and XREAD
    carry the same bytes in the same company.
    """
    data = {"stage": "enhance.nano_experiences", "status": "ok", "source": "called", "answers": 25, "found": []}
    data |= {"elapsed_ms": 812.5, "name": "Kyoto, Japan"}
    events = [Event("stage.done", "j", f"{number:020x}", data=data) for number in range(min(BARE, BUFFER))]
    settings, client = settings_for(REDIS_URL=redis_url), connect_async(redis_url, socket_timeout_seconds=10)
    # Nothing waits for company: what is measured is what an event costs, not when it goes.
    streaming = replace(settings.streaming, flush_interval_seconds=0.001)
    packed = [encode(event) for event in events]
    writes, reads = Costs(redis, len(events)), Costs(redis, len(events))
    for _ in range(repeats() + 1):
        redis.flushdb()
        redis.hset(keys.job("j"), mapping={"job_id": "j", "name": "a job", "state": "queued", "sealed": 1})
        with writes.of("ours"):
            async with EventPublisher(client, streaming, enabled=True) as publisher:
                for event in events:
                    publisher.publish(event)
        assert (publisher.sent, publisher.dropped) == (len(events), 0)
        with writes.of("XADD"):
            for at in range(0, len(events), PAGE):
                async with client.pipeline(transaction=False) as pipe:
                    for fields in packed[at : at + PAGE]:
                        pipe.xadd("bare", fields)
                    await pipe.execute()
        with reads.of("ours"):
            followed = follow_async("j", redis=client)
            got = [await anext(followed) for _ in range(len(events) + 1)]  # after `job.started`
            await followed.aclose()
        assert [event.destination_id for event in got[1:]] == [event.destination_id for event in events]
        with reads.of("XREAD"):
            assert await _read_bare(client, "bare", PAGE) == len(events)
    await client.aclose()
    tell("written", "an event, as JSON", [len(packed[0]["e"])], "bytes")
    writes.tell("written", "event")
    reads.tell("read", "event")


async def _read_bare(client: AsyncRedis, stream: str, count: int = 100) -> int:
    """How many entries a stream has, by reading them all."""
    position, got = b"0", 0
    while page := entries_of(await client.xread({stream: position}, count=count)):
        got += len(page)
        position = page[-1][0]
    return got


@contextlib.contextmanager
def _crowd(url: str, count: int) -> Iterator[list[int]]:
    """So many watchers, in a process of their own; at the end, how many events they got."""
    events: list[int] = []
    if not count:
        yield events
        return
    command = [sys.executable, "-m", "tests.benchmarks.watchers", url, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline().strip() == "open"
        try:
            yield events
        finally:
            process.stdin.close()
            events.append(int(process.stdout.readline()))


async def test_a_crowd_of_watchers_beside_none(engine: Engine) -> None:
    """Whole system. 150 destinations, 2,400 calls of the sandbox at 100 ms; BENCH_WATCHERS look on, or nobody."""
    engine.sandbox("--latency", "100ms")
    url = _dashboard(engine)
    engine.themes("consumer", "consumer")
    engine.themes("w", "worker", "--name", "w")
    dashboard = psutil.Process(engine.processes["dashboard"].pid)
    settings = _settings(engine)
    took: dict[int, list[float]] = {0: [], CROWD: []}
    cpus: dict[int, list[float]] = {0: [], CROWD: []}
    opened: list[float] = []
    ended: list[float] = []
    got: list[float] = []
    for number in range(repeats(2)):
        for watchers, seconds in took.items():
            before, cpu = dashboard.memory_info().rss, sum(dashboard.cpu_times()[:2])
            rows = [f"Town {number} {watchers} {n}" for n in range(WATCHED)]
            job = await asyncio.to_thread(enqueue, rows, settings=settings)
            with _crowd(f"{url}/jobs/{job}/events", watchers) as events:
                if watchers:
                    opened.append((dashboard.memory_info().rss - before) / watchers / 1024)
                await asyncio.to_thread(until, "the job", lambda job=job: engine.status(str(job))["state"] == "done")
                status = engine.status(str(job))
                seconds.append(status["finished_at"] - status["started_at"])
                cpus[watchers].append(sum(dashboard.cpu_times()[:2]) - cpu)
                if watchers:
                    ended.append((dashboard.memory_info().rss - before) / watchers / 1024)
            got += [count / watchers for count in events]
    for watchers, seconds in took.items():
        tell(f"{watchers:,} watchers", "the job", seconds, "s")
        tell(f"{watchers:,} watchers", "CPU of the dashboard", cpus[watchers], "s")
    tell(f"{CROWD:,} watchers", "events that each got", got)
    tell(f"{CROWD:,} watchers", "memory of the dashboard a watcher, when all are there", opened, "KB")
    tell(f"{CROWD:,} watchers", "memory of the dashboard a watcher, at the end", ended, "KB")
