"""What a prompt comes to: its completion, and what a stage's prompts have cost and saved."""

from typing import Any, Literal

import msgspec

from tasks.messages import Usage
from workers.llm.cache.stats import CacheStats
from workers.llm.cache.tiers import CachedCompletion
from workers.llm.cancellation import CancellationToken
from workers.llm.spend import Spend

Source = Literal["called", "cached", "coalesced"]


class Completion(msgspec.Struct, frozen=True):
    """A validated answer: the value, which model gave it, and where it came from.

    `key` is its place in the cache, where `is_kept` says that it is; the tokens are those that it had cost when made.
    """

    value: Any
    model: str
    source: Source
    key: str
    prompt_tokens: int
    completion_tokens: int
    is_kept: bool = True

    @classmethod
    def of(cls, made: CachedCompletion, source: Source, key: str, *, is_kept: bool = True) -> "Completion":
        return cls(made.value, made.model, source, key, made.prompt_tokens, made.completion_tokens, is_kept)


class StageStats(msgspec.Struct, eq=False):
    """What one destination's stage has cost and saved; filled while the stage runs, whatever its end."""

    spend: Spend = msgspec.field(default_factory=Spend)
    cache: CacheStats = msgspec.field(default_factory=CacheStats)
    token: CancellationToken = msgspec.field(default_factory=CancellationToken)

    def usage(self) -> Usage:
        return Usage(
            llm_calls=self.spend.calls,
            cache_hits=self.cache.hits,
            coalesced=self.cache.coalesced,
            prompt_tokens=self.spend.prompt_tokens,
            completion_tokens=self.spend.completion_tokens,
            estimated_calls=self.spend.estimated,
            memory_hits=self.cache.memory_hits,
            cache_misses=self.cache.misses,
            cache_stores=self.cache.stores,
            cache_corrupt=self.cache.corrupt,
            bytes_raw=self.cache.bytes_raw,
            bytes_stored=self.cache.bytes_stored,
            saved_prompt_tokens=self.cache.saved_prompt_tokens,
            saved_completion_tokens=self.cache.saved_completion_tokens,
            saved_usd=None if self.cache.unpriced_hits else self.cache.saved_usd,
            cost_usd=self.spend.cost_usd,
            cached_tokens=self.spend.cached_tokens,
            cache_write_tokens=self.spend.cache_write_tokens,
            reasoning_tokens=self.spend.reasoning_tokens,
            listed_usd=self.spend.listed_usd,
            tier_saved_usd=self.spend.tier_saved_usd,
        )
