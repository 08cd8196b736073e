"""How many entries the consumer takes at once: few while it keeps up, more when a backlog has built up."""

from dataclasses import dataclass
from typing import Final

#: A backlog is taken in batches of at most this many times the configured size. A transaction of 800 costs per row
#: two thirds of one of 100; beyond that nothing is won, and what a crash has to do again grows.
MAX_TIMES: Final = 8
#: Bytes of one batch on the stream from which it does not grow: decoded they take some ten times as much memory.
MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class BatchSize:
    """Doubles while batches come in full, halves when they do not; never below the configured size."""

    configured: int
    now: int = 0

    def __post_init__(self) -> None:
        self.now = self.configured

    def seen(self, entries: int, size_bytes: int) -> None:
        if size_bytes >= MAX_BYTES:
            self.now = max(self.configured, min(self.now, entries) // 2)
        elif entries >= self.now:
            self.now = min(self.now * 2, self.configured * MAX_TIMES)
        elif entries < self.now // 2:
            self.now = max(self.configured, self.now // 2)
