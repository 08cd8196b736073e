"""What a call, a cached destination and an enqueued row cost, beside the floor that each stands on.

Calls are those of the product's sixteen prompts in turn, with answers in real size. There is no Celery and no consumer
around a layer: `whole_uncached` and `whole_cached` have them.
"""

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from celery import Celery
from redis import Redis

from config.settings import Settings
from scripts.lib.processes import themes
from tasks.connection import connect_async
from tasks.inputs.reader import Reader
from tasks.messages import Destination
from tasks.queue.producer import enqueue
from tests.benchmarks.costs import Costs
from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.full_prompts import body_of, prompt_about, stages
from tests.benchmarks.whole import light_server
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages

pytestmark = pytest.mark.benchmark
MakeSettings = Callable[..., Settings]
ROUNDS = repeats()
CALLS = knob("DESTINATIONS", 125) * 16
IN_FLIGHT = 64


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A light server in a process of its own, so that its CPU is not counted as ours."""
    with light_server(0.0) as (_, url):
        yield url


def _prompt(number: int) -> Prompt:
    return prompt_about(number, stages()[number % len(stages())])


async def _all(call: Callable[[int], Awaitable[object]], count: int = CALLS) -> tuple[float, float]:
    """CPU and wall seconds of `count` calls, `IN_FLIGHT` at once."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return time.process_time() - cpu, time.perf_counter() - wall


async def test_cpu_of_one_http_call_beside_bare_aiohttp(
    server: str, settings_for: MakeSettings, redis_url: str
) -> None:
    """Layer: the LLM layer from cache miss to store, answers of 0.1 to 4.6 KB, latency 0, 64 in flight.

    A call passes cache, single flight of all processes, request and token limits, pool, HTTP, validation and store.
    Both sides encode the request and decode the answer.
    """
    pool_size = {"THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(IN_FLIGHT)}
    # A limit far away: it is kept, and never reached.
    limits = {"THEMES_LLM__REQUESTS_PER_MINUTE": "10_000_000", "THEMES_LLM__TOKENS_PER_MINUTE": "10_000_000_000"}
    settings = settings_for(OPENAI_BASE_URL=server, THEMES_MODEL="sandbox", **pool_size, **limits)
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(redis_url, socket_timeout_seconds=10)
    ours_ms, floor_ms = [], []
    calm_collector()
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session,
        LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool,
    ):

        async def bare(number: int) -> object:
            async with session.post(f"{server}/chat/completions", data=body_of(_prompt(number))) as answer:
                content = msgspec.json.decode(await answer.read())["choices"][0]["message"]["content"]
                return msgspec.json.decode(content)

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
            floor_ms.append(floor / CALLS * 1000)
            ours_ms.append(ours / CALLS * 1000)
            await shared.close()
            await cache.close()
    await redis.aclose()
    case = "64 in flight, latency 0"
    tell(case, "CPU a call, bare aiohttp", floor_ms, "ms")
    tell(case, "CPU a call, cache miss to store", ours_ms, "ms")
    tell(case, "our layer / bare aiohttp", ratios(ours_ms, floor_ms), "x")


async def test_a_destination_from_the_cache(server: str, settings_for: MakeSettings, redis_url: str) -> None:
    """Layer: graph and LLM layer, destinations of 31 KB whose sixteen answers are in Redis.

    Nothing is in memory, as in a new process.
    """
    settings = settings_for(OPENAI_BASE_URL=server, THEMES_MODEL="sandbox")
    names = [Destination.of(f"City {number}") for number in range(CALLS // 16)]
    rates, cpu_ms = [], []
    for turn in range(ROUNDS + 1):
        # A new process's view each time: nothing in memory, everything in Redis.
        redis = connect_async(redis_url, socket_timeout_seconds=10)
        profiler = PerformanceProfiler(enabled=True)
        cache = PersistentLLMCache(redis, max_memory_mb=64, pressure_mb=8192, ttl_days=1, compress=True)
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            processor = FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
            began, cpu = time.perf_counter(), time.process_time()
            outcomes = await asyncio.gather(*(processor.process(name) for name in names))
            took, cpu = time.perf_counter() - began, time.process_time() - cpu
        if turn:
            assert sum(outcome.usage.cache_hits for outcome in outcomes) == 16 * len(names)
            rates.append(len(names) / took)
            cpu_ms.append(cpu / len(names) * 1e3)
        await cache.close()
        await redis.aclose()
    case = f"{len(names)} destinations at once"
    tell(case, "cached destinations into profiles", rates, "a second")
    tell(case, "CPU a destination", cpu_ms, "ms")


def test_enqueueing(redis: Redis, redis_url: str, settings_for: MakeSettings, tmp_path: Path) -> None:
    """Layer: the producer. Rows of name and country are read, deduplicated, put into the ledger and into messages."""
    path = tmp_path / "cities.csv"
    count = knob("MANY", 50_000)
    path.write_text("name,country\n" + "".join(f"City {number},Country {number % 200}\n" for number in range(count)))
    rates, floors = [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        with Reader(path) as reader:
            assert sum(1 for _ in reader) == count
        floors.append(count / (time.process_time() - began))
        began = time.process_time()
        with Reader(path) as reader:
            assert enqueue(reader, settings=settings_for(REDIS_URL=redis_url), redis=redis).total == count
        rates.append(count / (time.process_time() - began))
    case = f"{count:,} rows"
    tell(case, "rows read", floors, "a second of one core")
    tell(case, "destinations enqueued", rates, "a second of one core")
    tell(case, "enqueued / only read", ratios(rates, floors), "x")


def test_enqueueing_beside_delay_and_lpush(redis: Redis, redis_url: str, settings_for: MakeSettings) -> None:
    """Layer: the producer, names alone: ledger, inputs, messages. Celery's `.delay` sends a message a destination.

    LPUSH of that message's bytes is what a queue costs at least: by itself, and 500 in a pipeline.
    """
    names = [f"City {number}" for number in range(knob("MANY", 50_000) // 20)]
    app = Celery("bare", broker=redis_url)
    costs, settings = Costs(redis, len(names)), settings_for(REDIS_URL=redis_url)

    @app.task(name="destination", ignore_result=True)  # type: ignore[untyped-decorator]
    def destination(name: str) -> None:
        """Nobody takes it."""

    destination.delay("warm")
    (message,) = redis.lrange("celery", 0, -1)  # type: ignore[misc]
    for _ in range(ROUNDS + 1):
        with costs.of("ours"):
            assert enqueue(names, settings=settings, redis=redis).total == len(names)
        with costs.of("`.delay`"):
            for name in names:
                destination.delay(name)
        with costs.of("LPUSH"):
            for _ in names:
                redis.lpush("bare", message)
        with costs.of("LPUSH in pipelines"), redis.pipeline(transaction=False) as pipe:
            for at in range(0, len(names), 500):
                for _ in names[at : at + 500]:
                    pipe.lpush("bare", message)
                pipe.execute()
        redis.flushdb()
    app.close()
    costs.tell(f"{len(names):,} names", "destination")


def test_the_enqueue_command(server: str, redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """Whole system. `themes enqueue` of BENCH_MANY plain rows, from its start to its end; nobody works on them."""
    path = tmp_path / "cities.txt"
    count = knob("MANY", 200_000)
    path.write_text("".join(f"City {number}\n" for number in range(count)))
    env = _environment() | {"REDIS_URL": redis_url, "OPENAI_BASE_URL": server, "OPENAI_API_KEY": "none"}
    env |= {"THEMES_MODEL": "sandbox", "THEMES_STATE_DIR": str(tmp_path)}
    took, used, waiting = [], [], []
    for _ in range(ROUNDS):
        empty = redis.info("memory")["used_memory"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(themes("enqueue", str(path)), env=env, capture_output=True, check=True)
        took.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        waiting.append(redis.info("memory")["used_memory"] - empty)
    case = f"{count:,} rows"
    tell(case, "took", took, "s")
    tell(case, "rows", [count / seconds for seconds in took], "a second")
    tell(case, "CPU", used, "s")
    tell(case, "Redis holds, a waiting destination", [size / count for size in waiting], "bytes")
    tell(case, "rows by CPU", [count / seconds for seconds in used], "a second of one core")


def test_the_demo_job_beside_its_ideal(tmp_path: Path) -> None:
    """Whole system. `themes demo`: 25 destinations, 400 calls of the sandbox at 50 ms, 2 workers of 8 connections."""
    ideal = 25 * 16 * 0.05 / 16
    took = []
    for turn in range(ROUNDS):
        said = subprocess.run(
            [sys.executable, "-m", "scripts.main", "demo", "--latency", "50ms"],
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
    tell("the demo's job", "enqueued to durable", took, "s")
    tell("the demo's job", "beside the ideal", [seconds / ideal for seconds in took], "x")


_DURATION = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute("SELECT finished_at - created_at FROM jobs").fetchone()[0])
"""


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_", "REDIS"))}
