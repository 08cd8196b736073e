"""A server that asks for far too long a wait stops nobody for long: one call of the whole fleet tries it."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
from aiohttp import web
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings, load
from tasks import keys
from tasks.connection import connect_async
from tasks.messages import Destination
from tasks.waits import Wait
from tests.support.forks import Forks, Script
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.limits.limiter import endpoint_digest
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")
#: Connections of one process: so many calls are under way at once.
CONNECTIONS = 15
#: Seconds before the first probe.
PROBE = 0.25


class Gate:
    """An HTTP server in front of the sandbox: while closed it answers 429 with `retry_after`, and counts."""

    def __init__(self, sandbox: SandboxServer) -> None:
        self._sandbox = sandbox
        self.retry_after: str | None = "3000"
        self.refused: list[float] = []
        self.answered = 0
        self.base_url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Gate"]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if self.retry_after is not None:
            self.refused.append(time.monotonic())
            error = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
            return web.json_response(error, status=429, headers={"Retry-After": self.retry_after})
        answer = await self._sandbox._handle_chat(request)
        self.answered += 1
        return answer


@pytest.fixture
async def gate(sandbox: SandboxServer) -> AsyncIterator[Gate]:
    async with Gate(sandbox).open() as opened:
        yield opened


def _env(gate: Gate, **more: str) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": gate.base_url,
        "THEMES_MODEL": "sandbox",
        "THEMES_LLM__PROBE_SECONDS": str(PROBE),
        **more,
    }


@asynccontextmanager
async def _generator(
    settings: Settings, redis: AsyncRedis | None
) -> AsyncIterator[tuple[LLMConnectionPool, FocusedLLMGenerator]]:
    profiler = PerformanceProfiler(enabled=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
        if redis is not None:
            for route in pool.routes:
                await route.limiter.cool_down.listening.wait()
        cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
        yield pool, FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


async def _ask(generator: FocusedLLMGenerator, *names: str) -> int:
    stage_stats = StageStats()
    prompts = (STAGE.prompt(Input.of(Destination.of(name))) for name in names)
    await asyncio.gather(
        *(
            generator.answer(prompt, stage_stats=stage_stats, request_priority=rank)
            for rank, prompt in enumerate(prompts)
        )
    )
    return stage_stats.spend.calls


async def _until(what: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


def _start(forks: Forks, env: dict[str, str], number: int, count: int) -> Script:
    process = forks.script(__file__, number, count, env=env)
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize(
    "limits",
    [{}, {"THEMES_LLM__LEARN_RATE_LIMIT": "false"}, {"THEMES_LLM__REQUESTS_PER_MINUTE": "6000"}],
    ids=["learning", "free", "configured"],
)
async def test_one_call_of_all_processes_tries_a_long_wait_at_growing_intervals_and_its_answer_ends_it(
    gate: Gate, redis_url: str, redis: Redis, forks: Forks, limits: dict[str, str]
) -> None:
    env = _env(gate, REDIS_URL=redis_url, **limits)
    processes = [await asyncio.to_thread(_start, forks, env, 0, 20)]
    key = keys.cooldown(endpoint_digest(gate.base_url, "sandbox"))
    await _until(lambda: redis.exists(key))
    processes.append(await asyncio.to_thread(_start, forks, env, 1, 20))

    def probes() -> int:
        return int(redis.hget(key, "probes") or 0)

    await _until(lambda: probes() >= 1)
    # The second one has begun within the cool-down, and so does this one: they ask nothing but probes.
    processes.append(await asyncio.to_thread(_start, forks, env, 2, 20))
    await _until(lambda: probes() >= 3)
    count = probes()
    passed = time.monotonic() - gate.refused[0]
    assert passed >= PROBE * sum(min(2**number, 8) for number in range(count)) - 0.1, (
        "each pause is twice as long as the one before"
    )
    assert len(gate.refused) - probes() <= CONNECTIONS, "only what the first process had sent before the first word"
    told = Wait.decode(redis.hget(key, "wait"))
    assert told is not None
    assert (told.kind, told.endpoint, told.said) == ("server_limit", "llm", "429: 'slow down'")
    assert told.header == "Retry-After: 3000"
    assert 2000 < redis.ttl(key) <= 3001
    gate.retry_after = None
    outs = [await asyncio.to_thread(process.communicate, timeout=180) for process in processes]
    calls = sum(int(out) for out, _ in outs)
    assert gate.answered == 60
    assert calls == gate.answered + len(gate.refused), "each probe is a prompt's own call, and counted"
    assert not redis.exists(key)


@pytest.mark.parametrize("limits", [{}, {"THEMES_LLM__REQUESTS_PER_MINUTE": "6000"}], ids=["free", "configured"])
async def test_a_process_alone_tries_a_long_wait_too(
    gate: Gate, settings_for: Callable[..., Settings], limits: dict[str, str]
) -> None:
    async with asyncio.timeout(180), _generator(settings_for(**_env(gate, **limits)), None) as (pool, generator):
        asking = asyncio.create_task(_ask(generator, *[f"City {number}" for number in range(30)]))
        await _until(pool.wait)
        (route,) = pool.routes
        assert route.limiter.cool_down.left_seconds > 2000
        wait = pool.wait()
        assert wait is not None
        assert wait.format().startswith("rate limited by the server llm (429: 'slow down'), next try in ")
        assert wait.format().endswith("(it said Retry-After: 3000)")
        gate.retry_after = None
        assert await asking == 30 + len(gate.refused)
        assert pool.wait() is None


async def test_a_long_wait_for_a_configured_rate_is_told_and_a_short_one_is_not(
    sandbox: SandboxServer, settings_for: Callable[..., Settings]
) -> None:
    env = {"OPENAI_BASE_URL": sandbox.base_url, "THEMES_MODEL": "sandbox", "THEMES_LLM__REQUEST_BURST": "1"}
    async with asyncio.timeout(180), AsyncExitStack() as stack:
        for per_minute, words in (
            ("60", None),
            ("1", "rate limit of llm (as configured: 1 request a minute), next try"),
        ):
            settings = settings_for(**env, THEMES_LLM__REQUESTS_PER_MINUTE=per_minute)
            pool, generator = await stack.enter_async_context(_generator(settings, None))
            await _ask(generator, "First")
            asking = asyncio.create_task(_ask(generator, "Second"))
            (route,) = pool.routes
            await _until(lambda route=route: route.limiter.wait)  # type: ignore[misc]
            wait = pool.wait()
            assert wait is None if words is None else wait is not None and wait.format().startswith(words)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def test_a_refused_probe_s_word_counts_also_where_it_is_shorter(
    gate: Gate, settings_for: Callable[..., Settings]
) -> None:
    async with asyncio.timeout(180), _generator(settings_for(**_env(gate)), None) as (pool, generator):
        asking = asyncio.create_task(_ask(generator, "Kyoto"))
        await _until(lambda: gate.refused)
        gate.retry_after = "2"
        await _until(lambda: len(gate.refused) >= 2)
        (route,) = pool.routes
        await _until(lambda: 0 < route.limiter.cool_down.left_seconds < 3)
        gate.retry_after = None
        await asking


async def test_an_endpoint_with_a_long_wait_is_tried_although_another_one_answers(
    gate: Gate, settings_for: Callable[..., Settings], sandbox: SandboxServer
) -> None:
    servers = {"a": {"base_url": gate.base_url}, "b": {"base_url": sandbox.base_url}}
    env = _env(gate, THEMES_LLM__ENDPOINTS=json.dumps(servers))
    del env["OPENAI_BASE_URL"]
    async with asyncio.timeout(180), _generator(settings_for(**env), None) as (pool, generator):
        ill = next(route for route in pool.routes if route.name == "a")
        number = 0
        while not ill.limiter.is_cooling:
            number += 1
            await _ask(generator, f"City {number}")
        assert pool.wait() is None, "the other one answers"
        gate.retry_after = None
        while ill.limiter.is_cooling:
            number += 1
            await _ask(generator, f"City {number}")
            await asyncio.sleep(0.01)
        assert gate.answered == 1


async def test_a_probe_whose_process_dies_is_made_by_another_one(
    gate: Gate, redis_url: str, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    async with AsyncExitStack() as stack, asyncio.timeout(180):
        stack.push_async_callback(client.aclose)
        env = _env(gate, REDIS_URL=redis_url)
        _, generator = await stack.enter_async_context(_generator(settings_for(**env), client))
        digest = endpoint_digest(gate.base_url, "sandbox")
        asking = asyncio.create_task(_ask(generator, "Kyoto"))
        await _until(lambda: redis.exists(keys.cooldown(digest)))
        gate.retry_after = None
        # Another process took the right to probe, and was killed.
        redis.hset(keys.cooldown(digest), mapping={"probes": 1, "probe_at": int(time.time() * 1000 + 2 * PROBE * 1000)})
        await asking
    assert (len(gate.refused), gate.answered) == (1, 1)


async def _go(number: int, count: int) -> None:
    """One process's part: so many prompts of its own at once; prints the calls that they took."""
    settings = load()
    redis = connect_async(settings.redis_url, socket_timeout_seconds=180)
    async with _generator(settings, redis) as (_, generator):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        calls = await _ask(generator, *[f"City {number}-{one}" for one in range(count)])
        sys.stdout.write(msgspec.json.encode(calls).decode())
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(_go(int(sys.argv[1]), int(sys.argv[2])))
