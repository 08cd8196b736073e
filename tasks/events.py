"""Follow a job: an iterator over its events, resumable by id.

Events of a destination are published after its row is durable. Delivery is at least once: after a crash of the
consumer an event may come twice, with another id.
"""

import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from redis import Redis

from config.settings import Settings, load
from tasks import jobs, keys
from tasks.connection import connect, locate
from tasks.errors import JobNotFoundError
from tasks.messages import Event

#: Seconds that one read waits for news; below the socket timeout.
BLOCK_SECONDS: Final = 1.0
#: Events fetched in one read.
PAGE: Final = 500


def decode(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    """One stream entry as an event with its id."""
    event = msgspec.json.decode(fields[b"e"], type=Event)
    return msgspec.structs.replace(event, id=entry_id.decode())


def encode(event: Event) -> dict[Any, Any]:
    """One event as the fields of a stream entry; its id is the stream's business."""
    fields = msgspec.structs.asdict(event)
    del fields["id"]
    return {"e": msgspec.json.encode(fields)}


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
        settings = settings or load()
        redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    job_id = str(job)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    position, paused_at = after, 0.0
    jobs.status(redis, job_id)
    while True:
        page: Any = redis.xread({keys.events(job_id): position}, count=PAGE, block=int(BLOCK_SECONDS * 1000))
        for entry_id, fields in _entries(page):
            event = decode(entry_id, fields)
            position = event.id
            if event.type == "job.paused":
                paused_at = event.at
            yield event
            if event.type == "job.done" and _ended(redis, job_id, position):
                return
        if not page and (last := _ended(redis, job_id, position)):
            if last.type == "job.done" or last.at != paused_at:
                yield last
            return
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} did not end within {timeout_seconds:g} s")


def _entries(page: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream's XREAD answer: RESP3 gives a map, RESP2 a list of pairs."""
    if not page:
        return []
    streams = page.values() if isinstance(page, dict) else [entries for _, entries in page]
    return [entry for entries in streams for entry in _flat(entries)]


def _flat(entries: Any) -> list[Any]:
    """redis-py wraps a stream's entries in one more list under RESP3."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _ended(redis: Redis, job_id: str, position: str) -> Event | None:
    """The last event of a job that has ended, or is paused, with nothing more on its stream after `position`."""
    try:
        known = jobs.status(redis, job_id)
    except JobNotFoundError:
        raise JobNotFoundError(f"job {job_id} has left Redis while it was followed") from None
    if not (known.is_final or known.paused) or redis.xread({keys.events(job_id): position}, count=1):
        return None
    return jobs.last_event(known)
