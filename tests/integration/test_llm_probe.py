"""The LLM is asked once before work is given to it: what that costs, what it finds, and what follows."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from redis import Redis

from config.settings import Settings
from scripts.lib.llm_probe import LlmProbe
from tasks import keys
from tasks.errors import ConfigError
from workers.doctor.llm import PROBE_SECONDS, Probed, probe
from workers.llm.limits.limiter import endpoint_digest
from workers.sandbox.server import SandboxServer

KEY = "sk-the-right-key"
WRONG = "sk-a-wrong-key-of-somebody"


@dataclass
class Provider:
    """A server with a key and one model."""

    #: Whether the list of models is shown to everybody, and whether there is one.
    is_public: bool = False
    has_list: bool = True
    #: A model that it knows beside the one in its list.
    alias: str = "an-alias"
    is_page: bool = False
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    base_url: str = ""
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, request: web.Request) -> web.StreamResponse:
        self.asked.append("models")
        if self.hangs:
            await self.is_over.wait()
        if self.is_page:
            return web.Response(text="<html>Welcome</html>", content_type="text/html")
        if not self.has_list:
            return web.json_response({"error": {"message": "no such path"}}, status=404)
        if not self.is_public and request.headers.get("Authorization") != f"Bearer {KEY}":
            return self._refused()
        return web.json_response({"object": "list", "data": [{"id": "a-model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append("chat")
        if self.is_page:
            return web.Response(text="<html>Welcome</html>", content_type="text/html")
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return self._refused()
        model = (await request.json())["model"]
        if model not in {"a-model", self.alias}:
            error = {"message": f"The model `{model}` does not exist", "code": "model_not_found"}
            return web.json_response({"error": error}, status=404)
        message = {"role": "assistant", "content": json.dumps({"ready": True})}
        usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return web.json_response({"model": model, "choices": choices, "usage": usage})

    def _refused(self) -> web.Response:
        error = {"message": f"Incorrect API key provided: {WRONG}", "code": "invalid_api_key"}
        return web.json_response({"error": error}, status=401)


@asynccontextmanager
async def _serving(*, host: str = "127.0.0.1", **options: object) -> AsyncIterator[Provider]:
    provider = Provider(**options)  # type: ignore[arg-type]
    application = web.Application()
    application.router.add_get("/v1/models", provider.models)
    application.router.add_post("/v1/chat/completions", provider.chat)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    provider.base_url = f"http://{host}:{runner.addresses[0][1]}/v1"
    try:
        yield provider
    finally:
        provider.is_over.set()
        await runner.cleanup()


MakeSettings = Callable[..., Settings]


async def _probed(settings: Settings) -> list[Probed]:
    return await asyncio.to_thread(probe, settings)


def _env(provider: Provider, *, key: str = KEY, model: str = "a-model") -> dict[str, str]:
    return {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": key, "THEMES_MODEL": model}


async def test_a_model_in_a_list_that_only_the_key_may_read_costs_nothing(settings_for: MakeSettings) -> None:
    async with _serving() as provider:
        assert await _probed(settings_for(**_env(provider))) == [Probed("a-model")]
        assert "chat" not in provider.asked


@pytest.mark.parametrize("has_list", [True, False])
async def test_a_wrong_key_is_refused_with_the_mend_and_is_not_shown(
    settings_for: MakeSettings, *, has_list: bool
) -> None:
    async with _serving(has_list=has_list) as provider:
        (found,) = await _probed(settings_for(**_env(provider, key=WRONG)))
    assert found.is_refused
    assert "401" in str(found.problem)
    assert "check OPENAI_API_KEY" in str(found.problem)
    assert WRONG not in str(found.problem)


async def test_an_unknown_model_is_refused_and_one_that_is_only_not_listed_is_not(settings_for: MakeSettings) -> None:
    async with _serving() as provider:
        (found,) = await _probed(settings_for(**_env(provider, model="no-model")))
        assert found.is_refused
        assert "THEMES_MODEL" in str(found.problem)
        assert await _probed(settings_for(**_env(provider, model="an-alias"))) == [Probed("an-alias", calls=1)]


async def test_a_server_without_a_list_is_asked_the_smallest_question(settings_for: MakeSettings) -> None:
    async with _serving(has_list=False) as provider:
        assert await _probed(settings_for(**_env(provider))) == [Probed("a-model", calls=1)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
async def test_a_list_that_everybody_may_read_says_nothing_of_the_key(settings_for: MakeSettings) -> None:
    async with _serving(host="127.0.0.2", is_public=True) as provider:
        (found,) = await _probed(settings_for(**_env(provider, key=WRONG)))
        assert found.is_refused
        assert await _probed(settings_for(**_env(provider))) == [Probed("a-model", calls=1)]


async def test_a_web_page_and_a_server_without_tls_are_wrong_addresses(settings_for: MakeSettings) -> None:
    async with _serving(is_page=True) as provider:
        (found,) = await _probed(settings_for(**_env(provider)))
        assert found.is_refused
        assert "OPENAI_BASE_URL" in str(found.problem)
        env = _env(provider) | {"OPENAI_BASE_URL": provider.base_url.replace("http:", "https:")}
        (found,) = await _probed(settings_for(**env))
        assert "does not speak TLS" in str(found.problem)


async def test_a_server_that_is_away_or_hangs_is_said_with_the_mend_in_time_and_refuses_nothing(
    settings_for: MakeSettings,
) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": KEY, "THEMES_MODEL": "a-model"}
    (found,) = await _probed(settings_for(**env))
    assert not found.is_refused
    assert "cannot connect" in str(found.problem)
    assert "start that server, or set OPENAI_BASE_URL" in str(found.problem)
    async with _serving(hangs=True) as provider:
        began = time.monotonic()
        (found,) = await _probed(settings_for(**_env(provider)))
        assert time.monotonic() - began < PROBE_SECONDS + 20, "and what a busy machine adds"
        assert not found.is_refused
        assert f"no answer within {PROBE_SECONDS:g} s" in str(found.problem)
        assert "chat" not in provider.asked


async def test_of_two_endpoints_the_refused_one_is_said_and_the_other_is_enough(
    settings_for: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with _serving() as provider:
        servers = {
            "east": {"base_url": provider.base_url, "api_key": KEY},
            "west": {"base_url": provider.base_url, "api_key": WRONG},
        }
        settings = settings_for(THEMES_LLM__ENDPOINTS=json.dumps(servers), THEMES_MODEL="a-model")
        await asyncio.to_thread(lambda: LlmProbe(settings).refuse())
        assert "401" in capsys.readouterr().err
        del servers["east"]
        settings = settings_for(THEMES_LLM__ENDPOINTS=json.dumps(servers), THEMES_MODEL="a-model")
        with pytest.raises(ConfigError, match=r"nothing was enqueued, the LLM refuses: .*401.*--force"):
            await asyncio.to_thread(lambda: LlmProbe(settings).refuse())


async def test_nothing_is_asked_where_no_llm_is_set_or_the_workers_ask_another(
    settings_for: MakeSettings, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(lambda: LlmProbe(settings_for(), redis).refuse())
    async with _serving() as provider, SandboxServer(latency="0") as sandbox:
        settings = settings_for(**_env(provider, key=WRONG))

        def heartbeat(base_url: str, model: str) -> None:
            pool = {"routes": {"llm": {"limit_digest": endpoint_digest(base_url, model)}}}
            redis.hset(keys.worker("w@h"), mapping={"lanes": 1, "pool": json.dumps(pool)})
            redis.expire(keys.worker("w@h"), 60)
            redis.zadd(keys.WORKERS, {"w@h": 1})

        heartbeat(sandbox.base_url, "sandbox")
        await asyncio.to_thread(lambda: LlmProbe(settings, redis).refuse())
        assert provider.asked == []
        assert capsys.readouterr().err == ""
        heartbeat(provider.base_url, "a-model")
        with pytest.raises(ConfigError, match="nothing was enqueued"):
            await asyncio.to_thread(lambda: LlmProbe(settings, redis).refuse())
