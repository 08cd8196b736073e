"""Forecasts against a real cache, and against what was then really asked."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine, event

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import BudgetExceededError
from tasks.jobs.budget import LIMIT, NANO, SPENT
from tasks.messages import Destination, StageRecord, StreamEntry, Usage
from tests.support.stored import announced, done, holding
from workers.llm.budget import JobBudget, RedisBook
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.metrics import Histogram
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.forecast import Amount, Forecast, Forecaster, Sample
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages
from workers.pipeline.throughput import WorkerCapacity, duration_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.earlier import MAX_JOBS, Earlier, StageMeasured, earlier_jobs
from workers.sandbox.server import SandboxServer

CITIES = [Destination.of(f"City {number}", f"Country {number % 7}") for number in range(12)]
PRICES = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}


@pytest.fixture
def settings(settings_for: Callable[..., Settings], sandbox: SandboxServer, redis_url: str) -> Settings:
    return settings_for(OPENAI_BASE_URL=sandbox.base_url, THEMES_MODEL="sandbox", REDIS_URL=redis_url, **PRICES)


async def test_a_forecast_of_some_fields_is_of_their_stages_alone(settings: Settings) -> None:
    whole, some = _forecast(settings, None), _forecast(settings, None, fields=("themes", "price"))
    assert {stage.field: stage.calls for stage in some.stages} == {"themes": 12.0, "price": 12.0}
    assert (whole.calls.expected, some.calls.expected) == (16 * 12, 6 * 12)
    asked = {stage.stage: stage for stage in some.stages}
    assert [stage for stage in whole.stages if stage.stage in asked] == some.stages


def _sample(rows: list[Destination], size: int = 200) -> Sample:
    sample = Sample(size)
    for row in rows:
        sample.add(row)
    return sample


def _forecast(settings: Settings, redis: Redis | None, rows: list[Destination] = CITIES, **more: bool) -> Forecast:
    return Forecaster(settings, redis, **more).forecast(_sample(rows))


@asynccontextmanager
async def _processor(settings: Settings) -> AsyncIterator[FocusedPromptProcessor]:
    profiler = PerformanceProfiler(enabled=False)
    redis = connect_async(settings.redis_url, socket_timeout_seconds=180)
    cache = PersistentLLMCache(redis, max_memory_mb=0, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        yield FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
    await cache.close()
    await redis.aclose()


async def _run(settings: Settings, rows: list[Destination]) -> None:
    async with _processor(settings) as processor:
        await asyncio.gather(*(processor.process(row) for row in rows))


def test_a_cold_cache_is_sixteen_calls_a_destination(settings: Settings, redis: Redis) -> None:
    found = _forecast(settings, redis)
    assert (found.calls, found.cache_hits) == (Amount(12 * 16), Amount(0))
    assert (found.destinations, found.sample, found.is_cache_known) == (12, 12, True)
    assert found.cost_usd is not None
    tokens = found.prompt_tokens.expected + 2 * found.completion_tokens.expected
    assert found.cost_usd.expected == pytest.approx(tokens / 1e6)
    assert sum(stage.calls for stage in found.stages) == 192
    assert found.seconds is None
    assert "guess for 16 of 16 stages" in found.notes[0]
    assert found.notes[1:] == ["the time is unknown: no worker is running"]
    assert json.loads(json.dumps(asdict(found)))["calls"] == {"expected": 192.0, "plus_minus": 0.0}


async def test_the_calls_that_were_foreseen_are_the_calls_that_are_made(
    settings: Settings, redis: Redis, sandbox: SandboxServer
) -> None:
    await _run(settings, CITIES[:4])
    # Of one more destination as much as a budget allowed.
    redis.hset(keys.budget("job"), mapping={LIMIT: int(0.015 * NANO), SPENT: 0})
    client = connect_async(settings.redis_url, socket_timeout_seconds=180)
    budget = JobBudget(RedisBook(client, "job", dead_after_seconds=60), "job", touch_seconds=1)
    async with _processor(settings) as processor:
        with pytest.raises(BudgetExceededError):
            await processor.process(CITIES[4], budget=budget)
    await budget.close()
    await client.aclose()
    foreseen = _forecast(settings, redis)
    assert 7 * 16 < foreseen.calls.expected < 8 * 16
    assert foreseen.calls.expected + foreseen.cache_hits.expected == 12 * 16
    asked = sandbox.stats()
    await _run(settings, CITIES)
    now = sandbox.stats()
    assert now["requests"] - asked["requests"] == foreseen.calls.expected
    done = now["completion_tokens"] - asked["completion_tokens"]
    assert foreseen.completion_tokens.expected == pytest.approx(done, rel=0.2), "means of cached answers"
    after = _forecast(settings, redis)
    assert (after.calls, after.cache_hits, after.cost_usd) == (Amount(0), Amount(192), Amount(0))


async def test_of_a_job_that_is_half_done_half_is_asked_and_the_error_says_how_sure_that_is(
    settings: Settings, redis: Redis
) -> None:
    await _run(settings, CITIES[:6])
    assert _forecast(settings, redis).calls == Amount(96)
    sampled = Forecaster(settings, redis).forecast(_sample(CITIES, size=8))
    assert (sampled.sample, sampled.destinations) == (6, 12)
    assert sampled.calls.plus_minus > 0
    assert abs(sampled.calls.expected - 96) <= 2 * sampled.calls.plus_minus


async def test_a_changed_prompt_is_asked_again_and_the_others_are_not(
    settings: Settings, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    await _run(settings, CITIES[:3])
    hot = settings_for(REDIS_URL=settings.redis_url, THEMES_MODEL="sandbox", THEMES_LLM__TEMPERATURE="0.5")
    assert _forecast(hot, redis, CITIES[:3]).cache_hits == Amount(0)
    name = next(iter(redis.scan_iter("themes:cache:*")))
    redis.set(name, b"\x07 not ours", ex=60)
    spoilt = _forecast(settings, redis, CITIES[:3])
    assert 1 <= spoilt.calls.expected <= 12
    assert spoilt.calls.expected + spoilt.cache_hits.expected == 48


@pytest.mark.parametrize(
    ("env", "use_cache", "says"),
    [
        ({}, False, "--no-cache"),
        ({"THEMES_MODEL": ""}, True, "THEMES_MODEL"),
        ({"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERSISTENT_CACHE": "false"}, True, "enable_persistent_cache"),
        ({"THEMES_MODEL": "gpt"}, True, "no price for gpt; set llm.prices"),
    ],
)
async def test_what_is_not_known_is_said(
    env: dict[str, str],
    use_cache: bool,
    says: str,
    settings: Settings,
    *,
    redis: Redis,
    settings_for: Callable[..., Settings],
) -> None:
    await _run(settings, CITIES[:2])
    found = _forecast(settings_for(**{"THEMES_MODEL": "sandbox", **env}), redis, CITIES[:2], use_cache=use_cache)
    assert found.calls == Amount(32)
    assert any(says in note for note in found.notes)
    if env.get("THEMES_MODEL") in {"", "gpt"}:
        assert found.cost_usd is None


def test_without_redis_everything_is_asked_and_that_is_said(settings: Settings) -> None:
    found = _forecast(settings, None)
    assert (found.calls, found.is_cache_known, found.seconds) == (Amount(192), False, None)
    assert "Redis cannot be reached" in found.notes[0]


def test_the_time_comes_from_what_the_workers_have_measured_or_from_the_limits(
    settings: Settings, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    spans = Histogram()
    spans.add(1.0)
    spans.add(3.0)
    for name, count in (("a", 10), ("b", 6)):
        profile = json.dumps({"spans": {"llm.call": spans.summary()}} if name == "a" else {})
        redis.hset(keys.worker(name), mapping={"connections": count, "profile": profile})
        redis.expire(keys.worker(name), 60)
        redis.zadd(keys.WORKERS, {name: 0})
    assert WorkerCapacity.seen(redis) == WorkerCapacity(workers=2, connections=16, call_seconds=2.0)
    assert _forecast(settings, redis).seconds == 192 * 2 / 16
    slow = settings_for(THEMES_MODEL="sandbox", THEMES_LLM__REQUESTS_PER_MINUTE="60")
    assert _forecast(slow, redis).seconds == 192
    tokens = settings_for(THEMES_MODEL="sandbox", THEMES_LLM__TOKENS_PER_MINUTE="6000").llm
    fleet = WorkerCapacity(1, 10, 0.1)
    assert duration_of(10, 12_000, settings=tokens, fleet=fleet, earlier=Earlier()).seconds == 120
    assert duration_of(0, 0, settings=tokens, fleet=fleet, earlier=Earlier()).seconds == 0
    assert duration_of(1, 1, settings=tokens, fleet=WorkerCapacity(1, 10, None), earlier=Earlier()).seconds is None
    assert duration_of(1, 1, settings=tokens, fleet=WorkerCapacity(0, 0, None), earlier=Earlier()).seconds is None


STAGES = [stage.name for stage in load_stages()]


def test_what_earlier_jobs_have_measured_is_used_and_said(settings: Settings) -> None:
    known = {stage: {"sandbox-2026-01-01": StageMeasured(1.5, 1_000, 200)} for stage in STAGES}
    found = Forecaster(settings, None, earlier=Earlier(3, 4.0, known)).forecast(_sample(CITIES))
    calls = 12 * 16 * 1.5
    assert (found.calls, found.prompt_tokens) == (Amount(calls), Amount(12 * 16 * 1_000))
    assert found.cost_usd is not None
    assert found.cost_usd.expected == pytest.approx(12 * 16 * (1_000 + 2 * 200) / 1e6)
    assert found.seconds == calls / 4
    assert found.basis == [
        "calls, tokens and cost: measured in 3 earlier jobs", "time: measured in 3 earlier jobs (4 calls/s)",
    ]  # fmt: skip
    assert not any("guess" in note for note in found.notes)
    some = Forecaster(settings, None, earlier=Earlier(1, None, dict(list(known.items())[:4])))
    assert some.forecast(_sample(CITIES)).basis == [
        "calls, tokens and cost: measured in 1 earlier job for 4 of 16 stages, assumed for the others"
    ]
    assumed = _forecast(settings, None)
    assert assumed.basis == ["calls, tokens and cost: assumed: no earlier job has asked this of this model"]
    assert assumed.calls == Amount(192)


def test_workers_that_run_know_the_time_better_than_earlier_jobs(settings: Settings) -> None:
    earlier, llm = Earlier(2, 5.0), settings.llm
    running = duration_of(100, 1, settings=llm, fleet=WorkerCapacity(1, 10, 0.5), earlier=earlier)
    assert (running.seconds, running.basis) == (5, "measured by 1 running worker")
    for fleet in (None, WorkerCapacity(0, 0, None), WorkerCapacity(1, 10, None)):
        assert duration_of(100, 1, settings=llm, fleet=fleet, earlier=earlier).seconds == 20


def _measured_by(model: str, job: str, calls: int, at: float) -> list[StreamEntry]:
    """A finished job of five destinations, one of them answered by the cache."""
    entries: list[StreamEntry] = [msgspec.structs.replace(announced(*CITIES[:5], job=job)[0], created_at=at)]
    entries += announced(*CITIES[:5], job=job)[1:]
    for number, city in enumerate(CITIES[:5]):
        usage = Usage(cache_hits=1) if number == 4 else Usage(calls, 0, 0, 100 * calls, 10 * calls)
        record = StageRecord("discover.food", "ok", "v1", model, "cached" if number == 4 else "called", usage, 5.0)
        result = done(city, job=job, at=at + number, usage=usage, model=model)
        entries.append(holding(city, result, stages=[record]))
    return entries


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        yield manager


async def test_earlier_jobs_with_the_model_are_measured(store: AsyncDatabaseManager) -> None:
    assert await earlier_jobs(store, {"gpt"}) == Earlier()
    jobs = (("gpt", "a", 1), ("gpt-2026-01-01", "b", 3), ("gpt-mini", "c", 50), ("other", "d", 50))
    for number, (model, job, calls) in enumerate(jobs):
        await store.apply(_measured_by(model, job, calls, at=1_000.0 * number))
    found = await earlier_jobs(store, {"gpt"})
    assert found.jobs == 2
    assert found.stages == {
        "discover.food": {"gpt": StageMeasured(1, 100, 10), "gpt-2026-01-01": StageMeasured(3, 300, 30)}
    }
    assert found.of("discover.food", "gpt-mini") is None
    assert found.of("discover.food", None) is None
    assert found.of("analyse.price", "gpt") is None
    rates = []
    for name in "ab":
        job = await store.job(name)
        assert job
        assert job.started_at is not None
        assert job.finished_at is not None
        rates.append(job.usage.llm_calls / (job.finished_at - job.started_at))
    assert found.calls_per_second == pytest.approx(sum(rates) / 2)


async def test_looking_at_earlier_jobs_reads_no_table_of_profiles_as_a_whole(tmp_path: Path) -> None:
    statements: list[tuple[str, Any]] = []
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as store:
        for number in range(MAX_JOBS + 2):
            await store.apply(_measured_by("gpt", f"job{number}", 1, at=1_000.0 * number))

        def heard(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: Any) -> None:
            statements.append((statement, parameters))

        event.listen(Engine, "before_cursor_execute", heard)
        try:
            found = await earlier_jobs(store, {"gpt"})
        finally:
            event.remove(Engine, "before_cursor_execute", heard)
    assert found.jobs == MAX_JOBS
    assert len(statements) == MAX_JOBS + 2
    with sqlite3.connect(tmp_path / "themes.db") as database:
        for statement, parameters in statements:
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            # JSON of a row is gone through as a virtual table.
            read_whole = [step for step in plan if step.startswith("SCAN") and "VIRTUAL" not in step]
            assert read_whole in ([], ["SCAN jobs"]), plan
    database.close()


@given(count=st.integers(0, 5000), size=st.integers(1, 50).map(lambda half: 2 * half))
def test_a_sample_is_small_evenly_spread_and_the_same_every_time(count: int, size: int) -> None:
    rows = [Destination(id=str(number), name="x") for number in range(count)]
    sample = _sample(rows, size)
    assert sample.seen == count
    assert len(sample.rows) <= size
    assert len(sample.rows) >= min(count, size // 2)
    positions = [int(row.id) for row in sample.rows]
    assert len({after - before for before, after in pairwise(positions)}) <= 1
    assert positions == [int(row.id) for row in _sample(rows, size).rows]
