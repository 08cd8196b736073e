"""How soon a watcher sees what has become durable, and what watchers cost. Whole stacks of real processes."""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from redis import Redis

from config.settings import Settings, load
from tasks import keys
from tasks.messages import Destination, JobInputs, JobOpened, JobOptions, JobSealed
from tasks.queue.producer import enqueue
from tasks.storable import entry_fields
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard
from tests.support.full import full_results

pytestmark = pytest.mark.benchmark
RATE = 1_000
SECONDS = 8
ROUNDS = 20
CROWD = 1000
ROUNDS_OF_A_CROWD = 2


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


def _told(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p50, p95, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.95, 0.99))
    print(f"\n{name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, max {ordered[-1] * 1000:.0f} ms")


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
    url = _dashboard(engine)
    engine.themes("consumer", "consumer")
    towns, results = full_results(RATE * SECONDS, job_id="j")
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
    _told(f"publish to SSE at {RATE} destinations/s", late)


async def test_from_enqueue_of_one_cached_destination_to_its_event(engine: Engine) -> None:
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
    _told("enqueue of one cached destination to its event by SSE", took)


@contextlib.contextmanager
def _crowd(url: str, count: int) -> Iterator[None]:
    """So many watchers, in a process of their own."""
    if not count:
        yield
        return
    command = [sys.executable, "-m", "tests.benchmarks.watchers", url, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline().strip() == "open"
        try:
            yield
        finally:
            process.stdin.close()
            print(f"\nthe watchers got {int(process.stdout.readline()):,} events")


async def test_a_thousand_watchers_beside_none(engine: Engine) -> None:
    engine.sandbox("--latency", "100ms")
    url = _dashboard(engine)
    engine.themes("consumer", "consumer")
    engine.themes("w", "worker", "--name", "w")
    dashboard = psutil.Process(engine.processes["dashboard"].pid)
    settings = _settings(engine)
    took: dict[int, list[float]] = {0: [], CROWD: []}
    for number in range(ROUNDS_OF_A_CROWD):
        for watchers in (0, CROWD):
            before = dashboard.memory_info().rss
            rows = [f"Town {number} {watchers} {n}" for n in range(150)]
            began = time.perf_counter()
            job = await asyncio.to_thread(enqueue, rows, settings=settings)
            with _crowd(f"{url}/jobs/{job}/events", watchers):
                if watchers:
                    opened = dashboard.memory_info().rss
                await asyncio.to_thread(until, "the job", lambda job=job: engine.status(str(job))["state"] == "done")
                status = engine.status(str(job))
                took[watchers].append(status["finished_at"] - status["started_at"])
                if watchers:
                    live = dashboard.memory_info().rss
                    print(
                        f"\nmemory a watcher: {(opened - before) / watchers / 1024:.1f} KB open, "
                        f"{(live - before) / watchers / 1024:.1f} KB at the end of {time.perf_counter() - began:.1f} s"
                    )
    for watchers, seconds in took.items():
        print(f"\n150 destinations, 2,400 calls, {watchers} watchers: {statistics.median(seconds):.2f} s ({seconds})")
