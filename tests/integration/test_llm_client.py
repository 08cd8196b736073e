"""The client and generator against the sandbox's faults, over HTTP."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from config.settings import Settings
from tasks.errors import (
    BadRequestError,
    ConfigError,
    EndpointDownError,
    InvalidAnswerError,
    ModelRefusedError,
    RateLimitedError,
    TruncatedAnswerError,
)
from tasks.messages import Destination
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.caller import backoff_seconds
from workers.llm.completion import StageStats
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.registry import endpoints
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.spend import Spend
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
STAGES = {stage.name: stage for stage in load_stages()}


def _prompt(name: str = "Kyoto") -> Prompt:
    return STAGES["discover.food"].prompt(Input.of(Destination.of(name, "Japan")))


def _settings(make: MakeSettings, server: SandboxServer, **env: str) -> Settings:
    quick = {
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.05",
    }
    return make(OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY="k", THEMES_MODEL="sandbox", **quick, **env)


@asynccontextmanager
async def _generator(settings: Settings) -> AsyncIterator[FocusedLLMGenerator]:
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {settings.llm.model or ""}, profiler, None) as pool:
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


async def _ask(settings: Settings, prompt: Prompt | None = None) -> tuple[Any, StageStats]:
    stage_stats = StageStats()
    async with _generator(settings) as generator:
        try:
            return await generator.answer(prompt or _prompt(), stage_stats=stage_stats, request_priority=0), stage_stats
        except Exception as exc:
            exc.stage_stats = stage_stats  # type: ignore[attr-defined]
            raise


@pytest.mark.parametrize(
    "kind",
    ["429=1,retry_after=0,times=1", "429=1,times=2", "500=1,times=2", "503=1,times=3", "reset=1,times=1",
     "error200=1,times=1", "html=1,times=1", "empty=1,times=1"],
)  # fmt: skip
async def test_what_may_pass_is_asked_again_and_every_call_is_counted(
    kind: str, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([kind])
    completion, stage_stats = await _ask(_settings(settings_for, sandbox))
    assert completion.source == "called"
    assert stage_stats.spend.calls == sandbox.stats()["requests"] == 1 + int(kind.rpartition("=")[2])


@pytest.mark.parametrize(
    ("kind", "says", "calls"),
    [("400=1", "400", 1), ("401=1", "OPENAI_API_KEY", 3), ("404=1", "OPENAI_BASE_URL", 3)],
)
async def test_what_cannot_pass_is_asked_once_and_a_refused_account_is_made_sure_of(
    kind: str, says: str, calls: int, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([kind])
    with pytest.raises(BadRequestError, match=says):
        await _ask(_settings(settings_for, sandbox))
    assert sandbox.stats()["requests"] == calls


@pytest.mark.parametrize(("kind", "error"), [("429=1", RateLimitedError), ("503=1", EndpointDownError)])
async def test_a_fault_that_stays_ends_after_the_set_number_of_retries(
    kind: str, error: type[Exception], settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([kind])
    settings = _settings(settings_for, sandbox, THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="2")
    with pytest.raises(error) as caught:
        await _ask(settings)
    assert sandbox.stats()["requests"] == 3
    assert caught.value.stage_stats.spend.calls == 3  # type: ignore[attr-defined]


async def test_retry_after_is_waited_for(settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    sandbox.set_faults(["429=1,retry_after=1,times=1"])
    began = time.monotonic()
    await _ask(_settings(settings_for, sandbox))
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("kind", ["hang=1", "drip=1,interval=0.2", "endless=1"])
async def test_one_deadline_and_one_size_bound_every_answer(
    kind: str, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([kind])
    settings = _settings(
        settings_for, sandbox,
        THEMES_LLM__REQUEST_TIMEOUT_SECONDS="0.5", THEMES_LLM__MAX_RESPONSE_BYTES="100000",
        THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="0",
    )  # fmt: skip
    with pytest.raises(EndpointDownError, match=r"within 0\.5 s|exceeds 100000 bytes"):
        await _ask(settings)


@pytest.mark.parametrize("kind", ["fenced=1", "trailing_comma=1", "upper_keys=1", "wrapped=1"])
async def test_a_decorated_answer_costs_one_call(kind: str, settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    plain, _ = await _ask(_settings(settings_for, sandbox))
    sandbox.set_faults([kind])
    decorated, stage_stats = await _ask(_settings(settings_for, sandbox))
    assert decorated.value == plain.value
    assert stage_stats.spend.calls == 1


@pytest.mark.parametrize("kind", ["invalid", "wrong"])
async def test_an_invalid_answer_is_asked_again_once(
    kind: str, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([f"{kind}=1"])
    with pytest.raises(InvalidAnswerError, match="also when asked again"):
        await _ask(_settings(settings_for, sandbox))
    assert sandbox.stats()["requests"] == 2


@pytest.mark.parametrize("kind", ["refusal=1", "content_filter=1"])
async def test_a_refusal_is_not_asked_again_and_is_paid_for(
    kind: str, settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults([kind])
    with pytest.raises(ModelRefusedError) as caught:
        await _ask(_settings(settings_for, sandbox))
    assert sandbox.stats()["requests"] == 1
    assert caught.value.stage_stats.spend.prompt_tokens > 0  # type: ignore[attr-defined]


async def test_an_answer_cut_off_twice_keeps_what_is_complete(
    settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    sandbox.set_faults(["truncated=1"])
    with pytest.raises(TruncatedAnswerError) as caught:
        await _ask(_settings(settings_for, sandbox))
    assert sandbox.stats()["requests"] == 2
    assert caught.value.complete["themes"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("formats", [["json_object", "text"], ["text"]])
@pytest.mark.parametrize("status", [400, 500])
async def test_a_refused_response_format_is_replaced_and_remembered(
    formats: list[str], status: int, settings_for: MakeSettings
) -> None:
    async with SandboxServer(latency="0", formats=formats, format_refusal=status) as server:
        settings = _settings(settings_for, server)
        async with _generator(settings) as generator:
            for name in ("Kyoto", "Nara", "Osaka"):
                completion = await generator.answer(_prompt(name), stage_stats=StageStats(), request_priority=0)
                assert len(completion.value["themes"]) >= 4
        assert server.stats()["requests"] == 3 + (3 - len(formats))


async def test_a_passing_500_does_not_cost_the_schema(settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    sandbox.set_faults(["500=1,times=2"])
    settings = _settings(settings_for, sandbox)
    connections = Connections(settings.llm, base_url=sandbox.base_url, api_key=None, max_connections=2)
    client = ChatClient(settings.llm, base_url=sandbox.base_url, model="sandbox", connections=connections)
    try:
        for _ in range(2):
            with pytest.raises(EndpointDownError):
                await client.complete(_prompt(), max_tokens=2000, spend=Spend())
        await client.complete(_prompt(), max_tokens=2000, spend=Spend())
        assert "format=json_schema" in repr(client)
    finally:
        await connections.close()


async def test_equal_prompts_at_once_are_one_call_and_later_ones_come_from_the_cache(
    settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    stage_stats = StageStats()
    async with _generator(_settings(settings_for, sandbox)) as generator:
        answers = await asyncio.gather(
            *(generator.answer(_prompt(), stage_stats=stage_stats, request_priority=0) for _ in range(20))
        )
        again = await generator.answer(_prompt(), stage_stats=stage_stats, request_priority=0)
        fresh = await generator.answer(_prompt(), stage_stats=stage_stats, request_priority=0, use_cache=False)
    assert [answer.source for answer in answers].count("coalesced") == 19
    assert again.source == "cached"
    assert fresh.source == "called"
    assert sandbox.stats()["requests"] == 2
    assert (stage_stats.spend.calls, stage_stats.cache.coalesced, stage_stats.cache.hits) == (2, 19, 1)


async def test_no_unusable_answer_is_ever_cached(settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    async with _generator(_settings(settings_for, sandbox)) as generator:
        for kind in ("invalid=1", "refusal=1", "truncated=1", "wrong=1"):
            sandbox.set_faults([kind])
            with pytest.raises((InvalidAnswerError, ModelRefusedError, TruncatedAnswerError)):
                await generator.answer(_prompt(), stage_stats=StageStats(), request_priority=0)
        sandbox.set_faults([])
        assert (await generator.answer(_prompt(), stage_stats=StageStats(), request_priority=0)).source == "called"


async def test_the_sandbox_is_never_cached_as_another_model(settings_for: MakeSettings, sandbox: SandboxServer) -> None:
    settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, THEMES_MODEL="a-real-model")
    async with _generator(settings) as generator:
        for _ in range(2):
            completion = await generator.answer(_prompt(), stage_stats=StageStats(), request_priority=0)
            assert (completion.model, completion.source) == ("sandbox", "called")


async def test_a_server_that_is_not_there_is_named(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0") as server:
        settings = _settings(settings_for, server, THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="1")
    with pytest.raises(EndpointDownError, match="127.0.0.1") as caught:
        await _ask(settings)
    assert caught.value.stage_stats.spend.calls == 0  # type: ignore[attr-defined]


async def test_the_price_of_an_unknown_model_is_unknown_not_zero(
    settings_for: MakeSettings, sandbox: SandboxServer
) -> None:
    priced = _settings(settings_for, sandbox, THEMES_LLM__PRICES="{sandbox: {input_usd: 1000000, output_usd: 0}}")
    _, stage_stats = await _ask(priced)
    assert stage_stats.usage().cost_usd == pytest.approx(stage_stats.spend.prompt_tokens)
    unpriced = _settings(settings_for, sandbox, THEMES_LLM__PRICES="{other: {input_usd: 1, output_usd: 1}}")
    _, stage_stats = await _ask(unpriced)
    assert stage_stats.usage().cost_usd is None


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "no LLM endpoint is set"),
        ({"OPENAI_API_KEY": "k"}, "THEMES_MODEL"),
        ({"OPENAI_BASE_URL": "localhost:8000", "THEMES_MODEL": "m"}, "expected http"),
    ],
)
def test_a_missing_endpoint_says_what_to_set(env: dict[str, str], says: str, settings_for: MakeSettings) -> None:
    with pytest.raises(ConfigError, match=says):
        endpoints(settings_for(**env).llm)


def test_backoff_grows_within_its_bounds() -> None:
    assert backoff_seconds(1, base=1, most=30, draw=0) == 0.5
    assert backoff_seconds(1, base=1, most=30, draw=1) == 1
    assert backoff_seconds(4, base=1, most=30, draw=1) == 8
    assert backoff_seconds(60, base=1, most=30, draw=1) == 30


@asynccontextmanager
async def _server(answer: Callable[[dict[str, Any]], web.Response]) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Another OpenAI-compatible server, with habits of its own; yields its base URL and what it was asked."""
    asked: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body)
        return answer(body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    finally:
        await runner.cleanup()


def _says(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], **more}


FOUR = json.dumps(
    {"themes": [{"name": f"Theme {n}", "description": "Something to eat", "citations": []} for n in range(4)]}
)


async def test_a_server_that_ignores_the_response_format_is_shown_the_schema(settings_for: MakeSettings) -> None:
    def answer(body: dict[str, Any]) -> web.Response:
        seen = any("JSON Schema: {" in message["content"] for message in body["messages"])
        return web.json_response(_says(FOUR if seen else "1. Ramen\n2. Sushi"))

    async with _server(answer) as (url, asked):
        settings = settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="any")
        async with _generator(settings) as generator:
            names = ("Kyoto", "Nara", "Osaka", "Kobe")
            await asyncio.gather(
                *(generator.answer(_prompt(name), stage_stats=StageStats(), request_priority=0) for name in names)
            )
            before = len(asked)
            await generator.answer(_prompt("Tokyo"), stage_stats=StageStats(), request_priority=0)
    assert before <= 2 * len(names)
    assert len(asked) == before + 1, "what the server needs is remembered"


async def test_a_server_that_compresses_all_the_same_is_understood_and_a_bomb_is_not(
    settings_for: MakeSettings,
) -> None:
    def answer(body: dict[str, Any]) -> web.Response:
        text = json.dumps(_says(FOUR)) if "Kyoto" in body["messages"][1]["content"] else " " * 200_000_000
        return web.Response(body=gzip.compress(text.encode()), headers={"Content-Encoding": "gzip"})

    async with _server(answer) as (url, _):
        env = {"THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0"}
        settings = settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="any", **env)
        completion, _ = await _ask(settings)
        assert len(completion.value["themes"]) == 4
        with pytest.raises(EndpointDownError, match="exceeds"):
            await _ask(settings, _prompt("Bomb"))


async def test_the_newer_name_of_the_token_limit_is_learnt(settings_for: MakeSettings) -> None:
    def answer(body: dict[str, Any]) -> web.Response:
        if "max_tokens" in body:
            error = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
            return web.json_response({"error": error}, status=400)
        return web.json_response(_says(FOUR))

    async with _server(answer) as (url, asked):
        settings = settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="any")
        async with _generator(settings) as generator:
            for name in ("Kyoto", "Nara"):
                await generator.answer(_prompt(name), stage_stats=StageStats(), request_priority=0)
    assert ["max_tokens" in body for body in asked] == [True, False, False]
    assert all("temperature" not in body for body in asked), "what was not set is not sent"


async def test_tokens_that_a_server_does_not_count_are_estimated_and_marked(settings_for: MakeSettings) -> None:
    counted = {"prompt_tokens": 700, "completion_tokens": 5}
    for usage, marks in ((counted, 0), (None, 1)):
        async with _server(lambda _, usage=usage: web.json_response(_says(FOUR, usage=usage))) as (url, _):
            _, stage_stats = await _ask(settings_for(OPENAI_BASE_URL=url, THEMES_MODEL="any"))
        assert stage_stats.usage().estimated_calls == marks
    assert stage_stats.spend.completion_tokens == len(FOUR) // 4
    assert stage_stats.spend.prompt_tokens > 100


async def test_a_wait_that_stands_in_the_words_of_a_refusal_alone_is_kept(settings_for: MakeSettings) -> None:
    """As Gemini says it: our own pauses are shorter, and used up all tries before the quota was back."""
    error = {"error": {"message": "Quota exceeded for metric: x, limit: 15. Please retry in 37.5s."}}
    async with _server(lambda _: web.json_response([error], status=429)) as (url, _):
        settings = settings_for(
            OPENAI_BASE_URL=url, THEMES_MODEL="any", THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="0"
        )
        with pytest.raises(RateLimitedError) as refused:
            await _ask(settings)
    assert refused.value.retry_after_seconds == 37.5
