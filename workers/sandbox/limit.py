"""A rate limit for the sandbox LLM, as providers have one: a token bucket and answers of status 429."""

import math
import re
import time
from typing import Final

from config.errors import ConfigError

GRAMMAR: Final = "RATE/s|m[,burst=N][,retry_after=whole|exact|none]"
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/(s|m)")


class RequestLimit:
    """Lets `burst` requests through at once and then `per_second`; counts what it refused.

    `retry_after` is the form of the wait: whole seconds rounded up, exact, or none.
    """

    def __init__(self, per_second: float, *, burst: float, retry_after: str = "whole") -> None:
        self.per_second = per_second
        self.burst = burst
        self.retry_after = retry_after
        self.refused = 0
        self._level = burst
        self._at = time.monotonic()

    def wait_seconds(self, now: float) -> float:
        """Let one request through and return 0, or refuse it and return the seconds until one may pass."""
        self._level = min(self.burst, self._level + (now - self._at) * self.per_second)
        self._at = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        self.refused += 1
        return (1 - self._level) / self.per_second

    def headers(self, wait_seconds: float) -> dict[str, str]:
        if self.retry_after == "none":
            return {}
        return {"Retry-After": str(math.ceil(wait_seconds)) if self.retry_after == "whole" else f"{wait_seconds:.3f}"}


def parse_limit(text: str) -> RequestLimit:
    """Read `50/s,burst=300`; without a burst it is one second's worth. Raises ConfigError."""
    rate, *options = text.split(",")
    given = dict(option.partition("=")[::2] for option in options)
    match = _RATE.fullmatch(rate)
    style = given.get("retry_after", "whole")
    if match is None or given.keys() - {"burst", "retry_after"} or style not in {"whole", "exact", "none"}:
        raise ConfigError(f"--rate-limit {text}: write {GRAMMAR}")
    per_second = float(match[1]) / (1 if match[2] == "s" else 60)
    try:
        burst = float(given.get("burst", max(1.0, per_second)))
    except ValueError as exc:
        raise ConfigError(f"--rate-limit {text}: write {GRAMMAR}") from exc
    if not (per_second > 0 and 1 <= burst < math.inf):
        raise ConfigError(f"--rate-limit {text}: the rate is above 0, the burst at least 1")
    return RequestLimit(per_second, burst=burst, retry_after=style)
