"""Rate limits and cool-downs against a real Redis and the sandbox over HTTP."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings, load
from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tasks.connection import connect_async
from tasks.messages import Destination
from tests.support.forks import Forks, Script
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.route import Route
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.limits import reservations as reservations_module
from workers.llm.limits.cooldown import CoolDown
from workers.llm.limits.gcra import Limits
from workers.llm.limits.limiter import RateLimiter
from workers.llm.limits.reservations import Slot
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.process import outage, subscription
from workers.sandbox.server import SandboxServer

LIMITS = Limits.per_minute(6_000, None, 5)
STAGE = next(stage for stage in load_stages() if stage.name == "analyse.price")


def _limiter(redis: AsyncRedis | None, limits: Limits = LIMITS, *, max_ahead: int = 8) -> RateLimiter:
    return RateLimiter(redis, endpoint="e", limits=limits, max_ahead=max_ahead)


@pytest.fixture
async def clients(redis_url: str) -> AsyncIterator[tuple[AsyncRedis, AsyncRedis]]:
    first, second = (connect_async(redis_url, socket_timeout_seconds=180) for _ in range(2))
    yield first, second
    await first.aclose()
    await second.aclose()


async def _send(limiter: RateLimiter, tokens: float = 1, used: float | None = None) -> Slot:
    slot = await limiter.slot(tokens)
    assert time.monotonic() >= slot.at
    limiter.sent(slot)
    if used is not None:
        slot.settle(used)
    limiter.end(slot)
    return slot


async def _settled(*limiters: RateLimiter) -> None:
    """Whatever is known of real counts is in Redis."""
    for limiter in limiters:
        if limiter._flusher:
            await limiter._flusher


def _within(slots_us: list[float], limits: Limits) -> None:
    """No window of the slots, by Redis's clock, has more than the burst and the rate."""
    slots_us = sorted(slots_us)
    for first, start in enumerate(slots_us):
        for last in range(first, len(slots_us)):
            allowed = limits.request_burst + (slots_us[last] - start + 2) / limits.request_us
            assert last - first + 1 <= allowed


async def test_two_clients_never_exceed_the_limit_over_any_window_and_lose_nothing_of_it(
    clients: tuple[AsyncRedis, AsyncRedis],
) -> None:
    first, second = (_limiter(client) for client in clients)
    slots = await asyncio.gather(*(_send(limiter) for _ in range(60) for limiter in (first, second)))
    times = [slot.at_us for slot in slots]
    _within(times, LIMITS)
    assert len(set(times)) >= 120 - 5, "each has a slot of its own"
    assert first._reservations.users in {1, 2}
    assert second._reservations.users == 2


async def test_who_waits_far_off_is_served_at_once_when_the_limit_is_raised_and_no_window_has_too_much(
    clients: tuple[AsyncRedis, AsyncRedis], settings_for: Callable[..., Settings]
) -> None:
    slow, fast = Limits.per_minute(1, None, 1), Limits.per_minute(6_000, None, 5)
    limiters = [_limiter(client, slow) for client in clients]
    sending = [asyncio.create_task(_send(limiter)) for _ in range(30) for limiter in limiters]
    async with asyncio.timeout(180):
        while not any(task.done() for task in sending) or any(limiter._ahead < 8 for limiter in limiters):
            await asyncio.sleep(0.01)
        assert sum(task.done() for task in sending) <= 2, "a minute each"
        llm = settings_for(THEMES_LLM__REQUESTS_PER_MINUTE="6000", THEMES_LLM__REQUEST_BURST="5").llm
        for limiter in limiters:
            limiter.tune(llm, max_ahead=8)
        slots = await asyncio.gather(*sending)
    times = sorted(slot.at_us for slot in slots)[2:]
    _within(times, fast)


async def test_a_limit_that_is_set_holds_for_who_had_none_and_one_that_is_lifted_holds_nobody(
    clients: tuple[AsyncRedis, AsyncRedis], settings_for: Callable[..., Settings]
) -> None:
    free = Limits.per_minute(None, None)
    limiters = [_limiter(client, free) for client in clients]
    limited = settings_for(THEMES_LLM__REQUESTS_PER_MINUTE="6000", THEMES_LLM__REQUEST_BURST="5").llm
    for limiter in limiters:
        assert not limiter.is_limited
        limiter.tune(limited, max_ahead=8)
    slots = await asyncio.gather(*(_send(limiter) for _ in range(30) for limiter in limiters))
    _within([slot.at_us for slot in slots], Limits.per_minute(6_000, None, 5))
    for limiter in limiters:
        limiter.tune(settings_for(THEMES_LLM__REQUESTS_PER_MINUTE="1").llm, max_ahead=8)
    waiting = [asyncio.create_task(_send(limiter)) for _ in range(10) for limiter in limiters]
    await asyncio.wait(waiting, timeout=0.3)
    for limiter in limiters:
        limiter.tune(settings_for().llm, max_ahead=8)
    async with asyncio.timeout(180):
        await asyncio.gather(*waiting)
    assert not any(limiter.is_limited for limiter in limiters)


_OTHER_PROCESS = """
import asyncio, json, sys
from tasks.connection import connect_async
from workers.llm.limits.gcra import Limits
from workers.llm.limits.limiter import RateLimiter

async def main():
    redis = connect_async(sys.argv[1], socket_timeout_seconds=180)
    limiter = RateLimiter(redis, endpoint="e", limits=Limits.per_minute(6000, None, 5), max_ahead=8)
    times = []
    async def send():
        slot = await limiter.slot(1)
        limiter.sent(slot)
        times.append(slot.at_us)
    await asyncio.gather(*(send() for _ in range(60)))
    await redis.aclose()
    print(json.dumps(times))

asyncio.run(main())
"""


def test_two_processes_share_one_limit(redis_url: str, forks: Forks, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(_OTHER_PROCESS)
    processes = [forks.script(str(other), redis_url, env={}) for _ in range(2)]
    times = [at for process in processes for at in json.loads(process.communicate(timeout=180)[0])]
    assert len(times) == 120
    _within(times, LIMITS)


async def test_one_line_is_served_in_order_with_few_reservations(clients: tuple[AsyncRedis, AsyncRedis]) -> None:
    limiter = _limiter(clients[0], Limits.per_minute(60_000, None, 50), max_ahead=50)
    order = []

    async def send(number: int) -> None:
        await _send(limiter)
        order.append(number)

    await asyncio.gather(*(send(number) for number in range(50)))
    assert order == list(range(50))
    assert limiter._reservations.count <= 3, "the line asks as one"


async def test_what_was_reserved_too_much_comes_back_and_too_little_is_charged(
    clients: tuple[AsyncRedis, AsyncRedis], redis: Redis
) -> None:
    limits = Limits(token_us=1_000_000.0, token_burst=1_000)
    limiter = _limiter(clients[0], limits)

    def used_up() -> float:
        return float(redis.hget(keys.limit("e"), "t") or 0) / 1_000_000

    slot = await _send(limiter, 900, used=100)
    await _settled(limiter)
    assert used_up() - slot.at_us / 1_000_000 == pytest.approx(100, abs=0.01)
    slot = await _send(limiter, 100, used=150)
    await _settled(limiter)
    assert used_up() - slot.at_us / 1_000_000 > 149


async def test_a_cancelled_waiter_gives_the_last_slot_back(
    clients: tuple[AsyncRedis, AsyncRedis], redis: Redis
) -> None:
    limiter = _limiter(clients[0], Limits.per_minute(1, None, 1))
    slot = await _send(limiter)
    used = redis.hget(keys.limit("e"), "r")
    waiting = [asyncio.create_task(_send(limiter)) for _ in range(3)]
    async with asyncio.timeout(180):
        while limiter._ahead < 3 or not (limiter._flusher is None or limiter._flusher.done()):
            await asyncio.sleep(0.001)
    assert float(redis.hget(keys.limit("e"), "r") or 0) - slot.at_us == pytest.approx(240_000_000, abs=1000)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await _settled(limiter)
    assert float(redis.hget(keys.limit("e"), "r") or 0) == pytest.approx(float(used or 0), abs=1000)
    assert limiter._ahead == 0


async def test_every_key_of_the_limits_has_a_ttl(clients: tuple[AsyncRedis, AsyncRedis], redis: Redis) -> None:
    await _send(_limiter(clients[0]))
    await CoolDown(clients[0], "e").begin(5)
    assert 0 < redis.ttl(keys.limit("e")) <= keys.LIMIT_SECONDS
    assert 0 < redis.ttl(keys.limit_users("e")) <= keys.USER_SECONDS
    assert 0 < redis.pttl(keys.cooldown("e")) <= 5000
    await CoolDown(clients[1], "e").begin(1)
    assert redis.pttl(keys.cooldown("e")) > 3000, "a shorter one shortens nothing"


async def test_a_cool_down_is_heard_by_the_others_and_holds_for_who_comes_later(
    clients: tuple[AsyncRedis, AsyncRedis],
) -> None:
    async with asyncio.timeout(180), AsyncExitStack() as stack:
        told, hears, later, other = (
            CoolDown(clients[0], "e"), CoolDown(clients[1], "e"), CoolDown(clients[1], "e"), CoolDown(clients[1], "x"),
        )  # fmt: skip
        for each in (hears, other):
            stack.push_async_callback(each.close)
            each.start()
            await each.listening.wait()
        await told.begin(60)
        while not hears.left_seconds:
            await asyncio.sleep(0.001)
        assert hears.left_seconds == pytest.approx(told.left_seconds, abs=15)
        stack.push_async_callback(later.close)
        later.start()
        await later.listening.wait()
        assert later.left_seconds > 0
        assert other.left_seconds == 0


async def test_slots_are_reserved_after_a_cool_down_that_the_process_has_not_heard_of(
    clients: tuple[AsyncRedis, AsyncRedis],
) -> None:
    await CoolDown(clients[0], "e").begin(0.3)
    deaf = _limiter(clients[1])
    began = time.monotonic()
    slot = await _send(deaf)
    assert slot.at - began > 0.1 or time.monotonic() - began > 0.3


async def test_without_limits_a_call_asks_redis_nothing(clients: tuple[AsyncRedis, AsyncRedis], redis: Redis) -> None:
    limiter = _limiter(clients[0], Limits())
    before = redis.info("stats")["total_commands_processed"]
    for _ in range(50):
        await _send(limiter)
    assert redis.info("stats")["total_commands_processed"] - before <= 1, "the look itself"


async def test_redis_killed_in_the_middle_leaves_a_share_and_the_limits_are_shared_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(subscription, "RETRY_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        with LocalRedis(tmp_path, "auto") as server:
            url = server.url
            clients = [connect_async(url, socket_timeout_seconds=1) for _ in range(2)]
            limiters = [_limiter(client) for client in clients]
            for client, limiter in zip(clients, limiters, strict=True):
                stack.push_async_callback(client.aclose)
                stack.push_async_callback(limiter.close)
                limiter.start()
            for limiter in (*limiters, *limiters):
                await _send(limiter)
        alone = [await asyncio.gather(*(_send(limiter) for _ in range(10))) for limiter in limiters]
        for slots in alone:
            _within([slot.at_us for slot in slots], LIMITS.share(2))
        assert "local users=2" in repr(limiters[0])
        assert len([record for record in caplog.records if "rate_limit_degraded" in record.message]) == 2
        # It comes back: the limiter is told of another server, as a restart on the same port would be.
        with LocalRedis(tmp_path / "again", "auto") as server:
            limiters[0]._reservations._script = connect_async(server.url, socket_timeout_seconds=1).register_script(
                reservations_module.RESERVE
            )
            async with asyncio.timeout(180):
                while "shared" not in repr(limiters[0]):
                    await _send(limiters[0])
            await limiters[0]._reservations._script.registered_client.aclose()  # type: ignore[union-attr]
    assert "rate_limit_restored" in caplog.text


@asynccontextmanager
async def _generator(settings: Settings, redis: AsyncRedis) -> AsyncIterator[FocusedLLMGenerator]:
    profiler = PerformanceProfiler(enabled=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
        await _route(pool).limiter.cool_down.listening.wait()
        cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


def _route(pool: LLMConnectionPool) -> Route:
    (route,) = pool.routes
    return route


async def _ask(generator: FocusedLLMGenerator, name: str) -> StageStats:
    stage_stats = StageStats()
    await generator.answer(STAGE.prompt(Input.of(Destination.of(name))), stage_stats=stage_stats, request_priority=0)
    return stage_stats


async def test_a_limit_that_fits_the_server_s_is_never_refused(
    clients: tuple[AsyncRedis, AsyncRedis], settings_for: Callable[..., Settings]
) -> None:
    async with AsyncExitStack() as stack:
        # The server's burst is larger: a slow machine sends slots late, and so together.
        server = await stack.enter_async_context(SandboxServer(latency="0", rate_limit="50/s,burst=60"))
        settings = settings_for(
            OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox",
            THEMES_LLM__REQUESTS_PER_MINUTE="3000", THEMES_LLM__REQUEST_BURST="10",
        )  # fmt: skip
        generators = [await stack.enter_async_context(_generator(settings, client)) for client in clients]
        await asyncio.gather(*(_ask(generators[number % 2], f"City {number}") for number in range(50)))
        assert server.stats()["rate_limited"] == 0
        assert server.stats()["requests"] == 50


@pytest.mark.parametrize("retry_after", ["whole", "exact", "none"])
async def test_two_processes_live_off_429s_and_lose_nothing(
    retry_after: str, clients: tuple[AsyncRedis, AsyncRedis], settings_for: Callable[..., Settings]
) -> None:
    async with AsyncExitStack() as stack:
        limit = f"40/s,burst=10,retry_after={retry_after}"
        server = await stack.enter_async_context(SandboxServer(latency="0", rate_limit=limit))
        settings = settings_for(
            OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox",
            THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY="0.1",
        )  # fmt: skip
        generators = [await stack.enter_async_context(_generator(settings, client)) for client in clients]
        accounts = await asyncio.gather(*(_ask(generators[number % 2], f"City {number}") for number in range(60)))
        stats = server.stats()
        assert (
            sum(stage_stats.spend.calls for stage_stats in accounts) == stats["requests"] == 60 + stats["rate_limited"]
        )
        assert all(_route(generator._caller._pool).concurrency.cuts for generator in generators)


async def test_one_process_s_429_holds_the_other_back_too(
    clients: tuple[AsyncRedis, AsyncRedis], settings_for: Callable[..., Settings], sandbox: SandboxServer
) -> None:
    settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, THEMES_MODEL="sandbox")
    async with asyncio.timeout(180), AsyncExitStack() as stack:
        told, other = [await stack.enter_async_context(_generator(settings, client)) for client in clients]
        sandbox.set_faults(["429=1,retry_after=2,match=Refused,times=1"])
        first = asyncio.create_task(_ask(told, "Refused"))
        while not _route(other._caller._pool).limiter.is_cooling:
            await asyncio.sleep(0.001)
        await asyncio.gather(first, _ask(other, "Other"))
        refused, *later = sorted(sandbox.log(), key=lambda entry: entry["started"])
        assert refused["status"] == "429"
        assert all(entry["started"] - refused["ended"] >= 1.9 for entry in later)
        assert len(later) == 2


# --- real processes ---


def _start(forks: Forks, env: dict[str, str], number: int, count: int) -> Script:
    process = forks.script(__file__, number, count, env=env)
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("configured", [True, False])
async def test_four_processes_keep_to_one_limit_and_lose_nothing(
    configured: bool, redis_url: str, forks: Forks
) -> None:
    # The server's burst is larger than ours: a slow machine sends slots late, and so together.
    async with SandboxServer(latency="10ms", rate_limit="60/s,burst=80,retry_after=exact") as server:
        ours = {"THEMES_LLM__REQUESTS_PER_MINUTE": "3000", "THEMES_LLM__REQUEST_BURST": "20"} if configured else {}
        env = {"OPENAI_BASE_URL": server.base_url, "THEMES_MODEL": "sandbox", "REDIS_URL": redis_url, **ours}
        processes = [await asyncio.to_thread(_start, forks, env, number, 50) for number in range(4)]
        answered = 0
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            out, _ = await asyncio.to_thread(process.communicate, timeout=180)
            answered += int(out)
        stats = server.stats()
    assert answered == 200
    assert stats["requests"] == 200 + stats["rate_limited"]
    assert stats["rate_limited"] == 0 if configured else stats["rate_limited"] < 100


async def _go(number: int, count: int) -> None:
    """One process's part: so many prompts of its own, as many at once as it has connections."""
    settings = load()
    redis = connect_async(settings.redis_url, socket_timeout_seconds=180)
    async with _generator(settings, redis) as generator:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        done = await asyncio.gather(*(_ask(generator, f"City {number}-{one}") for one in range(count)))
        sys.stdout.write(str(len(done)))
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(_go(int(sys.argv[1]), int(sys.argv[2])))
