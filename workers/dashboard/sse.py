"""`/jobs/ID/events`: a job's events as they happen, for browsers (EventSource) and `curl -N`.

Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html); 204 ends a browser's reconnects.
"""

import asyncio
import contextlib
from typing import Any, Final

from redis import RedisError
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from tasks.errors import JobNotFoundError, UnreadableError
from workers.dashboard.event_feed import START, FeedPage, Feeds, Place, place_of
from workers.dashboard.guard import Handler

#: Seconds without an event after which a comment shows that the connection lives (proxies close silent ones).
HEARTBEAT_SECONDS: Final = 15.0
RETRY_MS: Final = 2_000
#: Seconds after which a watcher for whom there is no room may ask again.
FULL_SECONDS: Final = 30


class JobEvents(Handler):
    def initialize(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._streaming: asyncio.Task[None] | None = None

    def on_connection_close(self) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    async def get(self, job_id: str) -> None:
        """The events after `Last-Event-ID` (a header) or `since` (in the URL), or all of them."""
        place = self._place()
        try:
            if await self._feeds.is_over(job_id, place):
                self.set_status(204)
                return
        except JobNotFoundError as unknown:
            raise HTTPError(404, reason="no such job") from unknown
        except UnreadableError as bad:
            raise HTTPError(503, reason="this job cannot be read") from bad
        except (RedisError, OSError) as bad:
            raise HTTPError(503, reason="Redis does not answer") from bad
        if self._feeds.is_full:
            self.set_status(503)
            self.set_header("Retry-After", FULL_SECONDS)
            self.finish("503 too many watchers (dashboard.max_watchers)\n")
            return
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        self._streaming = asyncio.create_task(self._stream(job_id, place), name=f"events of {job_id}")
        with contextlib.suppress(StreamClosedError, asyncio.CancelledError):
            await self._streaming

    def _place(self) -> Place:
        said = self.request.headers.get("Last-Event-ID") or self.get_query_argument("since", "")
        if not said:
            return START
        try:
            return place_of(said)
        except ValueError as bad:
            raise HTTPError(400, reason="since: not an event id") from bad

    async def _stream(self, job_id: str, place: Place) -> None:
        self.write(f"retry: {RETRY_MS}\n\n")
        await self.flush()
        async with self._feeds.watching(job_id) as feed:
            while True:
                page = await feed.after(place, wait_seconds=HEARTBEAT_SECONDS)
                self.write(_written(page, feed.trouble))
                # Waits until the watcher has taken it: a slow one has one page under way, and no more.
                await self.flush()
                if page.frames:
                    place = page.frames[-1].place
                if page.is_end:
                    return


def _written(page: FeedPage, trouble: str) -> bytes:
    gap = b'event: gap\ndata: {"type":"gap"}\n\n' if page.has_gap else b""
    if page.frames:
        return gap + b"".join(frame.data for frame in page.frames)
    return gap + (f": {trouble}\n\n".encode() if trouble else b": alive\n\n")


def handlers(feeds: Feeds) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    return [(r"/jobs/([A-Za-z0-9_.-]{1,100})/events", JobEvents, {"feeds": feeds})]
