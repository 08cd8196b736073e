import asyncio
import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema_rs
import pytest

from config.errors import ConfigError
from workers.sandbox.answers import CATEGORIES, MONTHS, knowledge
from workers.sandbox.server import SandboxServer

#: Seconds for what waits for nobody: aiohttp by itself would give hanging requests a minute.
AT_ONCE_SECONDS = 180
THEME = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 80},
        "description": {"type": "string", "minLength": 10, "maxLength": 400},
        "citations": {
            "type": "array",
            "maxItems": 3,
            "items": {"type": "string", "minLength": 2, "maxLength": 200},
        },
    },
    "required": ["name", "description", "citations"],
    "additionalProperties": False,
}
MONTH = {"type": "string", "enum": list(MONTHS)}
SCORE = {"type": "number", "minimum": 0, "maximum": 1}


def texts(least: int, most: int, length: int) -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": least,
        "maxItems": most,
        "items": {"type": "string", "minLength": 2, "maxLength": length},
    }


def strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


FIELDS = {
    "analyse.seasonality": {
        "seasonality": strict(
            {
                "peak": {"type": "array", "minItems": 1, "maxItems": 12, "items": MONTH},
                "avoid": {"type": "array", "maxItems": 12, "items": MONTH},
            }
        )
    },
    "analyse.travellers": {
        "traveler_types": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "string",
                "enum": (
                    "solo couple family group business luxury budget adventure cultural relaxation".split()  # noqa: SIM905
                ),
            },
        }
    },
    "analyse.price": {"price_point": {"type": "string", "enum": ["budget", "mid", "luxury"]}},
    "analyse.confidence": {"confidence": SCORE},
    "assess.authenticity": {"authenticity_score": SCORE},
    "enhance.sub_themes": {"sub_themes": texts(3, 4, 80)},
    "enhance.nano_experiences": {"nano_themes": texts(3, 4, 120)},
    "enhance.selling_points": {"unique_selling_points": texts(3, 4, 160)},
    "enhance.rationale": {"rationale": {"type": "string", "minLength": 10, "maxLength": 900}},
}
COUNTS = {"culture": (5, 7), "food": (4, 6), "adventure": (4, 6), "entertainment": (4, 6), "luxury": (3, 5)}


def discover(category: str) -> dict[str, Any]:
    low, high = COUNTS[category]
    return strict({"themes": {"type": "array", "minItems": low, "maxItems": high, "items": THEME}})


def each(stage: str, count: int) -> dict[str, Any]:
    return strict({f"t{number}": strict(FIELDS[stage]) for number in range(1, count + 1)})


def overlap(count: int) -> dict[str, Any]:
    ids = {"type": "string", "enum": [f"t{number}" for number in range(1, count + 1)]}
    group = {"type": "array", "minItems": 2, "maxItems": 6, "items": ids}
    return strict({"overlapping_groups": {"type": "array", "maxItems": 10, "items": group}})


QUALITY = strict(
    {
        "quality": SCORE,
        "overall": SCORE,
        "recommendations": {
            "type": "array",
            "maxItems": 5,
            "items": {"type": "string", "minLength": 5, "maxLength": 240},
        },
    }
)


def body(
    stage: str,
    schema: Any,
    *,
    name: str = "Kyoto",
    country: str | None = "Japan",
    themes: list[dict[str, str]] | None = None,
    form: str = "json_schema",
    text: str = "",
    **more: Any,
) -> dict[str, Any]:
    """A request as our client writes it."""
    data: dict[str, Any] = {"destination": {"name": name, "country": country}}
    if themes is not None:
        data["themes"] = themes
    kind = stage.partition(".")[2]
    asks = f"Find themes of the kind **{kind}**." if stage.startswith("discover") else f"Answer about {stage}."
    user = f"{asks}{text}\n\n<input>\n{json.dumps(data, ensure_ascii=False)}\n</input>"
    system = "You are a travel researcher."
    request: dict[str, Any] = {"model": "gpt-x", **more}
    if form == "json_schema":
        named = {"name": stage.replace(".", "_"), "strict": True, "schema": schema}
        request["response_format"] = {"type": "json_schema", "json_schema": named}
    else:
        system += f"\nJSON Schema: {json.dumps(schema)}\nAnswer with JSON."
        if form == "json_object":
            request["response_format"] = {"type": "json_object"}
    request["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return request


def themes_of(name: str) -> list[dict[str, str]]:
    place = next(place for place in knowledge().places if place.name == name)
    pairs = [(category, theme) for category in CATEGORIES for theme, _ in place.themes(category)]
    return [
        {"id": f"t{number}", "category": category, "name": theme}
        for number, (category, theme) in enumerate(pairs, start=1)
    ]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def post(
    http: aiohttp.ClientSession, server: SandboxServer, request: Any, **more: Any
) -> tuple[int, dict[str, Any]]:
    async with http.post(f"{server.base_url}/chat/completions", json=request, **more) as response:
        return response.status, await response.json()


async def ask(http: aiohttp.ClientSession, server: SandboxServer, request: Any) -> Any:
    status, answer = await post(http, server, request)
    assert status == 200, answer
    return json.loads(answer["choices"][0]["message"]["content"])


async def stats(http: aiohttp.ClientSession, server: SandboxServer, query: str = "") -> dict[str, Any]:
    async with http.get(f"{server.root_url}/stats{query}") as response:
        found: dict[str, Any] = await response.json()
        return found


async def in_flight(server: SandboxServer, count: int) -> None:
    """Wait until this many requests are in flight."""
    async with asyncio.timeout(180):
        while server.stats()["in_flight"] != count:  # another party's state
            await asyncio.sleep(0.01)


def stages(themes: list[dict[str, str]]) -> list[tuple[str, Any, list[dict[str, str]] | None]]:
    count = len(themes)
    return [
        *((f"discover.{category}", discover(category), None) for category in CATEGORIES),
        *((stage, each(stage, count), themes) for stage in FIELDS),
        ("assess.overlap", overlap(count), themes),
        ("assess.quality", QUALITY, themes),
    ]


@pytest.mark.parametrize("style", ["knowledge", "random"])
@pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
async def test_every_stage_gets_a_valid_answer_in_every_style_and_format(
    http: aiohttp.ClientSession, style: str, form: str
) -> None:
    async with SandboxServer(latency="0", style=style) as server:
        for stage, schema, themes in stages(themes_of("Kyoto")):
            answer = await ask(http, server, body(stage, schema, themes=themes, form=form))
            assert jsonschema_rs.is_valid(schema, answer), stage
        seen = await stats(http, server)
        assert seen["by_stage"] == {stage: 1 for stage, _, _ in stages([])}


async def test_every_demo_destination_is_answered_from_knowledge(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0") as server:
        for place in knowledge().places:
            for category in CATEGORIES:
                asked = body(f"discover.{category}", discover(category), name=place.name, country=place.country)
                answer = await ask(http, server, asked)
                assert [theme["name"] for theme in answer["themes"]] == [n for n, _ in place.themes(category)]


async def test_analyses_follow_the_destination_and_the_kind_of_theme(http: aiohttp.ClientSession) -> None:
    themes = themes_of("Kyoto")
    place = knowledge().places[0]
    async with SandboxServer(latency="0") as server:
        answers: dict[str, Any] = {}
        for stage in FIELDS:
            answers[stage] = await ask(http, server, body(stage, each(stage, len(themes)), themes=themes))
    for theme in themes:
        season = answers["analyse.seasonality"][theme["id"]]["seasonality"]
        assert set(season["peak"]) <= set(place.peak)
        assert set(season["avoid"]) <= set(place.avoid)
        assert theme["name"] in answers["enhance.rationale"][theme["id"]]["rationale"]
        price = answers["analyse.price"][theme["id"]]["price_point"]
        assert (price == "luxury") >= (theme["category"] == "luxury")
    rationales = [part["rationale"] for part in answers["enhance.rationale"].values()]
    assert len(set(rationales)) == len(rationales)


async def test_a_theme_is_judged_alike_in_small_and_large_batches(http: aiohttp.ClientSession) -> None:
    themes = themes_of("Paris")
    alone = [{**themes[5], "id": "t1"}]
    async with SandboxServer(latency="0") as server:
        for stage in FIELDS:
            many = await ask(
                http,
                server,
                body(stage, each(stage, len(themes)), name="Paris", country="France", themes=themes),
            )
            few = await ask(http, server, body(stage, each(stage, 1), name="Paris", country="France", themes=alone))
            assert few["t1"] == many["t6"]


async def test_unknown_destinations_and_namesakes_get_themes_that_say_they_are_general(
    http: aiohttp.ClientSession,
) -> None:
    async with SandboxServer(latency="0") as server:
        for name, country in (("Atlantis", None), ("Naples", "United States")):
            asked = body("discover.culture", discover("culture"), name=name, country=country)
            answer = await ask(http, server, asked)
            assert all(theme["name"].endswith(f" of {name}") for theme in answer["themes"])
            assert all("not a checked fact" in theme["description"] for theme in answer["themes"])
            assert all(theme["citations"] == [] for theme in answer["themes"])


async def test_answers_depend_on_prompt_and_seed_alone(http: aiohttp.ClientSession) -> None:
    stage = "analyse.confidence"
    asked = body(stage, each(stage, 9), themes=themes_of("Kyoto")[:9])
    answers = []
    for seed in (1, 1, 2):
        async with SandboxServer(latency="0", seed=seed) as server:
            answers.append(await ask(http, server, asked))
    assert answers[0] == answers[1] != answers[2]


async def test_the_answer_has_the_shape_of_the_original_api_and_names_itself(
    http: aiohttp.ClientSession,
) -> None:
    async with SandboxServer(latency="0") as server:
        _, answer = await post(http, server, body("discover.food", discover("food")))
        async with http.get(f"{server.base_url}/models") as response:
            models = await response.json()
        async with http.get(f"{server.root_url}/health") as response:
            assert response.status == 200
    assert answer["model"] == "sandbox"
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == -(-len(answer["choices"][0]["message"]["content"]) // 4)
    assert [model["id"] for model in models["data"]] == ["sandbox"]


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_longer_than_max_tokens_is_cut_off(http: aiohttp.ClientSession, key: str) -> None:
    async with SandboxServer(latency="0") as server:
        whole = await post(http, server, body("discover.food", discover("food")))
        _, cut = await post(http, server, body("discover.food", discover("food"), **{key: 50}))
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 50
    text = cut["choices"][0]["message"]["content"]
    assert len(text) == 200
    assert whole[1]["choices"][0]["message"]["content"].startswith(text)


@pytest.mark.parametrize("refusal", [400, 500])
async def test_response_formats_that_are_switched_off_are_refused_by_name(
    http: aiohttp.ClientSession, refusal: int
) -> None:
    async with SandboxServer(latency="0", formats=["json_object"], format_refusal=refusal) as server:
        for form, expected in (("json_schema", refusal), ("text", refusal), ("json_object", 200)):
            status, answer = await post(http, server, body("discover.food", discover("food"), form=form))
            assert status == expected
            if expected != 200:
                assert "response_format" in answer["error"]["message"]


async def test_a_wrong_key_is_refused(http: aiohttp.ClientSession) -> None:
    asked = body("discover.food", discover("food"))
    async with SandboxServer(latency="0", api_key="right") as server:
        status, answer = await post(http, server, asked)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        status, _ = await post(http, server, asked, headers={"Authorization": "Bearer right"})
        assert status == 200
        async with http.get(f"{server.base_url}/models") as response:
            assert response.status == 401


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"messages": "hello"},
        {"messages": [], "stream": True},
        {"messages": [], "response_format": {"type": "json_schema"}},
        {
            "messages": [],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}},
        },
        {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
    ],
)
async def test_unreadable_requests_get_a_400_that_says_why(http: aiohttp.ClientSession, request_body: Any) -> None:
    async with SandboxServer(latency="0") as server:
        status, answer = await post(http, server, request_body)
        assert status == 400
        assert answer["error"]["message"]
        assert set(answer["error"]) >= {"message", "type", "code"}


async def test_unknown_paths_get_an_error_body(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0") as server, http.get(f"{server.base_url}/nothing") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429=1,retry_after=1.5", 429, "rate_limit_exceeded"),
        ("500=1", 500, "internal_error"),
        ("503=1", 503, "overloaded"),
        ("401=1", 401, "invalid_api_key"),
        ("400=1", 400, "invalid_request"),
        ("404=1", 404, "model_not_found"),
        ("error200=1", 200, "internal_error"),
    ],
)
async def test_status_faults_carry_the_original_apis_error_body(
    http: aiohttp.ClientSession, fault: str, status: int, code: str
) -> None:
    async with SandboxServer(latency="0", faults=[fault]) as server:
        got, answer = await post(http, server, body("discover.food", discover("food")))
    assert (got, answer["error"]["code"]) == (status, code)


async def test_retry_after_comes_in_seconds_or_as_a_date(http: aiohttp.ClientSession) -> None:
    asked = body("discover.food", discover("food"))
    found = []
    async with SandboxServer(latency="0") as server:
        for rule in ("429=1,retry_after=1.5", "429=1,retry_after=date", "429=1"):
            server.set_faults([rule])
            async with http.post(f"{server.base_url}/chat/completions", json=asked) as response:
                found.append(response.headers.get("Retry-After"))
    assert found[0] == "1.5"
    assert 0 < email.utils.parsedate_to_datetime(str(found[1])).timestamp() - time.time() <= 2
    assert found[2] is None


async def content_with(http: aiohttp.ClientSession, fault: str, schema: Any = None) -> dict[str, Any]:
    async with SandboxServer(latency="0", faults=[f"{fault}=1"]) as server:
        status, answer = await post(http, server, body("discover.food", schema or discover("food")))
    assert status == 200
    return answer


async def test_spoilt_contents_are_spoilt_in_their_own_way(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0") as server:
        good = await ask(http, server, body("discover.food", discover("food")))
    texts_by_fault = {}
    for fault in ("truncated", "invalid", "wrong", "fenced", "trailing_comma", "upper_keys", "wrapped"):
        answer = await content_with(http, fault)
        texts_by_fault[fault] = answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == ("length" if fault == "truncated" else "stop")
    for fault in ("truncated", "invalid", "fenced", "trailing_comma"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(texts_by_fault[fault])
    assert json.loads(texts_by_fault["fenced"].partition("```JSON\n")[2].partition("\n```")[0]) == good
    assert json.loads(texts_by_fault["trailing_comma"].replace(",}", "}")) == good
    assert not jsonschema_rs.is_valid(discover("food"), json.loads(texts_by_fault["wrong"]))
    assert json.loads(texts_by_fault["upper_keys"])["THEMES"][0]["NAME"] == good["themes"][0]["name"]
    assert json.loads(texts_by_fault["wrapped"]) == good["themes"]
    wrapped = await content_with(http, "wrapped", strict({"a": {"const": 1}, "b": {"const": 2}}))
    assert json.loads(wrapped["choices"][0]["message"]["content"]) == {"result": {"a": 1, "b": 2}}


async def test_empty_refused_and_filtered_answers_look_like_the_originals(
    http: aiohttp.ClientSession,
) -> None:
    assert (await content_with(http, "empty"))["choices"] == []
    refused = (await content_with(http, "refusal"))["choices"][0]["message"]
    assert refused["content"] is None
    assert refused["refusal"]
    filtered = (await content_with(http, "content_filter"))["choices"][0]
    assert filtered["finish_reason"] == "content_filter"


async def test_an_html_page_comes_with_status_502(http: aiohttp.ClientSession) -> None:
    async with (
        SandboxServer(latency="0", faults=["html=1"]) as server,
        http.post(f"{server.base_url}/chat/completions", json=body("discover.food", discover("food"))) as response,
    ):
        assert response.status == 502
        assert response.content_type == "text/html"


async def test_a_reset_cuts_the_connection_within_the_body(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0", faults=["reset=1"]) as server:
        with pytest.raises(aiohttp.ClientError):
            await post(http, server, body("discover.food", discover("food")))
        assert (await stats(http, server))["by_status"] == {"reset": 1}


async def test_a_hanging_request_ends_when_its_caller_hangs_up(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0", faults=["hang=1"]) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(http, server, body("discover.food", discover("food"))), 0.2)
        await in_flight(server, 0)
        assert (await stats(http, server))["by_status"] == {"499": 1}


async def test_a_server_with_hanging_requests_still_closes_at_once(
    http: aiohttp.ClientSession,
) -> None:
    async with SandboxServer(latency="0", faults=["hang=1"]) as server:
        waiting = asyncio.create_task(post(http, server, body("discover.food", discover("food"))))
        await in_flight(server, 1)
        started = time.monotonic()
    assert time.monotonic() - started < AT_ONCE_SECONDS
    with pytest.raises(aiohttp.ClientError):
        await waiting


async def test_a_drip_outlives_a_timeout_between_reads(http: aiohttp.ClientSession) -> None:
    asked = body("discover.food", strict({"a": {"const": 1}}))
    async with SandboxServer(latency="0", faults=["drip=1,interval=0.001"]) as server:
        started = time.monotonic()
        answer = await ask(http, server, asked)
    assert answer == {"a": 1}
    assert time.monotonic() - started > 0.25


async def test_an_endless_body_goes_on_until_the_caller_stops_reading(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0", faults=["endless=1"]) as server:
        asked = body("discover.food", discover("food"))
        async with http.post(f"{server.base_url}/chat/completions", json=asked) as response:
            assert len(await response.content.readexactly(2_000_000)) == 2_000_000
            response.close()
        await in_flight(server, 0)


async def test_faults_are_replaced_and_cleared_while_the_server_runs(http: aiohttp.ClientSession) -> None:
    asked = body("discover.food", discover("food"))
    async with SandboxServer(latency="0") as server:
        url = f"{server.root_url}/faults"
        async with http.post(url, json=["500=1,match=Kyoto"]) as response:
            assert await response.json() == ["500=1,match=Kyoto"]
        assert (await post(http, server, asked))[0] == 500
        assert (await post(http, server, body("discover.food", discover("food"), name="Paris")))[0] == 200
        async with http.post(url, json=["600=1"]) as response:
            assert response.status == 400
        assert (await post(http, server, asked))[0] == 500
        async with http.post(url, json=[]) as response:
            assert await response.json() == []
        assert (await post(http, server, asked))[0] == 200


async def test_a_fault_with_times_lets_the_retry_succeed(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="0", faults=["503=1,times=2"]) as server:
        asked = body("discover.food", discover("food"))
        assert [(await post(http, server, asked))[0] for _ in range(3)] == [503, 503, 200]


async def test_stats_count_every_request_and_every_prompt(http: aiohttp.ClientSession) -> None:
    async with SandboxServer(latency="20ms", faults=["429=1,match=Paris,times=1"]) as server:
        one, other = (
            body("discover.food", discover("food")),
            body("discover.food", discover("food"), name="Paris"),
        )
        await asyncio.gather(*(post(http, server, asked) for asked in (one, one, one, other)))
        await post(http, server, {"messages": "wrong"})
        found = await stats(http, server, "?prompts=1")
        assert found["requests"] == 5
        assert found["in_flight"] == 0
        assert 3 <= found["max_in_flight"] <= 4
        assert found["by_status"] == {"200": 3, "429": 1, "400": 1}
        assert found["by_stage"] == {"discover.food": 4, "unknown": 1}
        assert found["refused"] == 2
        assert found["distinct_prompts"] == 2
        assert found["max_per_prompt"] == 3
        assert sorted(found["prompts"].values()) == [1, 3]
        assert found["prompt_tokens"] > 0
        async with http.post(f"{server.root_url}/stats/reset") as response:
            assert response.status == 200
        assert (await stats(http, server))["requests"] == 0


async def test_the_log_tells_when_each_request_ran(http: aiohttp.ClientSession) -> None:
    before = time.monotonic()
    async with SandboxServer(latency="50ms") as server:
        await ask(http, server, body("discover.food", discover("food")))
        async with http.get(f"{server.root_url}/log") as response:
            (entry,) = await response.json()
    assert entry["stage"] == "discover.food"
    assert entry["destination"] == "Kyoto"
    assert entry["status"] == "200"
    assert before <= entry["started"] <= entry["ended"] - 0.049 <= time.monotonic()


async def test_a_port_in_use_is_one_clear_error() -> None:
    async with SandboxServer(latency="0") as server:
        with pytest.raises(ConfigError, match=f"--port {server.port}: .*in use"):
            await SandboxServer(port=server.port).__aenter__()


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.main", "sandbox-llm", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_verb_prints_its_url_alone_and_ends_at_once(number: signal.Signals) -> None:
    with start("--port", "0", "--latency", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        socket.create_connection((host, int(port)), timeout=180).close()
        process.send_signal(number)
        rest, _ = process.communicate(timeout=AT_ONCE_SECONDS)
        assert rest == ""
        assert process.returncode == 0


def test_the_verb_says_in_one_line_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start("--port", port) as process:
            out, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert port in err
