"""A rate that nobody has configured is learnt from refusals, by all processes together, and forgotten again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest
from aiohttp import web
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.messages import Destination
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.limits.gcra import RESERVE, Limits, reservation_arguments
from workers.llm.limits.limiter import RateLimiter
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")
#: As in workers/llm/limits/lua/reserve.lua.
ENOUGH, FREE_US, MARGIN = 20, 100, 1.01
NAMES = [keys.limit("e"), keys.limit_users("e"), keys.cooldown("e"), keys.learnt("e")]


@asynccontextmanager
async def _process(settings: Settings) -> AsyncIterator[FocusedLLMGenerator]:
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(settings.redis_url, socket_timeout_seconds=180)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
        for route in pool.routes:
            await route.limiter.cool_down.listening.wait()
        cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
    await redis.aclose()


async def _ask(generator: FocusedLLMGenerator, name: str) -> StageStats:
    stage_stats = StageStats()
    await generator.answer(STAGE.prompt(Input.of(Destination.of(name))), stage_stats=stage_stats, request_priority=0)
    return stage_stats


async def _refusals(server: SandboxServer, settings: Settings, count: int) -> int:
    """Ask from two processes; how many 429s that took."""
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
        accounts = await asyncio.gather(*(_ask(pair[number % 2], f"City {number}") for number in range(count)))
    stats = server.stats()
    assert (
        sum(stage_stats.spend.calls for stage_stats in accounts) == stats["requests"] == count + stats["rate_limited"]
    )
    return int(stats["rate_limited"])


@pytest.mark.parametrize("style", ["exact", "none"])
async def test_two_processes_that_learn_are_refused_less_often_than_two_that_do_not(
    style: str, redis_url: str, redis: Redis, settings_for: MakeSettings
) -> None:
    refused = {}
    for learn in ("true", "false"):
        # So low a rate that any machine is faster: each run is refused often, or learns not to be.
        async with SandboxServer(latency="10ms", rate_limit=f"12/s,burst=6,retry_after={style}") as server:
            settings = settings_for(
                OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox", REDIS_URL=redis_url,
                THEMES_LLM__LEARN_RATE_LIMIT=learn, THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY="0.2",
            )  # fmt: skip
            refused[learn] = await _refusals(server, settings, 80)
        learnt = list(redis.scan_iter("themes:limit:*:learnt"))
        assert len(learnt) == (learn == "true")
        for key in learnt:
            assert 0 < redis.ttl(key) <= 600
            redis.delete(key)
    assert refused["true"] < refused["false"]


async def test_an_endpoint_that_never_refuses_is_never_asked_about_in_redis(
    redis_url: str, redis: Redis, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, THEMES_MODEL="sandbox", REDIS_URL=redis_url)
    async with _process(settings) as generator:
        await asyncio.gather(*(_ask(generator, f"City {number}") for number in range(50)))
        assert [route.limiter._reservations.count for route in generator._caller._pool.routes] == [0]
    assert not list(redis.scan_iter("themes:limit:*"))


async def test_headers_that_say_that_nothing_remains_hold_all_processes_back(
    redis_url: str, settings_for: MakeSettings
) -> None:
    asked: list[float] = []

    async def chat(_: web.Request) -> web.Response:
        asked.append(time.monotonic())
        remaining = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
        headers = remaining | {"x-ratelimit-reset-requests": "1500ms"} if len(asked) == 1 else {}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "{}"}}
        return web.json_response({"model": "sandbox", "choices": [choice]}, headers=headers)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    settings = settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="sandbox", REDIS_URL=redis_url)
    async with AsyncExitStack() as stack:
        told, other = [await stack.enter_async_context(_process(settings)) for _ in range(2)]
        await _ask(told, "First")
        (route,) = other._caller._pool.routes
        async with asyncio.timeout(180):
            while not route.limiter.is_cooling:
                await asyncio.sleep(0.001)
            await asyncio.gather(*(_ask(other, f"City {number}") for number in range(5)), _ask(told, "Later"))
    await runner.cleanup()
    assert len(asked) == 7
    assert all(at - asked[0] >= 1.4 for at in asked[1:])


async def test_closing_does_not_wait_for_the_end_of_a_cool_down(client: AsyncRedis) -> None:
    limiter = RateLimiter(client, endpoint="e", limits=Limits.per_minute(None, None), max_ahead=4, learn=True)
    limiter.start()
    await limiter.cool_down.listening.wait()
    refused = await limiter.slot(1)
    limiter.sent(refused)
    await limiter.cool_down.begin(3600)
    limiter.refused(refused)

    async def ask() -> None:
        await limiter.slot(1)
        pytest.fail("sent in a cool-down")

    asking = [asyncio.create_task(ask()) for _ in range(6)]
    async with asyncio.timeout(180):
        while not limiter._reservations.count:
            await asyncio.sleep(0.001)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    async with asyncio.timeout(180):
        await limiter.close()


# --- the script alone ---


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


async def _reserve(
    client: AsyncRedis, *, count: int = 0, sent: int = 0, refused: int = 0, rate: float | None = None
) -> tuple[float, list[float]]:
    """Reserve; returns (when the last wave began or -1, the slots' seconds from now)."""
    limits = Limits.per_minute(rate, None, 1)
    arguments = reservation_arguments(
        "u", limits, correction=0, returned=[], tokens=[1.0] * count, sent=sent, refused=refused
    )
    answer = [float(part) for part in await client.eval(RESERVE, 4, *NAMES, *arguments)]
    return answer[2], [(at - answer[1]) / 1e6 for at in answer[3::2]]


def _learnt(redis: Redis) -> dict[str, float]:
    return {name.decode(): float(value) for name, value in redis.hgetall(keys.learnt("e")).items()}


async def _wave(client: AsyncRedis, redis: Redis, *, seconds_since_last: float, accepted: int) -> None:
    """A second wave of refusals, so long after the first, as if time had passed; and the end of its cool-down."""
    state = _learnt(redis)
    await _reserve(client, sent=accepted + 1, refused=1)
    wave = _learnt(redis)["wave"]
    redis.hset(
        keys.learnt("e"),
        mapping={"wave": f"{wave - 20_000:.0f}", "empty": f"{wave - 20_000 - seconds_since_last * 1e6:.0f}"},
    )
    assert state
    await _reserve(client)


async def test_the_rate_is_what_was_accepted_between_two_waves(client: AsyncRedis, redis: Redis) -> None:
    assert (await _reserve(client, sent=5))[0] == -1, "nothing is learnt before the first refusal"
    await _reserve(client, refused=1)
    assert _learnt(redis)["us"] == 0
    _, slots = await _reserve(client, count=100)
    gaps = [b - a for a, b in pairwise(slots)]
    assert gaps[0] == pytest.approx(0.025, rel=0.1), "a slow start"
    assert gaps[-1] < gaps[0] / 4, "that gets faster"
    redis.hset(keys.learnt("e"), mapping={"wave": 0, "empty": int(_learnt(redis)["wave"]), "n": 0, "x": 0})
    await _wave(client, redis, seconds_since_last=2.0, accepted=100)
    assert _learnt(redis)["us"] == pytest.approx(20_000 * MARGIN)
    await _wave(client, redis, seconds_since_last=2.0, accepted=60)
    assert _learnt(redis)["us"] > 4_000_000 / 160 * MARGIN, "several waves are added up, with a wider margin"


async def test_too_few_answers_are_no_measure(client: AsyncRedis, redis: Redis) -> None:
    await _reserve(client, refused=1)
    redis.hset(keys.learnt("e"), mapping={"wave": 0, "empty": int(_learnt(redis)["wave"]), "n": 0, "x": 0})
    await _wave(client, redis, seconds_since_last=0.05, accepted=ENOUGH - 1)
    assert _learnt(redis)["us"] == 0
    await _wave(client, redis, seconds_since_last=3600.0, accepted=1000)
    assert _learnt(redis)["us"] == 0, "nor is an hour, in which the bucket was full"


async def test_without_refusals_the_rate_grows_ever_faster_until_it_is_forgotten(
    client: AsyncRedis, redis: Redis
) -> None:
    await _reserve(client, refused=1)
    now = _learnt(redis)["wave"]
    state = {"us": 10_000, "wave": 0, "empty": f"{now:.0f}", "started": f"{now:.0f}", "b": 1, "step": 1.02}
    redis.hset(keys.learnt("e"), mapping=state)
    raises = []
    for _ in range(60):
        before = _learnt(redis)["us"]
        # Somebody waits: the reserved slots reach beyond now, and the last raise is long ago.
        await _reserve(client, count=5)
        redis.hset(keys.learnt("e"), "raised", 0)
        learnt = (await _reserve(client, count=1))[0]
        if learnt < 0:
            break
        raises.append(before / _learnt(redis)["us"])
    else:
        pytest.fail("never forgotten")
    assert raises[0] == pytest.approx(1.02)
    assert max(raises) == pytest.approx(2.0)
    assert not redis.exists(keys.learnt("e"))
    assert 2 ** len(raises) > 10_000 / FREE_US


async def test_a_rate_that_is_configured_is_kept_whatever_was_learnt(client: AsyncRedis) -> None:
    await _reserve(client, refused=1)
    _, slots = await _reserve(client, count=3, rate=600)
    assert [b - a for a, b in pairwise(slots)] == pytest.approx([0.1, 0.1])
