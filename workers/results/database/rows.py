"""What the results database gives back: frozen values, times in seconds since 1970, UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import RowMapping

from tasks.frames import decompressed
from tasks.messages import Destination, Profile, Result, StreamEntry, Usage
from tasks.packed import profile_of
from workers.results.database.tables import USAGE_COLUMNS

StoredState = Literal["queued", "running", "done", "cancelled"]
DestinationStatus = Literal["queued", "done", "failed"]
#: States after which a job changes only when it is asked again.
FINAL_STATES: Final = frozenset({"done", "cancelled"})


def usage_of(row: Mapping[Any, Any]) -> Usage:
    return Usage(**{name: row[name] for name in USAGE_COLUMNS})


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with its durable counters. `revision` orders two reports of the same job."""

    job_id: str
    name: str
    state: StoredState
    #: None until the job is sealed.
    total: int | None
    sealed: bool
    done: int
    failed: int
    partial: int
    usage: Usage
    created_at: float
    started_at: float | None
    finished_at: float | None
    #: JSON of `JobOptions`; None while the job's first entry has not been seen.
    options: str | None
    revision: int

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "JobRow":
        plain = {k: v for k, v in row.items() if k not in USAGE_COLUMNS}
        return cls(**{**plain, "sealed": bool(row["sealed"])}, usage=usage_of(row))

    @property
    def finished(self) -> int:
        """Destinations that have an outcome."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True)
class DestinationRow:
    job_id: str
    destination: Destination
    state: DestinationStatus
    partial: bool
    #: The attempt that gave the state or is awaited; -1 before the first result.
    attempt: int
    #: What all its attempts cost together.
    usage: Usage
    listed: bool

    @classmethod
    def of(cls, row: RowMapping) -> "DestinationRow":
        destination = Destination(
            id=row["destination_id"],
            name=row["name"],
            country=row["country"],
            region=row["region"],
            lat=row["lat"],
            lon=row["lon"],
            extra=msgspec.json.decode(row["extra"]),
        )
        return cls(
            row["job_id"],
            destination,
            row["state"],
            bool(row["partial"]),
            row["attempt"],
            usage_of(row),
            bool(row["listed"]),
        )


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """A stored profile; `payload` is what no other column has of it, compressed."""

    job_id: str
    destination_id: str
    name: str
    country: str | None
    status: Literal["ok", "partial"]
    model: str
    pipeline_version: str
    quality: float | None
    attempt: int
    elapsed_ms: float
    created_at: float
    usage: Usage
    stages: str
    missing: str | None
    payload: bytes
    extra: dict[str, str]

    @classmethod
    def of(cls, row: RowMapping) -> "ProfileRow":
        names = (name for name in cls.__slots__ if name not in {"usage", "extra"})
        extra = msgspec.json.decode(row["extra"])
        return cls(**{name: row[name] for name in names}, usage=usage_of(row), extra=extra)

    def profile(self) -> Profile:
        return profile_of(self, self.destination_id, decompressed(self.payload))


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A profile, and what its input row said of the place."""

    row: ProfileRow
    region: str | None
    lat: float | None
    lon: float | None

    @classmethod
    def of(cls, row: RowMapping) -> "ExportRow":
        return cls(ProfileRow.of(row), row["region"], row["lat"], row["lon"])


@dataclass(frozen=True, slots=True)
class FailureRow:
    job_id: str
    destination_id: str
    name: str
    country: str | None
    stage: str
    error_class: str
    message: str
    attempts: int
    at: float

    @classmethod
    def of(cls, row: RowMapping) -> "FailureRow":
        return cls(**{name: row[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result that the database now shows for its destination."""

    result: Result
    name: str
    country: str | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry of a batch that cannot be stored. `index` is its place in the batch."""

    index: int
    entry: StreamEntry
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What one committed batch did: the jobs it touched as they stand now, the outcomes it shows, what it refused."""

    jobs: dict[str, JobRow]
    #: One per destination, in the order of the batch, also when the same result came again.
    outcomes: list[StoredResult]
    rejected: list[Rejected]
    #: The counters over all jobs as they stand now; empty where nothing was added.
    totals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What one manager has written since it was opened. `seconds` is the time its committed batches took."""

    batches: int = 0
    entries: int = 0
    rows: int = 0
    rejected: int = 0
    seconds: float = 0.0

    @property
    def seconds_per_batch(self) -> float:
        """Mean; 0 before the first batch."""
        return self.seconds / self.batches if self.batches else 0.0
