"""Requests that time out in a long line are a sign of too much; silence, or one slow request, is not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from config.settings import Settings
from tasks.messages import Destination
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.route import Route
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")
QUICK = {
    "THEMES_MODEL": "sandbox",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.02",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.05",
}


class Serial:
    """A server that answers one request at a time and works on those that were given up too, as most do."""

    def __init__(self, sandbox: SandboxServer, seconds: float) -> None:
        self._sandbox = sandbox
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self.calls = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        await request.read()
        async with self._turn:
            await asyncio.sleep(self._seconds)
        return await self._sandbox._handle_chat(request)


@asynccontextmanager
async def _pooled(settings: Settings) -> AsyncIterator[tuple[Route, FocusedLLMGenerator]]:
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        (route,) = pool.routes
        yield route, FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


async def _ask(generator: FocusedLLMGenerator, count: int) -> list[object]:
    prompts = (STAGE.prompt(Input.of(Destination.of(f"City {number}"))) for number in range(count))
    asked = (
        generator.answer(prompt, stage_stats=StageStats(), request_priority=rank) for rank, prompt in enumerate(prompts)
    )
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_time_outs_behind_a_long_line_make_it_shorter(settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    serial = Serial(sandbox, 0.2)
    async with serial.open() as base_url, asyncio.timeout(120):
        env = {"THEMES_LLM__REQUEST_TIMEOUT_SECONDS": "1.5", "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "10"}
        async with _pooled(settings_for(OPENAI_BASE_URL=base_url, **QUICK, **env)) as (route, generator):
            answers = await _ask(generator, 64)
            assert not [answer for answer in answers if isinstance(answer, Exception)]
            assert route.concurrency.cuts >= 1
            assert route.concurrency.limit <= 8, "what it answers within the time for a call"
    # Three pools' worth of calls, where there was no end: those of the first line, those sent before it timed out, and
    # those behind what the server still does for nobody.
    assert serial.calls <= 64 + 3 * 15


@pytest.mark.parametrize(
    ("fault", "is_cut"),
    [("503=0.5", True), ("503=1", False), ("500=0.5", False), ("hang=0.2,times=1", False), ("hang=1", False)],
    ids=["overloaded", "away", "errors", "some hang", "all hang"],
)
async def test_only_too_much_makes_concurrency_smaller(
    fault: str, is_cut: bool, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([fault])
    env = {"THEMES_LLM__REQUEST_TIMEOUT_SECONDS": "1.5", "THEMES_LLM__WAIT_FOR_ENDPOINT_SECONDS": "0.1"}
    async with (
        asyncio.timeout(120),
        _pooled(settings_for(OPENAI_BASE_URL=sandbox.base_url, **QUICK, **env)) as (route, generator),
    ):
        await _ask(generator, 60)
        assert (route.concurrency.cuts > 0) is is_cut
        assert route.circuit.failures or is_cut
