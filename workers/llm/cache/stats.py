"""The cache's counts of all processes together, in one hash of Redis (workers/observe/numbered.py).

A process that is killed takes the counts of its last second with it; those of a job travel with its results instead
(`tasks.messages.Usage`), and are exact.
"""

from dataclasses import replace
from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tasks import keys
from tasks.readings import amounts, replies_of
from workers.llm.cache.tally import CacheTally
from workers.llm.cache.tiers import PersistentLLMCache
from workers.observe.numbered import NumberedReports


class CacheReporter:
    """Adds one process's counts to all processes'."""

    def __init__(self, cache: PersistentLLMCache, redis: Redis) -> None:
        self._cache = cache
        self._reports = NumberedReports(redis, total=keys.CACHE_STATISTICS, mark_of=keys.cache_reports)
        self._taken = CacheTally()

    async def report(self) -> None:
        """Tell what is new. Errors of Redis pass through: the same is told again next time."""
        await self._reports.add(self._news)

    def _news(self) -> dict[str, float]:
        before, self._taken = self._taken, replace(self._cache.tally)
        return self._taken.since(before)


def read(redis: SyncRedis) -> dict[str, Any]:
    """The counts of all processes since `since` (seconds since 1970; None where nothing was counted yet)."""
    (reply,) = replies_of(redis, [keys.CACHE_STATISTICS])
    raw = amounts(reply)
    since = raw.pop("since", None)
    whole = CacheTally()
    return {
        name: amount if name == "saved_usd" else round(amount) for name, amount in (whole.since(whole) | raw).items()
    } | {"since": since}
