"""The tables of the results database, as users query them.

Times are seconds since 1970, UTC. Every other row of a destination hangs on `destinations`; `jobs` repeats its sums, so
that progress is one row to read. `attempts` has what every run of a destination cost, failed ones included.

Rows of a profile hang on a number (`profile_no`, `theme_no`) instead of two long ids: half the size, half the time.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

#: Version of the tables that this code reads and writes; the newest of `migrations/versions`.
SCHEMA_VERSION: Final = 1

#: 64 bits everywhere; SQLite wants the plain word for a key that is the row's own number.
_Whole: Final = BigInteger().with_variant(Integer, "sqlite")

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
#: The tables that have them.
USAGE_TABLES: Final = ("jobs", "destinations", "attempts", "profiles")

metadata = MetaData()


def _usage() -> list[Column[int] | Column[float]]:
    return [
        Column(name, Float, server_default="0")
        if name in DOLLAR_COLUMNS
        else Column(name, _Whole, nullable=False, server_default="0")
        for name in USAGE_COLUMNS
    ]


def _of_destination() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["job_id", "destination_id"],
        ["destinations.job_id", "destinations.destination_id"],
        ondelete="CASCADE",
    )


def _of_theme() -> Column[int]:
    return Column("theme_no", _Whole, ForeignKey("themes.theme_no", ondelete="CASCADE"), primary_key=True)


def _of_profile() -> Column[int]:
    return Column("profile_no", _Whole, ForeignKey("profiles.profile_no", ondelete="CASCADE"), primary_key=True)


jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    #: queued, running, done or cancelled.
    Column("state", Text, nullable=False, server_default="queued"),
    #: NULL until the job is sealed: before, more destinations may follow.
    Column("total", _Whole),
    Column("sealed", _Whole, nullable=False, server_default="0"),
    Column("done", _Whole, nullable=False, server_default="0"),
    Column("failed", _Whole, nullable=False, server_default="0"),
    #: How many of the done ones lack something.
    Column("partial", _Whole, nullable=False, server_default="0"),
    *_usage(),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    #: JSON of `JobOptions`; NULL while only later entries of the job have been seen.
    Column("options", Text),
    #: Grows with every transaction that touches the job: of two progress reports the higher one is newer.
    Column("revision", _Whole, nullable=False, server_default="0"),
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
    Column("listed", _Whole, nullable=False),
    #: queued, done or failed.
    Column("state", Text, nullable=False, server_default="queued"),
    Column("partial", _Whole, nullable=False, server_default="0"),
    #: The attempt that gave the state, or the one that is awaited; -1 before the first result.
    Column("attempt", _Whole, nullable=False, server_default="-1"),
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
    Column("attempt", _Whole, primary_key=True),
    Column("worker", Text, primary_key=True),
    Column("at", Float, primary_key=True),
    #: ok, partial, failed; or what cost something and came to no end: stopped, or lost when its process died.
    Column("outcome", Text, nullable=False),
    Column("elapsed_ms", Float, nullable=False),
    *_usage(),
    _of_destination(),
    sqlite_with_rowid=False,
)

profiles = Table(
    "profiles",
    metadata,
    #: Stays the same when a newer attempt replaces the profile.
    Column("profile_no", _Whole, primary_key=True, autoincrement=False),
    Column("job_id", Text, nullable=False),
    Column("destination_id", Text, nullable=False),
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
    Column("attempt", _Whole, nullable=False),
    *_usage(),
    Column("elapsed_ms", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("job_id", "destination_id"),
    _of_destination(),
    # Which destinations have a profile already, in any job (`enqueue --only-missing`).
    Index("profiles_by_destination", "destination_id"),
    # What a country has: WHERE country = 'Japan'.
    Index("profiles_by_country", "country"),
)

themes = Table(
    "themes",
    metadata,
    Column("theme_no", _Whole, primary_key=True, autoincrement=False),
    Column("job_id", Text, nullable=False),
    Column("destination_id", Text, nullable=False),
    #: 1 is the profile's first theme.
    Column("rank", Integer, nullable=False),
    Column("category", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    #: What follows is NULL where it could not be had; the table `missing` says why.
    Column("confidence", Float),
    Column("price_point", Text),
    Column("authenticity", Float),
    Column("rationale", Text),
    UniqueConstraint("job_id", "destination_id", "rank"),
    ForeignKeyConstraint(
        ["job_id", "destination_id"], ["profiles.job_id", "profiles.destination_id"], ondelete="CASCADE"
    ),
    # Which destinations have a theme: WHERE name = 'Street food'.
    Index("themes_by_name", "name"),
)

theme_months = Table(
    "theme_months",
    metadata,
    _of_theme(),
    #: 1 is January.
    Column("month", Integer, primary_key=True),
    #: peak or avoid.
    Column("season", Text, primary_key=True),
    # Where to go in May: WHERE month = 5 AND season = 'peak'.
    Index("theme_months_by_month", "month", "season"),
    sqlite_with_rowid=False,
)

theme_travelers = Table(
    "theme_travelers",
    metadata,
    _of_theme(),
    Column("traveler_type", Text, primary_key=True),
    # What suits families: WHERE traveler_type = 'family'.
    Index("theme_travelers_by_type", "traveler_type"),
    sqlite_with_rowid=False,
)

theme_subthemes = Table(
    "theme_subthemes",
    metadata,
    _of_theme(),
    #: sub, or nano: finer still.
    Column("level", Text, primary_key=True),
    #: 1 is the first of its level.
    Column("position", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    sqlite_with_rowid=False,
)

stages = Table(
    "stages",
    metadata,
    _of_profile(),
    Column("stage", Text, primary_key=True),
    #: ok, partial, failed or skipped.
    Column("status", Text, nullable=False),
    Column("prompt_version", Text, nullable=False),
    #: NULL where no model was asked.
    Column("model", Text),
    #: called, cached, coalesced, mixed or none.
    Column("source", Text, nullable=False),
    Column("llm_calls", _Whole, nullable=False),
    Column("cache_hits", _Whole, nullable=False),
    Column("prompt_tokens", _Whole, nullable=False),
    Column("completion_tokens", _Whole, nullable=False),
    Column("cost_usd", Float),
    Column("elapsed_ms", Float, nullable=False),
    #: Why the stage is not ok.
    Column("reason", Text),
    sqlite_with_rowid=False,
)

missing = Table(
    "missing",
    metadata,
    _of_profile(),
    Column("position", Integer, primary_key=True),
    Column("stage", Text, nullable=False),
    Column("field", Text, nullable=False),
    Column("reason", Text, nullable=False),
    #: Ids of the themes that lack it, as JSON; [] means the whole profile.
    Column("themes", Text, nullable=False),
    sqlite_with_rowid=False,
)

failures = Table(
    "failures",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("destination_id", Text, primary_key=True),
    Column("stage", Text, nullable=False),
    Column("error_class", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempts", _Whole, nullable=False),
    Column("at", Float, nullable=False),
    _of_destination(),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    #: Id on the results stream.
    Column("entry_id", Text, primary_key=True),
    #: NULL where the entry does not even say whose it is.
    Column("job_id", Text),
    Column("destination_id", Text),
    #: Why it could not be stored.
    Column("reason", Text, nullable=False),
    #: The entry's fields as they came, as msgpack.
    Column("entry", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)

job_measurements = Table(
    "job_measurements",
    metadata,
    Column("job_id", Text, primary_key=True),
    #: Of one process, from when it took the job up until it laid it down.
    Column("process", Text, primary_key=True),
    #: A `workers.observe.measurements.ProcessMeasurements` as JSON.
    Column("payload", Text, nullable=False),
)

#: Sums over all jobs that only rise (`tasks.jobs.totals`), and since when they are counted.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
