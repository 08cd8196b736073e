"""The cache's counts of all processes together, in one hash of Redis.

Every process adds what it has counted since its last report. A report is numbered: one whose reply was lost is sent
again and counted once. A process that is killed takes the counts of its last second with it; those of a job travel with
its results instead (`tasks.messages.Usage`), and are exact.
"""

import time
import uuid
from dataclasses import replace
from typing import Any, Final

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from workers.llm.cache import PersistentLLMCache
from workers.llm.tally import CacheTally

#: Seconds that the number of a process's last report is remembered.
REMEMBERED_SECONDS: Final = 3_600

#: KEYS statistics, mark of the process; ARGV report number, seconds to remember it, now, then name and amount pairs.
_ADD: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('HSETNX', KEYS[1], 'since', ARGV[3])
for i = 4, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""


class CacheReporter:
    """Adds one process's counts to all processes'."""

    def __init__(self, cache: PersistentLLMCache, redis: Redis) -> None:
        self._cache = cache
        self._script = redis.register_script(_ADD)
        self._mark = keys.cache_reports(uuid.uuid4().hex[:12])
        self._number = 0
        self._told = CacheTally()
        self._pending: CacheTally | None = None

    async def report(self) -> None:
        """Tell what is new. Errors of Redis pass through: the same is told again next time."""
        now = self._pending or replace(self._cache.tally)
        added = {name: amount for name, amount in now.since(self._told).items() if amount}
        if not added:
            return
        if self._pending is None:
            self._number += 1
        self._pending = now
        pairs = [part for name, amount in added.items() for part in (name, amount)]
        await self._script(
            keys=[keys.CACHE_STATISTICS, self._mark], args=[self._number, REMEMBERED_SECONDS, time.time(), *pairs]
        )
        self._told, self._pending = now, None


def read(redis: SyncRedis) -> dict[str, Any]:
    """The counts of all processes since `since` (seconds since 1970; None where nothing was counted yet)."""
    raw = {text_of(name): float(value) for name, value in redis.hgetall(keys.CACHE_STATISTICS).items()}
    since = raw.pop("since", None)
    whole = CacheTally()
    return {
        name: amount if name == "saved_usd" else round(amount) for name, amount in (whole.since(whole) | raw).items()
    } | {"since": since}
