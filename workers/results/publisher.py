"""Events from the worker to a job's watchers, many in one round trip.

`stage.done` takes this way: events are dropped and counted when Redis is away or the buffer is full; the consumer
announces what is durable. The first event of a job is preceded by its `job.started`.
"""

import asyncio
import contextlib
import logging
from typing import Any, Final, Self

from redis import RedisError, ResponseError
from redis.asyncio import Redis

from config.sections import PerformanceSettings, StreamingSettings
from tasks import keys
from tasks.errors import UnreadableError
from tasks.jobs.events import encode
from tasks.lua import lua
from tasks.messages import Event
from tasks.readings import texts, whole

log = logging.getLogger("themes.events")

#: Events that wait for Redis, at most.
BUFFER: Final = 5_000
#: Jobs that are known to be announced; more of them are looked up again.
KNOWN_JOBS: Final = 1_000

_ANNOUNCE: Final = lua(__file__, "announce")


class EventPublisher:
    """Sends events in the background. Use as an async context manager; `enabled` off makes it silent."""

    def __init__(
        self,
        redis: Redis,
        streaming: StreamingSettings,
        *,
        enabled: bool,
        max_bytes: int = PerformanceSettings().max_streaming_chunk_size,
    ) -> None:
        self._redis = redis
        self._enabled = enabled
        self._max_events = streaming.max_events_per_job
        self._chunk_size = streaming.chunk_size
        self._flush_seconds = streaming.flush_interval_seconds
        self._max_bytes = max_bytes
        self._buffer: list[Event] = []
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._announced: set[str] = set()
        self._announce_script = redis.register_script(_ANNOUNCE)
        self.sent = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<EventPublisher waiting={len(self._buffer)} sent={self.sent} dropped={self.dropped}>"

    async def __aenter__(self) -> Self:
        if self._enabled:
            self._task = asyncio.create_task(self._send_all(), name="event publisher")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            while await self._flush():
                pass

    def publish(self, event: Event) -> None:
        """Queue an event; never blocks."""
        if not self._enabled:
            return
        if len(self._buffer) >= BUFFER:
            self.dropped += 1
            return
        self._buffer.append(event)
        self._filled.set()

    async def _send_all(self) -> None:
        while True:
            if not self._buffer:
                self._filled.clear()
                await self._filled.wait()
            await asyncio.sleep(self._flush_seconds)
            # What has come in the meantime waits no second interval.
            while self._buffer and await self._flush():
                pass

    async def _flush(self) -> bool:
        """Send one chunk; True when it arrived and more had waited with it."""
        page = self._page()
        if not page:
            return False
        del self._buffer[: len(page)]
        is_more = bool(self._buffer)
        try:
            jobs = {event.job_id for event, _ in page}
            for job_id in jobs - self._announced:
                await self._announce(job_id)
            async with self._redis.pipeline(transaction=False) as pipeline:
                for event, encoded in page:
                    stream, most = keys.events(event.job_id), self._max_events
                    pipeline.xadd(stream, encoded, maxlen=most, approximate=True, nomkstream=True)
                for job_id in jobs:
                    pipeline.expire(keys.events(job_id), keys.KEEP_SECONDS)
                # A key of another type is one job's trouble: the consumer says it.
                replies = await pipeline.execute(raise_on_error=False)
            refused = sum(isinstance(reply, Exception) for reply in replies)
            self.sent += len(page) - refused
            self.dropped += refused
        except (RedisError, OSError) as exc:
            self.dropped += len(page)
            log.debug("action=events_dropped count=%d %s", len(page), exc)
            return False
        return is_more

    def _page(self) -> list[tuple[Event, dict[Any, Any]]]:
        """The events of one round trip: bounded in number and in bytes, but at least one."""
        page: list[tuple[Event, dict[Any, Any]]] = []
        size = 0
        for event in self._buffer[: self._chunk_size]:
            encoded = encode(event)
            size += len(encoded["e"])
            if page and size > self._max_bytes:
                break
            page.append((event, encoded))
        return page

    async def _announce(self, job_id: str) -> None:
        try:
            fields = texts(await self._redis.hgetall(keys.job(job_id)))
            data = {"name": fields.get("name", ""), "total": whole(fields, "total")}
            event = Event("job.started", job_id, data=data)
            await self._announce_script(
                keys=[keys.job(job_id), keys.events(job_id)], args=[encode(event)["e"], self._max_events, event.at]
            )
        except (ResponseError, UnreadableError) as exc:
            log.debug("action=job_unreadable job_id=%s is not announced: %s", job_id, exc)
        if len(self._announced) >= KNOWN_JOBS:
            self._announced.clear()
        self._announced.add(job_id)
