"""Finds a worker that is alive but consumes nothing.

kombu's consumer can stop consuming after a lost connection, without an error and for good: nothing is in hand, and
messages wait. The process then ends with `EX_WEDGED`, and its supervisor (`themes worker`, systemd, a container's
restart policy) starts another; it holds nothing, so nothing is lost.
"""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from redis import Redis, RedisError

from tasks import keys

log = logging.getLogger("themes.worker")

#: Exit code of a worker that found itself wedged (EX_TEMPFAIL of sysexits.h: try again).
EX_WEDGED: Final = 75
#: Seconds between two looks.
LOOK_SECONDS: Final = 1.0


@dataclass
class LivenessDetector:
    """Says when a worker consumes nothing: idle with messages waiting for longer than a bound."""

    after_seconds: float
    since: float | None = None

    def is_wedged(self, *, now: float, busy: int | None, waiting: int) -> bool:
        """Judge one look. `busy` is None when the worker has no heartbeat."""
        if waiting == 0 or busy:
            self.since = None
            return False
        if self.since is None:
            self.since = now
        return now - self.since >= self.after_seconds


def waiting_messages(broker: Redis) -> int:
    with broker.pipeline(transaction=False) as pipeline:
        for key in keys.queue_keys():
            pipeline.llen(key)
        return int(sum(pipeline.execute()))


class LivenessWatch:
    """Watches over this process from a thread of its own.

    Args:
        broker: where the queue is; not closed here.
        busy: messages in hand; None when the worker starts nothing any more.
        after_seconds: how long it may be idle with messages waiting.
        end: ends the process; a worker's is `end_process`.
    """

    def __init__(
        self, broker: Redis, busy: Callable[[], int | None], *, after_seconds: float, end: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._busy = busy
        self._detector = LivenessDetector(after_seconds)
        self._end = end
        self._stopped = threading.Event()

    def __repr__(self) -> str:
        return f"<LivenessWatch after={self._detector.after_seconds:g} s since={self._detector.since}>"

    def start(self) -> None:
        threading.Thread(target=self._watch, name="wedge watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            busy = self._busy()
            if busy is None:
                return
            try:
                waiting = waiting_messages(self._broker)
            except (RedisError, OSError):
                # Redis is away: no worker can consume.
                self._detector.since = None
                continue
            if self._detector.is_wedged(now=monotonic(), busy=busy, waiting=waiting):
                log.error(
                    "action=wedged idle for %.0f s while %d messages wait: this process ends, to be started again",
                    self._detector.after_seconds, waiting,
                )  # fmt: skip
                self._end()
                return


def end_process() -> None:
    """End this process at once: its consumer cannot be trusted to stop, and it holds nothing."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EX_WEDGED)
