"""What calls cost: bodies as providers send them, over HTTP, each with its bill worked out by hand."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from aiohttp import web

from config.settings import Settings
from tasks.messages import Destination, Usage
from tests.support.habits import server_that
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages

STAGES = {stage.name: stage for stage in load_stages()}
FOUR: Final = json.dumps(
    {"themes": [{"name": f"Theme {n}", "description": "Something to eat", "citations": []} for n in range(4)]}
)
#: US dollars per million tokens, as the providers asked when this was written: a list of one's own, so that a newer one
#: of the package changes no bill here. Seller, model, prices.
PRICES: Final = {
    "openai": {
        "gpt-4o-mini": {"input_mtok": 0.15, "cache_read_mtok": 0.075, "output_mtok": 0.6},
        "o3-mini": {"input_mtok": 1.1, "cache_read_mtok": 0.55, "output_mtok": 4.4},
    },
    "azure": {"gpt-4o": {"input_mtok": 2.5, "cache_read_mtok": 1.25, "output_mtok": 10}},
    "anthropic": {
        "claude-sonnet-4-5": {
            "input_mtok": {"base": 3, "tiers": [{"start": 200_000, "price": 6}]},
            "cache_read_mtok": {"base": 0.3, "tiers": [{"start": 200_000, "price": 0.6}]},
            "cache_write_mtok": {"base": 3.75, "tiers": [{"start": 200_000, "price": 7.5}]},
            "cache_write_1h_mtok": {"base": 6, "tiers": [{"start": 200_000, "price": 12}]},
            "output_mtok": {"base": 15, "tiers": [{"start": 200_000, "price": 22.5}]},
        }
    },
    "google": {
        "gemini-2.5-pro": {
            "input_mtok": {"base": 1.25, "tiers": [{"start": 200_000, "price": 2.5}]},
            "cache_read_mtok": {"base": 0.31, "tiers": [{"start": 200_000, "price": 0.625}]},
            "output_mtok": {"base": 10, "tiers": [{"start": 200_000, "price": 15}]},
        },
        "gemini-2.5-flash": {"input_mtok": 0.3, "cache_read_mtok": 0.075, "output_mtok": 2.5},
    },
    "deepseek": {"deepseek-chat": {"input_mtok": 0.27, "cache_read_mtok": 0.07, "output_mtok": 1.1}},
    "openrouter": {"openai/gpt-4o-mini": {"input_mtok": 0.15, "cache_read_mtok": 0.075, "output_mtok": 0.6}},
    "groq": {"llama-3.3-70b-versatile": {"input_mtok": 0.59, "output_mtok": 0.79}},
    "mistral": {"mistral-small": {"input_mtok": 0.1, "output_mtok": 0.3}},
    "x-ai": {"grok-3-mini": {"input_mtok": 0.3, "cache_read_mtok": 0.075, "output_mtok": 0.5}},
    "perplexity": {"sonar": {"input_mtok": 1, "output_mtok": 1, "requests_kcount": 5}},
    "moonshotai": {"kimi-k2": {"input_mtok": 0.6, "cache_read_mtok": 0.15, "output_mtok": 2.5}},
}  # fmt: skip
GPT, O3, AZURE = "openai/gpt-4o-mini", "openai/o3-mini", "azure/gpt-4o"
CLAUDE, PRO, FLASH = "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "gemini/gemini-2.5-flash"
SEEK, ROUTER, GROQ = "deepseek/deepseek-chat", "openrouter/openai/gpt-4o-mini", "groq/llama-3.3-70b-versatile"
MISTRAL, GROK, SONAR, KIMI = "mistral/mistral-small", "xai/grok-3-mini", "perplexity/sonar", "moonshot/kimi-k2"
#: Servers of one's own, with a price for electricity.
VLLM, LLAMA, OLLAMA = "Qwen/Qwen3-8B", "llama-server", "llama3.1:8b"
OWN: Final = ", ".join(f"'{name}': {{input_usd: 0.02, output_usd: 0.05}}" for name in (VLLM, LLAMA, OLLAMA))
M: Final = 1_000_000


def _asked(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


def _cached(tokens: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": tokens, "audio_tokens": 0, **more}}


def _thought(tokens: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens, "audio_tokens": 0}}


#: What was asked, the body's `usage` (or all that it has beside the answer), the bill in US dollars, and of the tokens:
#: prompt, completion, cached, written into a cache, reasoning.
BILLS: Final = {
    # OpenAI: what is cached is part of the prompt, and reasoning part of the completion.
    "openai": (GPT, _asked(1_200, 350), (1_200 * 0.15 + 350 * 0.6) / M, (1200, 350, 0, 0, 0)),
    "openai cached": (
        GPT, _asked(2_006, 300, **_cached(1_920)),
        ((2_006 - 1_920) * 0.15 + 1_920 * 0.075 + 300 * 0.6) / M, (2006, 300, 1920, 0, 0),
    ),
    "openai all details": (
        GPT,
        _asked(2_006, 300, **_cached(1_920), completion_tokens_details={
            "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        }),
        (86 * 0.15 + 1_920 * 0.075 + 300 * 0.6) / M, (2006, 300, 1920, 0, 0),
    ),
    "openai reasoning": (O3, _asked(900, 1_500, **_thought(1_024)), (900 * 1.1 + 1_500 * 4.4) / M,
                         (900, 1500, 0, 0, 1024)),
    "openai both": (
        O3, _asked(4_000, 2_000, **_cached(3_072), **_thought(1_664)),
        ((4_000 - 3_072) * 1.1 + 3_072 * 0.55 + 2_000 * 4.4) / M, (4000, 2000, 3072, 0, 1664),
    ),
    "openai nothing in the details": (
        GPT, _asked(1_200, 350, prompt_tokens_details=None, completion_tokens_details=None),
        (1_200 * 0.15 + 350 * 0.6) / M, (1200, 350, 0, 0, 0),
    ),
    "openai responses' names": (
        GPT, {"input_tokens": 2_000, "output_tokens": 300, "input_tokens_details": {"cached_tokens": 1_024},
              "output_tokens_details": {"reasoning_tokens": 0}},
        ((2_000 - 1_024) * 0.15 + 1_024 * 0.075 + 300 * 0.6) / M, (2000, 300, 1024, 0, 0),
    ),
    "azure": (AZURE, _asked(1_500, 400, **_cached(1_024)),
              (476 * 2.5 + 1_024 * 1.25 + 400 * 10) / M, (1500, 400, 1024, 0, 0)),
    # Anthropic: its compatible endpoint tells no more than the two; its own names stand beside the prompt.
    "anthropic compatible": (
        CLAUDE, _asked(1_100, 420, prompt_tokens_details=None, completion_tokens_details=None),
        (1_100 * 3 + 420 * 15) / M, (1100, 420, 0, 0, 0),
    ),
    "anthropic's own": (
        CLAUDE, {"input_tokens": 300, "cache_creation_input_tokens": 1_000, "cache_read_input_tokens": 5_000,
                 "output_tokens": 500},
        (300 * 3 + 1_000 * 3.75 + 5_000 * 0.3 + 500 * 15) / M, (6300, 500, 5000, 1000, 0),
    ),
    "anthropic's own, kept for an hour": (
        CLAUDE,
        {"input_tokens": 300, "cache_creation_input_tokens": 1_000, "cache_read_input_tokens": 0, "output_tokens": 500,
         "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600}},
        (300 * 3 + 400 * 3.75 + 600 * 6 + 500 * 15) / M, (1300, 500, 0, 1000, 0),
    ),
    "anthropic by a gateway that counts within the prompt": (
        CLAUDE, _asked(6_300, 500, cache_creation_input_tokens=1_000, cache_read_input_tokens=5_000, **_cached(5_000)),
        (300 * 3 + 1_000 * 3.75 + 5_000 * 0.3 + 500 * 15) / M, (6300, 500, 5000, 1000, 0),
    ),
    "anthropic by a gateway that counts beside the prompt": (
        CLAUDE, {"prompt_tokens": 300, "completion_tokens": 500, "total_tokens": 6_800,
                 "cache_creation_input_tokens": 1_000, "cache_read_input_tokens": 5_000},
        (300 * 3 + 1_000 * 3.75 + 5_000 * 0.3 + 500 * 15) / M, (6300, 500, 5000, 1000, 0),
    ),
    "anthropic, a long prompt": (
        CLAUDE, {"input_tokens": 1_001, "cache_read_input_tokens": 199_000, "cache_creation_input_tokens": 0,
                 "output_tokens": 500},
        (1_001 * 6 + 199_000 * 0.6 + 500 * 22.5) / M, (200_001, 500, 199_000, 0, 0),
    ),
    "anthropic, the longest short prompt": (CLAUDE, _asked(200_000, 500), (200_000 * 3 + 500 * 15) / M,
                                            (200_000, 500, 0, 0, 0)),
    # Gemini: thoughts are in the total alone.
    "gemini": (FLASH, _asked(1_300, 380), (1_300 * 0.3 + 380 * 2.5) / M, (1300, 380, 0, 0, 0)),
    "gemini thinks": (
        FLASH, {"prompt_tokens": 1_300, "completion_tokens": 380, "total_tokens": 2_880},
        (1_300 * 0.3 + (380 + 1_200) * 2.5) / M, (1300, 1580, 0, 0, 1200),
    ),
    "gemini cached, a long prompt": (
        PRO, _asked(210_000, 1_000, **_cached(180_000)),
        (30_000 * 2.5 + 180_000 * 0.625 + 1_000 * 15) / M, (210_000, 1000, 180_000, 0, 0),
    ),
    # DeepSeek: hits and misses, of which the prompt is the sum.
    "deepseek": (
        SEEK, _asked(1_500, 400, prompt_cache_hit_tokens=1_024, prompt_cache_miss_tokens=476),
        (476 * 0.27 + 1_024 * 0.07 + 400 * 1.1) / M, (1500, 400, 1024, 0, 0),
    ),
    "deepseek, both ways": (
        SEEK, _asked(1_500, 400, prompt_cache_hit_tokens=1_024, prompt_cache_miss_tokens=476, **_cached(1_024),
                     **_thought(150)),
        (476 * 0.27 + 1_024 * 0.07 + 400 * 1.1) / M, (1500, 400, 1024, 0, 150),
    ),
    "deepseek, hits and misses alone": (
        SEEK, {"prompt_cache_hit_tokens": 1_024, "prompt_cache_miss_tokens": 476, "completion_tokens": 400},
        (476 * 0.27 + 1_024 * 0.07 + 400 * 1.1) / M, (1500, 400, 1024, 0, 0),
    ),
    # OpenRouter tells what it charges: that counts, whatever the tokens come to.
    "openrouter": (
        ROUTER, _asked(1_000, 200, cost=0.00031, is_byok=False, cost_details={"upstream_inference_cost": None},
                       **_cached(0, cache_write_tokens=0), **_thought(0)),
        0.00031, (1000, 200, 0, 0, 0),
    ),
    "openrouter, a key of one's own": (
        ROUTER, _asked(1_000, 200, cost=0.0000135, is_byok=True, cost_details={"upstream_inference_cost": 0.00027}),
        0.0000135 + 0.00027, (1000, 200, 0, 0, 0),
    ),
    "openrouter, for nothing": (ROUTER, _asked(1_000, 200, cost=0), 0.0, (1000, 200, 0, 0, 0)),
    "openrouter, without its cost": (
        ROUTER, _asked(1_000, 200, **_cached(800, cache_write_tokens=0)),
        (200 * 0.15 + 800 * 0.075 + 200 * 0.6) / M, (1000, 200, 800, 0, 0),
    ),
    "groq": (
        GROQ, _asked(1_200, 300, queue_time=0.02, prompt_time=0.004, completion_time=0.9, total_time=0.904),
        (1_200 * 0.59 + 300 * 0.79) / M, (1200, 300, 0, 0, 0),
    ),
    "groq, at its other place": (
        GROQ, {"body": {"x_groq": {"id": "req_1", "usage": _asked(1_200, 300)}}},
        (1_200 * 0.59 + 300 * 0.79) / M, (1200, 300, 0, 0, 0),
    ),
    "mistral": (MISTRAL, _asked(1_000, 250, prompt_audio_seconds=None), (1_000 * 0.1 + 250 * 0.3) / M,
                (1000, 250, 0, 0, 0)),
    "mistral, a cache without a price of its own": (
        MISTRAL, _asked(1_000, 250, **_cached(512)), (1_000 * 0.1 + 250 * 0.3) / M, (1000, 250, 512, 0, 0),
    ),
    # xAI counts reasoning beside the completion.
    "xai": (
        GROK,
        {"prompt_tokens": 1_000, "completion_tokens": 200, "total_tokens": 1_900, **_cached(600), **_thought(700)},
        (400 * 0.3 + 600 * 0.075 + (200 + 700) * 0.5) / M, (1000, 900, 600, 0, 700),
    ),
    "perplexity": (SONAR, _asked(500, 300, search_context_size="low"), (500 + 300) / M + 5 / 1000,
                   (500, 300, 0, 0, 0)),
    "perplexity tells": (SONAR, _asked(500, 300, cost={"input_tokens_cost": 0.0005, "total_cost": 0.0058}), 0.0058,
                         (500, 300, 0, 0, 0)),
    "moonshot": (KIMI, _asked(1_000, 200, cached_tokens=768), (232 * 0.6 + 768 * 0.15 + 200 * 2.5) / M,
                 (1000, 200, 768, 0, 0)),
    "vllm": (VLLM, _asked(1_000, 200, prompt_tokens_details=None), (1_000 * 0.02 + 200 * 0.05) / M,
             (1000, 200, 0, 0, 0)),
    "vllm cached": (VLLM, _asked(1_000, 200, prompt_tokens_details={"cached_tokens": 976}),
                    (1_000 * 0.02 + 200 * 0.05) / M, (1000, 200, 976, 0, 0)),
    "llama.cpp": (
        LLAMA,
        {"body": {"usage": _asked(1_000, 200), "timings": {"cache_n": 900, "prompt_n": 100, "predicted_n": 200}}},
        (1_000 * 0.02 + 200 * 0.05) / M, (1000, 200, 900, 0, 0),
    ),
    "llama.cpp, timings alone": (
        LLAMA, {"body": {"timings": {"cache_n": 900, "prompt_n": 100, "prompt_ms": 7.5, "predicted_n": 200}}},
        (1_000 * 0.02 + 200 * 0.05) / M, (1000, 200, 900, 0, 0),
    ),
    "ollama": (OLLAMA, _asked(1_000, 200), (1_000 * 0.02 + 200 * 0.05) / M, (1000, 200, 0, 0, 0)),
    # What cannot be true is not believed, and the dearer price holds.
    "more cached than asked": (GPT, _asked(1_200, 350, **_cached(1_201)), (1_200 * 0.15 + 350 * 0.6) / M,
                               (1200, 350, 0, 0, 0)),
    "less than nothing cached": (GPT, _asked(1_200, 350, **_cached(-5)), (1_200 * 0.15 + 350 * 0.6) / M,
                                 (1200, 350, 0, 0, 0)),
    "words in place of counts": (GPT, _asked(1_200, 350, **_cached("many"), **_thought("few")),
                                 (1_200 * 0.15 + 350 * 0.6) / M, (1200, 350, 0, 0, 0)),
    "counts in quotes": (GPT, {"prompt_tokens": "1200", "completion_tokens": "350", **_cached("1024")},
                         (176 * 0.15 + 1_024 * 0.075 + 350 * 0.6) / M, (1200, 350, 1024, 0, 0)),
    "a cost below nothing": (ROUTER, _asked(1_000, 200, cost=-1), (1_000 * 0.15 + 200 * 0.6) / M,
                             (1000, 200, 0, 0, 0)),
    "a cost in words": (ROUTER, _asked(1_000, 200, cost="0.1"), (1_000 * 0.15 + 200 * 0.6) / M, (1000, 200, 0, 0, 0)),
    "a cost that is no number": (ROUTER, _asked(1_000, 200, cost=float("nan")), (1_000 * 0.15 + 200 * 0.6) / M,
                                 (1000, 200, 0, 0, 0)),
    "a cost beyond all prices": (ROUTER, _asked(1_000, 200, cost=1e9), (1_000 * 0.15 + 200 * 0.6) / M,
                                 (1000, 200, 0, 0, 0)),
}  # fmt: skip


def _list() -> str:
    models = {
        seller: [{"id": name, "match": {"equals": name}, "prices": prices} for name, prices in sold.items()]
        for seller, sold in PRICES.items()
    }
    return json.dumps(
        [{"id": name, "api_pattern": f"https://{name}\\.example", "models": sold} for name, sold in models.items()]
    )


async def _usage(settings: Settings) -> Usage:
    """What one prompt has cost."""
    profiler, stats = PerformanceProfiler(enabled=False), StageStats()
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {settings.llm.model or ""}, profiler, None) as pool:
        one = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        prompt = STAGES["discover.food"].prompt(Input.of(Destination.of("Kyoto", "Japan")))
        await one.answer(prompt, stage_stats=stats, request_priority=0)
    return stats.usage()


@pytest.mark.parametrize("name", BILLS)
async def test_a_call_costs_what_its_provider_bills(
    name: str, settings_for: Callable[..., Settings], tmp_path: Any
) -> None:
    model, usage, usd, tokens = BILLS[name]
    choice = {"index": 0, "message": {"role": "assistant", "content": FOUR}, "finish_reason": "stop"}
    body = {"model": model, "choices": [choice], **(usage.get("body") or {"usage": usage})}
    prices = tmp_path / "prices.json"
    prices.write_text(_list())
    async with server_that(lambda *_: web.json_response(body)) as server:
        env = {"THEMES_LLM__PRICES": f"{{{OWN}}}", "THEMES_LLM__PRICES_FILE": str(prices)}
        found = await _usage(settings_for(OPENAI_BASE_URL=server.url, THEMES_MODEL=model, **env))
    assert found.cost_usd == pytest.approx(usd, rel=0.001, abs=1e-12)
    assert (
        found.prompt_tokens, found.completion_tokens, found.cached_tokens, found.cache_write_tokens,
        found.reasoning_tokens,
    ) == tokens  # fmt: skip
    assert found.estimated_calls == 0


async def test_what_a_server_tells_stands_beside_what_the_list_says(settings_for: Callable[..., Settings]) -> None:
    usage = _asked(1_000, 200, cost=0.0003)
    body = {"model": "m", "choices": [{"message": {"content": FOUR}, "finish_reason": "stop"}], "usage": usage}
    async with server_that(lambda *_: web.json_response(body)) as server:
        priced = await _usage(settings_for(OPENAI_BASE_URL=server.url, THEMES_MODEL=ROUTER))
        unpriced = await _usage(settings_for(OPENAI_BASE_URL=server.url, THEMES_MODEL="m"))
    assert (priced.cost_usd, priced.listed_usd) == (0.0003, pytest.approx((1_000 * 0.15 + 200 * 0.6) / M))
    assert (unpriced.cost_usd, unpriced.listed_usd) == (0.0003, None)
