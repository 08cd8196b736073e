"""The pages of jobs, which come from Redis, and of their destinations, out of the results database."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final, cast
from urllib.parse import urlencode

from redis import Redis, RedisError

from config.settings import Settings
from tasks.connection import connect
from tasks.errors import DatabaseBusyError, DatabaseError, JobNotFoundError, UnreadableError
from tasks.jobs import registry as jobs
from tasks.jobs.registry import JobStatus
from workers.dashboard.guard import PAGES, STYLE, Handler, root_of, style
from workers.dashboard.job_values import embedded, job_counts, job_values, label
from workers.dashboard.recent import Recent, RecentJobs
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import DestinationStatus, JobRow
from workers.results.queries.lookups import first_failures, lines
from workers.results.queries.status import status_of

#: Seconds for which a list of all jobs is good enough for every reader.
LIST_SECONDS: Final = 1.0
PER_PAGE: Final = 50
FAILURES: Final = 50
#: The furthest page; beyond it a search finds sooner.
LAST_PAGE: Final = 100_000
_STATES: Final = ("queued", "done", "failed")


class Site:
    def __init__(self, settings: Settings, redis_url: str, recent: RecentJobs) -> None:
        timeout = settings.redis.socket_timeout_seconds
        self._redis: Redis = connect(redis_url, socket_timeout_seconds=timeout)
        self._settings = settings
        self._store: AsyncDatabaseManager | None = None
        self._listed: tuple[float, list[JobStatus]] = (float("-inf"), [])
        self._listing = asyncio.Lock()
        self.recent = recent

    async def list(self) -> list[JobStatus]:
        """The newest jobs first, as they stood at most `LIST_SECONDS` ago."""
        async with self._listing:
            if time.monotonic() - self._listed[0] > LIST_SECONDS:
                found = await asyncio.to_thread(lambda: list(jobs.list_jobs(self._redis)))
                self._listed = (time.monotonic(), found)
        return self._listed[1]

    async def status(self, job_id: str) -> tuple[JobStatus, bool]:
        """A job's status, and whether it is Redis's; else the database's. Raises JobNotFoundError or DatabaseError."""
        try:
            return await asyncio.to_thread(jobs.status, self._redis, job_id), True
        except JobNotFoundError:
            row = await (await self.store()).job(job_id)
            if row is None:
                raise
            return _status_of(row), False

    async def store(self) -> AsyncDatabaseManager:
        """The results database, opened for reading. Raises DatabaseError."""
        if self._store is None:
            store = AsyncDatabaseManager.from_settings(self._settings)
            try:
                await store.open()
            except BaseException:
                await store.close()
                raise
            self._store = store
        return self._store


def _status_of(row: JobRow) -> JobStatus:
    status = status_of(row)
    took = status.seconds
    return replace(status, rate_per_second=0.0 if took is None else row.finished / max(0.001, took))


class PageHandler(Handler):
    def initialize(self, site: Site) -> None:
        self.site = site

    def show(self, template: str, **values: Any) -> None:
        root = root_of(self.application.options)
        self.render(f"themes/{template}", root=root, **{"here": "", "bare": False, **values})

    def say(self, status: int, title: str, text: str) -> None:
        self.set_status(status)
        self.show("message.html", title=title, text=text)

    async def get(self, *parts: str) -> None:
        try:
            await self.answer(*parts)
        except JobNotFoundError as unknown:
            self.say(404, "There is no such job", str(unknown))
        except UnreadableError as bad:
            self.say(503, "This cannot be read", str(bad))
        except DatabaseBusyError as bad:
            self.say(503, "The results database is busy", str(bad))
        except DatabaseError as bad:
            self.say(503, "There are no results to show", str(bad))
        except (RedisError, OSError) as bad:
            self.say(503, "Redis does not answer", str(bad))

    async def answer(self, *parts: str) -> None:
        raise NotImplementedError


class JobList(PageHandler):
    async def answer(self, *parts: str) -> None:
        listed = [job_values(status) for status in await self.site.list()]
        if parts[0]:
            self.set_header("Content-Type", "application/json; charset=utf-8")
            self.finish(embedded({"jobs": listed})[len('{"jobs":') : -1])
        else:
            self.show("jobs.html", jobs=listed, here="jobs")


class JobPage(PageHandler):
    async def answer(self, *parts: str) -> None:
        (job_id,) = parts
        status, is_known = await self.site.status(job_id)
        recent = await self.site.recent.of(job_id) if is_known else Recent()
        failures = list(reversed(recent.failures))
        note = ""
        if not is_known:
            note = f"Redis no longer knows this job: these are the results. themes retry {job_id} goes on with it."
            found = await first_failures(await self.site.store(), job_id, FAILURES)
            failures = [asdict(each) for each in found]
        data = {
            "job_id": job_id,
            "is_final": status.is_final or not is_known,
            "counts": job_counts(status),
            "points": recent.points,
            "last_id": recent.last_id if recent.last_id != "0-0" else "",
            "shown": [each["destination_id"] for each in recent.latest],
        }
        self.show(
            "job.html", job=job_values(status), live=is_known, latest=reversed(recent.latest), failures=failures,
            note=note, label=label, data=embedded(data),
        )  # fmt: skip


class JobNow(PageHandler):
    async def answer(self, *parts: str) -> None:
        status, _ = await self.site.status(parts[0])
        words = job_values(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        known = {"tag": words["tag"], "words": words["words"], "is_final": status.is_final}
        self.finish(embedded({**known, "counts": job_counts(status)}))


class DestinationList(PageHandler):
    async def answer(self, *parts: str) -> None:
        (job_id,) = parts
        store = await self.site.store()
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}")
        state = self.get_query_argument("state", "")
        text = self.get_query_argument("q", "")[:200]
        number = self._number()
        found = await lines(
            store, job_id, state=cast("DestinationStatus", state) if state in _STATES else None, text=text,
            offset=number * PER_PAGE, limit=PER_PAGE + 1,
        )  # fmt: skip

        def page(other: int) -> str:
            return "?" + urlencode({"state": state, "q": text, "page": other})

        self.show(
            "destinations.html",
            job_id=job_id,
            name=row.name,
            state=state,
            text=text,
            label=label,
            rows=found[:PER_PAGE],
            earlier=page(number - 1) if number else "",
            later=page(number + 1) if len(found) > PER_PAGE else "",
        )

    def _number(self) -> int:
        said = self.get_query_argument("page", "0")
        return min(int(said), LAST_PAGE) if said.isdecimal() and said.isascii() and len(said) < 9 else 0  # noqa: PLR2004  # digits


class Asset(Handler):
    def initialize(self, files: Mapping[str, tuple[bytes, str]]) -> None:
        self._files = files

    def get(self, name: str) -> None:
        content, kind = self._files[name]
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Etag", f'"{hashlib.sha256(content).hexdigest()[:20]}"')
        if self.check_etag_header():
            self.set_status(304)
        else:
            self.write(content)


def handlers(site: Site) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    files = {each.name: (each.read_bytes(), "text/javascript") for each in PAGES.glob("*.js")}
    files["themes.css"] = STYLE.encode(), "text/css"
    files["flower.css"] = style("header", "flower").encode(), "text/css"
    job = r"/jobs/([A-Za-z0-9_.-]{1,100})"
    shared = {"site": site}
    return [
        (r"/jobs()/?", JobList, shared),
        (r"/jobs(\.json)", JobList, shared),
        (rf"/jobs/assets/({'|'.join(name.replace('.', '[.]') for name in files)})", Asset, {"files": files}),
        (rf"{job}/?", JobPage, shared),
        (rf"{job}/status\.json", JobNow, shared),
        (rf"{job}/destinations/?", DestinationList, shared),
    ]
