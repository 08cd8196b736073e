"""Counts of all processes together, in one hash of Redis.

Every process adds what it has counted since its last report. A report is numbered: one whose reply was lost is sent
again and counted once. A process that is killed takes the counts since its last report with it.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from redis.asyncio import Redis

from tasks.lua import lua

#: Seconds that the number of a process's last report is remembered.
REMEMBERED_SECONDS: Final = 3_600

_ADD: Final = lua(__file__, "add_numbered")

Amounts = dict[str, float]


class NumberedReports:
    """Adds one process's counts to the hash of all.

    Args:
        redis: not closed here.
        total: the hash.
        mark_of: the key of a process's mark, by the process's name.
    """

    def __init__(self, redis: Redis, *, total: str, mark_of: Callable[[str], str]) -> None:
        self._script = redis.register_script(_ADD)
        self._total = total
        self._mark = mark_of(uuid.uuid4().hex[:12])
        self._number = 0
        self._waiting: tuple[Amounts, str, Amounts] | None = None

    async def add(
        self,
        take: Callable[[], Mapping[str, float]],
        *,
        point: str = "",
        point_of: Callable[[Amounts], Amounts] = lambda _: {},
        point_seconds: int = 0,
    ) -> bool:
        """Tell what `take` gives: it is called once for each report, and what it gave is told until that succeeded.

        Errors of Redis pass through: the same is told again by the next call. `point_of` says what of it goes into the
        series' `point` as well. Returns whether there was anything to tell.
        """
        if self._waiting is None:
            amounts = {name: amount for name, amount in take().items() if amount}
            if not amounts:
                return False
            self._number += 1
            self._waiting = (amounts, point, point_of(amounts))
        amounts, key, of_point = self._waiting
        await self._script(
            keys=[self._total, self._mark, *([key] if of_point else [])],
            args=[
                self._number,
                REMEMBERED_SECONDS,
                time.time(),
                point_seconds,
                len(amounts),
                *(part for pair in amounts.items() for part in pair),
                *(part for pair in of_point.items() for part in pair),
            ],
        )
        self._waiting = None
        return True
