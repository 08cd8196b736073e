"""What the cache did for a job, a destination, an attempt and a profile; of old ones nothing is known but 0."""

from alembic import op

revision = "0002"
down_revision = "0001"

_COUNTS = (
    "estimated_calls", "memory_hits", "cache_misses", "cache_stores", "cache_corrupt", "bytes_raw", "bytes_stored",
    "saved_prompt_tokens", "saved_completion_tokens",
)  # fmt: skip


def upgrade() -> None:
    for table in ("jobs", "destinations", "attempts", "profiles"):
        for name in _COUNTS:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
        op.execute(f"ALTER TABLE {table} ADD COLUMN saved_usd FLOAT DEFAULT 0")
