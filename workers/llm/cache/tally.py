"""What a cache has done: counted for a process, and for each destination of a job."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class CacheTally:
    """Counts of one process, or of one destination.

    A hit saves the tokens that the completion had cost when it was made, and US dollars where its model has a price;
    `unpriced_hits` are those where it has none.
    """

    memory_hits: int = 0
    redis_hits: int = 0
    misses: int = 0
    stores: int = 0
    corrupt: int = 0
    #: Questions that were answered together with an equal one in flight, here or in another process.
    coalesced: int = 0
    evictions: int = 0
    #: Bytes of what was stored, before and after compression.
    bytes_raw: int = 0
    bytes_stored: int = 0
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_usd: float = 0.0
    unpriced_hits: int = 0

    @property
    def hits(self) -> int:
        """Hits of both tiers."""
        return self.memory_hits + self.redis_hits

    def save(self, prompt_tokens: int, completion_tokens: int, usd: float | None) -> None:
        """Count what a hit has saved."""
        self.saved_prompt_tokens += prompt_tokens
        self.saved_completion_tokens += completion_tokens
        if usd is None:
            self.unpriced_hits += 1
        else:
            self.saved_usd += usd

    def since(self, before: "CacheTally") -> dict[str, float]:
        """What has been added since an earlier copy."""
        return {item.name: getattr(self, item.name) - getattr(before, item.name) for item in fields(self)}
