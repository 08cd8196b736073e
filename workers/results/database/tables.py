"""The tables of the results database, as users query them.

Times are seconds since 1970, UTC. Every other row of a destination hangs on `destinations`; `jobs` repeats its sums, so
that progress is one row to read. `attempts` has what every run of a destination cost, failed ones included.

A profile's themes hang on its number instead of two long ids. Months, travellers, what is within a theme, and how a
profile was made are values of their rows, and rows of views (`views.py`): as tables they took two thirds of the file.
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
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "listed_usd",
    "tier_saved_usd",
)
#: Of these, the US dollars: NULL where a model's price is not known, and then they stay so.
DOLLAR_COLUMNS: Final = frozenset({"saved_usd", "cost_usd", "listed_usd", "tier_saved_usd"})
#: The tables that have them.
USAGE_TABLES: Final = ("jobs", "destinations", "attempts", "profiles")

#: Where the bits of a season begin in `profile_themes.seasons`.
SEASON_SHIFTS: Final = {"peak": 0, "avoid": 12}

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
    # A job's destinations in alphabetical order, page by page.
    Index("destinations_by_name", "job_id", "name"),
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
    #: How each answer was made, as a JSON list of lists in the order of the view `stages`; then other numbers of usage.
    Column("stages", Text, nullable=False),
    #: What could not be had, as a JSON list of lists in the order of the view `missing`; NULL where nothing lacks.
    Column("missing", Text),
    Column("attempt", _Whole, nullable=False),
    *_usage(),
    Column("elapsed_ms", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    #: Its themes, whole, and what was found about them together: JSON in one zstd frame, as the worker packed it.
    #: Last, or SQLite would read it for what stands behind.
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("job_id", "destination_id"),
    _of_destination(),
    # Which destinations have a profile already, in any job (`enqueue --only-missing`).
    Index("profiles_by_destination", "destination_id"),
    # What a country has: WHERE country = 'Japan'.
    Index("profiles_by_country", "country"),
    # A job's profiles by what a list of them is ordered by; rows are wide, and are read for one page alone.
    Index("profiles_by_quality", "job_id", "quality", "status", "elapsed_ms", "cost_usd"),
)

#: What a `ProfileRow` is made of, in a query over destinations and their profiles.
PROFILE_COLUMNS: Final = (
    *(each for each in profiles.c if each.name not in {"updated_at", "profile_no"}), destinations.c.extra,
)  # fmt: skip

profile_themes = Table(
    "profile_themes",
    metadata,
    Column("theme_no", _Whole, primary_key=True, autoincrement=False),
    Column("profile_no", _Whole, ForeignKey("profiles.profile_no", ondelete="CASCADE"), nullable=False),
    #: 1 is the profile's first theme.
    Column("rank", Integer, nullable=False),
    Column("category", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    #: What follows is NULL where it could not be had; the view `missing` says why.
    Column("confidence", Float),
    Column("price_point", Text),
    Column("authenticity", Float),
    #: A bit a month, January is 1: the best months in the lower twelve, those to avoid in the next (`theme_months`).
    Column("seasons", Integer),
    #: JSON list (`theme_travelers`).
    Column("traveler_types", Text),
    #: JSON object of lists, by level (`theme_subthemes`).
    Column("subthemes", Text),
    # A profile's themes. With what is asked of months, so that where to go in May reads no theme's texts.
    Index("themes_by_profile", "profile_no", "seasons", "confidence"),
    # Which destinations have a theme: WHERE name = 'Street food'.
    Index("themes_by_name", "name"),
    # The surest food on a budget: WHERE category = 'food' AND price_point = 'budget'.
    Index("themes_by_category", "category", "price_point"),
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

#: Views that other queries read as tables.
_views = MetaData()


def _view(name: str, *columns: str) -> Table:
    return Table(name, _views, *(Column(each) for each in columns))


themes = _view(
    "themes", "theme_no", "job_id", "destination_id", "rank", "category", "name", "description", "confidence",
    "price_point", "authenticity",
)  # fmt: skip
theme_travelers = _view("theme_travelers", "theme_no", "traveler_type")
stages = _view(
    "stages", "profile_no", "stage", "status", "prompt_version", "model", "source", "llm_calls", "cache_hits",
    "prompt_tokens", "completion_tokens", "cost_usd", "elapsed_ms", "reason",
)  # fmt: skip
missing = _view("missing", "profile_no", "position", "stage", "field", "reason", "themes")
