"""What a cache has done: counted for a process, for each destination of a job, and in Redis for all processes.

A process that is killed takes the counts of its last second with it; those of a job travel with its results instead
(`tasks.messages.Usage`), and are exact.
"""

import contextlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from redis import Redis as SyncRedis
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.readings import amounts, replies_of
from workers.observe.numbered import NumberedReports

if TYPE_CHECKING:
    from workers.llm.cache.tiers import PersistentLLMCache


@dataclass(slots=True)
class Savings:
    """What hits have saved: the tokens that their completions had cost when they were made, and US dollars.

    `unpriced_hits` are those whose model has no price.
    """

    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_usd: float = 0.0
    unpriced_hits: int = 0

    def save(self, prompt_tokens: int, completion_tokens: int, usd: float | None) -> None:
        self.saved_prompt_tokens += prompt_tokens
        self.saved_completion_tokens += completion_tokens
        if usd is None:
            self.unpriced_hits += 1
        else:
            self.saved_usd += usd


@dataclass(slots=True)
class CacheStats(Savings):
    """Counts of one process, or of one destination."""

    memory_hits: int = 0
    redis_hits: int = 0
    misses: int = 0
    stores: int = 0
    corrupt: int = 0
    #: Prompts that were answered together with an equal one in flight, here or in another process.
    coalesced: int = 0
    evictions: int = 0
    #: Bytes of what was stored, before and after compression.
    bytes_raw: int = 0
    bytes_stored: int = 0

    @property
    def hits(self) -> int:
        return self.memory_hits + self.redis_hits

    def since(self, before: "CacheStats") -> dict[str, float]:
        return {item.name: getattr(self, item.name) - getattr(before, item.name) for item in fields(self)}


class CacheReporter:
    """Adds one process's counts to those of all processes in Redis."""

    def __init__(self, cache: "PersistentLLMCache", redis: Redis) -> None:
        self._cache = cache
        self._reports = NumberedReports(redis, total=keys.CACHE_STATISTICS, mark_of=keys.cache_reports)
        self._reported = CacheStats()

    async def report(self) -> None:
        """Report what is new. Errors of Redis pass through: the same is reported again next time."""
        await self._reports.add(self._new)

    async def close(self) -> None:
        """Report for the last time; lost where Redis is away, as after a kill."""
        with contextlib.suppress(RedisError, OSError):
            await self.report()

    def _new(self) -> dict[str, float]:
        before, self._reported = self._reported, replace(self._cache.stats)
        return self._reported.since(before)


def read(redis: SyncRedis) -> dict[str, Any]:
    """The counts of all processes since `since` (seconds since 1970; None where nothing was counted yet)."""
    (reply,) = replies_of(redis, [keys.CACHE_STATISTICS])
    raw = amounts(reply)
    since = raw.pop("since", None)
    whole = CacheStats()
    return {
        name: amount if name == "saved_usd" else round(amount) for name, amount in (whole.since(whole) | raw).items()
    } | {"since": since}
