"""The tables of the results database, as users query them.

Times are seconds since 1970, UTC; lists are JSON text. `destinations` is the spine: every other row of a destination
hangs on it, and `jobs` repeats its sums so that progress is one row to read. `attempts` remembers what every run of
a destination cost, because money that a failed run spent is spent.
"""

from typing import Final

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

#: `PRAGMA user_version` of a database that this code reads and writes.
SCHEMA_VERSION: Final = 3

#: Columns that add up, in the order of `tasks.messages.Usage`.
USAGE_COLUMNS: Final = (
    "llm_calls",
    "cache_hits",
    "coalesced",
    "prompt_tokens",
    "completion_tokens",
    "estimated_calls",
    "memory_hits",
    "cache_misses",
    "cache_stores",
    "cache_corrupt",
    "bytes_raw",
    "bytes_stored",
    "saved_prompt_tokens",
    "saved_completion_tokens",
    "saved_usd",
    "cost_usd",
)
#: Of these, the US dollars: NULL where a model's price is not known, and then they stay so.
DOLLAR_COLUMNS: Final = frozenset({"saved_usd", "cost_usd"})
#: The tables that have them, and the columns that version 1 lacked.
USAGE_TABLES: Final = ("jobs", "destinations", "attempts", "profiles")
SINCE_VERSION_2: Final = USAGE_COLUMNS[5:-1]

metadata = MetaData()


def _usage() -> list[Column[int] | Column[float]]:
    """Columns of a `Usage`."""
    return [
        Column(name, Float, server_default="0")
        if name in DOLLAR_COLUMNS
        else Column(name, Integer, nullable=False, server_default="0")
        for name in USAGE_COLUMNS
    ]


def _of_destination() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["job_id", "destination_id"],
        ["destinations.job_id", "destinations.destination_id"],
        ondelete="CASCADE",
    )


jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    #: queued, running, done or cancelled.
    Column("state", Text, nullable=False, server_default="queued"),
    #: NULL until the job is sealed: before, nobody knows how many destinations follow.
    Column("total", Integer),
    Column("sealed", Integer, nullable=False, server_default="0"),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    #: How many of the done ones lack something.
    Column("partial", Integer, nullable=False, server_default="0"),
    *_usage(),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    #: JSON of `JobOptions`; NULL while only later entries of the job have been seen.
    Column("options", Text),
    #: Grows with every transaction that touches the job: of two progress reports the higher one is newer.
    Column("revision", Integer, nullable=False, server_default="0"),
)

destinations = Table(
    "destinations",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("country", Text),
    Column("region", Text),
    Column("lat", Float),
    Column("lon", Float),
    Column("extra", Text, nullable=False, server_default="{}"),
    #: 1 when it came with the job's inputs; 0 when only its result has been seen.
    Column("listed", Integer, nullable=False),
    #: queued, done or failed.
    Column("state", Text, nullable=False, server_default="queued"),
    Column("partial", Integer, nullable=False, server_default="0"),
    #: The attempt that gave the state, or the one that is awaited; -1 before the first result.
    Column("attempt", Integer, nullable=False, server_default="-1"),
    *_usage(),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    # Carries the rowid, so that a job's destinations are read page by page in the order they came.
    Index("destinations_by_job", "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("worker", Text, primary_key=True),
    Column("at", Float, primary_key=True),
    #: ok, partial, failed, or stopped: it cost something and came to no end.
    Column("outcome", Text, nullable=False),
    Column("elapsed_ms", Float, nullable=False),
    *_usage(),
    _of_destination(),
    sqlite_with_rowid=False,
)

profiles = Table(
    "profiles",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("country", Text),
    #: ok or partial.
    Column("status", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("pipeline_version", Text, nullable=False),
    #: The profile's overall quality, 0-1; NULL when it could not be had.
    Column("quality", Float),
    #: The whole `Profile` as JSON.
    Column("payload", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    *_usage(),
    Column("elapsed_ms", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    _of_destination(),
    # Who has a profile already, in whatever job.
    Index("profiles_by_destination", "destination_id"),
)

themes = Table(
    "themes",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    #: 1 is the profile's first theme.
    Column("rank", Integer, primary_key=True),
    Column("category", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("confidence", Float),
    Column("price_point", Text),
    Column("authenticity", Float),
    #: JSON lists, NULL when they could not be had.
    Column("peak_months", Text),
    Column("avoid_months", Text),
    Column("traveler_types", Text),
    _of_destination(),
)

failures = Table(
    "failures",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("stage", Text, nullable=False),
    Column("error_class", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("at", Float, nullable=False),
    _of_destination(),
)
