import asyncio
import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.observe import records
from workers.observe.counters import MAX_FIELDS, Counters, field, parsed
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.observe.metrics import LARGEST, LAST, SMALLEST, Histogram, edge
from workers.observe.profiler import MAX_JOBS, PerformanceProfiler
from workers.observe.records import MAX_NODES, OTHER

DURATIONS = st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200)
ANY_DURATION = st.floats(0, 1e12)
NAMES = st.text(st.characters(exclude_characters="|=\n"), min_size=1, max_size=20)


def _filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def _parts(profiler: PerformanceProfiler) -> dict[str, ProcessMeasurements]:
    return {known.job_id: part for known, part in profiler.parts()}


# --- histograms ---------------------------------------------------------------------------------------------------


@given(DURATIONS)
def test_a_quantile_is_off_by_at_most_five_percent(values: list[float]) -> None:
    histogram = _filled(values)
    ordered = sorted(values)
    for share in (0.5, 0.95, 1.0):
        exact = ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.051)


@given(DURATIONS, DURATIONS)
def test_merged_histograms_equal_one_over_all_values(left: list[float], right: list[float]) -> None:
    merged = Histogram.from_dict(json.loads(json.dumps(_filled(left).as_dict())))
    merged.merge(_filled(right))
    both = _filled(left + right)
    assert merged.buckets == both.buckets
    assert merged.count == both.count
    assert merged.largest == both.largest
    assert merged.total == pytest.approx(both.total)


@given(st.lists(ANY_DURATION, max_size=300))
def test_whatever_is_counted_a_histogram_has_no_more_buckets_than_it_may(values: list[float]) -> None:
    histogram = _filled(values)
    assert set(histogram.buckets) <= set(range(LAST + 1))
    assert LAST < 300
    assert histogram.count == len(values) == sum(histogram.buckets.values())


@given(DURATIONS, st.integers(0, LAST))
def test_at_the_edge_of_a_bucket_it_is_known_how_many_lie_below(values: list[float], index: int) -> None:
    bound = edge(index)
    # A value that lies on the edge but for the last bit may be on either side.
    clear = [value for value in values if not math.isclose(value, bound, rel_tol=1e-9)]
    assert _filled(clear).below(bound) == sum(value <= bound for value in clear)


def test_the_edges_span_from_a_microsecond_to_days() -> None:
    assert edge(0) == SMALLEST
    assert edge(LAST) >= LARGEST


def test_a_summary_says_what_people_ask_for() -> None:
    summary = _filled([0.5] * 9 + [2.0]).summary()
    assert (summary["count"], summary["total_seconds"], summary["max_ms"]) == (10, 6.5, 2000.0)
    assert summary["p50_ms"] == pytest.approx(500, rel=0.051)
    assert summary["p95_ms"] == summary["p99_ms"] == pytest.approx(2000, rel=0.051)


# --- spans --------------------------------------------------------------------------------------------------------


def test_a_span_is_measured_also_when_its_body_fails() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with pytest.raises(ValueError, match="planted"), profiler.span("step"):
        raise ValueError("planted")
    assert profiler.snapshot()["spans"]["step"]["count"] == 1


def test_spans_lie_in_each_other_and_belong_to_their_job_and_destination() -> None:
    profiler = PerformanceProfiler(enabled=True)
    waited = {"lane.wait": 0.25, "queue.wait": None}
    with profiler.job("one") as known, profiler.destination(known, "d", "Kyoto", waited=waited):
        with profiler.span("outer"):
            with profiler.span("inner"):
                pass
            profiler.record("measured", 0.5)
        profiler.record("measured", 0.125)
        profiler.count("things", 3)
    with profiler.job("two"):
        profiler.record("measured", 1.0)
    profiler.record("measured", 2.0)
    parts = _parts(profiler)
    one = parts["one"]
    assert one.inside["destination"]["measured"] == 0.125
    assert one.inside["outer"] == {"inner": pytest.approx(one.spans["inner"]["total"]), "measured": 0.5}
    assert one.spans["measured"]["count"] == 2
    assert one.sums["things"] == 3
    assert one.sums["executed"] == 1
    (slow,) = one.slowest
    assert (slow.destination_id, slow.name) == ("d", "Kyoto")
    assert slow.spans["measured"] == 0.625
    assert slow.spans["lane.wait"] == 0.25
    assert slow.spans["outer"] >= slow.spans["inner"]
    assert "lane.wait" in one.spans
    assert "queue.wait" not in one.spans
    assert parts["two"].spans["measured"]["total"] == 1.0
    # The process has done all of it.
    assert profiler.totals()["measured"].count == 4
    assert profiler.totals()["measured"].total == 3.625


async def test_tasks_keep_to_the_destination_that_started_them() -> None:
    profiler = PerformanceProfiler(enabled=True)
    met = asyncio.Barrier(6)

    async def step(name: str) -> None:
        with profiler.span(name):
            await met.wait()

    async def destination(job_id: str, name: str) -> None:
        with profiler.job(job_id) as known, profiler.destination(known, name, name, waited={}):
            await asyncio.gather(step("left"), step("right"))

    await asyncio.gather(destination("a", "x"), destination("a", "y"), destination("b", "z"))
    parts = _parts(profiler)
    assert {job: part.spans["left"]["count"] for job, part in parts.items()} == {"a": 2, "b": 1}
    assert parts["a"].inside.keys() == {"destination"}, "what runs beside a span does not lie in it"
    assert {slow.name: sorted(slow.spans) for slow in parts["a"].slowest} == {
        "x": ["left", "right"],
        "y": ["left", "right"],
    }


async def test_a_function_is_measured_at_each_call() -> None:
    profiler = PerformanceProfiler(enabled=True)

    def plain(number: int) -> int:
        with profiler.span("plain"):
            return number + 1

    async def awaited(number: int) -> int:
        with profiler.span("awaited"):
            with profiler.span("within"):
                await asyncio.sleep(0)
            return number + 2

    assert (plain(1), await awaited(1), await awaited(2)) == (2, 3, 4)
    counts = {name: span["count"] for name, span in profiler.snapshot()["spans"].items()}
    assert counts == {"plain": 1, "awaited": 2, "within": 2}


def test_memory_is_bounded_whatever_names_and_jobs_come() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with profiler.job("wide"):
        for number in range(3 * MAX_NODES):
            profiler.record(f"name {number}", 0.1)
            profiler.count(f"sum {number}")
    part = _parts(profiler)["wide"]
    assert len(part.spans) <= MAX_NODES + 1
    assert part.spans[OTHER]["count"] == 3 * MAX_NODES - MAX_NODES
    assert len(part.sums) <= records.MAX_SUMS
    for number in range(3 * MAX_JOBS):
        with profiler.job(f"job {number}"):
            profiler.record("step", 1.0)
    assert len(profiler.parts()) <= MAX_JOBS
    assert profiler.totals()["step"].count == 3 * MAX_JOBS, "a job that is forgotten stays in the totals"


def test_a_job_that_comes_back_after_it_was_forgotten_gets_a_part_of_its_own() -> None:
    profiler = PerformanceProfiler(enabled=True)
    first = profiler.records("job").part
    for number in range(MAX_JOBS):
        profiler.records(f"other {number}")
    assert profiler.records("job").part != first


def test_only_the_slowest_destinations_are_kept() -> None:
    profiler = PerformanceProfiler(enabled=True, slowest_kept=2)
    known = profiler.records("job")
    for seconds in (0.3, 0.1, 0.5, 0.2, 0.4):
        known.ended("id", f"took {seconds}", seconds, {})
    assert [slow.name for slow in known.slowest] == ["took 0.5", "took 0.4"]
    none = PerformanceProfiler(enabled=True, slowest_kept=0).records("job")
    none.ended("id", "name", 1.0, {})
    assert none.slowest == []


# --- the process --------------------------------------------------------------------------------------------------


def test_what_the_process_uses_is_booked_on_a_job_while_it_has_work_here() -> None:
    profiler = PerformanceProfiler(enabled=True)
    used = {"lane_seconds": 100.0}
    profiler.amounts_from(lambda: dict(used))
    profiler.fact("worker_pool_size", lambda: 12)
    with profiler.job("one"):
        used["lane_seconds"] = 103.0
        assert _parts(profiler)["one"].sums["lane_seconds"] == 3.0, "also while it goes on"
        used["lane_seconds"] = 104.0
    used["lane_seconds"] = 150.0
    with profiler.job("one"), profiler.job("two"):
        used["lane_seconds"] = 151.0
    parts = _parts(profiler)
    assert parts["one"].sums["lane_seconds"] == 5.0
    assert parts["two"].sums["lane_seconds"] == 1.0
    assert parts["one"].facts == {"worker_pool_size": 12}
    assert parts["one"].sums["held_seconds"] > 0


def test_only_jobs_that_have_changed_are_told() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with profiler.job("still"), profiler.job("done"):
        pass
    assert set(_parts(profiler)) == {"still", "done"}
    assert _parts(profiler) == {}
    with profiler.job("still"):
        assert set(_parts(profiler)) == {"still"}
        assert set(_parts(profiler)) == {"still"}, "as long as it is here it changes"


def test_what_concerns_the_process_is_told_to_each_job_at_work_and_counted_once() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with profiler.job("gone"):
        pass
    with profiler.job("one"), profiler.job("two"):
        profiler.whole("redis", 0.5)
    parts = _parts(profiler)
    assert [parts[job].spans.get("redis", {}).get("count", 0) for job in ("one", "two", "gone")] == [1, 1, 0]
    assert profiler.totals()["redis"].count == 1


async def test_a_loop_that_is_held_up_is_found_late() -> None:
    profiler = PerformanceProfiler(enabled=True)
    watching = asyncio.create_task(profiler.watch_loop())
    await asyncio.sleep(0)
    threading.Event().wait(0.4)
    while "loop.lag" not in profiler.totals():
        await asyncio.sleep(0.01)
    watching.cancel()
    assert profiler.totals()["loop.lag"].largest >= 0.25


def test_a_sample_reads_the_process() -> None:
    profiler = PerformanceProfiler(enabled=True)
    with profiler.job("job"):
        profiler.sample()
    usage = profiler.snapshot()["process"]
    assert usage["rss_bytes"] > usage["uss_bytes"] > 1_000_000
    assert usage["threads"] >= 1
    assert usage["descriptors"] >= 3
    assert usage["cpu_seconds"] > 0
    assert _parts(profiler)["job"].peaks["rss_bytes"] == usage["rss_bytes"]


async def test_switched_off_it_records_nothing() -> None:
    profiler = PerformanceProfiler(enabled=False)
    with profiler.job("job") as known, profiler.destination(known, "id", "name", waited={"lane.wait": 1.0}):
        with profiler.span("step"):
            pass
        with profiler.span("step"):
            pass
        profiler.record("step", 1.0)
        profiler.whole("redis", 1.0)
        profiler.count("things")
        profiler.counters.add("things_total")

    assert profiler.span("one") is profiler.span("two"), "nothing is made"
    profiler.sample()
    await profiler.watch_loop()
    assert profiler.snapshot() == {}
    assert profiler.parts() == []
    assert profiler.totals() == {}
    assert list(profiler.counters.taken()) == []


# --- parts and counters -------------------------------------------------------------------------------------------


def test_parts_put_together_add_up() -> None:
    def part(process: str, seconds: float) -> ProcessMeasurements:
        profiler = PerformanceProfiler(enabled=True, name=process)
        with profiler.job("job") as known, profiler.destination(known, process, process, waited={}):
            profiler.record("step", seconds)
            profiler.count("things", 2)
        return _parts(profiler)["job"]

    picture = JobMeasurements.of([part("b", 0.25), part("a", 0.5)])
    assert [one.name for one in picture.parts] == ["a", "b"]
    assert picture.spans["step"].count == 2
    assert picture.spans["step"].total == 0.75
    assert picture.sums["things"] == 4
    assert len(picture.slowest) == 2


@given(NAMES, st.dictionaries(NAMES, NAMES, max_size=4))
def test_a_field_is_read_as_it_was_made(name: str, labels: dict[str, str]) -> None:
    assert parsed(field(name, **{f"x{key}": value for key, value in labels.items()})) == (
        name,
        {f"x{key}": value for key, value in labels.items()},
    )


def test_a_label_cannot_break_out_of_its_field() -> None:
    assert parsed(field("calls", model="a|outcome=ok\n")) == ("calls", {"model": "a_outcome_ok_"})


def test_counters_are_taken_once_and_bounded() -> None:
    counters = Counters(enabled=True)
    counters.add("a", 2)
    counters.add("a")
    counters.add("b", 0)
    assert dict(counters.taken()) == {"a": 3}
    assert dict(counters.taken()) == {}
    for number in range(MAX_FIELDS + 10):
        counters.add(f"field {number}")
    taken = dict(counters.taken())
    assert len(taken) == MAX_FIELDS + 1
    assert taken["metrics_dropped_total"] == 10
