"""`/jobs/ID/results.csv` and `.jsonl`: a job's profiles as `themes results` writes them, in flat memory.

A row is read when the browser has taken those before it; a browser that goes away ends the reading.
"""

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

from tornado.iostream import StreamClosedError

from tasks.errors import JobNotFoundError
from workers.dashboard.jobs_pages import PageHandler
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import ExportRow
from workers.results.queries.export import WRITERS
from workers.results.queries.lookups import input_titles
from workers.results.queries.selection import Selection

log = logging.getLogger("themes.dashboard")

#: Kind -> its media type.
KINDS: Final = {"csv": "text/csv", "jsonl": "application/x-ndjson"}
#: Characters that are sent at once.
PIECE: Final = 64 * 1024
#: Seconds in which a browser has to take a piece.
TAKE_SECONDS: Final = 600.0


class Download(PageHandler):
    _writing: asyncio.Task[None] | None = None

    def on_connection_close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    async def answer(self, *parts: str) -> None:
        job_id, kind = parts
        store = await self.site.store()
        if await store.job(job_id) is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}")
        titles = await input_titles(store, job_id)
        self.set_header("Content-Type", f"{KINDS[kind]}; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="themes-{job_id}.{kind}"')
        self._writing = asyncio.create_task(self._write(store, job_id, kind, titles), name=f"download of {job_id}")
        with contextlib.suppress(StreamClosedError, asyncio.CancelledError):
            await self._writing

    async def _write(self, store: AsyncDatabaseManager, job_id: str, kind: str, titles: list[str]) -> None:
        out = io.StringIO(newline="")
        rows = self._sent(store.exported(job_id), out)
        try:
            await WRITERS[kind](rows, out, Selection(), titles)
            await self._send(out)
        except (StreamClosedError, asyncio.CancelledError):
            raise
        except Exception as bad:
            if not self._headers_written:
                self.clear()
                raise
            # The rest is missing: the browser must not take what it has for all.
            log.error("action=download_failed job_id=%s %s", job_id, bad)  # noqa: TRY400  # the reason says it
            self.request.connection.close()

    async def _sent(self, rows: AsyncIterator[ExportRow], out: io.StringIO) -> AsyncIterator[ExportRow]:
        """The rows; what was written of those before is sent first."""
        async for row in rows:
            yield row
            if out.tell() >= PIECE:
                await self._send(out)

    async def _send(self, out: io.StringIO) -> None:
        self.write(out.getvalue())
        out.seek(0)
        out.truncate()
        async with asyncio.timeout(TAKE_SECONDS):
            await self.flush()
        # A browser that takes all at once leaves no gap by itself for the others.
        await asyncio.sleep(0)


def handlers(site: Any) -> list[tuple[str, type[PageHandler], dict[str, Any]]]:
    return [(rf"/jobs/([A-Za-z0-9_.-]{{1,100}})/results\.({'|'.join(KINDS)})", Download, {"site": site})]
