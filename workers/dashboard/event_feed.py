"""A job's events for any number of watchers: read from Redis once, given to each at its own pace.

Each watched job has one reader, which keeps the last events ready to be sent. A watcher that is further behind takes
pages from the stream in Redis until it has caught up, so a slow one holds one page and delays no other.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from itertools import takewhile
from typing import Any, Final, NamedTuple

import msgspec
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.errors import JobNotFoundError, UnreadableError
from tasks.jobs import registry as jobs
from tasks.jobs.events import current_status, decode, ended_after, entries_of, flat
from tasks.messages import Event

log = logging.getLogger("themes.dashboard")

#: Events kept ready for watchers that are up to date.
KEPT: Final = 2_000
#: Events taken at once, by the reader and by a watcher that catches up.
PAGE: Final = 200
BLOCK_SECONDS: Final = 1.0
#: Seconds between two tries while Redis is away.
AWAY_SECONDS: Final = 1.0
#: Seconds between two pieces of news: a base, and what each watcher adds. A write to a browser costs some 0.1 ms, so a
#: thousand of them get theirs five times a second, with half of a core left.
PACE_SECONDS: Final = 0.02
PACE_PER_WATCHER_SECONDS: Final = 0.0002

#: Watchers that ask Redis at the same time; a thousand that come at once take their turns.
ASKING: Final = 16

#: A stream's id as numbers: they order as the events do.
Place = tuple[int, int]
START: Final[Place] = (0, 0)


class Frame(NamedTuple):
    place: Place
    data: bytes


class FeedPage(NamedTuple):
    """What a watcher is given next. Without frames nothing has happened for a while."""

    frames: list[Frame]
    #: Events between the watcher's last one and these are no longer kept.
    has_gap: bool = False
    is_end: bool = False


def place_of(event_id: str) -> Place:
    first, _, second = event_id.partition("-")
    if not first.isdecimal() or not (second or "0").isdecimal() or not first.isascii() or not second.isascii():
        raise ValueError(f"not an event's id: {event_id[:40]!r}")
    found = int(first), int(second or "0")
    if max(found) >= 2**64:
        raise ValueError(f"not an event's id: {event_id[:40]!r}")
    return found


def id_of(place: Place) -> str:
    return f"{place[0]}-{place[1]}"


def _frame(entry_id: bytes, fields: dict[bytes, bytes]) -> Frame:
    """An entry of the stream as it is sent; of one that is no event only the place."""
    try:
        event = decode(entry_id, fields)
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as bad:
        log.warning("action=event_unreadable entry_id=%s %s", entry_id.decode(), bad)
        return Frame(place_of(entry_id.decode()), b"")
    return _sent(event, place_of(event.id))


def _sent(event: Event, place: Place) -> Frame:
    # One line: msgspec writes no line feeds.
    data = f"id: {event.id}\nevent: {event.type}\ndata: ".encode() + msgspec.json.encode(flat(event)) + b"\n\n"
    return Frame(place, data)


class JobFeed:
    def __init__(self, redis: Redis, job_id: str, turns: asyncio.Semaphore) -> None:
        self._redis = redis
        self._turns = turns
        self._job_id = job_id
        self._frames: deque[Frame] = deque()
        #: Everything after this is in `_frames`; None until the reader knows where the stream stands.
        self._floor: Place | None = None
        self._last: Place = START
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0
        self.has_ended = False
        self.trouble = ""

    def __repr__(self) -> str:
        return f"<JobFeed {self._job_id} watchers={self.watchers} kept={len(self._frames)} ended={self.has_ended}>"

    def start(self) -> None:
        self._task = asyncio.create_task(self._read(), name=f"feed of {self._job_id}")
        self._task.add_done_callback(self._has_stopped)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def after(self, place: Place, *, wait_seconds: float) -> FeedPage:
        """What follows `place`: at once what is known, else the next news within `wait_seconds`."""
        if self._floor is None:
            await self._wait(wait_seconds)
        if self._floor is None:
            return FeedPage([])
        if place < self._floor:
            return await self._catch_up(place)
        if place >= self._last and not self.has_ended:
            await self._wait(wait_seconds)
        if place < self._floor:
            return FeedPage([])  # it fell behind while it waited: the next call catches up
        return FeedPage(self._kept_after(place), is_end=self.has_ended)

    def _kept_after(self, place: Place) -> list[Frame]:
        # From the newest backwards: a watcher that is up to date lacks only the last few.
        return list(takewhile(lambda frame: frame.place > place, reversed(self._frames)))[::-1]

    async def _catch_up(self, place: Place) -> FeedPage:
        """A page out of Redis; where the next one is kept here, or the stream is gone, the last."""
        assert self._floor is not None  # noqa: S101  # the caller knows
        try:
            async with self._turns:
                entries: Any = await self._redis.xrange(keys.events(self._job_id), min=f"({id_of(place)}", count=PAGE)
                has_gap = await self._is_gone(place, entries)
        except (RedisError, OSError) as bad:
            self.trouble = f"Redis does not answer: {bad}"
            await asyncio.sleep(AWAY_SECONDS)
            return FeedPage([])
        frames = [_frame(entry_id, fields) for entry_id, fields in entries]
        if not frames:
            # Nothing is left between here and what is kept.
            return FeedPage([Frame(self._floor, b"")], has_gap=has_gap)
        return FeedPage(frames, has_gap=has_gap)

    async def _is_gone(self, place: Place, entries: Any) -> bool:
        if place == START:
            return bool(entries) and decode(*entries[0]).type != "job.started"
        if await self._redis.xrange(keys.events(self._job_id), min=id_of(place), max=id_of(place), count=1):
            return False
        first: Any = await self._redis.xrange(keys.events(self._job_id), count=1)
        return not first or place_of(first[0][0].decode()) > place

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._news), seconds)

    def _has_stopped(self, task: asyncio.Task[None]) -> None:
        """After a fault of our own watchers end, and come back to a new feed."""
        if not task.cancelled() and (fault := task.exception()):
            log.error("action=feed_failed job_id=%s", self._job_id, exc_info=fault)
            self._end()

    async def _read(self) -> None:
        while not self.has_ended:
            try:
                await self._read_on()
            except JobNotFoundError:
                self._end()
            except UnreadableError as bad:
                self.trouble = str(bad)
                await asyncio.sleep(AWAY_SECONDS)
            except (RedisError, OSError) as bad:
                # Watchers stay and get the reason; nothing is lost meanwhile.
                if not self.trouble:
                    log.warning("action=feed_waits job_id=%s Redis does not answer: %s", self._job_id, bad)
                self.trouble = f"Redis does not answer: {bad}"
                await asyncio.sleep(AWAY_SECONDS)

    async def _read_on(self) -> None:
        if self._floor is None:
            newest: Any = await self._redis.xrevrange(keys.events(self._job_id), count=1)
            self._floor = self._last = place_of(newest[0][0].decode()) if newest else START
            self._wake()
        while not self.has_ended:
            position: Any = {keys.events(self._job_id): id_of(self._last)}
            page: Any = await self._redis.xread(position, count=PAGE, block=int(BLOCK_SECONDS * 1000))
            self.trouble = ""
            entries = entries_of(page)
            for entry_id, fields in entries:
                self._keep(_frame(entry_id, fields))
            if entries:
                self._wake()
                await asyncio.sleep(PACE_SECONDS + PACE_PER_WATCHER_SECONDS * self.watchers)
                continue
            ended = await ended_after(self._redis, self._job_id, id_of(self._last))
            if ended and ended.is_final:
                self._keep_last(ended)
                self._end()

    def _keep(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._last = frame.place
        while len(self._frames) > KEPT:
            self._floor = self._frames.popleft().place

    def _keep_last(self, ended: jobs.JobStatus) -> None:
        if self._last != START:
            return
        last = jobs.last_event(ended)
        place = (int(last.at * 1000), 0)
        self._keep(_sent(msgspec.structs.replace(last, id=id_of(place)), place))

    def _end(self) -> None:
        if self._floor is None:
            self._floor = START
        self.has_ended = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)


class Feeds:
    def __init__(self, redis: Redis, *, max_watchers: int) -> None:
        self._redis = redis
        self._feeds: dict[str, JobFeed] = {}
        self._max_watchers = max_watchers
        self._turns = asyncio.Semaphore(ASKING)
        self.watchers = 0

    @property
    def is_full(self) -> bool:
        return self.watchers >= self._max_watchers

    @contextlib.asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[JobFeed]:
        feed = self._feeds.get(job_id)
        if feed is None or feed.has_ended:
            # A job that has ended may have been asked again.
            feed = self._feeds[job_id] = JobFeed(self._redis, job_id, self._turns)
            feed.start()
        feed.watchers += 1
        self.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            self.watchers -= 1
            if not feed.watchers:
                if self._feeds.get(job_id) is feed:
                    del self._feeds[job_id]
                await feed.stop()

    async def is_over(self, job_id: str, place: Place) -> bool:
        """Whether a job has ended without an event after `place`. Raises JobNotFoundError."""
        async with self._turns:
            known = await current_status(self._redis, job_id)
            if not known.is_final or place == START:
                return False
            newest: Any = await self._redis.xrevrange(keys.events(job_id), count=1)
        return not newest or place_of(newest[0][0].decode()) <= place
