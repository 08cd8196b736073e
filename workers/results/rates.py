"""How many a second lately."""

from collections import deque
from typing import Final

#: Seconds that a rate looks back.
WINDOW_SECONDS: Final = 10.0


class EventRate:
    """Events a second over the last seconds; times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        return f"<EventRate {len(self._counts)} counts>"

    def add(self, count: int, now: float) -> None:
        """Count events that happened now."""
        self._counts.append((now, count))
        self._forget(now)

    def per_second(self, now: float) -> float:
        """The mean over the window, or over what has passed of it since the first event."""
        self._forget(now)
        if not self._counts:
            return 0.0
        return sum(count for _, count in self._counts) / max(1.0, min(WINDOW_SECONDS, now - self._counts[0][0]))

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - WINDOW_SECONDS:
            self._counts.popleft()
