"""Counters over all jobs, from the runs that there are."""

import time

from alembic import op

revision = "0005"
down_revision = "0004"

_SUMS = (
    "llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens", "estimated_calls", "memory_hits",
    "cache_misses", "cache_stores", "cache_corrupt", "bytes_raw", "bytes_stored", "saved_prompt_tokens",
    "saved_completion_tokens",
)  # fmt: skip
_NANO = "CAST(round({name} * 1000000000) AS BIGINT)"
_RUNS = {
    "runs": "outcome IS NOT NULL",
    "destinations_ok": "outcome = 'ok'",
    "destinations_partial": "outcome = 'partial'",
    "destinations_failed": "outcome = 'failed'",
    "stopped_runs": "outcome = 'stopped'",
    "lost_runs": "outcome = 'lost'",
}
#: Counter -> how it is found.
_COUNTERS = {
    **{name: f"coalesce(sum({name}), 0) FROM attempts" for name in _SUMS},
    "cost_nano_usd": f"coalesce(sum({_NANO.format(name='cost_usd')}), 0) FROM attempts",
    "saved_nano_usd": f"coalesce(sum({_NANO.format(name='saved_usd')}), 0) FROM attempts",
    "unpriced_calls": "coalesce(sum(llm_calls), 0) FROM attempts WHERE cost_usd IS NULL",
    **{name: f"count(*) FROM attempts WHERE {condition}" for name, condition in _RUNS.items()},
}


def upgrade() -> None:
    op.execute("CREATE TABLE counters (name TEXT NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (name))")
    for name, found in _COUNTERS.items():
        op.execute(f"INSERT INTO counters (name, value) SELECT '{name}', {found}")
    op.execute(f"INSERT INTO counters (name, value) VALUES ('since', {int(time.time() * 1_000_000)})")
