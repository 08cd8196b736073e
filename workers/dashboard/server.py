"""Flower's application with our pages in front of its own, and the guard before all.

Flower has no plug-ins: its command builds `flower.command.Flower`, which `workers.dashboard.flower` replaces.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Any, ClassVar, Final

import flower.utils.broker
from flower.app import Flower
from flower.views.auth import LoginHandler
from redis import RedisError
from redis.asyncio import Redis
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import RedirectHandler, RequestHandler

from config.settings import Settings
from tasks import keys
from tasks.connection import connect, connect_async
from workers.dashboard import (
    actions,
    answers_page,
    destinations_page,
    downloads,
    job_page,
    jobs_pages,
    llm_page,
    profile_page,
    sse,
)
from workers.dashboard.event_feed import Feeds
from workers.dashboard.guard import PAGES, guarded, root_of
from workers.dashboard.jobs_pages import Site
from workers.dashboard.prometheus import AllMetrics, Scrape
from workers.dashboard.recent import RecentJobs
from workers.dashboard.templates import Templates
from workers.diagnosis.system import SystemReader
from workers.observe.profiler import PerformanceProfiler
from workers.observe.telemetry import start_reports
from workers.process.file_descriptors import dashboard_descriptors, ensure_descriptors

#: Bytes that the body of a request may have; our largest is the table of tasks, of a few thousand.
MAX_BODY_BYTES: Final = 1024 * 1024
#: Seconds within which a body has to be here, and in which an idle connection has to ask something.
BODY_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 75.0
#: The span of a page, from the request's first line to the answer's last byte; a stream of events is none.
PAGE: Final = "page"


class Dashboard(Flower):
    """Flower with our pages. Settings come by `install`, because Flower's command makes the instance."""

    settings_of_themes: ClassVar[Settings]
    redis_url: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, template_loader=Templates(kwargs["template_path"], PAGES), **kwargs)
        settings, redis_url = type(self).settings_of_themes, type(self).redis_url
        timeout = settings.redis.socket_timeout_seconds
        self._redis = redis = connect_async(redis_url, socket_timeout_seconds=timeout)
        broker_url = settings.celery.broker_url or redis_url
        system = SystemReader(
            connect(redis_url, socket_timeout_seconds=timeout),
            broker=connect(broker_url, socket_timeout_seconds=timeout),
            budgets=settings.teams.budgets,
        )
        feeds = Feeds(redis, max_watchers=settings.dashboard.max_watchers)
        performance = settings.performance_optimization
        profiled = performance.enable_performance_profiling
        self._profiler = PerformanceProfiler(enabled=profiled, role="dashboard", slowest_kept=0)
        self.io_loop.add_callback(self._start_reports, redis, performance.profile_interval_seconds)
        prefix = root_of(self.options)
        site = Site(settings, redis_url, RecentJobs(redis))
        ours: list[tuple[Any, ...]] = [
            (r"/", RedirectHandler, {"url": f"{prefix}/jobs", "permanent": False}),
            (r"/metrics", AllMetrics, {"scrape": Scrape(system)}),
            *sse.handlers(feeds),
            *llm_page.handlers(site, system),
            *jobs_pages.handlers(site),
            *profile_page.handlers(site),
            *job_page.handlers(site),
            *destinations_page.handlers(site),
            *downloads.handlers(site),
            *actions.handlers(site),
            *answers_page.handlers(site),
        ]
        self.add_handlers(".*", [(prefix + pattern, *rest) for pattern, *rest in ours])

    def _start_reports(self, redis: Redis, seconds: float) -> None:
        self._reports = start_reports(self._profiler, redis, seconds=seconds)

    async def _tell_address(self, port: int) -> None:
        """Let `themes enqueue` name the page of its job, for as long as we live."""
        host = self.options.address
        shown = socket.gethostname() if host in {"", "0.0.0.0", "::"} else f"[{host}]" if ":" in host else host  # noqa: S104
        address = f"{'https' if self.ssl_options else 'http'}://{shown}:{port}{root_of(self.options)}"
        while True:
            with contextlib.suppress(RedisError, OSError):  # the pages say so
                await self._redis.set(keys.DASHBOARD, address, ex=keys.DASHBOARD_SECONDS)
            await asyncio.sleep(keys.DASHBOARD_SECONDS / 3)

    def start_http_server(self) -> int | None:
        """Listen as Flower does, with bounds on what a request may send; a socket file is this user's alone."""
        bounds = {
            "max_body_size": MAX_BODY_BYTES,
            "body_timeout": BODY_SECONDS,
            "idle_connection_timeout": IDLE_SECONDS,
        }
        options = self.options
        if options.unix_socket:
            HTTPServer(self, **bounds).add_socket(bind_unix_socket(options.unix_socket, mode=0o600))
            return None
        server = HTTPServer(self, ssl_options=self.ssl_options, xheaders=options.xheaders, **bounds)
        sockets = bind_sockets(options.port, address=options.address)
        server.add_sockets(sockets)
        port: int = sockets[0].getsockname()[1]
        self.io_loop.add_callback(self._tell_address, port)
        return port

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT, save Flower's state, end the process.

        Flower's threads are not awaited: they ask workers, and wait for a silent Redis.
        """
        loop = self.io_loop.asyncio_loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, loop.stop)
        super().start()
        self.stop()
        logging.shutdown()
        os._exit(0)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *args: Any, **kwargs: Any
    ) -> Any:
        """Every request goes through here: whichever handler it is for, the guard is asked first."""
        provider = self.options.auth_provider if issubclass(target_class, LoginHandler) else None
        handler = guarded(target_class, provider)  # type: ignore[arg-type]  # a class can be hashed
        return super().get_handler_delegate(request, handler, *args, **kwargs)

    def log_request(self, handler: Any) -> None:
        if handler.request.path.rpartition("/")[2] != "events":
            self._profiler.record(PAGE, handler.request.request_time())
        super().log_request(handler)


class SentinelBroker(flower.utils.broker.RedisBase):
    """The broker's page by our client: Flower's asks one sentinel alone, and looks into database 0."""

    def __init__(self, broker_url: str, **options: Any) -> None:
        super().__init__(broker_url, **options)
        settings = Dashboard.settings_of_themes
        url, timeout = settings.celery.broker_url or Dashboard.redis_url, settings.redis.socket_timeout_seconds
        self.redis = connect_async(url, socket_timeout_seconds=timeout)


def install(settings: Settings, redis_url: str) -> None:
    Dashboard.settings_of_themes = settings
    Dashboard.redis_url = redis_url
    flower.utils.broker.RedisSentinel = SentinelBroker
    # Fewer watchers than allowed are no reason not to start.
    ensure_descriptors("dashboard", dashboard_descriptors(settings), must=False)
