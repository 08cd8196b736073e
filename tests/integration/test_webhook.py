"""The sender of notices against a real Redis, and servers that answer as they like."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.sections import WebhookSettings
from config.values import Secret
from tasks import keys
from tasks.connection import connect_async
from tasks.jobs.registry import JobStatus
from workers.results import webhook
from workers.results.webhook import Notice, PauseNotices
from workers.results.webhook_sender import WebhookSender

PATH = "/services/T0K3N"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


@asynccontextmanager
async def _sender(client: AsyncRedis, answer: bytes) -> AsyncIterator[WebhookSender]:
    """A sender to a server that says `answer` to each request, and does not hang up."""
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await left.wait()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = Secret(f"http://user:hunter2@127.0.0.1:{port}{PATH}")
        settings = WebhookSettings(
            url=url, secret=Secret("whsec_czNjcjN0"), private_hosts="127.0.0.1", timeout_seconds=180, retry_hours=720
        )
        async with WebhookSender(client, settings) as sender:
            yield sender
        left.set()


def _queue(redis: Redis, id_: str, body: bytes) -> None:
    redis.hset(keys.WEBHOOKS, id_, body)
    redis.zadd(keys.WEBHOOKS_DUE, {id_: 0})


@pytest.mark.parametrize(
    "answer",
    [b"\x00 garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000],
)
async def test_no_answer_brings_the_address_into_the_logs(
    client: AsyncRedis, redis: Redis, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    _queue(redis, "n", Notice("n", "{}", time.time()).encoded())
    async with _sender(client, answer) as sender:
        assert await sender.send_one()
    assert "action=webhook_failed" in caplog.text
    assert "T0K3N" not in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("headers", [b"Content-Length: 5", b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde"])
async def test_a_notice_is_taken_by_2xx_whatever_follows(client: AsyncRedis, redis: Redis, headers: bytes) -> None:
    _queue(redis, "n", Notice("n", "{}", time.time()).encoded())
    async with _sender(client, b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n") as sender:
        async with asyncio.timeout(60):
            await sender.send_one()
    assert not redis.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE)


async def test_a_month_of_tries_is_not_the_end_of_the_sender(client: AsyncRedis, redis: Redis) -> None:
    _queue(redis, "n", Notice("n", "{}", time.time(), tries=700).encoded())
    async with _sender(client, b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n") as sender:
        await sender.send_one()
    ((_, due),) = redis.zrange(keys.WEBHOOKS_DUE, 0, -1, withscores=True)  # type: ignore[misc]
    assert due / 1000 - time.time() < 2 * 3600
    assert b'"tries":701' in redis.hget(keys.WEBHOOKS, "n")  # type: ignore[operator]


@pytest.mark.parametrize("body", [b"\xff", b"{}", b'{"id":"m","body":"","created_at":9e12}'])
async def test_what_is_no_notice_is_dropped_and_leaves_nothing(
    client: AsyncRedis, redis: Redis, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    _queue(redis, "n", body)
    async with _sender(client, b"") as sender:
        assert await sender.send_one()
    assert "action=webhook_lost notice=n cannot be read" in caplog.text
    assert not redis.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE)


async def test_a_sender_that_cannot_look_says_so_once_and_goes_on(
    client: AsyncRedis, redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="themes.webhook")
    monkeypatch.setattr("workers.results.webhook_sender.LOOK_SECONDS", 0.01)
    redis.set(keys.WEBHOOKS_DUE, "none of ours")
    async with _sender(client, b"HTTP/1.1 204 Taken\r\n\r\n") as sender:
        running = asyncio.create_task(sender.run())
        async with asyncio.timeout(180):
            before = redis.info("stats")["total_error_replies"]  # type: ignore[index]
            while redis.info("stats")["total_error_replies"] < before + 3:  # type: ignore[index]
                await asyncio.sleep(0.02)
            redis.delete(keys.WEBHOOKS_DUE)
            _queue(redis, "n", Notice("n", "{}", time.time()).encoded())
            while redis.exists(keys.WEBHOOKS):
                await asyncio.sleep(0.02)
        running.cancel()
    assert caplog.text.count("action=webhook_missed") == caplog.text.count("action=webhook_back") == 1


async def test_a_pause_is_told_once_and_makes_no_job_of_one_that_has_left(client: AsyncRedis, redis: Redis) -> None:
    notices, job = PauseNotices(client), JobStatus("j", "", "stalled", paused="user", paused_at=1.5)
    await notices.look(job)
    assert not redis.exists(keys.job("j"), keys.WEBHOOKS)
    redis.hset(keys.job("j"), "state", "running")
    await notices.look(job)
    await notices.look(job)
    (id_,) = redis.hkeys(keys.WEBHOOKS)  # type: ignore[misc]
    assert b"." not in id_, "it separates the id from the time in what is signed"
    assert redis.hget(keys.job("j"), webhook.TOLD) == b"1.5"
