"""The sandbox keeps files and answers batches of requests, and fails in the ways of providers when it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from config.errors import ConfigError
from workers.sandbox.batch import parse_habits
from workers.sandbox.server import SandboxServer

ENDPOINT = "/v1/chat/completions"


class Provider:
    """Asks a sandbox as a client does."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.session.request(method, f"{self.url}{path}", **more) as answer:
            return answer.status, await answer.json()

    async def upload(self, lines: list[Any]) -> tuple[int, Any]:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", "".join(f"{json.dumps(line)}\n" for line in lines), filename="lines.jsonl")
        return await self.ask("POST", "/files", data=form)

    async def create(self, lines: list[Any]) -> dict[str, Any]:
        _, file = await self.upload(lines)
        asked = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h", "metadata": {"a": "b"}}
        _, batch = await self.ask("POST", "/batches", json=asked)
        made: dict[str, Any] = batch
        return made

    async def ended(self, id_: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                _, batch = await self.ask("GET", f"/batches/{id_}")
                if batch["status"] in {"completed", "failed", "expired", "cancelled"}:
                    found: dict[str, Any] = batch
                    return found
                await asyncio.sleep(0.02)

    async def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        async with self.session.get(f"{self.url}/files/{file_id}/content") as answer:
            return [json.loads(line) for line in (await answer.text()).splitlines()]

    async def stats(self) -> dict[str, Any]:
        _, stats = await self.ask("GET", "/../stats")
        found: dict[str, Any] = stats
        return found


@asynccontextmanager
async def provider(habits: str = "delay=0", **more: Any) -> AsyncIterator[Provider]:
    async with SandboxServer(batches=habits, latency="0", **more) as server, aiohttp.ClientSession() as session:
        yield Provider(server.base_url, session)


def _line(number: int, **more: Any) -> dict[str, Any]:
    body = {"model": "sandbox", "messages": [{"role": "user", "content": f"Say {number}"}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body} | more


async def test_a_batch_is_answered_in_another_order_and_billed_at_its_tier() -> None:
    async with provider() as asked:
        batch = await asked.create([_line(number) for number in range(60)])
        assert (batch["object"], batch["metadata"]) == ("batch", {"a": "b"})
        ended = await asked.ended(batch["id"])
        assert ended["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
        assert ended["error_file_id"] is None
        lines = await asked.lines_of(ended["output_file_id"])
        ids = [line["custom_id"] for line in lines]
        assert set(ids) == {f"r{number}" for number in range(60)}
        assert ids != sorted(ids, key=lambda id_: int(id_[1:]))
        tokens = sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in lines)
        billed = (await asked.stats())["billed"]
        assert billed["batch"]["requests"] == 60
        assert billed["batch"]["prompt_tokens"] == tokens
        assert (await asked.ask("DELETE", f"/files/{batch['input_file_id']}"))[1]["deleted"] is True
        assert (await asked.ask("GET", f"/files/{batch['input_file_id']}"))[0] == 404


async def test_lines_may_fail_one_by_one_and_are_not_billed() -> None:
    async with provider("delay=0,line_errors=0.3") as asked:
        ended = await asked.ended((await asked.create([_line(number) for number in range(60)]))["id"])
        failed = await asked.lines_of(ended["error_file_id"])
        assert 0 < len(failed) == ended["request_counts"]["failed"] < 60
        assert {line["response"]["status_code"] for line in failed} == {500}
        assert (await asked.stats())["billed"]["batch"]["requests"] == 60 - len(failed)


async def test_a_batch_expires_with_what_was_answered_until_then() -> None:
    async with provider("delay=0,share=0.5,window=0.3") as asked:
        ended = await asked.ended((await asked.create([_line(number) for number in range(60)]))["id"])
        assert ended["status"] == "expired"
        assert len(await asked.lines_of(ended["output_file_id"])) == 30
        assert {line["error"]["code"] for line in await asked.lines_of(ended["error_file_id"])} == {"batch_expired"}


async def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    async with provider("delay=1,share=0.5") as asked:
        batch = await asked.create([_line(number) for number in range(100)])
        async with asyncio.timeout(60):
            while not (await asked.ask("GET", f"/batches/{batch['id']}"))[1]["request_counts"]["completed"]:
                await asyncio.sleep(0.01)
        assert (await asked.ask("POST", f"/batches/{batch['id']}/cancel"))[1]["status"] == "cancelling"
        ended = await asked.ended(batch["id"])
        answered, refused = [await asked.lines_of(ended[f"{name}_file_id"]) for name in ("output", "error")]
        assert ended["status"] == "cancelled"
        assert 0 < len(answered) < 100 == len(answered) + len(refused)
        assert (await asked.ask("POST", f"/batches/{batch['id']}/cancel"))[0] == 409


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([_line(1), _line(1)], "invalid_request"),
        ([_line(1, url="/v1/embeddings")], "invalid_request"),
        (["no line"], "invalid_json_line"),
        ([], "invalid_line_count"),
    ],
)
async def test_a_file_that_is_wrong_fails_its_batch(lines: list[Any], code: str) -> None:
    async with provider() as asked:
        ended = await asked.ended((await asked.create(lines))["id"])
        assert ended["status"] == "failed"
        assert ended["errors"]["data"][0]["code"] == code
        assert not (await asked.stats())["billed"]


async def test_a_reply_may_be_lost_and_the_list_may_lag() -> None:
    async with provider("delay=0,lost_uploads=1,lost_creates=1,lag=0.5") as asked:
        with pytest.raises(aiohttp.ClientError):
            await asked.upload([_line(1)])
        with pytest.raises(aiohttp.ClientError):
            await asked.create([_line(1)])
        assert (await asked.ask("GET", "/batches"))[1]["data"] == []
        async with asyncio.timeout(60):
            while not (listed := (await asked.ask("GET", "/batches"))[1]["data"]):
                await asyncio.sleep(0.05)
        assert listed[0]["metadata"] == {"a": "b"}
        assert len((await asked.ask("GET", "/files?purpose=batch"))[1]["data"]) == 2


async def test_uploads_may_be_too_many_and_lists_have_pages() -> None:
    async with provider("delay=0,busy_uploads=1") as asked:
        assert (await asked.upload([_line(1)]))[0] == 429
        ids = [(await asked.create([_line(number)]))["id"] for number in range(5)]
        first = (await asked.ask("GET", "/batches?limit=3"))[1]
        rest = (await asked.ask("GET", f"/batches?limit=3&after={first['last_id']}"))[1]
        assert [one["id"] for one in (*first["data"], *rest["data"])] == ids[::-1]
        assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_requests_that_make_no_sense_are_refused_and_never_an_error_of_the_server() -> None:
    async with provider() as asked:
        for limit in ("x", "-1", "0", "1.5", "²"):
            status, refused = await asked.ask("GET", f"/batches?limit={limit}")
            assert (status, refused["error"]["code"]) == (400, "invalid_value")
        assert (await asked.ask("GET", "/files?limit=99999999999999999999"))[0] == 200
        assert (await asked.ask("POST", "/files", data=b"lines"))[0] == 400
        body = {"input_file_id": "file-9", "endpoint": ENDPOINT, "completion_window": "24h"}
        status, refused = await asked.ask("POST", "/batches", json=body)
        assert (status, refused["error"]["message"]) == (400, "No such File object: file-9")
        assert (await asked.ask("POST", "/batches", json=body | {"endpoint": "/v1/x"}))[0] == 400


async def test_flex_may_be_without_capacity_and_the_answer_names_its_tier() -> None:
    async with provider(faults=["no_capacity=1,times=1"]) as asked:
        body = _line(1)["body"]
        status, refused = await asked.ask("POST", "/chat/completions", json=body | {"service_tier": "flex"})
        assert (status, refused["error"]["code"]) == (429, "resource_unavailable")
        for tier, used in (("flex", "flex"), ("auto", "default"), ("priority", "priority")):
            _, answer = await asked.ask("POST", "/chat/completions", json=body | {"service_tier": tier})
            assert answer["service_tier"] == used
        assert {tier: paid["requests"] for tier, paid in (await asked.stats())["billed"].items()} == {
            "flex": 1,
            "default": 1,
            "priority": 1,
        }


async def test_a_key_is_asked_for_batches_too() -> None:
    async with provider(api_key="secret") as asked:
        for path in ("/files", "/batches", "/batches/x", "/files/x/content"):
            assert (await asked.ask("GET", path))[0] == 401


@pytest.mark.parametrize("text", ["delay=soon", "delay=-1", "share=2", "speed=1"])
def test_habits_that_make_no_sense_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--batches {text}: .*write KEY=VALUE"):
        parse_habits(text)
