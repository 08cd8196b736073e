"""What the hot path costs, beside the floor that it stands on."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from redis import Redis

from config.settings import Settings
from tasks.connection import connect_async
from tasks.inputs.reader import Reader
from tasks.messages import Destination
from tasks.queue.producer import enqueue
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnswerFormat
from workers.llm.endpoints.request import request_of
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator, StageStats
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import Input, load_stages

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
ROUNDS = 3
CALLS = 2_000
IN_FLIGHT = 64
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")


@pytest.fixture(scope="module")
def far_sandbox() -> Iterator[str]:
    """A sandbox in a process of its own, so that its CPU is not counted as ours."""
    command = [sys.executable, "-m", "scripts.main", "sandbox-llm", "--port", "0", "--latency", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.terminate()


def _prompt(number: int) -> Prompt:
    return STAGE.prompt(Input.of(Destination.of(f"City {number}")))


async def _all(call: Callable[[int], Awaitable[object]], count: int = CALLS) -> tuple[float, float]:
    """CPU and wall seconds of `count` calls, `IN_FLIGHT` at once."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return time.process_time() - cpu, time.perf_counter() - wall


def _told(name: str, values: list[float], unit: str) -> None:
    print(f"\n{name}: {statistics.median(values):.3g} {unit} (from {min(values):.3g} to {max(values):.3g})")


async def test_cpu_of_one_http_call_beside_bare_aiohttp(
    far_sandbox: str, settings_for: MakeSettings, redis_url: str
) -> None:
    pool_size = {"THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(IN_FLIGHT)}
    # A limit far away: it is kept, and never reached.
    limits = {"THEMES_LLM__REQUESTS_PER_MINUTE": "10_000_000", "THEMES_LLM__TOKENS_PER_MINUTE": "10_000_000_000"}
    settings = settings_for(OPENAI_BASE_URL=far_sandbox, THEMES_MODEL="sandbox", **pool_size, **limits)
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    ratios, ours_ms, floor_ms = [], [], []
    calm_collector()
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session,
        LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool,
    ):

        async def bare(number: int) -> object:
            prompt = _prompt(number)
            request = request_of("sandbox", prompt, (), AnswerFormat.JSON_SCHEMA) | {"max_tokens": 1000}
            body = msgspec.json.encode(request)
            async with session.post(f"{far_sandbox}/chat/completions", data=body) as answer:
                return msgspec.json.decode(await answer.read())

        for turn in range(ROUNDS):
            cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
            shared = SharedFlights(redis, lease_seconds=10, ttl_ms=cache.ttl_ms)
            shared.start()
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)

            async def whole(number: int, turn: int = turn, generator: FocusedLLMGenerator = generator) -> object:
                prompt = _prompt(number + (turn + 1) * 1_000_000)
                return await generator.answer(prompt, stage_stats=StageStats(), request_priority=number)

            floor, _ = await _all(bare)
            ours, _ = await _all(whole)
            ratios.append(ours / floor)
            floor_ms.append(floor / CALLS * 1000)
            ours_ms.append(ours / CALLS * 1000)
            await shared.close()
            await cache.close()
    await redis.aclose()
    _told("CPU a call, bare aiohttp", floor_ms, "ms")
    _told("CPU a call, cache miss to store", ours_ms, "ms")
    _told("ratio", ratios, "x")


async def test_a_destination_from_the_cache(far_sandbox: str, settings_for: MakeSettings, redis_url: str) -> None:
    settings = settings_for(OPENAI_BASE_URL=far_sandbox, THEMES_MODEL="sandbox")
    names = [Destination.of(f"City {number}") for number in range(60)]
    per_second = []
    for turn in range(ROUNDS + 1):
        # A new process's view each time: nothing in memory, everything in Redis.
        redis = connect_async(redis_url, socket_timeout_seconds=10)
        profiler = PerformanceProfiler(enabled=True)
        cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            processor = FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
            began = time.perf_counter()
            outcomes = await asyncio.gather(*(processor.process(name) for name in names))
            took = time.perf_counter() - began
        if turn:
            assert sum(outcome.usage.cache_hits for outcome in outcomes) == 16 * len(names)
            per_second.append(16 * len(names) / took)
        await cache.close()
        await redis.aclose()
    _told("completions from Redis, through the whole graph", per_second, "a second")


def test_enqueueing(redis: Redis, redis_url: str, settings_for: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "cities.csv"
    count = 50_000
    path.write_text("name,country\n" + "".join(f"City {number},Country {number % 200}\n" for number in range(count)))
    rates, floors = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with Reader(path) as reader:
            assert sum(1 for _ in reader) == count
        floors.append(count / (time.perf_counter() - began))
        began = time.perf_counter()
        with Reader(path) as reader:
            assert enqueue(reader, settings=settings_for(REDIS_URL=redis_url), redis=redis).total == count
        rates.append(count / (time.perf_counter() - began))
    _told("rows read", floors, "a second")
    _told("destinations enqueued", rates, "a second")


def test_the_demo_job_beside_its_ideal(tmp_path: Path) -> None:
    """25 destinations of 16 calls in two rounds, 50 ms each, 15 connections: at best 1.37 s (the original: 11.4 s)."""
    ideal = 25 * 16 * 0.05 / 15
    took = []
    env_options = ["--latency", "50ms"]
    for turn in range(ROUNDS):
        said = subprocess.run(
            [sys.executable, "-m", "scripts.main", "demo", *env_options],
            env={
                **_environment(),
                "THEMES_STATE_DIR": str(tmp_path / str(turn)),
                # Both workers together have the bound of one.
                "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "8",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        status = subprocess.run(
            [sys.executable, "-c", _DURATION, str(tmp_path / str(turn) / "themes.db")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "25 profiles" in said.stderr
        took.append(float(status.stdout))
    _told("the demo's job at 50 ms and 16 connections, enqueued to durable", took, "s")
    _told("beside the ideal", [seconds / (ideal * 15 / 16) for seconds in took], "x")


_DURATION = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute("SELECT finished_at - created_at FROM jobs").fetchone()[0])
"""


def _environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_", "REDIS"))}
