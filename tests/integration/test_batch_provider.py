"""Batches bought at a provider that keeps to the protocol, and loses replies, lags and refuses as providers do."""

import asyncio
import json
import time
import tracemalloc
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tasks.errors import BadRequestError, EndpointAwayError, EndpointRefusedError, GoneError, RateLimitedError
from tests.support.providers import KEY, all_lines, ended, provider_at, sandbox_provider
from workers.llm.batches.batch import ProviderBatch
from workers.llm.batches.lines import line_of
from workers.llm.batches.provider import Provider

MB = 1024 * 1024


def _file(folder: Path, provider: Provider, count: int) -> Path:
    path = folder / "input.jsonl"
    bodies = [
        {"model": "sandbox", "messages": [{"role": "user", "content": f"Say {number}"}]} for number in range(count)
    ]
    lines = [line_of(f"r{number}", msgspec.json.encode(body), provider.line_url) for number, body in enumerate(bodies)]
    path.write_bytes(b"".join(lines))
    return path


async def _begun(folder: Path, provider: Provider, count: int = 60, tag: str = "job-1") -> ProviderBatch:
    return await provider.create(await provider.upload(_file(folder, provider, count), f"{tag}.jsonl"), tag)


async def test_a_batch_is_bought_and_its_answers_are_read(tmp_path: Path) -> None:
    async with sandbox_provider() as (provider, _):
        before = time.time()
        begun = await _begun(tmp_path, provider, 450)
        assert (begun.state, begun.tag) == ("running", "job-1")
        assert before - 2 < begun.created_at < time.time() + 2
        batch = await ended(provider, begun.id)
        assert (batch.state, batch.total, batch.completed, batch.failed) == ("completed", 450, 450, 0)
        assert (batch.input_file_id, batch.said, batch.is_refused_for_now) == (begun.input_file_id, "", False)
        slices = [ends async for ends in provider.lines(batch.results[0])]
        assert [len(ends) for ends in slices] == [200, 200, 50]
        ends = [end for some in slices for end in some]
        keys = [end.key for end in ends]
        assert set(keys) == {f"r{number}" for number in range(450)}
        assert keys != sorted(keys, key=lambda key: int(key[1:]))
        assert {(end.status, end.error) for end in ends} == {(200, "")}
        assert all(json.loads(end.body)["choices"] for end in ends)
        assert await all_lines(provider, batch.results, skip=430) == ends[430:]
        assert [await provider.delete(batch.input_file_id) for _ in range(2)] == [True, False]


async def test_lines_that_failed_are_in_the_second_file(tmp_path: Path) -> None:
    async with sandbox_provider("delay=0,line_errors=0.3") as (provider, _):
        batch = await ended(provider, (await _begun(tmp_path, provider)).id)
        assert batch.completed + batch.failed == 60
        failed = await all_lines(provider, batch.results[1:])
        assert len(failed) == batch.failed > 0
        assert {end.status for end in failed} == {500}
        assert b"The server had an error" in failed[0].body


@pytest.mark.parametrize("how", ["expired", "cancelled"])
async def test_a_batch_that_ends_early_gives_what_it_has(tmp_path: Path, how: str) -> None:
    window = "0.3" if how == "expired" else "3600"
    async with sandbox_provider(f"delay=0,share=0.5,window={window}") as (provider, _):
        begun = await _begun(tmp_path, provider)
        if how == "cancelled":
            async with asyncio.timeout(60):
                while (await provider.status(begun.id)).completed < 30:
                    await asyncio.sleep(0.01)
            assert (await provider.cancel(begun.id)).state in {"running", "cancelled"}
        batch = await ended(provider, begun.id)
        assert batch.state == how
        ends = await all_lines(provider, batch.results)
        assert len(ends) == 60
        assert [end.error.partition(":")[0] for end in ends if not end.status] == [f"batch_{how}"] * 30
        assert await provider.cancel(begun.id) == batch


async def test_a_file_that_is_wrong_fails_its_batch_in_the_providers_words(tmp_path: Path) -> None:
    async with sandbox_provider() as (provider, _):
        (tmp_path / "bad").write_bytes(b'{"custom_id": 1}\n')
        batch = await ended(provider, (await provider.create(await provider.upload(tmp_path / "bad", "b"), "t")).id)
        assert (batch.state, batch.results) == ("failed", ())
        assert batch.said.startswith("invalid_json_line: Line 1 could not be read")


async def test_what_was_done_and_not_answered_is_found_again(tmp_path: Path) -> None:
    async with sandbox_provider("delay=0,lost_uploads=1,lost_creates=1,lag=0.5") as (provider, _):
        assert await provider.find_file("job-1.jsonl") is None
        with pytest.raises(EndpointAwayError, match="connection lost"):
            await provider.upload(_file(tmp_path, provider, 5), "job-1.jsonl")
        file_id = await provider.find_file("job-1.jsonl")
        assert file_id is not None
        began = time.time()
        with pytest.raises(EndpointAwayError, match="connection lost"):
            await provider.create(file_id, "job-1")
        async with asyncio.timeout(60):
            # The list lags behind.
            while not (found := await provider.find("job-1", since=began)):
                await asyncio.sleep(0.05)
        assert [(one.tag, one.input_file_id) for one in found] == [("job-1", file_id)]
        assert await provider.find("job-2", since=began) == []


async def test_every_batch_with_the_tag_is_found_on_all_pages(tmp_path: Path) -> None:
    async with sandbox_provider() as (provider, _):
        file_id = await provider.upload(_file(tmp_path, provider, 1), "one.jsonl")
        made = [await provider.create(file_id, "ours" if number % 50 == 0 else "other") for number in range(151)]
        ours = [batch.id for batch in made if batch.tag == "ours"]
        assert [batch.id for batch in await provider.find("ours", since=time.time())] == ours[::-1]


async def test_too_many_uploads_are_told_with_the_time_to_wait(tmp_path: Path) -> None:
    async with sandbox_provider("delay=0,busy_uploads=1") as (provider, _):
        path = _file(tmp_path, provider, 20_000)
        with pytest.raises(RateLimitedError, match="429 Too many uploads") as told:
            await provider.upload(path, "a")
        assert told.value.retry_after_seconds == 1.0
        assert await provider.upload(path, "a")


async def test_an_upload_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    async with sandbox_provider() as (provider, server), aiohttp.ClientSession() as session:
        path = tmp_path / "large"
        with path.open("wb") as file:
            for _ in range(30):
                file.write(b"x" * MB)
        tracemalloc.start()
        try:
            file_id = await provider.upload(path, 'a "name".jsonl')
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        headers = {"Authorization": f"Bearer {KEY}"}
        async with session.get(f"{server.base_url}/files/{file_id}", headers=headers) as answer:
            kept = await answer.json()
        assert (kept["bytes"], kept["purpose"]) == (30 * MB, "batch")
        assert await provider.find_file('a "name".jsonl') == file_id
        assert peak < 10 * MB


async def test_what_does_not_exist_is_gone_and_what_is_refused_is_refused(tmp_path: Path) -> None:
    async with sandbox_provider() as (provider, server):
        for asked in (provider.status("batch-9"), provider.cancel("batch-9"), all_lines(provider, ["file-9"])):
            with pytest.raises(GoneError, match="404"):
                await asked
        with pytest.raises(GoneError, match="No such File object: file-9"):
            await provider.create("file-9", "t")
        with pytest.raises(FileNotFoundError):
            await provider.upload(tmp_path / "none", "n")
        async with provider_at(server.base_url, key="sk-another-key") as other:
            with pytest.raises(EndpointRefusedError, match="the key is refused"):
                await other.find("t", since=0)


async def test_a_server_that_is_away_is_away(tmp_path: Path) -> None:
    async with provider_at("http://127.0.0.1:9/v1") as provider:
        for asked in (
            provider.status("b"),
            provider.upload(_file(tmp_path, provider, 1), "n"),
            all_lines(provider, "f"),
        ):
            with pytest.raises(EndpointAwayError, match="cannot connect") as told:
                await asked
            assert told.value.is_unreachable
    assert not issubclass(GoneError, BadRequestError)
