"""A resource that is away: logged once when it goes and once when it is back, and left alone after each error."""

import logging
import time
from typing import Final

#: Seconds for which a resource is left alone after an error.
PAUSE_SECONDS: Final = 2.0


class Outage:
    """The outages of one resource as one part of a process sees them.

    `lost` and `back` are the log templates: `lost` takes the facts given to `begin` and the error's text, `back` the
    facts given to `end`.
    """

    def __init__(self, log: logging.Logger, *, lost: str, back: str) -> None:
        self._log = log
        self._lost = lost
        self._back = f"{back}, after %.1f s"
        self._since: float | None = None
        self._paused_until = 0.0
        self._ended_seconds = 0.0
        self.count = 0

    @property
    def is_on(self) -> bool:
        return self._since is not None

    @property
    def is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    @property
    def seconds(self) -> float:
        """Seconds of all outages, the present one included."""
        return self._ended_seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def begin(self, exc: Exception, *facts: object) -> None:
        now = time.monotonic()
        self._paused_until = now + PAUSE_SECONDS
        if self._since is None:
            self._since = now
            self.count += 1
            self._log.warning(self._lost, *facts, str(exc) or type(exc).__name__)

    def end(self, *facts: object) -> None:
        if self._since is not None:
            seconds = time.monotonic() - self._since
            self._ended_seconds += seconds
            self._since, self._paused_until = None, 0.0
            self._log.info(self._back, *facts, seconds)
