"""Batches at servers that speak another dialect, break off, or send what nobody documents."""

import asyncio
import gzip
import itertools
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from tasks.errors import (
    BadRequestError,
    BatchesUnsupportedError,
    BatchQueueFullError,
    EndpointAwayError,
    EndpointDownError,
    EndpointRefusedError,
    GoneError,
    RateLimitedError,
    ThemesError,
)
from tests.support.providers import KEY, all_lines, answering, provider_at, served
from workers.llm.batches.batch import ProviderBatch
from workers.llm.batches.dialects import AZURE, MISTRAL, OPENAI, TOGETHER, ZHIPU, BatchDialect, dialect_of
from workers.llm.batches.lines import SLICE_LINES
from workers.llm.batches.provider import Provider

BATCH: dict[str, Any] = {
    "id": "b1",
    "object": "batch",
    "status": "completed",
    "input_file_id": "f1",
    "output_file_id": "f2",
    "error_file_id": "f3",
    "created_at": 1_790_000_000,
    "metadata": {"themes_tag": "t"},
    "request_counts": {"total": 3, "completed": 2, "failed": 1},
    "errors": None,
}
READ = ProviderBatch("b1", "completed", "t", 3, 2, 1, "f1", ("f2", "f3"), 1_790_000_000.0)


def _line(key: str, **more: Any) -> bytes:
    return json.dumps({"custom_id": key, "response": {"status_code": 200, "body": {"a": 1}}} | more).encode() + b"\n"


LINES = b"".join(_line(f"k{number}") for number in range(1000))


def _json(value: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, headers=headers)


def _keys(count: int, first: int = 0) -> list[str]:
    return [f"k{number}" for number in range(first, count)]


# What a batch object holds.


async def test_a_batch_is_read_with_what_nobody_documents_and_the_time_to_wait() -> None:
    odd = BATCH | {"usage": {"x": [1]}, "model": None, "expires_at": "soon"}
    async with answering(_json(odd, **{"Retry-After": "40"})) as provider:
        assert await provider.status("b1") == replace(READ, retry_after_seconds=40.0)


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "12", "\x00", [], [None], [[]], {}, {"data": 5}]
)
async def test_any_value_in_any_field_is_a_batch_or_one_error(value: Any) -> None:
    body: dict[str, Any] = {}
    async with answering(lambda: _json(body)) as provider:
        for name in BATCH:
            body = BATCH | {name: value}
            await _is_batch_or_error(provider, name)
            body = {key: one for key, one in BATCH.items() if key != name}
            await _is_batch_or_error(provider, name)
        for name in ("total", "completed", "failed"):
            body = BATCH | {"request_counts": BATCH["request_counts"] | {name: value}}
            await _is_batch_or_error(provider, name)


async def _is_batch_or_error(provider: Provider, name: str) -> None:
    try:
        batch = await provider.status("b1")
    except ThemesError as exc:
        told = exc
    else:
        told = None
    if told is not None:
        assert name in {"id", "status"}
        assert type(told) is EndpointDownError
        assert "the answer is no batch" in str(told)
        return
    assert batch.state in {"running", "completed"}
    assert all(type(one) is int and 0 <= one <= 10_000_000 for one in (batch.total, batch.completed, batch.failed))
    assert all(isinstance(one, str) for one in (batch.id, batch.tag, batch.said, batch.input_file_id, *batch.results))
    assert batch.created_at >= 0
    assert batch.said.isprintable()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"created_at": "1790000000"}, {"created_at": 1_790_000_000.0}),
        ({"created_at": 1_790_000_000_000}, {"created_at": 1_790_000_000.0}),
        ({"created_at": "2026-09-21T14:13:20Z"}, {"created_at": 1_790_000_000.0}),
        ({"status": "IN_PROGRESS"}, {"state": "running"}),
        ({"status": "cancelling"}, {"state": "running"}),
        ({"status": "resting"}, {"state": "running"}),
        ({"status": "expired"}, {"state": "expired"}),
        ({"request_counts": None, "total": 9, "completed": 8, "failed": 1}, {"total": 9, "completed": 8}),
        ({"output_file_id": None}, {"results": ("f3",)}),
        ({"output_file_id": "../models", "error_file_id": ""}, {"results": ()}),
        ({"metadata": {"themes_tag": 5}}, {"tag": ""}),
        ({"errors": {"object": "list", "data": [{"code": "c", "message": "m", "line": 3}]}}, {"said": "c: m"}),
        ({"errors": [{"message": "a"}, {"message": "b"}]}, {"said": "a; b"}),
        ({"errors": {"data": []}}, {"said": ""}),
        ({"errors": {"data": [{"message": f"your key {KEY} is odd"}]}}, {"said": "your key *** is odd"}),
    ],
)
async def test_fields_that_differ_by_provider_are_read(more: dict[str, Any], named: dict[str, Any]) -> None:
    async with answering(_json(BATCH | more)) as provider:
        batch = await provider.status("b1")
        assert {name: getattr(batch, name) for name in named} == named


async def test_a_batch_that_failed_for_a_full_queue_may_be_sent_again() -> None:
    full = "The number of enqueued tokens has surpassed the configured limit of 30K for the deployment."
    errors = {"data": [{"code": "token_limit_exceeded", "message": full, "line": None}], "object": "list"}
    async with answering(_json(BATCH | {"status": "failed", "errors": errors})) as provider:
        assert (await provider.status("b1")).is_refused_for_now


async def test_what_is_not_clear_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with answering(_json(BATCH | {"status": "resting", "metadata": None})) as provider:
        for _ in range(3):
            await provider.create("f1", "t")
    said = [one.getMessage() for one in caplog.records if "batch_unclear" in one.getMessage()]
    assert ["'resting'" in one for one in said] == [True, False]
    assert "cannot be found again" in said[1]


# What errors mean.

GONE = {"error": {"message": "No such File object: f1", "type": "invalid_request_error", "code": None}}
FULL = {
    "error": {
        "message": "Enqueued token limit reached for gpt-4o in organization org-1. Limit: 90,000 enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    }
}


@pytest.mark.parametrize(
    ("status", "body", "made", "shown"),
    [
        (429, {"error": {"message": "Slow down."}}, RateLimitedError, RateLimitedError),
        (429, "no words", RateLimitedError, RateLimitedError),
        (429, {"error": {"message": "x", "code": "insufficient_quota"}}, EndpointRefusedError, EndpointRefusedError),
        (429, FULL, BatchQueueFullError, BatchQueueFullError),
        (400, FULL, BatchQueueFullError, BatchQueueFullError),
        (400, {"error": {"message": "Too many active batches"}}, BatchQueueFullError, BatchQueueFullError),
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, EndpointRefusedError, EndpointRefusedError),
        (402, {"error": {"message": "Pay."}}, EndpointRefusedError, EndpointRefusedError),
        (400, {"error": {"message": "Invalid value."}}, BadRequestError, BadRequestError),
        (413, {"error": {"message": "The file is too large."}}, BadRequestError, BadRequestError),
        (500, {"error": {"message": "We erred."}}, EndpointDownError, EndpointDownError),
        (503, "busy", EndpointAwayError, EndpointAwayError),
        (502, "<html>Bad Gateway</html>", EndpointAwayError, EndpointAwayError),
        (404, GONE, GoneError, GoneError),
        (400, GONE, GoneError, GoneError),
        (404, {"detail": "Not Found"}, BatchesUnsupportedError, EndpointRefusedError),
        (404, "<html>404</html>", BatchesUnsupportedError, EndpointRefusedError),
        (405, {"detail": "Method Not Allowed"}, BatchesUnsupportedError, EndpointRefusedError),
        (501, "Unsupported method", BatchesUnsupportedError, EndpointDownError),
        (400, {"error": {"message": "Batches are not supported here."}}, BatchesUnsupportedError, BadRequestError),
        (200, {"error": "Unexpected endpoint or method. (POST /v1/x)"}, BatchesUnsupportedError, EndpointRefusedError),
        (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, EndpointRefusedError,
         EndpointRefusedError),
        (200, {"error": {"message": "Overloaded.", "code": 503}}, EndpointAwayError, EndpointAwayError),
        (302, "", EndpointRefusedError, EndpointRefusedError),
        (200, "<html>Hello</html>", EndpointDownError, EndpointDownError),
        (200, [1], EndpointDownError, EndpointDownError),
        (200, {"deleted": True}, EndpointDownError, EndpointDownError),
        (204, "", EndpointDownError, EndpointDownError),
    ],
)  # fmt: skip
async def test_errors_mean_what_they_mean_for_calls(
    status: int, body: Any, made: type[ThemesError], shown: type[ThemesError]
) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    async with answering(web.Response(status=status, body=raw, headers={"Retry-After": "7"})) as provider:
        for asked, kind in ((provider.create("f1", "t"), made), (provider.status("f1"), shown)):
            with pytest.raises(ThemesError) as told:
                await asked
            assert type(told.value) is kind
            assert KEY not in str(told.value)
            assert "127.0.0.1" in str(told.value)
            if isinstance(told.value, RateLimitedError):
                assert told.value.retry_after_seconds == 7
            if isinstance(told.value, BatchesUnsupportedError):
                assert "choose another tier" in str(told.value)


async def test_cancelling_again_is_no_error_whatever_the_server_says_to_it() -> None:
    for refusal in (_json({"error": {"message": "Already ended."}}, 409), _json({"detail": "no"}, 400)):
        async with answering(refusal, _json(BATCH)) as provider:
            assert await provider.cancel("b1") == READ
    running = BATCH | {"status": "in_progress"}
    async with answering(_json({"error": {"message": "Not yet."}}, 409), _json(running)) as provider:
        with pytest.raises(EndpointDownError, match="409 Not yet"):
            await provider.cancel("b1")
    async with answering(web.Response(status=202), _json(running)) as provider:
        assert (await provider.cancel("b1")).state == "running"


# Lists.


def _listed(*numbers: int, **more: Any) -> web.Response:
    made = [BATCH | {"id": f"b{number}", "created_at": 1_790_000_000 - 1800 * number} for number in numbers]
    return _json({"object": "list", "data": made} | more)


@pytest.mark.parametrize(
    ("pages", "found", "asked"),
    [
        ([_listed(0, 1, has_more=True), _listed(2, has_more=False)], [0, 1, 2], 2),
        ([_listed(0, 1), _listed(2), _listed()], [0, 1, 2], 3),
        ([_listed(0, 1, has_more=None), _listed(0, 1)], [0, 1], 2),  # it does not know `after`
        ([_listed(0, 1, has_more=True), _listed(5, 6, has_more=True), _listed(7)], [0, 1, 5, 6], 2),
        ([_listed(6, 5, has_more=True), _listed(4, 0, has_more=False)], [6, 5, 4, 0], 2),  # the oldest come first
        ([_json([BATCH]), _json([])], [1], 2),
        ([_json({"data": [None, 5, {}, {"id": 4}, BATCH], "has_more": False})], [1], 1),
    ],
)
async def test_a_list_is_read_to_its_end_or_until_all_is_old(
    pages: list[web.Response], found: list[int], asked: int
) -> None:
    seen: list[str] = []
    async with answering(*pages, asked=seen) as provider:
        # An hour before these is where the list ends.
        batches = await provider.find("t", since=1_790_000_000 - 2700)
        assert [batch.id for batch in batches] == [f"b{number}" for number in found]
        assert len(seen) == asked
        assert seen[0] == "GET /v1/batches?limit=100"


async def test_a_list_without_an_end_is_an_error_and_not_an_answer() -> None:
    numbers = itertools.count()
    async with answering(lambda: _listed(-next(numbers), has_more=True)) as provider:
        with pytest.raises(EndpointDownError, match="does not end"):
            await provider.find("other", since=0)
    async with answering(_json({"data": None})) as provider:
        with pytest.raises(EndpointDownError, match="the answer is no list"):
            await provider.find_file("n")


async def test_the_newest_usable_file_of_a_name_is_found() -> None:
    seen: list[str] = []
    files = [
        {"id": "f5", "filename": "n", "status": "error"},
        {"id": "f4", "filename": "other"},
        {"id": "f3", "filename": "n", "status": "processed"},
        {"id": "f2", "filename": "n"},
    ]
    async with answering(_json({"data": files, "has_more": True}), asked=seen) as provider:
        assert await provider.find_file("n") == "f3"
        assert seen == ["GET /v1/files?limit=100&purpose=batch&order=desc"]


# Files of results.


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(LINES),
        gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]),
        gzip.compress(LINES + b"\n" * 1_000_000),
    ],
)
async def test_a_file_that_is_packed_unasked_is_read(body: bytes) -> None:
    async with answering(web.Response(body=body, headers={"Content-Encoding": "gzip"})) as provider:
        assert [end.key for end in await all_lines(provider, ["f"])] == _keys(1000)


@pytest.mark.parametrize("body", [gzip.compress(LINES)[:-200], b"no gzip"])
async def test_a_packed_file_that_is_cut_is_an_error(body: bytes) -> None:
    async with answering(web.Response(body=body, headers={"Content-Encoding": "gzip"})) as provider:
        with pytest.raises(EndpointDownError, match="gzip"):
            await all_lines(provider, ["f"])


async def test_lines_that_cannot_be_read_cost_themselves_alone(caplog: pytest.LogCaptureFixture) -> None:
    odd = [b"{broken\n", b'{"response": {}}\n', b"\n", b"\r\n", _line("long", x="y" * 2000), _line("k2"), b"last {"]
    body = _line("k0") + _line("k1") + b"".join(odd)
    async with answering(web.Response(body=body), max_response_bytes=1024) as provider:
        assert [end.key for end in await all_lines(provider, ["f"])] == ["k0", "k1", "k2"]
        assert [end.key for end in await all_lines(provider, ["f"], skip=2)] == ["k2"]
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warned) == 2
    assert "action=batch_lines_skipped" in warned[0]
    assert "3 lines cannot be read, 1 are longer" in warned[0]


async def test_a_file_of_no_lines_is_empty_and_one_without_any_line_is_an_error() -> None:
    async with answering(web.Response(body=b"")) as provider:
        assert await all_lines(provider, ["f"]) == []
    async with answering(web.Response(body=b"<html>\nHello\n")) as provider:
        with pytest.raises(EndpointDownError, match="no line of the file f can be read"):
            await all_lines(provider, ["f"])


async def test_a_file_of_any_size_takes_little_memory() -> None:
    line, count = _line("k", x="y" * 100_000), 300

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(count * len(line))})
        await response.prepare(request)
        for _ in range(count):
            await response.write(line)
        return response

    async with served(answer) as url, provider_at(url) as provider:
        tracemalloc.start()
        try:
            found = sum([len(ends) async for ends in provider.lines("f")])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found == count
    assert peak < 10_000_000


async def test_slices_are_bounded_by_their_bytes() -> None:
    body = b"".join(_line(f"k{number}", x="y" * 300_000) for number in range(8))
    async with answering(web.Response(body=body)) as provider:
        assert [len(ends) async for ends in provider.lines("f")] == [4, 4]


@asynccontextmanager
async def _raw(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server of bare bytes: each connection gets one request's head, then `serve`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("head", "body", "whole"),
    [
        (f"Content-Length: {len(LINES)}", LINES[:40_000], False),
        ("Transfer-Encoding: chunked", b"9C40\r\n" + LINES[:40_000], False),
        ("Connection: close", LINES[:40_030], False),
        ("Connection: close", LINES, True),
    ],
)
async def test_a_download_that_breaks_off_raises_and_goes_on_where_it_was(head: str, body: bytes, whole: bool) -> None:
    is_broken = True

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = (head, body) if is_broken else (f"Content-Length: {len(LINES)}", LINES)
        writer.write(f"HTTP/1.1 200 OK\r\n{sent[0]}\r\n\r\n".encode() + sent[1])

    got: list[str] = []

    async def read(provider: Provider) -> None:
        async for ends in provider.lines("f"):
            got.extend(end.key for end in ends)

    async with _raw(serve) as url, provider_at(url) as provider:
        if not whole:
            with pytest.raises(EndpointDownError, match=r"127\.0\.0\.1"):
                await read(provider)
            assert len(got) < 1000
        is_broken = False
        got += [end.key for end in await all_lines(provider, ["f"], skip=len(got))]
        assert got == _keys(1000)


# Time.


class _Clock:
    """The loop's time, which a test sets forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._real, self._ahead = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: self._real() + self._ahead)

    def pass_seconds(self, seconds: float) -> None:
        self._ahead += seconds


async def test_a_download_may_take_long_while_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = _Clock(monkeypatch), asyncio.Semaphore(0)
    lines = LINES.splitlines(keepends=True)
    parts = [b"".join(lines[at : at + SLICE_LINES]) for at in range(0, len(lines), SLICE_LINES)]

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(LINES)}\r\n\r\n".encode())
        for part in parts:
            clock.pass_seconds(40)
            writer.write(part)
            await taken.acquire()

    async with _raw(serve) as url, provider_at(url, request_timeout_seconds=60.0) as provider:
        got: list[str] = []
        async for ends in provider.lines("f"):
            got += [end.key for end in ends]
            taken.release()
        assert got == _keys(1000)


async def test_an_upload_may_take_long_while_something_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = _Clock(monkeypatch)
    (tmp_path / "f").write_bytes(b"x" * 40_000_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        read, marks = 0, [5_000_000, 25_000_000]
        async for chunk in request.content.iter_any():
            read += len(chunk)
            # Between the marks lies more than any buffer on the way holds.
            if marks and read > marks[0]:
                del marks[0]
                clock.pass_seconds(40)
        return _json({"id": "f1"})

    async with served(answer) as url, provider_at(url, request_timeout_seconds=60.0) as provider:
        assert await provider.upload(tmp_path / "f", "n") == "f1"


async def test_a_server_that_takes_or_sends_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 40_000_000)

    over = asyncio.Event()

    async def stuck(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + LINES[:5000])
        await over.wait()

    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await over.wait()

    for serve, asked in (
        (silent, lambda provider: provider.upload(tmp_path / "f", "n")),
        (silent, lambda provider: provider.status("b")),
        (silent, lambda provider: all_lines(provider, ["f"])),
        (stuck, lambda provider: all_lines(provider, ["f"])),
    ):
        async with _raw(serve) as url, provider_at(url, request_timeout_seconds=0.2) as provider:
            with pytest.raises(EndpointAwayError, match=r"no answer within 0\.2 s"):
                await asked(provider)
            over.set()
        over.clear()


# Dialects.


@pytest.mark.parametrize(
    ("base_url", "dialect", "root"),
    [
        ("https://api.openai.com/v1", OPENAI, "https://api.openai.com/v1"),
        ("https://api.groq.com/openai/v1", OPENAI, "https://api.groq.com/openai/v1"),
        ("https://r.openai.azure.com/openai/v1", AZURE, "https://r.openai.azure.com/openai/v1"),
        ("https://r.openai.azure.com/openai/deployments/d", AZURE, "https://r.openai.azure.com/openai"),
        ("https://api.mistral.ai/v1", MISTRAL, "https://api.mistral.ai/v1"),
        ("https://open.bigmodel.cn/api/paas/v4", ZHIPU, "https://open.bigmodel.cn/api/paas/v4"),
        ("https://notmistral.ai/v1", OPENAI, "https://notmistral.ai/v1"),
        ("http://127.0.0.1:8000/v1", OPENAI, "http://127.0.0.1:8000/v1"),
    ],
)
def test_a_host_tells_the_dialect(base_url: str, dialect: BatchDialect, root: str) -> None:
    assert dialect_of(base_url) is dialect
    assert dialect.root(base_url) == root


async def test_azure_has_files_beside_its_deployments_and_its_version_behind_each_path(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        asked.append(f"{request.method} {request.path_qs}")
        if request.path.endswith("/content"):
            return web.Response(body=LINES)
        return _json(BATCH | {"data": [], "has_more": False})

    (tmp_path / "f").write_bytes(b"x")
    async with (
        served(answer) as url,
        provider_at(f"{url}/deployments/d", query="api-version=2024-10-21", dialect=AZURE) as provider,
    ):
        assert provider.line_url == "/chat/completions"
        await provider.upload(tmp_path / "f", "n")
        await provider.create("f1", "t")
        await provider.find("t", since=0)
        await provider.status("b1")
        await provider.delete("f1")
        await all_lines(provider, ["f1"])
    assert asked == [
        "POST /v1/files?api-version=2024-10-21",
        "POST /v1/batches?api-version=2024-10-21",
        "GET /v1/batches?api-version=2024-10-21&limit=100",
        "GET /v1/batches/b1?api-version=2024-10-21",
        "DELETE /v1/files/f1?api-version=2024-10-21",
        "GET /v1/files/f1/content?api-version=2024-10-21",
    ]


async def test_mistral_is_spoken_to_in_its_own_words() -> None:
    job: dict[str, Any] = {
        "id": "5c1b7a4e-0000-4000-8000-000000000001", "object": "batch", "input_files": ["in-1"], "status": "QUEUED",
        "metadata": {"themes_tag": "t"}, "output_file": None, "error_file": None, "errors": [],
        "created_at": 1_790_000_000, "total_requests": 5, "completed_requests": 4, "succeeded_requests": 3,
        "failed_requests": 1,
    }  # fmt: skip
    bodies: list[Any] = []
    pages: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET" and request.path == "/v1/batch/jobs":
            pages.append(request.query_string)
            return _json({"data": [job] if request.query["page"] == "0" else [], "object": "list", "total": 1})
        if request.path == "/v1/batch/jobs":
            bodies.append(await request.json())
            assert request.headers["Idempotency-Key"] == "t"
        if request.path.endswith("/cancel"):
            job["status"] = "CANCELLATION_REQUESTED"
        return _json(job)

    async with served(answer) as url, provider_at(url, dialect=MISTRAL) as provider:
        assert provider.line_url == ""
        begun = await provider.create("in-1", "t")
        assert bodies == [
            {
                "input_files": ["in-1"],
                "endpoint": "/v1/chat/completions",
                "metadata": {"themes_tag": "t"},
                "timeout_hours": 24,
                "model": "sandbox",
            }
        ]
        assert (begun.state, begun.input_file_id, begun.total, begun.completed, begun.failed) == (
            "running", "in-1", 5, 3, 1,
        )  # fmt: skip
        assert await provider.find("t", since=time.time()) == [begun]
        assert pages == ["page_size=100&page=0"]
        for status, state in (
            ("RUNNING", "running"), ("SUCCESS", "completed"), ("FAILED", "failed"), ("TIMEOUT_EXCEEDED", "expired"),
            ("CANCELLED", "cancelled"),
        ):  # fmt: skip
            job |= {"status": status, "output_file": "out-1", "error_file": "err-1"}
            batch = await provider.status(begun.id)
            assert (batch.state, batch.results) == (state, ("out-1", "err-1"))
        assert (await provider.cancel(begun.id)).state == "running"


async def test_a_provider_whose_batches_cannot_be_marked_is_asked_for_none(tmp_path: Path) -> None:
    asked: list[str] = []
    (tmp_path / "f").write_bytes(b"x")

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return _json(BATCH)

    async with served(answer) as url, provider_at(url, dialect=TOGETHER) as provider:
        for call in (provider.upload(tmp_path / "f", "n"), provider.create("f", "t")):
            with pytest.raises(BatchesUnsupportedError, match="carry no mark .* choose another tier"):
                await call
    assert not asked
