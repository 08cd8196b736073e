"""Rate limits as times: the generic cell rate algorithm, in Lua for all processes and in Python for one alone.

A limit is one number, the theoretical arrival time (TAT): when everything that was let through would have drained at
the allowed rate. A request may go as soon as the TAT is no further ahead than the burst allows. Reserving moves the TAT
and returns the time of the caller's slot. Requests and tokens are two such numbers, a cool-down is a time before which
there are no slots, and a slot satisfies all three.

Source: ITU-T Recommendation I.371, annex A (virtual scheduling). All times are microseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from config.sections import LlmSettings
from tasks import keys
from tasks.lua import lua

MICROSECONDS: Final = 1_000_000
#: Seconds of an unset burst: one second's worth keeps the line full without a visible wave.
BURST_SECONDS: Final = 1.0
#: Requests of a burst that are not used, or a tenth of it.
SLACK: Final = 2.0
#: Seconds of tokens that may go at once: providers count them by the minute.
TOKEN_BURST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an endpoint allows: microseconds a request and a token (0: unlimited), and how many of each at once."""

    request_us: float = 0.0
    request_burst: float = 1.0
    token_us: float = 0.0
    token_burst: float = 1.0

    @classmethod
    def per_minute(cls, requests: float | None, tokens: float | None, request_burst: float | None = None) -> "Limits":
        """Limits from what providers publish; None is unlimited.

        A little of the burst is not used: a request that arrives a millisecond early at an empty bucket is refused.
        """
        burst = request_burst or max(1.0, (requests or 0) / 60 * BURST_SECONDS)
        burst = max(1.0, burst - min(SLACK, burst / 10))
        return cls(
            request_us=60 * MICROSECONDS / requests if requests else 0.0,
            request_burst=burst,
            token_us=60 * MICROSECONDS / tokens if tokens else 0.0,
            token_burst=max(1.0, (tokens or 0) / 60 * TOKEN_BURST_SECONDS),
        )

    @classmethod
    def of(cls, settings: LlmSettings) -> "Limits":
        return cls.per_minute(settings.requests_per_minute, settings.tokens_per_minute, settings.request_burst)

    @property
    def is_unlimited(self) -> bool:
        return not self.request_us and not self.token_us

    @property
    def words(self) -> str:
        """As the settings name them, for people."""
        rates = ((self.request_us, "request"), (self.token_us, "token"))
        numbers = [(60 * MICROSECONDS / each_us, what) for each_us, what in rates if each_us]
        return ", ".join(f"{number:,.10g} {what}{'' if number == 1 else 's'} a minute" for number, what in numbers)

    def share(self, users: int) -> "Limits":
        """One process's part where `users` processes cannot ask each other; never less than one at a time."""
        users = max(1, users)
        return replace(
            self,
            request_us=self.request_us * users,
            request_burst=max(1.0, self.request_burst / users),
            token_us=self.token_us * users,
            token_burst=max(1.0, self.token_burst / users),
        )


@dataclass(slots=True)
class Gcra:
    """The limits of one process alone; the same arithmetic as `RESERVE`. `now_us` comes from any one clock."""

    limits: Limits
    request_tat_us: float = 0.0
    token_tat_us: float = 0.0

    def reserve(self, tokens: float, *, now_us: float, not_before_us: float = 0.0) -> float:
        """The time of the next slot, which is the caller's."""
        limits = self.limits
        at = max(now_us, not_before_us)
        if limits.token_us:
            room = limits.token_burst - min(tokens, limits.token_burst)
            at = max(at, self.token_tat_us - room * limits.token_us)
        if limits.request_us:
            at = max(at, self.request_tat_us - (limits.request_burst - 1) * limits.request_us)
            self.request_tat_us = max(self.request_tat_us, at) + limits.request_us
        if limits.token_us:
            self.token_tat_us = max(self.token_tat_us, at) + tokens * limits.token_us
        return at

    def correct(self, tokens: float) -> None:
        """Count `tokens` more than were reserved; fewer where it is negative."""
        self.token_tat_us += tokens * self.limits.token_us


RESERVE: Final = lua(__file__, "reserve")
CHANGE: Final = lua(__file__, "change_limits")


def reservation_arguments(
    user: str,
    limits: Limits,
    *,
    correction: float,
    returned: Sequence[str],
    tokens: Sequence[float],
    sent: int = 0,
    refused: int = 0,
) -> list[str | float]:
    """What `RESERVE` takes; slots are returned newest first, so that a row of them can go."""
    newest_first = sorted(returned, key=int, reverse=True)
    bounds = (limits.request_us, limits.request_burst, limits.token_us, limits.token_burst)
    counts = (correction, sent, refused, keys.USER_SECONDS, keys.LIMIT_SECONDS)
    return [user, *bounds, *counts, len(newest_first), *newest_first, *tokens]


def change_arguments(before: Limits, after: Limits, *, max_ahead: int) -> list[str | float]:
    """What `CHANGE` takes. Processes that make the same change call it by the same name."""
    bounds = (after.request_us, after.request_burst, after.token_us, after.token_burst)
    return [f"{before} {after}", *bounds, max_ahead, keys.LIMIT_SECONDS]
