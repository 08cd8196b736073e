"""The dashboard's server: Flower's application with our pages in front of its own.

Flower has no place for plug-ins. Its command builds `flower.command.Flower`, so that name is given a subclass here; its
handlers go on as they are, and ours are asked first.
"""

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
from workers.limits import dashboard_descriptors, ensure_descriptors


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


def install(settings: Settings, redis_url: str) -> None:
    """Make Flower's command serve our pages too."""
    Dashboard.settings_of_themes = settings
    Dashboard.redis_url = redis_url
    flower.command.Flower = Dashboard
    # Fewer watchers than allowed are no reason not to start.
    ensure_descriptors("dashboard", dashboard_descriptors(settings), must=False)
