"""Follow a job: iterators over its events, plain and asynchronous, resumable by id.

A destination's event is published after its row is durable. Delivery is at least once: after a crash of the consumer an
event may come twice, with another id.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec
from redis import Redis, ResponseError
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings, load
from tasks import keys
from tasks.connection import connect_async, connected, locate
from tasks.errors import JobNotFoundError
from tasks.jobs import registry as jobs
from tasks.messages import Event
from tasks.storable import storable

log = logging.getLogger("themes.events")

#: Seconds that one read waits for news; below the socket timeout.
BLOCK_SECONDS: Final = 1.0
PAGE: Final = 500


def decode(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    event = msgspec.json.decode(fields[b"e"], type=Event)
    return msgspec.structs.replace(event, id=entry_id.decode())


def encode(event: Event) -> dict[Any, Any]:
    """One event as the fields of a stream entry; its id is the stream's business."""
    fields = msgspec.structs.asdict(event)
    del fields["id"]
    try:
        return {"e": msgspec.json.encode(fields)}
    except UnicodeError:  # half a surrogate pair, out of an answer or an error's text
        return {"e": msgspec.json.encode(storable(fields))}


def flat(event: Event) -> dict[str, Any]:
    """An event as watchers read it: its own fields first, then its data's."""
    head = {"id": event.id, "type": event.type, "job_id": event.job_id, "destination_id": event.destination_id}
    return head | {"at": event.at} | event.data


class _Follower:
    """How far a job's events were read, when it was paused, and until when it is followed."""

    def __init__(self, job_id: str, after: str, timeout_seconds: float | None) -> None:
        self.job_id = job_id
        self.position = after
        self._paused_at = 0.0
        self._timeout_seconds = timeout_seconds
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def query(self) -> dict[str, Any]:
        place = {keys.events(self.job_id): self.position}
        return {"streams": place, "count": PAGE, "block": int(BLOCK_SECONDS * 1000)}

    def events(self, page: Any) -> Iterator[Event]:
        """The events of a page; an entry that holds none is passed over."""
        for entry_id, fields in entries_of(page):
            self.position = entry_id.decode()
            try:
                event = decode(entry_id, fields)
            except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
                log.warning("action=event_unreadable entry_id=%s is passed over: %s", self.position, exc)
                continue
            if event.type == "job.paused":
                self._paused_at = event.at
            yield event

    def last_event(self, ended: jobs.JobStatus) -> Iterator[Event]:
        """The end or pause of a job that its stream does not have."""
        last = jobs.last_event(ended)
        if last.type == "job.done" or last.at != self._paused_at:
            yield last

    def check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError(f"job {self.job_id} did not end within {self._timeout_seconds:g} s")


def follow(
    job: jobs.Job | str,
    *,
    after: str = "0-0",
    timeout_seconds: float | None = None,
    settings: Settings | None = None,
    redis: Redis | None = None,
) -> Iterator[Event]:
    """Yield a job's events from the first one, or those after the id `after`, until the job ends or stays paused.

    With `enable_streaming_results` off there are no events; then the only one is `job.done`, when the job ends, or
    `job.paused`. After a `job.paused` come the destinations that were in hand, and more when the job was resumed.

    Raises:
        JobNotFoundError: no such job.
        TimeoutError: `timeout_seconds` passed without the job's end.
    """
    if redis is None:
        redis = connected(settings or load())
    follower = _Follower(str(job), after, timeout_seconds)
    jobs.status(redis, follower.job_id)
    while True:
        page: Any = redis.xread(**follower.query())
        for event in follower.events(page):
            yield event
            if event.type == "job.done" and _ended(redis, follower.job_id, follower.position):
                return
        if not page and (ended := _ended(redis, follower.job_id, follower.position)):
            yield from follower.last_event(ended)
            return
        follower.check_deadline()


async def follow_async(
    job: jobs.Job | str,
    *,
    after: str = "0-0",
    timeout_seconds: float | None = None,
    settings: Settings | None = None,
    redis: AsyncRedis | None = None,
) -> AsyncIterator[Event]:
    """Yield a job's events as `follow` does, to an asyncio program.

    Raises:
        JobNotFoundError: no such job.
        TimeoutError: `timeout_seconds` passed without the job's end.
    """
    async with contextlib.AsyncExitStack() as stack:
        if redis is None:
            settings = settings or load()
            timeout = settings.redis.socket_timeout_seconds
            redis = connect_async(await asyncio.to_thread(locate, settings), socket_timeout_seconds=timeout)
            stack.push_async_callback(redis.aclose)
        follower = _Follower(str(job), after, timeout_seconds)
        await current_status(redis, follower.job_id)
        while True:
            page: Any = await redis.xread(**follower.query())
            for event in follower.events(page):
                yield event
                if event.type == "job.done" and await ended_after(redis, follower.job_id, follower.position):
                    return
            if not page and (ended := await ended_after(redis, follower.job_id, follower.position)):
                for last in follower.last_event(ended):
                    yield last
                return
            follower.check_deadline()


async def current_status(redis: AsyncRedis, job_id: str) -> jobs.JobStatus:
    """How a job stands, by its own entry alone: not whether it is stalled or waits for something.

    Raises:
        JobNotFoundError: no such job.
        UnreadableError: its entry cannot be read.
    """
    raw: Any
    try:
        raw = await redis.hgetall(keys.job(job_id))
    except ResponseError as exc:
        raw = exc  # a key of another type: that job cannot be read
    return jobs.known_status(job_id, raw, now=time.time())


async def ended_after(redis: AsyncRedis, job_id: str, position: str) -> jobs.JobStatus | None:
    """A job that has ended, or is paused, with nothing more on its stream after `position`.

    Raises:
        JobNotFoundError: it has left Redis.
    """
    known = await current_status(redis, job_id)
    if not (known.is_final or known.paused):
        return None
    return None if await redis.xread({keys.events(job_id): position}, count=1) else known


def entries_of(page: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream's XREAD answer: RESP3 gives a map, RESP2 a list of pairs."""
    if not page:
        return []
    streams = page.values() if isinstance(page, dict) else [entries for _, entries in page]
    return [entry for entries in streams for entry in _flat(entries)]


def _flat(entries: Any) -> list[Any]:
    """redis-py wraps a stream's entries in one more list under RESP3."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _ended(redis: Redis, job_id: str, position: str) -> jobs.JobStatus | None:
    """A job that has ended, or is paused, with nothing more on its stream after `position`."""
    try:
        known = jobs.status(redis, job_id)
    except JobNotFoundError:
        raise JobNotFoundError(f"job {job_id} has left Redis while it was followed") from None
    if not (known.is_final or known.paused) or redis.xread({keys.events(job_id): position}, count=1):
        return None
    return known
