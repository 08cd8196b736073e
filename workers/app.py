"""Composition root of the worker: `celery -A workers.app worker`.

A bootstep builds the runtime after the process has started and closes it on shutdown. When shutdown begins the runtime
drains by itself, because Celery's thread pool can only wait for its tasks.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any, Final

from celery import Celery, bootsteps, signals

from config.errors import ThemesError
from config.settings import NOTED, Settings, load, notices
from tasks import logs, tracing
from tasks.app import configure
from tasks.connection import check_server, connect, locate
from tasks.process import attach

log = logging.getLogger("themes.worker")

#: Exit code of a worker whose configuration is wrong.
EX_CONFIG: Final = 2
#: Takes what is garbage out of the queue, and survives it.
TRANSPORT: Final = "workers.transport:Transport"


class RuntimeStep(bootsteps.StartStopStep):
    """Starts the runtime before the consumer fetches its first message, and closes it before the thread pool stops."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        from workers.transport import Connection

        parent.app.conf.broker_transport = TRANSPORT
        parent.app.amqp.Connection = Connection
        self._runtime: Any = None
        self._watch: Any = None

    def start(self, parent: Any) -> None:
        """Build the runtime, or end the process with one clear line."""
        # Late: a worker's parts are of no use to `celery -A workers.app flower`.
        from workers.runtime import Runtime
        from workers.wedge import WedgeWatch, end_process

        settings = SETTINGS
        if not os.environ.get(NOTED):
            for notice in notices(settings):
                log.warning("action=notice %s", notice)
        try:
            tracing.start(settings, "worker")
            url = locate(settings)
            check_server(connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds))
            self._runtime = Runtime(
                parent.app, settings, url, name=parent.hostname, lanes=max(1, int(parent.concurrency))
            )
            self._runtime.start()
        except ThemesError as exc:
            _exit(exc)
        attach(parent.app, self._runtime)
        self._watch = WedgeWatch(
            connect(settings.celery.broker_url or url, socket_timeout_seconds=settings.redis.socket_timeout_seconds),
            lambda: self._runtime.busy,
            after_seconds=settings.work.wedged_after_seconds,
            end=end_process,
        )
        self._watch.start()
        signals.worker_shutting_down.connect(self._drain, weak=False)

    def _drain(self, **_: Any) -> None:
        self._runtime.drain()

    def stop(self, parent: Any) -> None:
        """Close the runtime; running chunks end within the grace time or are given back."""
        signals.worker_shutting_down.disconnect(self._drain)
        if self._watch:
            self._watch.stop()
        if self._runtime:
            self._runtime.close()
        attach(parent.app, None)
        tracing.stop()

    terminate = stop


@signals.setup_logging.connect(weak=False)
def _set_up_logging(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Log as the other roles do, instead of in Celery's own forms; `--loglevel` and `--logfile` mean what they say."""
    stream = Path(logfile).open("a", encoding="utf-8") if logfile else None  # noqa: SIM115  # for the process's life
    logs.configure(SETTINGS.logging.level if loglevel is None else loglevel, SETTINGS.logging.format, stream)


def _exit(exc: ThemesError) -> None:
    print(f"themes: {exc}", file=sys.stderr)  # noqa: T201  # the user's terminal
    raise SystemExit(EX_CONFIG) from exc


def _settings() -> Settings:
    try:
        return load()
    except ThemesError as exc:
        _exit(exc)
        raise


def _app(settings: Settings) -> Celery:
    app = configure(settings, settings.celery.broker_url or locate(settings))
    app.steps["worker"].add(RuntimeStep)
    return app


SETTINGS: Final = _settings()
app: Final = _app(SETTINGS)
