"""What all jobs together have cost and made, as the database counts it: exact, and never less than before.

The consumer writes them into Redis after each commit (`keys.TOTALS`). A number goes back to 0 only with a new database.
"""

from typing import Final

from redis import Redis

from tasks import keys
from tasks.readings import replies_of, whole_amounts

#: Sums over the runs of all destinations (the table `attempts`). US dollars are whole nano-dollars, of the runs whose
#: price is known; `unpriced_calls` are the calls of the others.
SUMS: Final = (
    "llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens", "estimated_calls", "memory_hits",
    "cache_misses", "cache_stores", "cache_corrupt", "bytes_raw", "bytes_stored", "saved_prompt_tokens",
    "saved_completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip
DOLLARS: Final = ("cost_nano_usd", "saved_nano_usd", "unpriced_calls")
#: Runs in all, and by how they ended. `stopped_runs` came to no end, `lost_runs` are those whose process died.
RUNS: Final = (
    "runs", "destinations_ok", "destinations_partial", "destinations_failed", "stopped_runs", "lost_runs",
)  # fmt: skip
NAMES: Final = (*SUMS, *DOLLARS, *RUNS)


def read_totals(redis: Redis) -> dict[str, int]:
    """The totals that the consumer has written, without those that it has not; what is no number is left out."""
    (reply,) = replies_of(redis, [keys.TOTALS])
    return whole_amounts(reply)
