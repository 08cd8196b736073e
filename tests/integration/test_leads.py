"""One prompt goes ahead of its round where a provider's cache of beginnings is used better so, and not elsewhere."""

from collections.abc import Callable

import pytest

from config.settings import Settings
from tasks.messages import Destination, Usage
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.lead import TRIALS, TRIED_AFTER, Leads
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]


async def _usages(settings: Settings, count: int) -> list[Usage]:
    """What each of some destinations has cost, one after the other."""
    profiler, found = PerformanceProfiler(enabled=False), list[Usage]()
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        one = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        processor = FocusedPromptProcessor(Graph(load_stages()), one, settings=settings, profiler=profiler)
        for number in range(count):
            processed = await processor.process(Destination.of(f"City {number}"))
            assert processed.usage.llm_calls == 16
            found.append(processed.usage)
    return found


@pytest.mark.parametrize(
    ("prefix_cache", "lead", "least", "most"),
    [(64, "true", 0.5, 1.0), (64, "false", 0.0, 0.3), (2_000, "true", 0.0, 0.0)],
)
async def test_a_prompt_goes_ahead_where_that_brings_something(
    settings_for: MakeSettings, prefix_cache: int, lead: str, least: float, most: float
) -> None:
    async with SandboxServer(latency="5ms", prefix_cache=prefix_cache) as server:
        settings = settings_for(
            OPENAI_BASE_URL=server.base_url, THEMES_MODEL="sandbox", THEMES_PIPELINE__LEAD_PROMPTS=lead
        )
        usages = await _usages(settings, 2 * TRIALS + 3)
    shares = [usage.cached_tokens / usage.prompt_tokens for usage in usages[-3:]]
    assert all(least <= share <= most for share in shares), shares


def test_both_ways_are_tried_in_turns_and_again_after_a_while(settings_for: MakeSettings) -> None:
    leads = Leads(settings_for())

    def go(*, ahead: int, together: int) -> bool:
        led = leads.goes_ahead("m")
        leads.learn("m", led=led, prompt=1_000, cached=ahead if led else together)
        return led

    assert sum(go(ahead=600, together=100) for _ in range(2 * TRIALS)) == TRIALS
    assert all(go(ahead=600, together=100) for _ in range(TRIED_AFTER))
    assert sum(go(ahead=600, together=590) for _ in range(2 * TRIALS)) == TRIALS
    assert not any(go(ahead=600, together=590) for _ in range(TRIED_AFTER - 1)), "it is not worth the wait now"


def test_models_are_told_apart(settings_for: MakeSettings) -> None:
    leads = Leads(settings_for())
    for model, cached in (("a", 900), ("b", 0)):
        for _ in range(2 * TRIALS):
            led = leads.goes_ahead(model)
            leads.learn(model, led=led, prompt=1_000, cached=cached if led else 0)
    assert (leads.goes_ahead("a"), leads.goes_ahead("b")) == (True, False)
