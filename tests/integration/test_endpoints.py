"""Several endpoints and models, over HTTP: who is asked, and what happens when one of them is ill."""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from config.settings import Settings
from tasks.errors import ConfigError, EndpointDownError, EndpointRefusedError, ThemesError
from tasks.messages import Destination
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.registry import endpoints, model_for
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.hedge import ENOUGH
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
STAGES = {stage.name: stage for stage in load_stages()}
QUICK = {
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.02",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.05",
    "THEMES_MODEL": "sandbox",
}


def _prompt(name: str, stage: str = "discover.food") -> Prompt:
    return STAGES[stage].prompt(Input.of(Destination.of(name)))


def _servers(*servers: SandboxServer, **more: str) -> str:
    named = {chr(97 + number): {"base_url": server.base_url} for number, server in enumerate(servers)}
    named["a"] |= more
    return json.dumps(named)


@asynccontextmanager
async def _generator(settings: Settings, *models: str) -> AsyncIterator[FocusedLLMGenerator]:
    async with _pooled(settings, *models) as (_, generator):
        yield generator


@asynccontextmanager
async def _pooled(settings: Settings, *models: str) -> AsyncIterator[tuple[LLMConnectionPool, FocusedLLMGenerator]]:
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, models or {"sandbox"}, profiler, None) as pool:
        yield pool, FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


async def _ask(generator: FocusedLLMGenerator, *names: str) -> StageStats:
    stage_stats = StageStats()
    await asyncio.gather(
        *(generator.answer(_prompt(name), stage_stats=stage_stats, request_priority=0) for name in names)
    )
    return stage_stats


@pytest.fixture
async def two() -> AsyncIterator[tuple[SandboxServer, SandboxServer]]:
    async with SandboxServer(latency="5ms") as one, SandboxServer(latency="5ms") as other:
        yield one, other


CITIES = [f"City {number}" for number in range(60)]


async def test_endpoints_share_the_work_by_their_weight(two, settings_for: MakeSettings) -> None:
    settings = settings_for(THEMES_LLM__ENDPOINTS=_servers(*two, weight="3"), **QUICK)
    async with _generator(settings) as generator:
        stage_stats = await _ask(generator, *CITIES)
        again = await _ask(generator, *CITIES)
    counts = [server.stats()["requests"] for server in two]
    assert stage_stats.spend.calls == sum(counts) == 60
    assert counts[0] > counts[1] > 0
    assert again.cache.hits == 60, "equivalent endpoints share completions"


@pytest.mark.parametrize("fault", ["500=1", "503=1", "reset=1", "html=1", "error200=1"])
async def test_one_endpoint_that_is_down_costs_no_destination(fault: str, two, settings_for: MakeSettings) -> None:
    two[0].set_faults([fault])
    settings = settings_for(THEMES_LLM__ENDPOINTS=_servers(*two), **QUICK)
    async with _generator(settings) as generator:
        stage_stats = await _ask(generator, *CITIES)
        pool = generator._caller._pool
        ill = next(route for route in pool.routes if route.name == "a")
        assert ill.circuit.failures
        assert pool.in_use == 0
    stats = [server.stats()["requests"] for server in two]
    assert stage_stats.spend.calls == sum(stats)
    assert stats[0] < 30, "it was left alone"


async def test_an_endpoint_that_cannot_be_reached_at_all_is_gone_around(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0") as there:
        async with SandboxServer(latency="0") as gone:
            pass
        settings = settings_for(THEMES_LLM__ENDPOINTS=_servers(gone, there), **QUICK)
        async with _generator(settings) as generator:
            stage_stats = await _ask(generator, *CITIES)
        assert stage_stats.spend.calls == there.stats()["requests"] == 60


async def test_a_key_that_one_endpoint_refuses_is_told_and_the_other_asked(two, settings_for: MakeSettings) -> None:
    two[0].set_faults(["401=1"])
    settings = settings_for(THEMES_LLM__ENDPOINTS=_servers(*two), **QUICK)
    async with _generator(settings) as generator:
        await _ask(generator, *CITIES)
        two[1].set_faults(["401=1"])
        with pytest.raises(EndpointRefusedError, match="key is refused"):
            await _ask(generator, "Elsewhere")


async def test_a_refused_endpoint_s_share_goes_to_the_other_during_its_cool_down(
    two, settings_for: MakeSettings
) -> None:
    two[0].set_faults(["429=1,retry_after=30"])
    settings = settings_for(THEMES_LLM__ENDPOINTS=_servers(*two), **QUICK)
    async with _generator(settings) as generator, asyncio.timeout(180):
        stage_stats = await _ask(generator, *CITIES)
    assert stage_stats.spend.calls - 60 == two[0].stats()["requests"] <= 15


async def test_each_role_asks_its_own_model_where_that_is_served(two, settings_for: MakeSettings) -> None:
    servers = json.dumps(
        {
            "large": {"base_url": two[0].base_url, "models": ["big"]},
            "small": {"base_url": two[1].base_url, "models": {"little": "sandbox"}},
        }
    )
    settings = settings_for(
        THEMES_LLM__ENDPOINTS=servers,
        THEMES_LLM__ROLES="{analyse: little, 'assess.overlap': little}",
        **{**QUICK, "THEMES_MODEL": "big"},
    )
    names = ("discover.food", "analyse.price", "assess.overlap", "assess.quality")
    models = {name: model_for(settings.llm, name, STAGES[name].model) for name in names}
    assert models == dict(zip(names, ("big", "little", "little", "big"), strict=True))
    assert model_for(settings.llm, "discover.food", "analyse") == "little", "a prompt file may name a role"
    assert model_for(settings.llm, "discover.food", "a-model") == "a-model", "or a model"
    async with _generator(settings, "big", "little") as generator:
        for name in names:
            await generator.answer(_prompt("Kyoto", name), stage_stats=StageStats(), request_priority=0)
    stages = [Counter(entry["stage"] for entry in server.log()) for server in two]
    assert stages == [Counter(["discover.food", "assess.quality"]), Counter(["analyse.price", "assess.overlap"])]
    with pytest.raises(ConfigError, match="no endpoint serves the model 'other'"):
        async with _generator(settings, "other"):
            pass


async def test_hedging_takes_the_second_answer_where_the_first_is_late(two, settings_for: MakeSettings) -> None:
    def settings(hedge: str) -> Settings:
        return settings_for(THEMES_LLM__ENDPOINTS=_servers(*two), THEMES_LLM__HEDGE=hedge, **QUICK)

    async with _generator(settings("true")) as generator:
        await _ask(generator, *CITIES[: ENOUGH + 5])
        two[0].set_faults(["hang=1"])
        async with asyncio.timeout(180):
            stage_stats = await _ask(generator, *[f"Late {number}" for number in range(10)])
        caller = generator._caller
        assert 0 < caller.hedged == stage_stats.spend.calls - 10
        assert stage_stats.spend.completion_tokens > 0
        assert caller._pool.in_use == 0
    async with _generator(settings("false")) as generator:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await _ask(generator, *[f"Never {number}" for number in range(10)])
        assert generator._caller.hedged == 0


async def test_connections_are_opened_once_recycled_by_age_and_closed_when_idle(
    sandbox: SandboxServer, settings_for: MakeSettings
) -> None:
    async def statistics(**env: str) -> dict[str, int]:
        settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, **QUICK, **env)
        async with _generator(settings) as generator:
            pool = generator._caller._pool
            assert await pool.warm(3) == 3
            assert pool.statistics()["idle"] == 3
            for number in range(20):
                await _ask(generator, f"{sorted(env)} {number}")
            await asyncio.sleep(0.02)
            async with asyncio.timeout(180):
                while env and pool.idle:
                    await asyncio.sleep(0.01)
            return pool.statistics()

    kept = await statistics()
    assert (kept["opened"], kept["idle"], kept["recycled"]) == (3, 3, 0)
    old = await statistics(THEMES_LLM__MAX_CONNECTION_AGE_SECONDS="0.1", THEMES_LLM__IDLE_CONNECTION_SECONDS="0.05")
    assert old["opened"] == old["recycled"] >= 3


async def test_a_broken_connection_is_not_lent_again(sandbox: SandboxServer, settings_for: MakeSettings) -> None:
    sandbox.set_faults(["reset=1,times=2"])
    settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, **QUICK)
    async with _generator(settings) as generator:
        await _ask(generator, "Kyoto")
        found = generator._caller._pool.statistics()
    assert (found["opened"], found["recycled"], found["failures"]) == (3, 2, 2)


async def test_a_cancelled_call_gives_its_connection_back_at_once(
    sandbox: SandboxServer, settings_for: MakeSettings
) -> None:
    sandbox.set_faults(["hang=1"])
    settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, **QUICK)
    async with AsyncExitStack() as stack:
        generator = await stack.enter_async_context(_generator(settings))
        pool = generator._caller._pool
        asking = asyncio.create_task(_ask(generator, *CITIES[:20]))
        async with asyncio.timeout(180):
            while pool.in_use < 15 or pool.waiting < 5:
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while pool.in_use:
                await asyncio.sleep(0)
        assert pool.waiting == 0


def test_keys_come_from_the_environment_or_a_file_and_are_never_shown(
    settings_for: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "key"
    file.write_text("from-file\n")
    named = {
        "east": {"base_url": "https://east/v1", "api_key_env": "EAST_KEY"},
        "west": {"base_url": "https://west/v1/", "api_key_file": str(file), "requests_per_minute": 60},
        "here": {"base_url": "http://localhost/v1", "api_key": "in-plain-words"},
    }
    settings = settings_for(
        THEMES_LLM__ENDPOINTS=json.dumps(named), THEMES_MODEL="m", THEMES_LLM__TOKENS_PER_MINUTE="9"
    )
    found = endpoints(settings.llm, {"EAST_KEY": "from-env"})
    assert [one.api_key for one in found] == ["from-env", "from-file", "in-plain-words"]
    assert found[1].base_url == "https://west/v1"
    assert [one.limits.requests_per_minute for one in found] == [None, 60, None]
    assert {one.limits.tokens_per_minute for one in found} == {9}
    for secret in ("from-env", "from-file", "in-plain-words"):
        assert secret not in repr(found) + repr(settings) + caplog.text
    with pytest.raises(ConfigError, match="EAST_KEY is not set"):
        endpoints(settings.llm, {})
    file.write_text("two words")
    with pytest.raises(ConfigError, match="must hold one key"):
        endpoints(settings.llm, {"EAST_KEY": "x"})
    file.unlink()
    with pytest.raises(ConfigError, match=r"api_key_file: .*cannot be read"):
        endpoints(settings.llm, {"EAST_KEY": "x"})


def test_the_one_endpoint_s_key_may_stand_in_a_file(settings_for: MakeSettings, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    settings = settings_for(THEMES_LLM__API_KEY_FILE=str(file), THEMES_MODEL="m")
    (only,) = endpoints(settings.llm)
    assert (only.api_key, only.base_url) == ("secret", "https://api.openai.com/v1")


async def test_a_key_that_a_server_repeats_is_in_no_error_and_no_log(
    settings_for: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bodies = [
        (401, '{"error": {"message": "invalid key sk-topsecret"}}'),
        (500, "<html>sk-topsecret</html>"),
        (200, '{"error": "sk-topsecret"}'),
        (200, "sk-topsecret"),
    ]
    asked: list[str] = []
    says = bodies[0]

    async def chat(request: web.Request) -> web.Response:
        asked.append(request.headers["Authorization"])
        return web.Response(status=says[0], text=says[1])

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"127.0.0.1:{runner.addresses[0][1]}"
    no_retry = {"THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0", **QUICK}
    for settings in (
        settings_for(OPENAI_BASE_URL=f"http://{host}/v1", OPENAI_API_KEY="sk-topsecret", **no_retry),
        settings_for(OPENAI_BASE_URL=f"http://me:sk-topsecret@{host}/v1", **no_retry),
    ):
        for says in bodies:  # noqa: B007  # the server reads it
            async with _generator(settings) as generator:
                with pytest.raises(ThemesError) as caught:
                    await _ask(generator, "Kyoto")
                assert "sk-topsecret" not in str(caught.value) + repr(generator)
    await runner.cleanup()
    assert asked
    assert asked[0] == "Bearer sk-topsecret"
    assert asked[-1].startswith("Basic ")
    both = settings_for(OPENAI_BASE_URL=f"http://me:sk-topsecret@{host}/v1", OPENAI_API_KEY="k", **QUICK)
    with pytest.raises(ConfigError, match="beside the key"):
        endpoints(both.llm)
    assert "sk-topsecret" not in caplog.text


async def _until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(180):
        while not what():
            await asyncio.sleep(0.005)


async def _each(generator: FocusedLLMGenerator, count: int) -> list[object]:
    """Ask for so many destinations at once, each with a rank of its own."""
    asked = (
        generator.answer(_prompt(f"City {number}"), stage_stats=StageStats(), request_priority=number)
        for number in range(count)
    )
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("kind", ["nobody listens", "503"])
async def test_work_waits_for_an_endpoint_that_is_away_and_goes_on_when_it_is_back(
    settings_for: MakeSettings, kind: str
) -> None:
    async with SandboxServer(latency="0") as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        faults = ["503=1"] if kind == "503" else []
        server.set_faults(faults)
        settings = settings_for(OPENAI_BASE_URL=server.base_url, **QUICK)
        if not faults:
            await server.__aexit__(None, None, None)
        async with _pooled(settings) as (pool, generator):
            asking = asyncio.create_task(_each(generator, 30))
            await _until(pool.outage)
            assert ("cannot connect" if not faults else "503") in pool.outage()
            # Far more probes than a request has tries: none of them counts.
            (route,) = pool.routes
            await _until(lambda: route.circuit.failures > 40)
            assert not asking.done()
            async with SandboxServer(latency="0", port=port) if not faults else contextlib.nullcontext(server) as again:
                again.set_faults([])
                answers = await asking
            assert pool.outage() == ""
    assert not [answer for answer in answers if isinstance(answer, Exception)]


async def test_an_endpoint_that_stays_away_too_long_fails_what_waited(settings_for: MakeSettings) -> None:
    async with SandboxServer(latency="0", faults=["503=1"]) as server:
        env = QUICK | {"THEMES_LLM__WAIT_FOR_ENDPOINT_SECONDS": "0.2"}
        async with _pooled(settings_for(OPENAI_BASE_URL=server.base_url, **env)) as (pool, generator):
            answers = await _each(generator, 10)
            assert pool.outage() == ""
    assert all(isinstance(answer, EndpointDownError) for answer in answers)


async def test_one_destination_that_is_always_refused_with_503_is_no_outage(settings_for: MakeSettings) -> None:
    stages = [name for name in STAGES if name.startswith("discover.")]
    async with (
        SandboxServer(latency="0", faults=["503=1,match=City 3"]) as server,
        _pooled(settings_for(OPENAI_BASE_URL=server.base_url, **QUICK)) as (pool, generator),
    ):
        asked = (
            generator.answer(_prompt("City 3", stage), stage_stats=StageStats(), request_priority=3) for stage in stages
        )
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, EndpointDownError) for answer in answers)
        assert pool.outage() == ""
        assert not [answer for answer in await _each(generator, 3) if isinstance(answer, Exception)]


@asynccontextmanager
async def _outside() -> AsyncIterator[tuple[SandboxServer, str, list[web.Request]]]:
    """A sandbox behind a proxy, the proxy's address, and what the proxy was asked."""
    asked: list[web.Request] = []
    async with SandboxServer(latency="0") as sandbox, aiohttp.ClientSession() as session:

        async def hand_on(request: web.BaseRequest) -> web.Response:
            asked.append(request)
            url = f"{sandbox.base_url.removesuffix('/v1')}{request.url.path}"
            async with session.request(request.method, url, data=await request.read()) as answer:
                return web.Response(body=await answer.read(), content_type="application/json")

        server = RawTestServer(hand_on)
        await server.start_server()
        try:
            yield sandbox, f"{server.host}:{server.port}", asked
        finally:
            await server.close()


@pytest.mark.parametrize("key", ["a-key", ""])
async def test_the_proxy_and_the_log_in_of_the_environment_are_looked_up_once(
    key: str, settings_for: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine llm.test login me password mine\n")
    netrc.chmod(0o600)
    async with _outside() as (_, proxy, asked):
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("http_proxy", f"http://user:pass@{proxy}")
        settings = settings_for(OPENAI_BASE_URL="http://llm.test/v1", OPENAI_API_KEY=key, **QUICK)
        async with _generator(settings) as generator:
            monkeypatch.delenv("http_proxy")
            netrc.unlink()
            stage_stats = await _ask(generator, *CITIES[:5])
    assert stage_stats.spend.calls == len(asked) == 5
    assert {str(request.url) for request in asked} == {"http://llm.test/v1/chat/completions"}
    assert {request.headers["Proxy-Authorization"] for request in asked} == {aiohttp.encode_basic_auth("user", "pass")}
    log_in = f"Bearer {key}" if key else aiohttp.encode_basic_auth("me", "mine")
    assert {request.headers["Authorization"] for request in asked} == {log_in}


async def test_a_server_that_needs_no_proxy_is_asked_without_one(
    settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _outside() as (sandbox, proxy, asked):
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        own = sandbox.base_url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("no_proxy", "127.0.0.9")
        env = QUICK | {"THEMES_LLM__WAIT_FOR_ENDPOINT_SECONDS": "0.1"}
        for url in (own, sandbox.base_url, "http://127.0.0.9:1/v1"):
            async with _generator(settings_for(OPENAI_BASE_URL=url, **env)) as generator:
                with contextlib.suppress(EndpointDownError):
                    await _ask(generator, "Rome")
        assert sandbox.stats()["requests"] == 2
        assert not asked
