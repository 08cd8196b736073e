"""How many requests at once an endpoint bears: additive increase, multiplicative decrease.

Source: Chiu & Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989. Each process
adapts by itself: all of them see the same endpoint's refusals, and AIMD converges to fair shares without words.
"""

import math
from typing import Final

#: What is left of the limit after a 429.
CUT: Final = 0.7
#: Part of one more a round that is allowed after requests have timed out in a line.
GROWTH_AFTER_OVERLOAD: Final = 1 / 8


class AdaptiveConcurrency:
    """A limit between `least` and `most`: one more a round while saturated, cut once for one congestion.

    A 429 shows congestion, and so does a time-out or "overloaded" while the endpoint answers others. Any other 5xx, or
    silence, shows a fault that fewer requests do not mend.
    """

    def __init__(self, *, least: int, most: int, enabled: bool = True) -> None:
        self._least = min(least, most)
        self._most = most
        self._limit = float(most)
        self._enabled = enabled
        self._cut_at = -math.inf
        #: How much of one more a saturated round allows.
        self._growth = 1.0
        self.cuts = 0

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrency limit={self.limit} of {self._most} cuts={self.cuts}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def change(self, *, least: int, most: int, enabled: bool) -> None:
        """Keep to other bounds from now on; a limit that was cut stays cut, unless it is no longer adapted."""
        was_whole = self._limit >= self._most
        self._least, self._most, self._enabled = min(least, most), most, enabled
        whole = was_whole or not enabled
        self._limit = float(most) if whole else min(float(most), max(float(self._least), self._limit))

    def answered(self, *, saturated: bool) -> None:
        """An answer came; `saturated` says that all allowed connections were in use."""
        if self._enabled and saturated:
            self._limit = min(float(self._most), self._limit + self._growth / self._limit)

    def refused(self, *, sent_at: float, now: float) -> None:
        """A 429 came for a request sent at `sent_at` (one clock, seconds).

        Requests in flight at the last cut met the same congestion; during a cool-down none is sent.
        """
        if not self._enabled or sent_at <= self._cut_at:
            return
        self._cut(self._limit * CUT, now)

    def timed_out(self, *, sent_at: float, now: float, answered: int) -> None:
        """A request sent at `sent_at` timed out behind a line of others, `answered` of which were answered meanwhile.

        The endpoint bears `answered` at once. Each one more costs a whole time-out, so the limit grows more slowly
        after this.
        """
        if not self._enabled or sent_at <= self._cut_at:
            return
        self._growth = GROWTH_AFTER_OVERLOAD
        self._cut(min(self._limit, answered) * CUT, now)

    def _cut(self, limit: float, now: float) -> None:
        self._limit = max(float(self._least), limit)
        self._cut_at = now
        self.cuts += 1
