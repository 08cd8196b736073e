"""What is said of a job beside its bounds, and what each optimisation is said to have brought."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tasks.jobs.registry import JobStatus
from tasks.messages import Usage
from workers.diagnosis.conditions import conditions
from workers.diagnosis.measured import measured
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.observe.metrics import Histogram
from workers.report.optimisations import Optimisation, optimisations
from workers.results.queries.job_stats import FailureKind, JobStats, Point, RunRow, empty_job_stats

STATUS = JobStatus(
    "j", "a job", "running", 100, 40, 0, 0, 640, 0, 0, 1000, 1000, 1.0, 4.0, 15.0, 1000.0, 1001.0, None
)  # fmt: skip
ENDED = replace(STATUS, state="done", done=100, finished_at=1101.0, eta_seconds=None)


def _account(points: list[Point] | None = None, **more: Any) -> JobStats:
    made = empty_job_stats(started_at=1000.0, ended_at=1100.0)
    return msgspec.structs.replace(made, timeline=points or [], last_at=1100.0, first_at=1001.0, runs=100, **more)


def _even() -> list[Point]:
    return [Point(at, 10.0, ended=10, calls=160, in_work=8.0) for at in range(0, 100, 10)]


def _said(
    status: JobStatus = ENDED,
    account: JobStats | None = None,
    *parts: ProcessMeasurements,
    alive: int | None = 2,
    **more: Any,
) -> list[Any]:
    known = _account(_even()) if account is None else account
    return conditions(status, known, JobMeasurements.of(parts), alive=alive, statements=more.get("statements", {}))


def test_of_a_job_that_went_evenly_nothing_is_said() -> None:
    assert _said() == []
    assert _said(STATUS) == []


def test_who_does_not_move_is_told_why_and_what_lets_it_go_on() -> None:
    (paused,) = _said(replace(STATUS, state="stalled", paused="user"))
    assert (paused.resource, paused.share, paused.advice) == ("work", 1.0, "themes resume j")
    (away,) = _said(replace(STATUS, waiting_for="east: connection refused"))
    assert (away.resource, away.share) == ("endpoint", 1.0)
    assert "east: connection refused" in away.evidence
    (alone,) = _said(STATUS, alive=0)
    assert (alone.resource, alone.evidence) == ("workers", "no worker is alive; 60 destinations waiting")
    assert _said(STATUS, alive=None) == [], "nobody could be asked"
    assert _said(ENDED, alive=0) == [], "an ended job needs nobody"


def test_failed_destinations_are_told_by_class_and_stage() -> None:
    kinds = [
        FailureKind("EndpointDownError", "discover.food", 8, "500"),
        FailureKind("ModelRefusedError", "x", 2, "no"),
    ]
    (told,) = _said(replace(ENDED, done=90, failed=10), _account(_even(), failures=kinds))
    assert told.evidence == (
        "10 of 100 destinations failed: EndpointDownError in discover.food (8), ModelRefusedError in x (2)"
    )
    assert told.share == 0.1


def test_failures_that_the_database_knows_before_the_status_does_are_no_share_yet() -> None:
    kinds = [FailureKind("BadRequestError", "discover.food", 1, "400")]
    assert _said(replace(STATUS, state="queued", done=0, failed=0), _account(_even(), failures=kinds)) == []


def test_rows_that_come_late_are_the_databases_fault() -> None:
    late = _account(_even())
    (told,) = _said(ENDED, msgspec.structs.replace(late, ended_at=1180.0))
    assert told.resource == "database"
    assert "the last 1m 20s of 3m 00s went by after the last destination was made" in told.evidence


def test_time_without_work_is_a_gap_and_not_a_tail() -> None:
    points = [*_even()[:3], *(Point(at, 10.0) for at in range(30, 70, 10)), *_even()[7:]]
    (told,) = [each for each in _said(ENDED, _account(points)) if each.resource == "work"]
    assert "for 40 s of 1m 40s nothing of this job was in work" in told.evidence
    assert told.share == 0.4


def test_a_straggler_is_named_with_what_the_job_would_gain_without_it() -> None:
    points = [
        *(Point(at, 10.0, ended=24, in_work=12.0) for at in range(0, 40, 10)),
        *(Point(at, 10.0, in_work=1.0) for at in range(40, 90, 10)),
        Point(90.0, 10.0, ended=4, in_work=1.0),
    ]
    slow = RunRow("x", "Gotham", None, "ok", 60_000.0, 16, 0, "w", 1100.0)
    (told,) = _said(ENDED, _account(points, slowest=[slow]))
    assert told.resource == "tail"
    assert "the slowest, Gotham, took 1m 00s" in told.evidence
    assert "1.0 in work instead of 12.0" in told.evidence
    assert told.gain == pytest.approx(100 / (40 / 0.9), rel=0.01)


def test_a_slow_statement_is_told_by_name_and_a_quick_one_is_not() -> None:
    quick = {"p50_ms": 0.3, "slowest_ms": 9.0, "slowest_rows": 4, "count": 900}
    slow = {"p50_ms": 310.0, "slowest_ms": 900.0, "slowest_rows": 4, "count": 12}
    (told,) = _said(statements={"insert profiles": quick, "insert attempts": slow})
    assert told.resource == "database"
    assert "'insert attempts' is slow: 310 ms median, 900 ms at worst" in told.evidence
    assert _said(statements={"insert profiles": quick}) == []


def test_memory_that_grew_by_a_good_part_of_itself_is_named_once_for_all_processes() -> None:
    def part(name: str, hours: float, hourly_mb: int) -> ProcessMeasurements:
        peaks = {"rss_bytes": 300.0 * 2**20, "rss_growth_bytes_per_hour": hourly_mb * 2.0**20}
        return ProcessMeasurements("p", "worker", name, "h", 1000.0, 1000.0 + 3600 * hours, peaks=peaks)

    (told,) = _said(ENDED, _account(_even()), part("w1", 1, 90), part("w2", 2, 50), part("w3", 1, 0))
    assert told.resource == "memory"
    by_process = "worker w1 by 90 MiB an hour (peak 300 MiB), worker w2 by 50 MiB an hour (peak 300 MiB)"
    assert told.evidence == f"memory may grow: {by_process}"
    assert "themes worker-memory start" in told.advice
    assert not _said(ENDED, _account(_even()), part("young", 0.1, 900), part("steady", 1, 30))


def _brought(
    usage: Usage, account: JobStats, part: ProcessMeasurements | None = None, **facts: Any
) -> dict[str, Optimisation]:
    picture = JobMeasurements.of([part] if part else [])
    m = measured(picture, total=100) if part else None
    return {each.name: each for each in optimisations(usage, account, m, picture.sums, facts)}


def test_what_was_off_is_off_and_what_had_nothing_to_do_says_so() -> None:
    names = ("persistent_cache", "work_stealing", "streaming_results", "result_compression")
    off = _brought(Usage(llm_calls=16), _account(), **{f"enable_{name}": False for name in names})
    assert len(off) == 7
    for name in ("Shared cache", "Work stealing", "Compression"):
        assert (off[name].is_on, off[name].brought) == (False, "off"), name
    assert off["Streaming"].brought.startswith("off:")
    idle = _brought(Usage(), empty_job_stats(started_at=0.0, ended_at=0.0), enable_work_stealing=True)
    for name in ("Shared cache", "Streaming", "Compression", "Asking less"):
        assert idle[name].brought.startswith("nothing to gain here"), name
    for name in ("Connection pool", "Work stealing", "Batched writes"):
        assert idle[name].brought.startswith("not measured"), name


def test_what_was_brought_is_told_in_amounts() -> None:
    calls, connects = Histogram(), Histogram()
    for _ in range(1000):
        calls.add(0.25)
    for _ in range(10):
        connects.add(0.04)
    sums = {
        "held_seconds": 10.0, "pool_busy_seconds": 250.0, "pool_seconds": 300.0, "connections_opened": 10.0,
        "connections_reused": 990.0, "executed": 100.0, "stolen": 25.0, "shared": 5.0, "batches": 20.0,
        "results": 100.0, "rows": 30_000.0,
    }  # fmt: skip
    spans = {"llm.call": calls.as_dict(), "llm.connect": connects.as_dict()}
    part = ProcessMeasurements("p", "worker", "w", "h", 1000.0, 1010.0, spans=spans, sums=sums)
    usage = Usage(
        llm_calls=1000, cache_hits=600, cache_misses=1000, coalesced=40, bytes_raw=2**20, bytes_stored=2**18
    )  # fmt: skip
    brought = _brought(usage, _account(), part, llm_connection_pool_size=30, database_batch_size=100)
    assert brought["Connection pool"].brought == (
        "25.0 calls at once on average; 990 of 1,000 requests went over a connection that was open already, "
        "which saved 40 s of connecting"
    )
    assert brought["Shared cache"].brought == "600 calls not made, 2m 30s of waiting for the LLM"
    assert brought["Shared cache"].share == 600 / 1600
    assert brought["Work stealing"].brought == (
        "25 of 100 destinations taken over by a lane that was free; 5 were given to other workers"
    )
    assert brought["Streaming"].brought == "the first result was there after 1 s, the whole job took 1m 40s"
    assert brought["Batched writes"].brought == "100 results in 20 commits, 1,500 rows a commit"
    assert brought["Compression"].brought == "1 MiB of answers took 256 KiB in the cache (4.0 times smaller)"
    assert brought["Asking less"].brought.startswith("40 calls not made because an equal one was under way")
