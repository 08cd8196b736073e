"""Composition root of the worker: `celery -A workers.app worker`.

A bootstep builds the runtime after the process has started and closes it on shutdown. When shutdown begins the runtime
drains by itself, because Celery's thread pool can only wait for its tasks.
"""

import importlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

from celery import Celery, bootsteps, signals

from config.errors import ThemesError
from config.settings import COMMAND_LINE, NOTED, Settings, load, with_value
from tasks import logs, tracing
from tasks.connection import check_enabled, check_server, connect, locate
from tasks.queue.app import configure
from tasks.queue.task import attach

log = logging.getLogger("themes.worker")

#: Exit code of a worker whose configuration is wrong.
EX_CONFIG: Final = 2
#: Takes what is garbage out of the queue, and survives it; by the scheme of the broker's URL.
TRANSPORTS: Final = {
    "redis": "workers.worker.transport:Transport",
    "rediss": "workers.worker.transport:Transport",
    "sentinel": "workers.worker.sentinel_transport:Transport",
}


class RuntimeStep(bootsteps.StartStopStep):
    """Starts the runtime before the consumer fetches its first message, and closes it before the thread pool stops."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        from workers.worker.transport import Connection

        parent.app.conf.broker_transport = TRANSPORTS[parent.app.conf.broker_url.partition(":")[0]]
        parent.app.amqp.Connection = Connection
        self._runtime: Any = None
        self._watch: Any = None

    def start(self, parent: Any) -> None:
        """Build the runtime, or end the process with one clear line."""
        # Late: a worker's parts are of no use to `celery -A workers.app flower`.
        from workers.process.file_descriptors import ensure_descriptors, worker_descriptors
        from workers.process.signals import on_hangup
        from workers.worker.liveness import LivenessWatch, end_process
        from workers.worker.runtime import Runtime
        from workers.worker.transport import QoS
        from workers.worker.tuning import ATTRIBUTE, Tuner, report, resize_threads, start_settings

        base = _with_command_line(SETTINGS, max(1, int(parent.concurrency)))
        if not os.environ.get(NOTED):
            for notice in base.remarks:
                log.warning("action=notice %s", notice)
        try:
            tracing.start(base, "worker")
            url = locate(base)
            redis = connect(url, socket_timeout_seconds=base.redis.socket_timeout_seconds)
            check_server(redis)
            settings, changes = start_settings(base, redis, parent.hostname)
            logs.set_level(settings.logging.level)
            ensure_descriptors("worker", worker_descriptors(settings))
            size = settings.performance_optimization.worker_pool_size
            resize_threads(parent, size)
            hub = parent.hub
            # Celery's loop looks again whether it may fetch.
            self._runtime = Runtime(settings, url, name=parent.hostname, on_hungry=lambda: hub.call_soon(_nothing))
            self._runtime.start()
            QoS.wants_chunk = self._runtime.wants_chunk
            self._runtime.tune(settings, report(settings))
        except ThemesError as exc:
            _exit(exc)
        attach(parent.app, self._runtime)
        tuner = Tuner(parent, self._runtime, base, changes, redis)
        setattr(parent.app, ATTRIBUTE, tuner)
        on_hangup(lambda: threading.Thread(target=tuner.reload, name="reload").start())
        self._watch = LivenessWatch(
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


def _nothing() -> None:
    """Wake Celery's loop."""


@signals.setup_logging.connect(weak=False)
def _set_up_logging(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Log as the other roles do, instead of in Celery's own forms; `--loglevel` and `--logfile` mean what they say."""
    stream = Path(logfile).open("a", encoding="utf-8") if logfile else None  # noqa: SIM115  # for the process's life
    logs.configure(SETTINGS.logging.level if loglevel is None else loglevel, SETTINGS.logging.format, stream)


def _with_command_line(settings: Settings, lanes: int) -> Settings:
    """The settings with what Celery's own command line says (`--concurrency`, `--loglevel`)."""
    said = {
        "performance_optimization.worker_pool_size": lanes,
        "logging.level": logging.getLevelName(logging.getLogger().level),
    }
    known = dict(settings.items())
    for key, value in said.items():
        if known[key] != value:
            settings = with_value(settings, key, value, origin=COMMAND_LINE)
    return settings


def _exit(exc: ThemesError) -> NoReturn:
    print(f"themes: {exc}", file=sys.stderr)  # noqa: T201  # the user's terminal
    raise SystemExit(EX_CONFIG) from exc


def _settings() -> Settings:
    try:
        return load()
    except ThemesError as exc:
        _exit(exc)


def _app(settings: Settings) -> Celery:
    try:
        check_enabled(settings)
        url = locate(settings)
        app = configure(settings, settings.celery.broker_url or url)
    except ThemesError as exc:
        _exit(exc)
    app.steps["worker"].add(RuntimeStep)
    # Registers our commands with Celery's remote control.
    importlib.import_module("workers.worker.remote")
    if "flower.command" in sys.modules:
        # Celery's command line has it at hand: `celery -A workers.app flower` serves our pages, as safely.
        from workers.dashboard.flower import offer

        offer(settings, url)
    return app


SETTINGS: Final = _settings()
app: Final = _app(SETTINGS)
