"""What servers say, over real HTTP: errors blamed on what is at fault, answers found wherever they lie."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from config.settings import Settings
from tasks.errors import (
    AccountRefusedError,
    BadRequestError,
    ConfigError,
    EndpointDownError,
    EndpointRefusedError,
    InvalidAnswerError,
    TruncatedAnswerError,
)
from tasks.messages import Destination
from tests.support.habits import Server, refuses, says, server_that
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.cancellation import Cancellation
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt, sampling_of
from workers.llm.endpoints.registry import endpoints
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import Input, load_stages

MakeSettings = Callable[..., Settings]
ALL = load_stages()
STAGES = {stage.name: stage for stage in ALL}
QUICK = {
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.05",
}
FOUR = json.dumps(
    {"themes": [{"name": f"Theme {n}", "description": "Something to eat", "citations": []} for n in range(4)]}
)
CITIES = [f"City {number}" for number in range(30)]


def _prompt(name: str = "Kyoto", stage: str = "discover.food") -> Prompt:
    return STAGES[stage].prompt(Input.of(Destination.of(name, "Japan")))


def _settings(make: MakeSettings, server: Server, **env: str) -> Settings:
    return make(OPENAI_BASE_URL=server.url, OPENAI_API_KEY="secret-key", THEMES_MODEL="sandbox", **QUICK, **env)


@asynccontextmanager
async def _generator(settings: Settings) -> AsyncIterator[FocusedLLMGenerator]:
    profiler = PerformanceProfiler(enabled=False)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {settings.llm.model or ""}, profiler, None) as pool:
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


async def _ask(settings: Settings, *names: str, stage: str = "discover.food") -> StageStats:
    """Ask for some destinations, one after the other; returns what it has cost."""
    stage_stats = StageStats()
    async with _generator(settings) as generator:
        for name in names or ("Kyoto",):
            await generator.answer(_prompt(name, stage), stage_stats=stage_stats, request_priority=0)
    return stage_stats


async def test_a_refused_temperature_is_left_out_from_then_on(settings_for: MakeSettings) -> None:
    def habit(_: int, body: dict[str, Any]) -> web.StreamResponse | None:
        return refuses(400, "'temperature' is not supported with this model") if "temperature" in body else None

    async with server_that(habit) as server:
        await _ask(_settings(settings_for, server, THEMES_LLM__TEMPERATURE="0.2"), *CITIES[:3])
    assert ["temperature" in body for body in server.asked] == [True, False, False, False]
    assert all("max_tokens" in body for body in server.asked)


async def test_the_provider_s_own_words_behind_a_gateway_decide(settings_for: MakeSettings) -> None:
    inner = json.dumps({"error": {"message": "Unsupported: max_tokens. Use max_completion_tokens."}})

    def habit(_: int, body: dict[str, Any]) -> web.StreamResponse | None:
        return refuses(400, "Provider returned error", metadata={"raw": inner}) if "max_tokens" in body else None

    async with server_that(habit) as server:
        await _ask(_settings(settings_for, server), *CITIES[:2])
    assert ["max_completion_tokens" in body for body in server.asked] == [False, True, True]


async def test_an_effort_that_is_set_is_sent_and_changes_the_key(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: None) as server:
        plain = _settings(settings_for, server)
        low, high = (_settings(settings_for, server, THEMES_LLM__REASONING_EFFORT=how) for how in ("low", "high"))
        await _ask(low)
    assert [body["reasoning_effort"] for body in server.asked] == ["low"]
    assert len({sampling_of(settings.llm) for settings in (plain, low, high)}) == 3


async def test_a_format_that_has_worked_is_not_given_up_for_one_error(settings_for: MakeSettings) -> None:
    words = ("Generated JSON does not match the expected schema", "json_schema: could not be satisfied")

    def habit(number: int, _: dict[str, Any]) -> web.StreamResponse | None:
        return refuses(400, words[number // 3 % 2]) if number % 3 == 0 else None

    async with server_that(habit) as server:
        await _ask(_settings(settings_for, server), *CITIES[:8])
    kinds = {body["response_format"]["type"] for body in server.asked}
    assert kinds == {"json_schema"}
    assert len(server.asked) == 8 + 3


async def test_a_slip_that_the_server_reports_is_asked_again_once(settings_for: MakeSettings) -> None:
    def habit(*_: Any) -> web.StreamResponse | None:
        return refuses(400, "Failed to generate JSON", code="json_validate_failed", failed_generation='{"th')

    async with server_that(habit) as server:
        with pytest.raises(InvalidAnswerError, match="also when asked again"):
            await _ask(_settings(settings_for, server))
    assert len(server.asked) == 2


def _page(status: int) -> web.Response:
    return web.Response(status=status, text="<!DOCTYPE html><html>Attention Required!</html>", content_type="text/html")


@pytest.mark.parametrize(
    "broken",
    [
        lambda: _page(403),
        lambda: web.Response(body=b'{"choices": [{"message": {"content": "\xff"}}]}', content_type="application/json"),
        lambda: says("half of a", "error"),
        lambda: web.json_response({"choices": [{"error": {"message": "lost", "code": 502}, "message": {}}]}),
        lambda: web.json_response({"error": {"message": "try later"}}),
    ],
    ids=["page", "no text", "finish_reason", "choice", "status 200"],
)
async def test_an_outage_of_one_call_is_asked_again(
    broken: Callable[[], web.StreamResponse], settings_for: MakeSettings
) -> None:
    async with server_that(lambda number, _: broken() if number == 2 else None) as server:
        await _ask(_settings(settings_for, server), *CITIES[:3])
    assert len(server.asked) == 4


NEEDED = 6_000


def _thinks(body: dict[str, Any]) -> web.StreamResponse | None:
    if body["max_tokens"] >= NEEDED:
        return None
    usage = {"prompt_tokens": 900, "completion_tokens": body["max_tokens"]}
    return says({"content": None, "reasoning_content": "Let me see …"}, "length", usage=usage)


async def test_a_model_that_thinks_is_given_room_and_only_the_first_call_is_lost(settings_for: MakeSettings) -> None:
    async with server_that(lambda _, body: _thinks(body)) as server:
        await _ask(_settings(settings_for, server), *CITIES[:3])
        asked = [body["max_tokens"] for body in server.asked]
    first = STAGES["discover.food"].max_tokens
    lost = [first * 2**n for n in range(10) if first * 2**n < NEEDED]
    assert asked[:-3] == lost
    assert len(set(asked[-3:])) == 1
    assert asked[-1] >= NEEDED


async def test_the_other_stages_of_a_model_that_thinks_have_the_same_room(settings_for: MakeSettings) -> None:
    async with server_that(lambda _, body: _thinks(body)) as server, _generator(_settings(settings_for, server)) as one:
        await one.answer(_prompt(stage="discover.food"), stage_stats=StageStats(), request_priority=0)
        before = len(server.asked)
        await one.answer(_prompt(stage="discover.culture"), stage_stats=StageStats(), request_priority=0)
        assert len(server.asked) == before + 1


async def test_thoughts_stop_growing_at_the_set_bound(settings_for: MakeSettings) -> None:
    async with server_that(lambda _, body: _thinks(body | {"max_tokens": 1})) as server:
        with pytest.raises(TruncatedAnswerError, match="5,000 tokens"):
            await _ask(_settings(settings_for, server, THEMES_LLM__MAX_COMPLETION_TOKENS="5000"))
    asked = [body["max_tokens"] for body in server.asked]
    assert asked[-1] == 5_000 == max(asked)
    assert len(asked) <= 4


async def test_an_answer_without_thoughts_that_is_too_long_grows_once(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: says(FOUR[:60], "max_tokens")) as server:
        with pytest.raises(TruncatedAnswerError):
            await _ask(_settings(settings_for, server))
    assert len(server.asked) == 2


async def test_an_object_that_never_closes_is_a_cut_whatever_the_server_calls_it(settings_for: MakeSettings) -> None:
    async with server_that(lambda number, _: says(FOUR[:60], None) if number == 1 else None) as server:
        await _ask(_settings(settings_for, server), *CITIES[:2])
    first, second, third = (body["max_tokens"] for body in server.asked)
    assert second == 2 * first
    assert third == second, "what the stage has needed is remembered"
    assert {body["response_format"]["type"] for body in server.asked} == {"json_schema"}


async def test_a_completion_limit_that_a_small_context_refuses_is_lowered(settings_for: MakeSettings) -> None:
    def habit(_: int, body: dict[str, Any]) -> web.StreamResponse | None:
        too_many = body["max_tokens"] > 900
        return refuses(400, "This model's maximum context length is 2048 tokens.") if too_many else None

    async with server_that(habit) as server:
        await _ask(_settings(settings_for, server), *CITIES[:3])
    asked = [body["max_tokens"] for body in server.asked]
    assert asked[-3:] == [asked[-1]] * 3
    assert len(asked) <= 5


async def test_a_prompt_that_no_limit_makes_fit_fails_by_itself(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: refuses(400, "This model's maximum context length is 200 tokens.")) as server:
        with pytest.raises(BadRequestError, match="200 tokens"):
            await _ask(_settings(settings_for, server))
    assert len(server.asked) <= 5


@pytest.mark.parametrize(
    "message",
    [
        {"content": f"thoughts with {{braces}}</think>{FOUR}"},
        {"content": f"For {{destination}} the answer follows. {FOUR}"},
        {"content": None, "reasoning_content": FOUR},
        {"content": None, "tool_calls": [{"function": {"arguments": FOUR}}]},
        {"content": json.loads(FOUR)},
    ],
)
async def test_an_answer_that_is_there_is_found_in_one_call(
    message: dict[str, Any], settings_for: MakeSettings
) -> None:
    async with server_that(lambda *_: says(message)) as server:
        await _ask(_settings(settings_for, server))
    assert len(server.asked) == 1


async def test_a_body_with_a_mark_or_of_events_is_read(settings_for: MakeSettings) -> None:
    whole = json.dumps({"choices": [{"message": {"content": FOUR}}]})
    event = f"data: {json.dumps({'choices': [{'delta': {'content': FOUR}}]})}\n\ndata: [DONE]\n\n"
    for text, kind in (("\ufeff" + whole, "application/json"), (event, "text/event-stream")):
        async with server_that(
            lambda *_, text=text, kind=kind: web.Response(body=text.encode(), content_type=kind)
        ) as server:
            await _ask(_settings(settings_for, server))
        assert len(server.asked) == 1


async def test_usage_that_cannot_be_true_is_estimated_and_said_once(
    settings_for: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 2**64, "completion_tokens": -1}
    async with server_that(lambda *_: says(FOUR, usage=usage)) as server:
        stage_stats = await _ask(_settings(settings_for, server), *CITIES[:3])
    assert stage_stats.usage().estimated_calls == 3
    assert 0 < stage_stats.usage().prompt_tokens < 10_000
    assert sum("action=llm_usage" in line for line in caplog.messages) == 1


def _processor(generator: FocusedLLMGenerator, settings: Settings) -> FocusedPromptProcessor:
    return FocusedPromptProcessor(Graph(ALL), generator, settings=settings, profiler=PerformanceProfiler(enabled=False))


@pytest.mark.parametrize(
    "refusal",
    [
        lambda: refuses(401, "Incorrect API key"),
        lambda: refuses(429, "You exceeded your current quota", code="insufficient_quota"),
        lambda: refuses(429, "suspended", type="exceeded_current_quota_error"),
        lambda: refuses(400, "Your credit balance is too low"),
        lambda: web.Response(status=402),
        lambda: refuses(404, "The model does not exist", code="model_not_found"),
        lambda: _page(200),
        lambda: web.json_response({"choices": None, "base_resp": {"status_msg": "insufficient balance"}}),
    ],
    ids=["key", "quota", "type", "credit", "402", "model", "page", "status 200"],
)
async def test_a_refused_account_stops_the_job_after_a_few_calls_and_what_was_paid_stays(
    refusal: Callable[[], web.StreamResponse], settings_for: MakeSettings
) -> None:
    answered, size, is_refused = 20, 5, True
    async with server_that(lambda number, _: refusal() if is_refused and number > answered else None) as server:
        settings = _settings(settings_for, server, THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE=str(size))
        async with _generator(settings) as generator:
            processor, cancellation = _processor(generator, settings), Cancellation("job")
            cities = [Destination.of(name) for name in CITIES]
            ends = await asyncio.gather(
                *(processor.process(c, cancellation=cancellation) for c in cities), return_exceptions=True
            )
            assert {type(end) for end in ends if isinstance(end, Exception)} == {AccountRefusedError}
            # What is under way when the third refusal comes is awaited; nothing more is sent.
            refused = len(server.asked) - answered
            assert refused <= size + 2
            is_refused = False
            outcomes = [await processor.process(city, cancellation=Cancellation("job")) for city in cities[:2]]
    assert all(outcome.profile and outcome.profile.status == "ok" for outcome in outcomes)
    assert len(server.asked) <= answered + refused + 2 * len(ALL)


async def test_a_server_that_refuses_all_prompts_from_the_first_on_stops_the_job(settings_for: MakeSettings) -> None:
    """Whatever its words: no table has them all. One that has answered refuses prompts, and those fail alone."""
    for answered in (0, 1):
        async with server_that(lambda n, _, most=answered: refuses(400, "Shrug") if n > most else None) as server:
            settings = _settings(settings_for, server)
            async with _generator(settings) as generator:
                processor, cancellation = _processor(generator, settings), Cancellation("job")
                cities = [Destination.of(name) for name in CITIES]
                ends = await asyncio.gather(
                    *(processor.process(c, cancellation=cancellation) for c in cities), return_exceptions=True
                )
        paused = [end for end in ends if isinstance(end, AccountRefusedError)]
        assert bool(paused) is bool(cancellation.reason) is (answered == 0)
        assert all("Shrug" in str(end) for end in paused)
        assert len(server.asked) < 100 or answered


async def test_one_odd_refusal_of_the_account_stops_nothing(settings_for: MakeSettings) -> None:
    async with server_that(lambda number, _: refuses(403, "Forbidden") if number % 5 == 0 else None) as server:
        settings = _settings(settings_for, server)
        async with _generator(settings) as generator:
            processor, cancellation = _processor(generator, settings), Cancellation("job")
            outcome = await processor.process(Destination.of("Kyoto"), cancellation=cancellation)
    assert outcome.profile is not None
    assert outcome.profile.status == "ok"
    assert not cancellation.reason


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a\r\nb", "sk-ü", "sk\x00a", "sk a"])
def test_a_key_that_cannot_be_sent_is_refused_with_its_variable(key: str, settings_for: MakeSettings) -> None:
    settings = settings_for(OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_API_KEY=key, THEMES_MODEL="m")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        endpoints(settings.llm)
    assert key.strip() not in str(caught.value)


def test_a_named_endpoint_s_key_that_cannot_be_sent_is_refused_too(settings_for: MakeSettings) -> None:
    named = "{east: {base_url: 'http://127.0.0.1:9/v1', api_key_env: EAST_KEY}}"
    settings = settings_for(THEMES_LLM__ENDPOINTS=named, THEMES_MODEL="m")
    with pytest.raises(ConfigError, match="EAST_KEY"):
        endpoints(settings.llm, {"EAST_KEY": "a\nb"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that no authority has signed, with its key, in one file."""
    if not shutil.which("openssl") and not os.environ.get("CI"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(both), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    with both.open("a") as file:
        file.write((folder / "cert.pem").read_text())
    return both


async def test_a_certificate_of_its_own_is_refused_at_once_with_the_mend_and_trusted_when_named(
    certificate: Path, settings_for: MakeSettings
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with server_that(lambda *_: None, tls=context) as server:
        with pytest.raises(EndpointRefusedError, match=r"llm\.ca_file or SSL_CERT_FILE"):
            await _ask(_settings(settings_for, server))
        assert server.asked == []
        await _ask(_settings(settings_for, server, THEMES_LLM__CA_FILE=str(certificate)))
    assert len(server.asked) == 1


async def test_a_server_without_tls_is_said_to_have_none(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: None) as server:
        server.url = server.url.replace("http:", "https:")
        with pytest.raises(EndpointRefusedError, match="OPENAI_BASE_URL"):
            await _ask(_settings(settings_for, server))


async def test_a_file_without_certificates_is_refused_by_its_name(settings_for: MakeSettings, tmp_path: Path) -> None:
    for text in (None, "no certificate"):
        path = tmp_path / "ca.pem"
        if text:
            path.write_text(text)
        async with server_that(lambda *_: None) as server:
            with pytest.raises(ConfigError, match=r"llm\.ca_file"):
                await _ask(_settings(settings_for, server, THEMES_LLM__CA_FILE=str(path)))


async def test_an_error_with_our_key_in_it_is_shown_without(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: refuses(400, "the key secret-key has no access to this")) as server:
        with pytest.raises(BadRequestError) as caught:
            await _ask(_settings(settings_for, server))
    assert "secret-key" not in str(caught.value)
    async with server_that(lambda *_: web.json_response({"error": "secret-key is odd"})) as server:
        with pytest.raises(EndpointDownError) as broken:
            await _ask(_settings(settings_for, server))
    assert "secret-key" not in str(broken.value)


async def test_headers_and_the_query_of_an_address_are_sent(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: None) as server:
        server.url += "?api-version=2026-01-01&api-key=canary-in-a-query"
        settings = _settings(settings_for, server, THEMES_LLM__HEADERS="{api-key: canary-in-a-header, X-Title: us}")
        await _ask(settings)
    assert server.paths == ["/v1/chat/completions?api-version=2026-01-01&api-key=canary-in-a-query"]
    assert (server.headers[0]["api-key"], server.headers[0]["X-Title"]) == ("canary-in-a-header", "us")
    assert "canary" not in repr(settings)
    named = f"{{east: {{base_url: '{server.url}', headers: {{X-Title: them}}}}}}"
    both = settings_for(THEMES_LLM__ENDPOINTS=named, THEMES_LLM__HEADERS="{X-Title: us, X-More: a}", THEMES_MODEL="m")
    (east,) = endpoints(both.llm)
    assert dict(east.headers) == {"X-Title": "them", "X-More": "a"}
    assert "canary" not in repr(both) + repr(east)


@pytest.mark.parametrize("headers", ["{Host: x}", "{'a b': x}", '{x: "a\\nb"}', "{content-length: 3}", "[a]"])
def test_a_header_that_cannot_be_set_is_refused(headers: str, settings_for: MakeSettings) -> None:
    with pytest.raises(ConfigError, match=r"llm\.headers"):
        settings_for(THEMES_LLM__HEADERS=headers)


def test_an_address_that_cannot_be_used_is_shown_without_its_password(settings_for: MakeSettings) -> None:
    settings = settings_for(OPENAI_BASE_URL="ftp://me:canary@h/v1?api-key=canary", THEMES_MODEL="m")
    assert "canary" not in repr(settings)
    with pytest.raises(ConfigError) as caught:
        endpoints(settings.llm)
    assert "canary" not in str(caught.value)


async def test_a_key_of_few_characters_does_not_cut_into_what_is_said(settings_for: MakeSettings) -> None:
    async with server_that(lambda *_: refuses(400, "The model is tired")) as server:
        settings = settings_for(OPENAI_BASE_URL=server.url, OPENAI_API_KEY="e", THEMES_MODEL="m", **QUICK)
        with pytest.raises(BadRequestError, match="The model is tired"):
            await _ask(settings)
