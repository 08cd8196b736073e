"""Changes a running worker process: its connections, lanes, limits, cache and log level.

A change is judged first and then made whole by plain assignments on the loop. Used from Celery's main thread
(`workers.worker.remote`) and from the thread that a reload signal starts.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, Protocol

from redis import Redis, RedisError

from config.errors import ConfigError, ThemesError
from config.settings import Settings, load
from config.tuning import TUNABLE, changes_of, reloaded, tuned
from tasks import logs
from tasks import tuned as kept
from tasks.errors import UnreadableError
from workers.process.file_descriptors import refuse_too_few_descriptors, worker_descriptors

log = logging.getLogger("themes.tuning")

#: Where the tuner hangs on the Celery app.
ATTRIBUTE: Final = "themes_tuner"


class Tunable(Protocol):
    def tune(self, settings: Settings, report: dict[str, Any]) -> None:
        """Keep to these from now on; `report` is what the heartbeat says of them."""


def start_settings(settings: Settings, redis: Redis, name: str) -> tuple[Settings, dict[str, str]]:
    """The settings that a new process of this worker starts with, and which changes are in them.

    Changes that do not fit the file, or this machine's file descriptors, are left out, with a warning.
    """
    changes: dict[str, str] = {}
    try:
        changes = kept.read(redis, name)
        changed = tuned(settings, changes)
        if changes:
            refuse_too_few_descriptors("worker", worker_descriptors(changed))
            said = ", ".join(f"{key}={text}" for key, text in sorted(changes.items()))
            log.info("action=tune these changes are kept until `themes tune --reset`: %s", said)
        return changed, changes
    except ConfigError as exc:
        log.warning("action=tune_refused kept changes do not fit the settings and are left out: %s", exc)
    except (RedisError, OSError, UnreadableError) as exc:
        log.warning("action=tune_unknown Redis does not say what was changed: %s", exc)
    return settings, {}


class Tuner:
    """Judges and makes changes.

    Args:
        worker: Celery's own (`celery.worker.WorkController`), whose threads bound the chunks in hand.
        runtime: has the changes already.
        base: the settings of the file and the environment.
        changes: what was changed before.
        redis: where changes are kept; read when some are taken back.
    """

    def __init__(self, worker: Any, runtime: Tunable, base: Settings, changes: Mapping[str, str], redis: Redis) -> None:
        self._worker = worker
        self._runtime = runtime
        self._base = base
        self._changes = dict(changes)
        self._redis = redis
        self._lock = threading.Lock()
        self._now = tuned(base, self._changes)

    def __repr__(self) -> str:
        return f"<Tuner changes={self._changes}>"

    def values(self) -> dict[str, dict[str, Any]]:
        return report(self._now)

    def check(self, texts: Iterable[str]) -> dict[str, Any]:
        """What `KEY=VALUE` words would change. Raises `ConfigError`: one of them is refused."""
        with self._lock:
            return _differences(self._now, self._judge(self._base, {**self._changes, **changes_of(texts)}))

    def tune(self, texts: Iterable[str]) -> dict[str, Any]:
        """Change what `KEY=VALUE` words say; returns key -> [before, after].

        Raises `ConfigError`: one of them is refused; `ThemesError`: the worker is too busy. Then nothing is changed.
        """
        with self._lock:
            return self._become(self._base, {**self._changes, **changes_of(texts)})

    def resize(self, by: int) -> dict[str, Any]:
        """So many lanes more, or fewer: what Celery calls growing and shrinking the pool."""
        size = self._now.performance_optimization.worker_pool_size + by
        return self.tune([f"worker_pool_size={size}"])

    def reset(self) -> dict[str, Any]:
        """Go back to what the file says and what is kept in Redis; returns key -> [before, after]."""
        with self._lock:
            return self._become(self._base, kept.read(self._redis, self._worker.hostname))

    def reload(self) -> None:
        """Read the file again: what can be changed is, what was changed by hand stays. A bad file changes nothing."""
        try:
            with self._lock:
                base, waiting = reloaded(self._base, load())
                changed = self._become(base, self._changes)
        except ThemesError as exc:
            log.error("action=reload refused, the old settings stay: %s", exc)  # noqa: TRY400  # its line says it all
            return
        said = ", ".join(f"{key}={after}" for key, (_, after) in changed.items())
        log.info("action=reload changed: %s", said or "nothing")
        if waiting:
            log.warning("action=reload these wait until the worker is started again: %s", ", ".join(waiting))

    def _become(self, base: Settings, changes: dict[str, str]) -> dict[str, Any]:
        settings = self._judge(base, changes)
        try:
            self._runtime.tune(settings, report(settings))
        except FutureTimeoutError as exc:
            raise ThemesError("this worker is too busy to be changed now: try again in a moment") from exc
        resize_threads(self._worker, settings.performance_optimization.worker_pool_size)
        logs.set_level(settings.logging.level)
        changed = _differences(self._now, settings)
        self._base, self._changes, self._now = base, changes, settings
        for key, (old, new) in changed.items():
            log.info("action=tune setting=%s value=%s before=%s", key, new, old)
        return changed

    @staticmethod
    def _judge(base: Settings, changes: Mapping[str, str]) -> Settings:
        settings = tuned(base, changes)
        refuse_too_few_descriptors("worker", worker_descriptors(settings))
        return settings


def report(settings: Settings) -> dict[str, dict[str, Any]]:
    values = dict(settings.items())
    return {key: {"value": values[key], "origin": settings.origin(key)} for key in TUNABLE}


def _differences(before: Settings, after: Settings) -> dict[str, Any]:
    """Key -> [before, after] of what can be changed and is another."""
    old, new = dict(before.items()), dict(after.items())
    return {key: [old[key], new[key]] for key in TUNABLE if old[key] != new[key]}


def resize_threads(worker: Any, size: int) -> None:
    """Have Celery hand over `size` chunks at once.

    Celery's thread pool cannot grow or shrink (5.7). Its executor starts threads when they are needed, up to a number;
    the messages that are fetched before others are acknowledged bound it too. Idle threads cost nothing.
    """
    pool, consumer = worker.pool, worker.consumer
    by = size - pool.limit
    if not by:
        return
    pool.limit = size
    pool.executor._max_workers = size  # noqa: SLF001  # has no other way; tests/e2e/test_tune.py counts what is in hand
    worker.concurrency = size
    if consumer is None:
        return
    consumer.initial_prefetch_count = size * consumer.prefetch_multiplier
    if consumer.qos is not None:
        consumer._update_prefetch_count(by)  # noqa: SLF001  # as Celery's own `pool_grow` does
