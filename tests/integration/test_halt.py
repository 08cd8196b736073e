"""A stopped job asks nothing more, and what it has asked is kept and counted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from config.settings import Settings
from tasks.errors import JobStoppedError
from tasks.messages import Destination
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.cancellation import Cancellation
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor, Processed
from workers.pipeline.prompts import load_stages
from workers.sandbox.server import SandboxServer

KYOTO = Destination.of("Kyoto", "Japan")
CONNECTIONS = 2


@asynccontextmanager
async def _processor(
    settings_for: Callable[..., Settings], server: SandboxServer, **env: str
) -> AsyncIterator[FocusedPromptProcessor]:
    settings = settings_for(
        OPENAI_BASE_URL=server.base_url,
        THEMES_MODEL="sandbox",
        THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE=str(CONNECTIONS),
        THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_MIN_SIZE="0",
        **env,
    )
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=64, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        yield FocusedPromptProcessor(Graph(load_stages(None)), generator, settings=settings, profiler=profiler)


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(180):
        while not what():
            await asyncio.sleep(0.005)


async def _stopped(run: Awaitable[Processed]) -> JobStoppedError:
    with pytest.raises(JobStoppedError, match="enough") as caught:
        async with asyncio.timeout(180):
            await run
    return caught.value


async def test_what_waits_is_withdrawn_and_what_is_under_way_is_awaited_cached_and_counted(
    settings_for: Callable[..., Settings],
) -> None:
    cancellation = Cancellation("job")
    async with SandboxServer(latency="1s") as server, _processor(settings_for, server) as processor:
        run = asyncio.create_task(processor.process(KYOTO, cancellation=cancellation))
        await _until(lambda: server.stats()["in_flight"] == CONNECTIONS)
        cancellation.stop("enough")
        error = await _stopped(run)
        assert error.usage.llm_calls == len(server.log()) == CONNECTIONS
        assert error.usage.completion_tokens > 0
        again = await processor.process(KYOTO, cancellation=Cancellation("job"))
        assert again.usage.cache_hits == CONNECTIONS
        assert again.usage.llm_calls == 16 - CONNECTIONS


async def test_at_once_means_that_calls_under_way_are_not_awaited_but_counted(
    settings_for: Callable[..., Settings],
) -> None:
    cancellation = Cancellation("job")
    async with SandboxServer(latency="60s") as server, _processor(settings_for, server) as processor:
        run = asyncio.create_task(processor.process(KYOTO, cancellation=cancellation))
        await _until(lambda: server.stats()["in_flight"] == CONNECTIONS)
        cancellation.stop("enough")
        cancellation.stop("enough", at_once=True)
        assert (await _stopped(run)).usage.llm_calls == CONNECTIONS


async def test_a_stopped_job_does_not_wait_for_its_next_try(settings_for: Callable[..., Settings]) -> None:
    cancellation = Cancellation("job")
    env = {
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "600",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "600",
    }
    async with (
        SandboxServer(latency="0", faults=["500=1"]) as server,
        _processor(settings_for, server, **env) as processor,
    ):
        run = asyncio.create_task(processor.process(KYOTO, cancellation=cancellation))
        await _until(lambda: len(server.log()) >= 5)
        cancellation.stop("enough")
        assert (await _stopped(run)).usage.llm_calls == len(server.log())


async def test_another_job_that_waits_for_the_same_answers_gets_them_all_the_same(
    settings_for: Callable[..., Settings],
) -> None:
    first, second = Cancellation("first"), Cancellation("second")
    async with SandboxServer(latency="200ms") as server, _processor(settings_for, server) as processor:
        stopped = asyncio.create_task(processor.process(KYOTO, cancellation=first))
        goes_on = asyncio.create_task(processor.process(KYOTO, cancellation=second))
        await _until(lambda: server.stats()["in_flight"] == CONNECTIONS)
        first.stop("enough")
        error = await _stopped(stopped)
        outcome = await goes_on
    assert outcome.profile is not None
    assert outcome.profile.status == "ok"
    assert error.usage.llm_calls + outcome.usage.llm_calls == len(server.log()) == 16


async def test_a_job_that_is_stopped_already_asks_nothing(settings_for: Callable[..., Settings]) -> None:
    cancellation = Cancellation("job")
    cancellation.stop("enough")
    async with SandboxServer(latency="0") as server, _processor(settings_for, server) as processor:
        await _stopped(processor.process(KYOTO, cancellation=cancellation))
        assert server.log() == []
