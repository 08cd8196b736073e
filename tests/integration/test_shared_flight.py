"""One call for equal prompts, whatever process asks: on a real Redis, with processes that are lost and killed."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings, load
from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import InvalidAnswerError, ModelRefusedError, PermanentError
from tasks.messages import Destination
from tasks.queue.leases import release
from tests.support.forks import Forks, Script
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnsweredRefusalError
from workers.llm.flights import shared as module
from workers.llm.flights.outcomes import TruncatedError, decode_outcome, encode_error, encode_value
from workers.llm.flights.shared import SharedFlights
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.process import outage
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")
#: Seconds for anything that others must do first.
DEADLINE = 60


def _prompt(number: object) -> Prompt:
    return STAGE.prompt(Input.of(Destination.of(f"City {number}")))


@asynccontextmanager
async def _process(settings: Settings) -> AsyncIterator[FocusedLLMGenerator]:
    """What a worker process has of this, without the rest of it."""
    profiler = PerformanceProfiler(enabled=True)
    async with AsyncExitStack() as stack:
        redis = connect_async(settings.redis_url, socket_timeout_seconds=180)
        stack.push_async_callback(redis.aclose)
        cache = PersistentLLMCache(redis, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
        stack.push_async_callback(cache.close)
        shared = SharedFlights(redis, lease_seconds=settings.llm.flight_lease_seconds, ttl_ms=cache.ttl_ms)
        stack.push_async_callback(shared.close)
        shared.start()
        await shared.listening.wait()
        pool = await stack.enter_async_context(
            LLMConnectionPool.of(settings, {settings.llm.model or ""}, profiler, redis)
        )
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings, shared=shared)


def _env(server: SandboxServer, redis_url: str, **more: str) -> dict[str, str]:
    quick = {
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.02",
        "THEMES_MODEL": "sandbox",
    }
    return {"OPENAI_BASE_URL": server.base_url, "REDIS_URL": redis_url, **quick, **more}


@pytest.fixture
async def pair(
    sandbox: SandboxServer, redis_url: str, settings_for: MakeSettings
) -> AsyncIterator[list[FocusedLLMGenerator]]:
    """Two processes' generators on one loop: everything but the process itself."""
    settings = settings_for(**_env(sandbox, redis_url))
    async with _process(settings) as one, _process(settings) as other:
        yield [one, other]


async def _begun(server: SandboxServer, count: int = 1) -> None:
    async with asyncio.timeout(DEADLINE):
        while server.stats()["requests"] < count:
            await asyncio.sleep(0.002)


async def _all(awaitables: Any) -> list[Any]:
    async with asyncio.timeout(DEADLINE):
        return await asyncio.gather(*awaitables, return_exceptions=True)


async def test_256_requests_over_16_prompts_from_two_processes_are_16_calls(
    pair: list[FocusedLLMGenerator], sandbox: SandboxServer, redis: Redis
) -> None:
    stage_stats = StageStats()
    asked = [
        pair[number % 2].answer(_prompt(number // 16), stage_stats=stage_stats, request_priority=0)
        for number in range(256)
    ]
    answers = await _all(asked)
    assert sandbox.stats()["requests"] == stage_stats.spend.calls == 16
    sources = [answer.source for answer in answers]
    assert sources.count("called") == 16
    assert stage_stats.cache.coalesced == sources.count("coalesced")
    assert stage_stats.cache.hits == sources.count("cached")
    for generator in pair:
        await generator._shared.flush()  # type: ignore[union-attr]
    assert not list(redis.scan_iter("themes:flight:*")), "no lease is left, and no sign of waiting"


async def test_an_error_that_will_not_pass_is_everybody_s_and_paid_for_once(
    redis_url: str, settings_for: MakeSettings
) -> None:
    async with SandboxServer(latency="300ms") as server, AsyncExitStack() as stack:
        settings = settings_for(**_env(server, redis_url))
        pair = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
        server.set_faults(["refusal=1,match=City 7"])
        ends = await _all(
            generator.answer(_prompt(7), stage_stats=StageStats(), request_priority=0) for generator in pair * 5
        )
        assert [type(end) for end in ends].count(AnsweredRefusalError) == 5
        assert [type(end) for end in ends].count(ModelRefusedError) == 5
        assert len({str(end) for end in ends}) == 1
        assert server.stats()["requests"] == 1
        server.set_faults([])
        for generator in pair:
            later = await generator.answer(_prompt(7), stage_stats=StageStats(), request_priority=0)
            assert later.model == "sandbox", "later ones ask anew"
        assert server.stats()["requests"] == 2


async def test_an_owner_that_gives_up_leaves_the_prompt_to_who_waits(
    pair: list[FocusedLLMGenerator], sandbox: SandboxServer
) -> None:
    sandbox.set_faults(["hang=1,times=1"])
    owner = asyncio.create_task(pair[0].answer(_prompt(1), stage_stats=StageStats(), request_priority=0))
    await _begun(sandbox)
    waiter = asyncio.create_task(pair[1].answer(_prompt(1), stage_stats=StageStats(), request_priority=0))
    async with asyncio.timeout(DEADLINE):
        while not pair[1]._shared.waited:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        owner.cancel()
        assert (await waiter).source == "called"
    assert sandbox.stats()["requests"] == 2


async def test_a_fresh_answer_is_never_an_older_one_and_is_shared_by_all_that_want_one(
    pair: list[FocusedLLMGenerator], sandbox: SandboxServer
) -> None:
    await pair[0].answer(_prompt(1), stage_stats=StageStats(), request_priority=0)
    sandbox.reset_stats()
    stage_stats = StageStats()
    ends = await _all(
        generator.answer(_prompt(1), stage_stats=stage_stats, request_priority=0, use_cache=False)
        for generator in pair * 4
    )
    sources = sorted(end.source for end in ends)
    calls = sandbox.stats()["requests"]
    assert calls == stage_stats.spend.calls == sources.count("called") >= 1
    assert sources.count("coalesced") == 8 - calls, "none of them came from the cache"
    assert stage_stats.cache.hits == 0


async def test_a_fresh_answer_reaches_who_waits_for_it_in_another_process(
    redis_url: str, settings_for: MakeSettings
) -> None:
    async with SandboxServer(latency="300ms") as server, AsyncExitStack() as stack:
        settings = settings_for(**_env(server, redis_url))
        pair = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
        ends = await _all(
            pair[n].answer(_prompt(1), stage_stats=StageStats(), request_priority=0, use_cache=False) for n in (0, 1)
        )
        assert sorted(end.source for end in ends) == ["called", "coalesced"]
        assert server.stats()["requests"] == 1


async def test_an_answer_that_may_not_be_cached_reaches_who_waits_and_nobody_else(
    redis_url: str, settings_for: MakeSettings, redis: Redis
) -> None:
    async with SandboxServer(latency="300ms") as server, AsyncExitStack() as stack:
        settings = settings_for(**_env(server, redis_url, THEMES_MODEL="a-real-model"))
        pair = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
        ends = await _all(
            generator.answer(_prompt(1), stage_stats=StageStats(), request_priority=0) for generator in pair
        )
        assert sorted(end.source for end in ends) == ["called", "coalesced"]
        assert not list(redis.scan_iter(keys.cache("*")))
        later = await pair[1].answer(_prompt(1), stage_stats=StageStats(), request_priority=0)
        assert later.source == "called"


async def test_a_waiter_that_missed_the_word_looks_by_itself(
    pair: list[FocusedLLMGenerator], redis: Redis, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    sandbox.set_faults(["hang=1,times=1"])
    owner = asyncio.create_task(pair[0].answer(_prompt(1), stage_stats=StageStats(), request_priority=0))
    await _begun(sandbox)
    waiter = asyncio.create_task(pair[1].answer(_prompt(1), stage_stats=StageStats(), request_priority=0))
    async with asyncio.timeout(DEADLINE):
        while not (found := list(redis.scan_iter("themes:flight:*:waiters"))):
            await asyncio.sleep(0.001)
        while not owner.done():
            # Nobody is told when the flag is gone.
            redis.delete(*found)
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)
        assert (await waiter).source == "called"


async def test_redis_lost_leaves_the_single_flight_of_each_process_and_comes_back(
    tmp_path: Path, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.2)
    caplog.set_level(logging.WARNING)
    async with SandboxServer(latency="50ms") as server, AsyncExitStack() as stack:
        with LocalRedis(tmp_path, "auto") as own:
            settings = settings_for(**_env(server, own.url))
            pair = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
            await _all(generator.answer(_prompt(0), stage_stats=StageStats(), request_priority=0) for generator in pair)
            assert server.stats()["requests"] == 1
        stage_stats = StageStats()
        asked = [
            pair[number % 2].answer(_prompt(1), stage_stats=stage_stats, request_priority=0) for number in range(20)
        ]
        ends = await _all(asked)
        assert [end.source for end in ends].count("called") == 2, "one in each"
        assert server.stats()["requests"] == 3
    assert 1 <= sum("flights_degraded" in record.message for record in caplog.records) <= 2


# --- real processes ---


async def _go(names: list[str]) -> None:
    settings = load()
    async with _process(settings) as generator:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        stage_stats = StageStats()
        await asyncio.gather(
            *(generator.answer(_prompt(name), stage_stats=stage_stats, request_priority=0) for name in names)
        )
        sys.stdout.write(json.dumps([stage_stats.spend.calls, stage_stats.cache.coalesced, stage_stats.cache.hits]))


def _start(forks: Forks, env: dict[str, str], *names: object) -> Script:
    process = forks.script(__file__, *names, env=env)
    assert process.stdout.readline() == b"ready\n"
    return process


def _release(process: Script) -> None:
    process.stdin.write(b"\n")
    process.stdin.flush()


async def _said(process: Script) -> list[int]:
    out, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    assert process.returncode == 0
    found: list[int] = json.loads(out)
    return found


async def test_four_processes_in_lockstep_over_the_same_200_prompts_are_200_calls(
    redis_url: str, redis: Redis, forks: Forks
) -> None:
    async with SandboxServer(latency="20ms") as server:
        env = _env(server, redis_url)
        processes = [await asyncio.to_thread(_start, forks, env, *range(200)) for _ in range(4)]
        for process in processes:
            _release(process)
        said = [await _said(process) for process in processes]
        assert server.stats()["requests"] == 200
    calls, coalesced, hits = (sum(one[part] for one in said) for part in range(3))
    assert calls == 200
    assert coalesced + hits == 600
    assert coalesced, "they did ask at the same time"
    assert not list(redis.scan_iter("themes:flight:*"))


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_prompt_whose_owner_is_lost_is_asked_by_a_waiter_within_a_lease(
    way: signal.Signals, redis_url: str, sandbox: SandboxServer, forks: Forks
) -> None:
    lease = 1.0
    env = _env(sandbox, redis_url, THEMES_LLM__FLIGHT_LEASE_SECONDS=str(lease))
    sandbox.set_faults(["hang=1,times=1"])
    owner, waiter = [await asyncio.to_thread(_start, forks, env, "one") for _ in range(2)]
    try:
        _release(owner)
        await _begun(sandbox)
        _release(waiter)
        # The owner is alive: longer than a lease nobody else asks.
        await asyncio.sleep(2 * lease)
        assert sandbox.stats()["requests"] == 1
        owner.send_signal(way)
        assert await _said(waiter) == [1, 0, 0]
        assert sandbox.stats()["requests"] == 2
    finally:
        for process in (owner, waiter):
            process.close()


def test_what_owners_tell_survives_the_way() -> None:
    assert decode_outcome(encode_value(b"stored")) == b"stored"
    with pytest.raises(InvalidAnswerError, match="wrong shape"):
        decode_outcome(encode_error(InvalidAnswerError("wrong shape")))
    with pytest.raises(TruncatedError) as caught:
        decode_outcome(encode_error(TruncatedError("cut", [{"a": 1}])))
    assert caught.value.complete == [{"a": 1}]
    for garbage in (b"e", b"e\xc1", b"e\x83"):
        with pytest.raises(PermanentError):
            decode_outcome(garbage)


async def test_who_waits_for_a_process_that_is_known_to_be_dead_takes_over_long_before_its_lease_ends(
    redis_url: str, redis: Redis
) -> None:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    first = SharedFlights(client, lease_seconds=600, ttl_ms=60_000, process="first")
    second = SharedFlights(client, lease_seconds=600, ttl_ms=60_000, process="second")
    async with first.flight("f", "c") as (claimed, _):
        assert claimed.end == "own"

        async def take_over() -> str:
            async with second.flight("f", "c") as (taken, __):
                return taken.end

        waiting = asyncio.create_task(take_over())
        async with asyncio.timeout(DEADLINE):
            while not second.waited:
                await asyncio.sleep(0.01)
        assert not waiting.done()
        assert release(redis, "worker@host", 1, "first") == 0
        async with asyncio.timeout(DEADLINE):
            assert await waiting == "own"
    assert redis.ttl(keys.dead("first")) > 0
    for flights in (first, second):
        await flights.close()
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(_go(sys.argv[1:]))
