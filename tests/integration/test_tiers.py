"""Service tiers: what is asked for, what is booked, and what becomes of flex without capacity."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from config.settings import Settings
from tasks.messages import Destination, Usage
from tasks.prices.tiers import TierPrices
from tests.support.habits import server_that
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import sampling_of
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.spend import Spend, Terms
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
FOOD = next(stage for stage in load_stages() if stage.name == "discover.food")
PRICES = "{sandbox: {input_usd: 1, output_usd: 2}}"
PRICED = {"THEMES_LLM__PRICES": PRICES}
QUICK = {"THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.02"}


def _body(tier: str | None) -> dict[str, Any]:
    theme = {"name": "A theme", "description": "Something to eat", "citations": []}
    choice = {"message": {"content": json.dumps({"themes": [theme] * 4})}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 200}
    return {"model": "sandbox", "choices": [choice], "usage": usage} | ({"service_tier": tier} if tier else {})


async def _asked(settings: Settings, names: list[str], terms: Terms | None = None) -> tuple[list[Usage], Any]:
    """What each prompt has cost, one after the other, and the endpoint's limits afterwards."""
    profiler, found = PerformanceProfiler(enabled=True), []
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        one = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        for name in names:
            stats = StageStats(Spend(terms=terms or Terms()))
            prompt = FOOD.prompt(Input.of(Destination.of(name)))
            await one.answer(prompt, stage_stats=stats, request_priority=0)
            found.append(stats.usage())
        (route,) = pool.routes
        return found, route.limiter


def _settings(make: MakeSettings, server: SandboxServer, **llm: str) -> Settings:
    env = {f"THEMES_LLM__{name.upper()}": value for name, value in llm.items()}
    return make(OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox", THEMES_LLM__PRICES=PRICES, **QUICK, **env)


@pytest.mark.parametrize(
    ("llm", "terms", "tier", "factor"),
    [
        ({}, Terms(), "default", 1.0),
        ({}, Terms("flex"), "flex", 0.5),
        ({"tier": "flex"}, Terms(), "flex", 0.5),
        ({"tier": "flex"}, Terms("standard"), "default", 1.0),
        ({"tier": "flex"}, Terms("priority"), "priority", 2.0),
        ({"priority_price_factor": "1.7"}, Terms("priority"), "priority", 1.7),
        ({"flex_price_factor": "0.4"}, Terms("flex"), "flex", 0.4),
        ({"extra_body": "{service_tier: flex}"}, Terms(), "flex", 0.5),
        ({"tier": "flex"}, Terms("", time.time() - 1), "default", 1.0),
    ],
)
async def test_a_call_is_bought_at_its_tier_and_booked_as_the_answer_says(
    settings_for: MakeSettings, llm: dict[str, str], terms: Terms, tier: str, factor: float
) -> None:
    async with SandboxServer(latency="0") as server:
        (usage,), _ = await _asked(_settings(settings_for, server, **llm), ["Kyoto"], terms)
        billed = server.stats()["billed"]
    assert list(billed) == [tier]
    paid = billed[tier]
    standard = (paid["prompt_tokens"] + 2 * paid["completion_tokens"]) / 1e6
    assert usage.cost_usd == pytest.approx(standard * factor)
    assert usage.listed_usd == pytest.approx(standard * factor)
    assert usage.tier_saved_usd == pytest.approx(standard * (1 - factor))


async def test_an_endpoint_has_a_tier_of_its_own(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0") as server:
        endpoints = f"{{a: {{base_url: '{server.base_url}', tier: flex}}}}"
        settings = settings_for(
            THEMES_LLM__ENDPOINTS=endpoints, THEMES_MODEL="sandbox", THEMES_LLM__TIER="priority", **PRICED
        )
        await _asked(settings, ["Kyoto"])
        assert list(server.stats()["billed"]) == ["flex"]


async def test_a_server_that_knows_no_tiers_is_asked_without_and_costs_the_standard_price(
    settings_for: MakeSettings,
) -> None:
    def answer(_: int, asked: dict[str, Any]) -> web.Response:
        if "service_tier" in asked:
            error = {"message": "Unknown parameter: 'service_tier'.", "param": "service_tier"}
            return web.json_response({"error": error}, status=400)
        return web.json_response(_body(None))

    async with server_that(answer) as server:
        settings = settings_for(OPENAI_BASE_URL=server.url, THEMES_MODEL="sandbox", THEMES_LLM__TIER="flex", **PRICED)
        found, _ = await _asked(settings, ["Kyoto", "Nara"])
        assert ["service_tier" in body for body in server.asked] == [True, False, False]
    assert [one.cost_usd for one in found] == [pytest.approx((1_000 + 2 * 200) / 1e6)] * 2
    assert [one.tier_saved_usd for one in found] == [0.0, 0.0]


async def test_flex_without_capacity_waits_and_teaches_the_rate_limit_nothing(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0", faults=["no_capacity=1,times=3"]) as server:
        (usage,), limiter = await _asked(_settings(settings_for, server, tier="flex"), ["Kyoto"])
        assert server.stats()["by_status"] == {"429": 3, "200": 1}
        assert list(server.stats()["billed"]) == ["flex"]
    assert usage.llm_calls == 4
    assert usage.tier_saved_usd
    assert limiter.cool_down.count == 0


async def test_after_its_patience_a_call_is_standard_and_the_next_one_tries_flex_again(
    settings_for: MakeSettings,
) -> None:
    async with SandboxServer(latency="0", faults=["no_capacity=1,match=Kyoto"]) as server:
        settings = _settings(settings_for, server, tier="flex", flex_patience_seconds="0.1")
        (first, second), _ = await _asked(settings, ["Kyoto", "Nara"])
        assert {tier: paid["requests"] for tier, paid in server.stats()["billed"].items()} == {"default": 1, "flex": 1}
    assert first.tier_saved_usd == 0
    assert second.tier_saved_usd


async def test_a_tier_among_the_extra_fields_ends_its_patience_too(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0", faults=["no_capacity=1"]) as server:
        extra = {"extra_body": "{service_tier: flex}", "flex_patience_seconds": "0.1"}
        async with asyncio.timeout(60):
            await _asked(_settings(settings_for, server, **extra), ["Kyoto"])
        assert list(server.stats()["billed"]) == ["default"]


async def test_at_its_deadline_a_job_waits_no_longer(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0", faults=["no_capacity=1"]) as server:
        settings = _settings(settings_for, server)
        await _asked(settings, ["Kyoto"], Terms("flex", time.time() + 0.3))
        assert list(server.stats()["billed"]) == ["default"]


async def test_the_same_refusal_of_another_tier_is_a_rate_limit(settings_for: MakeSettings) -> None:
    def answer(*_: object) -> web.Response:
        if len(server.asked) == 1:
            error = {"message": "No capacity", "code": "resource_unavailable"}
            return web.json_response({"error": error}, status=429, headers={"Retry-After": "0.3"})
        return web.json_response(_body("default"))

    async with server_that(answer) as server:
        settings = settings_for(OPENAI_BASE_URL=server.url, THEMES_MODEL="sandbox", **PRICED)
        _, limiter = await _asked(settings, ["Kyoto"])
        assert len(server.asked) == 2
    assert limiter.cool_down.count == 1
    assert "retry-after" in limiter.cool_down.last.header.lower(), "what the server asks for is kept"


def test_a_tier_is_no_part_of_the_cache_key(settings_for: MakeSettings) -> None:
    plain = sampling_of(settings_for().llm)
    for env in ({"THEMES_LLM__TIER": "flex"}, {"THEMES_LLM__EXTRA_BODY": "{service_tier: flex}"}):
        assert sampling_of(settings_for(**env).llm) == plain
    assert sampling_of(settings_for(THEMES_LLM__EXTRA_BODY="{top_p: 0.5}").llm) != plain


def test_a_budget_reserves_the_dearest_price_that_can_apply(settings_for: MakeSettings) -> None:
    assert TierPrices(settings_for().llm).dearest("") == 1.0
    assert TierPrices(settings_for(THEMES_LLM__TIER="flex").llm).dearest("") == 1.0, "a server may answer at standard"
    assert TierPrices(settings_for(THEMES_LLM__TIER="priority").llm).dearest("") == 2.0
    assert TierPrices(settings_for().llm).dearest("priority") == 2.0
    assert TierPrices(settings_for(THEMES_LLM__EXTRA_BODY="{service_tier: priority}").llm).dearest("") == 2.0
