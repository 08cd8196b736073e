"""What a batch of entries means for the rows of the database: decided here, before anything is written.

Rules, each idempotent, because every entry may come twice:

* The highest `attempt` gives a destination its state; of equal ones the later entry; but a profile is never
  replaced by a failure of the same attempt.
* A partial profile that is asked again stays until one comes that is not worse; a failure does not take its place.
  So does a whole one that fields are added to.
* A destination's usage is the sum over its *runs*. A run is (attempt, worker, time of its end): the same entry
  delivered twice is one run; an attempt that two workers made, because the first one's lease was lost, is two, and
  both were paid for.
* A job's counters move by the same differences in the same transaction, so they always equal the sums over its
  destinations. An unknown price makes a sum unknown, for good.
* A job runs from its first result, and is done when it is sealed and every destination has an outcome.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from config.errors import ThemesError
from tasks.messages import (
    Destination,
    JobClosed,
    JobReopened,
    JobSealed,
    PackedProfile,
    Result,
    Spent,
    StreamEntry,
    Usage,
)
from tasks.storable import MAX_WHOLE, are_amounts, clean_destination
from workers.results.database.rows import FINAL_STATES, DestinationStatus, JobRow, StoredResult

#: Job id and destination id.
Key = tuple[str, str]
#: Job id, destination id, attempt, worker, time of its end.
Run = tuple[str, str, int, str, float]


class UnusableEntryError(ThemesError, ValueError):
    """This entry cannot be stored as it stands."""


class Kept(NamedTuple):
    """How good a profile is: the better one is the greater one."""

    is_whole: bool
    #: Stages that lack something, counted downwards from 0.
    lacking: int
    themes: int

    @classmethod
    def of(cls, profile: PackedProfile) -> "Kept":
        """Of a profile that has just come."""
        return cls(profile.status == "ok", -profile.lacking, profile.theme_count)


@dataclass(slots=True)
class DestinationState:
    """How a destination stands while a batch is folded in."""

    name: str
    country: str | None
    state: DestinationStatus = "queued"
    partial: bool = False
    attempt: int = -1
    usage: Usage = field(default_factory=Usage)
    #: The profile in the database, where an attempt after it was asked for or made.
    kept: "Kept | None" = None
    #: Columns of its input, where only its result was ever seen.
    extra: dict[str, str] = field(default_factory=dict)

    def loses_to(self, result: Result) -> bool:
        """Whether this result decides how the destination stands."""
        if result.attempt == self.attempt:
            return not (self.state == "done" and result.profile is None)
        return result.attempt > self.attempt


@dataclass(slots=True)
class Changes:
    """The rows to write. Keys of the maps are (job id, destination id)."""

    jobs: dict[str, JobRow]
    destinations: dict[Key, DestinationState] = field(default_factory=dict)
    runs: dict[Run, Result | Spent] = field(default_factory=dict)
    #: The results that destinations show now, in the order they came.
    shown: dict[Key, Result] = field(default_factory=dict)
    #: Of these, the destinations that may have had an outcome before.
    replaced: set[Key] = field(default_factory=set)
    #: The counters over all jobs as they stand once this is written; empty where no run is new.
    totals: dict[str, int] = field(default_factory=dict)

    def outcomes(self) -> list[StoredResult]:
        return [
            StoredResult(result, self.destinations[key].name, self.destinations[key].country)
            for key, result in self.shown.items()
        ]


@dataclass(slots=True)
class _Sums:
    """What a batch adds to a job."""

    done: int = 0
    failed: int = 0
    partial: int = 0
    usage: Usage = field(default_factory=Usage)
    started_at: float | None = None

    def added_to(self, job: JobRow) -> JobRow:
        return replace(
            job,
            done=job.done + self.done,
            failed=job.failed + self.failed,
            partial=job.partial + self.partial,
            usage=job.usage + self.usage,
            started_at=self.started_at if job.started_at is None else job.started_at,
        )


@dataclass(slots=True)
class BatchReducer:
    """Folds entries into what the database holds about their jobs and destinations."""

    jobs: dict[str, JobRow]
    destinations: dict[Key, DestinationState]
    runs: set[Run]
    now: float
    #: How good the stored profiles are of destinations that may be asked again.
    stored: dict[Key, Kept] = field(default_factory=dict)
    #: What this batch adds to its jobs.
    _sums: dict[str, _Sums] = field(default_factory=dict)

    def changes(self, entries: Iterable[StreamEntry]) -> Changes:
        """The rows to write for these entries. `JobOpened` and `JobInputs` are rows already.

        Raises:
            UnusableEntryError: a result that is neither a profile nor a failure, or both; an amount out of range.
        """
        changes = Changes(self.jobs)
        for entry in entries:
            match entry:
                case Result():
                    self._take_result(entry, changes)
                case Spent():
                    key = (entry.job_id, entry.destination_id)
                    changes.destinations[key] = destination = self._destination(key, entry)
                    self._add_usage(entry, destination, changes)
                case JobSealed():
                    self.jobs[entry.job_id] = replace(self.jobs[entry.job_id], sealed=True, total=entry.total)
                case JobReopened():
                    self._reopen(entry, changes)
                case JobClosed():
                    self._cancel(entry)
                case _:
                    pass
        for job_id, sums in self._sums.items():
            self.jobs[job_id] = sums.added_to(self.jobs[job_id])
        self._sums.clear()
        for job_id, job in self.jobs.items():
            self.jobs[job_id] = settled(job, self.now)
        return changes

    def _take_result(self, result: Result, changes: Changes) -> None:
        if (result.profile is None) == (result.failure is None):
            raise UnusableEntryError("a result is either a profile or a failure")
        key = (result.job_id, result.destination_id)
        destination = self._destination(key, result)
        changes.destinations[key] = destination
        self._add_usage(result, destination, changes)
        if not destination.loses_to(result):
            return
        is_retried = destination.attempt >= 0
        destination.attempt = result.attempt
        if destination.kept is not None and is_worse(result, destination.kept):
            self._move(result.job_id, destination, "done", partial=not destination.kept.is_whole)
            return
        if is_retried:
            changes.replaced.add(key)
        partial = result.profile is not None and result.profile.status == "partial"
        self._move(result.job_id, destination, "done" if result.profile else "failed", partial=partial)
        destination.kept = None
        changes.shown.pop(key, None)
        changes.shown[key] = result

    def _destination(self, key: Key, result: Result | Spent) -> DestinationState:
        """The destination's row, or the one it gets because only its result was ever seen."""
        if key not in self.destinations:
            profile = result.profile if isinstance(result, Result) else None
            stands = Destination(result.destination_id, result.destination_id)
            if profile is not None:
                stands = Destination(result.destination_id, profile.name, profile.country, extra=profile.extra)
            own = clean_destination(stands)
            self.destinations[key] = DestinationState(own.name, own.country, extra=own.extra)
        return self.destinations[key]

    def _add_usage(self, result: Result | Spent, destination: DestinationState, changes: Changes) -> None:
        _check_amounts(result)
        run = (result.job_id, result.destination_id, result.attempt, result.worker, result.at)
        sums = self._sums.setdefault(result.job_id, _Sums())
        if sums.started_at is None:
            sums.started_at = result.at - result.elapsed_ms / 1000
        if run in self.runs:
            return
        self.runs.add(run)
        changes.runs[run] = result
        destination.usage += result.usage
        sums.usage += result.usage

    def _move(self, job_id: str, destination: DestinationState, state: DestinationStatus, *, partial: bool) -> None:
        """Give a destination another state, and its job's counters the difference."""
        sums = self._sums.setdefault(job_id, _Sums())
        sums.done += (state == "done") - (destination.state == "done")
        sums.failed += (state == "failed") - (destination.state == "failed")
        sums.partial += partial - destination.partial
        destination.state, destination.partial = state, partial

    def _reopen(self, entry: JobReopened, changes: Changes) -> None:
        """Let failed and partial destinations wait anew; a partial profile stays until a better one comes.

        A second delivery finds their attempt raised and changes nothing.
        """
        waits = self.jobs[entry.job_id].state == "cancelled"
        for destination_id in entry.destination_ids:
            key = (entry.job_id, destination_id)
            destination = self.destinations.get(key)
            is_whole = destination is not None and destination.state == "done" and not destination.partial
            if destination is None or (is_whole and not entry.options) or destination.attempt >= entry.attempt:
                continue
            waits = True
            self._move(entry.job_id, destination, "queued", partial=False)
            destination.attempt = entry.attempt
            changes.destinations[key] = destination
            shown = changes.shown.get(key)
            if shown is not None and shown.profile is not None:
                destination.kept = Kept.of(shown.profile)
            else:
                destination.kept = destination.kept or self.stored.get(key)
                changes.shown.pop(key, None)
        if waits:
            job = self.jobs[entry.job_id]
            options = msgspec.json.encode(entry.options).decode() if entry.options else job.options
            self.jobs[entry.job_id] = replace(job, state="running", finished_at=None, options=options)

    def _cancel(self, entry: JobClosed) -> None:
        job = self.jobs[entry.job_id]
        if job.state not in FINAL_STATES:
            self.jobs[entry.job_id] = replace(job, state=entry.state, finished_at=entry.at)


def is_worse(result: Result, kept: Kept) -> bool:
    """Whether a stored profile stays. What was added to one has all of it."""
    return result.profile is None or (not result.adds and Kept.of(result.profile) < kept)


def _check_amounts(run: Result | Spent) -> None:
    """Refuse what would spoil the sums for good: an amount below 0 or beyond 64 bits, a price that is no number.

    SQLite keeps NaN as NULL and PostgreSQL as NaN; no sum with one ever ends.
    """
    is_timed = 0 <= run.at <= MAX_WHOLE and 0 <= run.elapsed_ms <= MAX_WHOLE
    if is_timed and are_amounts(msgspec.structs.astuple(run.usage)):
        return
    amounts = {**msgspec.structs.asdict(run.usage), "at": run.at, "elapsed_ms": run.elapsed_ms}
    for name, amount in amounts.items():
        if amount is not None and not 0 <= amount <= MAX_WHOLE:
            place = name if name in {"at", "elapsed_ms"} else f"usage.{name}"
            raise UnusableEntryError(f"{place} is {amount!r:.40}, expected a number from 0 to {MAX_WHOLE}")


def settled(job: JobRow, now: float) -> JobRow:
    """The job with the state that its counters mean, and a revision above every earlier one.

    The revision is microseconds since 1970 where the clock allows, so that it also rises over a database that was
    deleted and made again.
    """
    job = replace(job, revision=max(job.revision + 1, int(now * 1_000_000)))
    if job.state in FINAL_STATES:
        return job
    if job.sealed and job.total is not None and job.finished >= job.total:
        return replace(job, state="done", finished_at=now)
    return replace(job, state="running") if job.started_at is not None else job
