"""The pages of jobs, which come from Redis, and of their destinations, out of the results database."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final

from redis import Redis, RedisError, ResponseError

from config.settings import Settings
from tasks.connection import connect
from tasks.errors import (
    ConfigError,
    DatabaseBusyError,
    DatabaseError,
    JobNotFoundError,
    RedisUnavailableError,
    UnreadableError,
)
from tasks.jobs import registry as jobs
from tasks.jobs.registry import JobStatus
from workers.dashboard.guard import PAGES, STYLE, Handler, root_of, style
from workers.dashboard.job_values import embedded, job_values
from workers.dashboard.recent import RecentJobs
from workers.dashboard.verdicts import Verdicts
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.status import status_of

#: Seconds for which a list of all jobs is good enough for every reader.
LIST_SECONDS: Final = 1.0


class Site:
    def __init__(self, settings: Settings, redis_url: str, recent: RecentJobs) -> None:
        timeout = settings.redis.socket_timeout_seconds
        self.redis: Redis = connect(redis_url, socket_timeout_seconds=timeout)
        self.settings = settings
        self._store: AsyncDatabaseManager | None = None
        self._listed: tuple[float, list[JobStatus]] = (float("-inf"), [])
        self._listing = asyncio.Lock()
        broker = settings.celery.broker_url
        self._verdicts = Verdicts(self.redis, connect(broker, socket_timeout_seconds=timeout) if broker else self.redis)
        self.recent = recent

    async def list(self) -> list[JobStatus]:
        """The newest jobs first, as they stood at most `LIST_SECONDS` ago."""
        async with self._listing:
            if time.monotonic() - self._listed[0] > LIST_SECONDS:
                found = await asyncio.to_thread(lambda: list(jobs.list_jobs(self.redis)))
                self._listed = (time.monotonic(), found)
        return self._listed[1]

    async def status(self, job_id: str) -> tuple[JobStatus, bool]:
        """A job's status, and whether it is Redis's; else the database's. Raises JobNotFoundError or DatabaseError."""
        try:
            return await asyncio.to_thread(jobs.status, self.redis, job_id), True
        except JobNotFoundError:
            row = await (await self.store()).job(job_id)
            if row is None:
                raise
            return _status_of(row), False

    async def verdict(self, status: JobStatus, *, is_known: bool) -> str:
        """What limits a job, or limited it; nothing where that cannot be read. A Redis that is away passes through.

        Why a job is paused its page says anyway.
        """
        if status.paused:
            return ""
        try:
            if is_known and not status.is_final:
                return (await self._verdicts.live(status)).words
            return (await self._verdicts.ended(await self.store(), status)).words
        except (DatabaseError, ResponseError):
            return ""  # the LLM page and the doctor say what it is

    async def store(self) -> AsyncDatabaseManager:
        """The results database, opened for reading. Raises DatabaseError."""
        if self._store is None:
            store = AsyncDatabaseManager.from_settings(self.settings)
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

    @property
    def root(self) -> str:
        return root_of(self.application.options)

    def show(self, template: str, **values: Any) -> None:
        self.render(f"themes/{template}", root=self.root, **{"here": "", "bare": False, **values})

    def say(self, status: int, title: str, text: str) -> None:
        self.set_status(status)
        self.show("message.html", title=title, text=text)

    async def get(self, *parts: str) -> None:
        await self.told(self.answer(*parts))

    async def told(self, answering: Awaitable[None]) -> None:
        """Await an answer; where it fails, a page says why."""
        try:
            await answering
        except JobNotFoundError as unknown:
            self.say(404, "There is no such job", str(unknown))
        except UnreadableError as bad:
            self.say(503, "This cannot be read", str(bad))
        except DatabaseBusyError as bad:
            self.say(503, "The results database is busy", str(bad))
        except DatabaseError as bad:
            self.say(503, "There are no results to show", str(bad))
        except ConfigError as refused:
            self.say(409, "This cannot be done now", str(refused))
        except (RedisError, OSError, RedisUnavailableError) as bad:
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
    shared = {"site": site}
    return [
        (r"/jobs()/?", JobList, shared),
        (r"/jobs(\.json)", JobList, shared),
        (rf"/jobs/assets/({'|'.join(name.replace('.', '[.]') for name in files)})", Asset, {"files": files}),
    ]
