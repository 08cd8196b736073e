"""The dashboard's server: Flower's application with our pages in front of its own.

Flower has no place for plug-ins. Its command builds `flower.command.Flower`, so that name is given a subclass here; its
handlers go on as they are, and ours are asked first.
"""

import logging
import os
import resource
import signal
from typing import Any, ClassVar

import flower.command
from flower.app import Flower

from config.settings import Settings
from tasks.connection import connect_async
from workers.dashboard import jobs_pages, sse
from workers.dashboard.feed import Feeds
from workers.dashboard.handler import GuardedHealthcheck, GuardedMetrics
from workers.dashboard.jobs_pages import Site
from workers.dashboard.recent import RecentJobs
from workers.dashboard.templates import Templates

log = logging.getLogger("themes.dashboard")


class Dashboard(Flower):
    """Flower with our pages. Settings come by `install`, because Flower's command makes the instance."""

    settings_of_themes: ClassVar[Settings]
    redis_url: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, template_loader=Templates(kwargs["template_path"], jobs_pages.PAGES), **kwargs)
        settings, redis_url = type(self).settings_of_themes, type(self).redis_url
        redis = connect_async(redis_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
        feeds = Feeds(redis, max_watchers=settings.dashboard.max_watchers)
        prefix = f"/{self.options.url_prefix.strip('/')}" if self.options.url_prefix else ""
        ours: list[tuple[Any, ...]] = [
            (r"/metrics", GuardedMetrics),
            (r"/healthcheck", GuardedHealthcheck),
            *sse.handlers(feeds),
            *jobs_pages.handlers(Site(settings, redis_url, RecentJobs(redis))),
        ]
        self.add_handlers(".*", [(prefix + pattern, *rest) for pattern, *rest in ours])

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT, then end the process.

        Flower lets a signal raise an exception wherever the process happens to be, and then waits for the threads that
        ask workers about themselves; such a thread waits for Redis as long as Redis is silent. Here the loop just ends,
        what Flower knows is saved, and nobody waits for threads that have nothing to save.
        """
        loop = self.io_loop.asyncio_loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, loop.stop)
        super().start()
        self.stop()
        logging.shutdown()
        os._exit(0)


def install(settings: Settings, redis_url: str) -> None:
    """Make Flower's command serve our pages too."""
    Dashboard.settings_of_themes = settings
    Dashboard.redis_url = redis_url
    flower.command.Flower = Dashboard
    _allow_files(settings.dashboard.max_watchers)


def _allow_files(watchers: int) -> None:
    """Raise the limit of open files to what so many watchers need, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = watchers + 500
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            log.warning(
                "action=few_files %d open files are allowed: fewer than dashboard.max_watchers (%d) can watch; "
                "ulimit -n %d",
                most, watchers, wanted,
            )  # fmt: skip
