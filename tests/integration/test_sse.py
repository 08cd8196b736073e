"""Events over HTTP: the real handlers on a real socket, a real Redis, an HTTP client."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from redis import Redis
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tasks import keys
from tasks.connection import connect_async
from tasks.jobs.events import encode, follow_async
from tasks.messages import Event
from workers.dashboard import event_feed as feed
from workers.dashboard import sse
from workers.dashboard.event_feed import Feeds, place_of

JOB = "20261123-142501-7f3aab"
SECONDS = 180


class Site:
    """The events' handler, served; and the job's side of Redis."""

    def __init__(self, redis: Redis, feeds: Feeds, url: str) -> None:
        self.redis = redis
        self.feeds = feeds
        self.url = url
        self.number = 0

    def begin(self, job: str = JOB) -> None:
        self.redis.hset(keys.job(job), mapping={"job_id": job, "name": "n", "state": "running", "total": 9})
        self.tell("job.started", job=job)

    def tell(self, kind: Any = "destination.done", *, job: str = JOB, count: int = 1, size: int = 0) -> list[str]:
        """Add events; returns their ids."""
        with self.redis.pipeline(transaction=False) as pipe:
            for _ in range(count):
                self.number += 1
                pipe.xadd(keys.events(job), encode(Event(kind, job, data={"number": self.number, "fill": "x" * size})))
            return [entry.decode() for entry in pipe.execute()]

    def end(self, job: str = JOB) -> None:
        self.redis.hset(keys.job(job), mapping={"state": "done", "finished_at": 5.0})
        self.tell("job.done", job=job)


@pytest.fixture
async def site(redis: Redis, redis_url: str) -> AsyncIterator[Site]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    feeds = Feeds(client, max_watchers=50)
    application = Application(sse.handlers(feeds))
    application.options = SimpleNamespace(basic_auth=None, auth=None)  # type: ignore[attr-defined]
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield Site(redis, feeds, f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
    server.stop()
    await server.close_all_connections()
    async with asyncio.timeout(SECONDS):
        while feeds.watchers:
            await asyncio.sleep(0.01)
    await client.aclose()


class Watcher:
    """Reads a stream of events as a browser does."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments: list[str] = []
        self.kinds: list[str] = []

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Each event's data, with `id` checked against the stream's; ends with the stream."""
        fields: dict[str, str] = {}
        async for line in self.response.content:
            text = line.decode().rstrip("\n")
            if text.startswith(":"):
                self.comments.append(text[1:].strip())
            elif text:
                name, _, value = text.partition(": ")
                fields[name] = value
            elif "data" in fields:
                data = msgspec.json.decode(fields["data"])
                self.kinds.append(fields["event"])
                assert fields["event"] == data["type"]
                assert fields.get("id", "") == data.get("id", "")
                yield data
                fields = {}

    async def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` events."""
        taken: list[dict[str, Any]] = []
        async with asyncio.timeout(SECONDS):
            async for event in self.events():
                taken.append(event)
                if len(taken) == count:
                    break
        return taken


Watch = Callable[..., Awaitable[Watcher]]


@pytest.fixture
async def watch(site: Site) -> AsyncIterator[Watch]:
    """Open a stream: `await watch(last="1-0")`."""
    # A small buffer, so that a client that does not read is soon felt.
    responses: list[aiohttp.ClientResponse] = []
    async with aiohttp.ClientSession(read_bufsize=2**12, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def opened(*, job: str = JOB, last: str = "", query: str = "", status: int = 200) -> Watcher:
            headers = {"Last-Event-ID": last} if last else {}
            response = await session.get(f"{site.url}/jobs/{job}/events{query}", headers=headers)
            responses.append(response)
            assert response.status == status, await response.text()
            return Watcher(response)

        yield opened
        for response in responses:
            response.close()


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["number"] for event in events]


async def test_a_watcher_gets_what_was_and_what_comes_in_order_and_then_the_end(site: Site, watch: Watch) -> None:
    site.begin()
    site.tell(count=450)
    watcher = await watch()
    headers = watcher.response.headers
    assert headers["Content-Type"].startswith("text/event-stream")
    assert headers["Cache-Control"].startswith("no-cache")
    assert "Content-Encoding" not in headers
    events = await watcher.take(451)
    site.tell(count=3)
    events += await watcher.take(3)
    site.end()
    async with asyncio.timeout(SECONDS):
        events += [event async for event in watcher.events()]
    assert numbers(events) == list(range(1, 456))
    assert watcher.kinds[0] == "job.started"
    assert watcher.kinds[-1] == "job.done"
    # A browser comes back when the connection ends: it is told to stop.
    await watch(last=events[-1]["id"], status=204)
    late = await watch(query=f"?since={events[-3]['id']}")
    assert numbers(await late.take(2)) == [454, 455]


async def test_over_any_number_of_reconnections_nothing_is_lost_or_doubled(site: Site, watch: Watch) -> None:
    chance = random.Random(7)
    site.begin()

    async def work() -> None:
        for _ in range(60):
            site.tell(count=chance.randrange(1, 30))
            await asyncio.sleep(0.01)
        site.end()

    working = asyncio.create_task(work())
    seen: list[int] = []
    last = ""
    while "job.done" not in last:
        watcher = await watch(last=last.partition(" ")[0])
        for event in await watcher.take(chance.randrange(1, 120)):
            seen.append(event["number"])
            last = f"{event['id']} {event['type']}"
        watcher.response.close()
    await working
    assert seen == list(range(1, site.number + 1))


async def test_all_watchers_of_a_job_share_one_reader(site: Site, watch: Watch) -> None:
    site.begin()
    watchers = [await watch() for _ in range(30)]
    for watcher in watchers:
        await watcher.take(1)
    blocked = [one for one in site.redis.client_list() if one["cmd"] == "xread"]
    assert len(blocked) == 1
    site.tell(count=50)
    for watcher in watchers:
        assert numbers(await watcher.take(50)) == list(range(2, 52))
    for watcher in watchers:
        watcher.response.close()


async def test_a_crowd_that_comes_at_once_is_let_in(site: Site, watch: Watch) -> None:
    site.feeds._max_watchers = 500
    site.begin()
    ids = site.tell(count=5)
    crowd = await asyncio.gather(*(watch(last=ids[1]) for _ in range(300)))
    for watcher in crowd:
        assert numbers(await watcher.take(3)) == [4, 5, 6]


async def test_a_watcher_that_does_not_read_slows_nobody_and_loses_nothing(
    site: Site, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "KEPT", 100)
    site.begin()
    slow, quick = await watch(), await watch()
    await slow.take(1)
    reading = asyncio.create_task(quick.take(3001))
    for _ in range(30):
        site.tell(count=100, size=2_000)
        await asyncio.sleep(0.01)
    assert numbers(await reading) == list(range(1, 3002))
    assert numbers(await slow.take(3000)) == list(range(2, 3002)), "from Redis, at its own pace"
    assert not site.feeds.is_full


async def test_events_that_are_no_longer_kept_are_told_as_a_gap(site: Site, watch: Watch) -> None:
    site.begin()
    ids = site.tell(count=20)
    site.redis.xtrim(keys.events(JOB), maxlen=5, approximate=False)
    for last in ("", ids[3]):
        watcher = await watch(last=last)
        await watcher.take(6)
        assert watcher.kinds == ["gap", *["destination.done"] * 5]
    kept = await watch(last=ids[16])
    assert numbers(await kept.take(3)) == [19, 20, 21]
    assert kept.kinds == ["destination.done"] * 3


@pytest.mark.parametrize("bad", ["x", "1-", "-1", "1-x", "٣-0", "9" * 30])
async def test_what_is_no_event_id_is_refused(site: Site, watch: Watch, bad: str) -> None:
    site.begin()
    if bad.endswith("-"):
        assert place_of(bad) == (1, 0), "Redis takes an id without its second part"
        return
    with pytest.raises(ValueError, match="not an event's id"):
        place_of(bad)
    watcher = await watch(query=f"?since={bad}", status=400)
    assert await watcher.response.text() == "400 since: not an event id\n"


async def test_a_job_that_nobody_knows_is_404_and_too_many_watchers_are_asked_to_come_back(
    site: Site, watch: Watch
) -> None:
    assert await (await watch(job="no-such-job", status=404)).response.text() == "404 no such job\n"
    site.begin()
    watchers = [await watch() for _ in range(50)]
    refused = await watch(status=503)
    assert refused.response.headers["Retry-After"] == "30"
    assert "dashboard.max_watchers" in await refused.response.text()
    watchers[0].response.close()
    async with asyncio.timeout(SECONDS):
        while site.feeds.is_full:
            await asyncio.sleep(0.01)
    await watch()


async def test_a_silent_stream_is_kept_alive(site: Site, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    site.begin()
    watcher = await watch()
    await watcher.take(1)
    reading = asyncio.create_task(watcher.take(1))
    async with asyncio.timeout(SECONDS):
        while watcher.comments.count("alive") < 3:
            await asyncio.sleep(0.01)
    site.tell()
    assert numbers(await reading) == [2]


async def test_connections_to_redis_may_be_cut(site: Site, watch: Watch) -> None:
    site.begin()
    watcher = await watch()
    await watcher.take(1)
    for _ in range(3):
        site.redis.client_kill_filter(_type="normal", skipme=True)
        site.tell(count=5)
        await watcher.take(5)
    site.end()
    assert numbers(await watcher.take(1)) == [17]


async def test_without_events_only_the_end_is_told_and_only_once(site: Site, watch: Watch) -> None:
    site.redis.hset(keys.job(JOB), mapping={"job_id": JOB, "name": "n", "state": "running", "total": 2})
    watcher = await watch()
    site.redis.hset(keys.job(JOB), mapping={"state": "done", "finished_at": 5.0, "done": 2})
    async with asyncio.timeout(SECONDS):
        (end,) = [event async for event in watcher.events()]
    assert (end["type"], end["done"], end["id"]) == ("job.done", 2, "5000-0")
    await watch(last=end["id"], status=204)


async def test_a_job_that_is_asked_again_is_watched_again(site: Site, watch: Watch) -> None:
    site.begin()
    site.end()
    first = await watch()
    async with asyncio.timeout(SECONDS):
        events = [event async for event in first.events()]
    site.redis.hset(keys.job(JOB), "state", "running")
    again = await watch(last=events[-1]["id"])
    site.tell()
    assert numbers(await again.take(1)) == [3]


async def test_what_is_no_event_on_the_stream_stops_nobody(site: Site, watch: Watch) -> None:
    site.begin()
    watcher = await watch()
    await watcher.take(1)
    for fields in ({"x": "y"}, {"e": b"\xff"}, {"e": b"{}"}, {"e": b'{"type": 5}'}):
        site.redis.xadd(keys.events(JOB), fields)
    site.tell()
    assert numbers(await watcher.take(1)) == [2]


async def test_an_asyncio_program_follows_a_job_and_goes_on_where_it_stopped(site: Site, redis_url: str) -> None:
    site.begin()
    site.tell(count=700)
    client = connect_async(redis_url, socket_timeout_seconds=180)
    seen = []
    async for event in follow_async(JOB, redis=client, timeout_seconds=SECONDS):
        seen.append(event)
        if len(seen) == 300:
            break
    site.end()
    rest = follow_async(JOB, after=seen[-1].id, redis=client, timeout_seconds=SECONDS)
    seen += [event async for event in rest]
    assert [event.data["number"] for event in seen] == list(range(1, 703))
    await client.aclose()
