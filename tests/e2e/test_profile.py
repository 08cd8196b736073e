"""A job's profile, made by real processes."""

import os
import sqlite3
import time
from contextlib import closing

import msgspec
import pytest
from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until
from workers.observe.measurement_store import read_job_measurements
from workers.observe.measurements import HOPS, WHOLES, JobMeasurements, ProcessMeasurements
from workers.observe.reporter import read_metrics, read_series

#: Spans that need something out of the ordinary: a refusal, or an equal prompt in flight.
RARE = {"llm.backoff", "flight.wait"}
#: A worker without a supervisor.
STOCK = ("worker", "-P", "threads", "-c", "4")
OFF = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERFORMANCE_PROFILING": "false"}


def _enqueued(stack: Engine, count: int, *options: str) -> str:
    source = stack.folder / "many.csv"
    source.write_text("name\n" + "".join(f"Place {number}\n" for number in range(count)))
    said = stack.run("enqueue", str(source), *options)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip().splitlines()[0]


def _whole(redis: Redis, job_id: str, *, calls: int, results: int) -> JobMeasurements:
    """The picture once the last parts have come."""

    def look() -> JobMeasurements | None:
        picture = read_job_measurements(redis, job_id)
        sums = picture.sums
        return picture if sums.get("llm.requests", 0) >= calls and sums.get("results", 0) >= results else None

    found: JobMeasurements = until("the parts of all processes", look)
    return found


def test_a_job_of_two_workers_gives_a_picture_of_every_hop(stack: Engine) -> None:
    for name in ("one", "two"):
        stack.themes(name, "worker", "--name", name, "--concurrency", "4")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("both workers", lambda: len(fleet.workers(redis)) == 2)
    before = time.time()
    job_id = _enqueued(stack, 40, "--wait")
    passed = time.time() - before
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        picture = _whole(redis, job_id, calls=640, results=40)
        until("the workers' counters", lambda: read_metrics(redis).total("llm_requests_total") == 640)
        # A report may come between the last call and the end of its destination.
        until("the last destination's", lambda: read_metrics(redis).total("destinations_total") == 40)
        until("the consumer's", lambda: read_metrics(redis).total("consumer_rows_total"))
        metrics = read_metrics(redis)
        series = read_series(redis, 600)
        assert 0 < redis.ttl(keys.measurements(job_id)) <= keys.KEEP_SECONDS
    assert {*HOPS, *WHOLES} - RARE <= set(picture.spans)
    assert sorted(part.role for part in picture.parts) == ["consumer", "producer", "worker", "worker"]
    _is_plausible(picture, passed)
    assert metrics.total("llm_requests_total", outcome="ok") == 640 == picture.sums["llm.requests"]
    assert metrics.total("destinations_total", outcome="ok") == 40
    assert metrics.total("llm_tokens_total") == picture.sums["prompt_tokens"] + picture.sums["completion_tokens"]
    assert sum(point.calls for point in series) == 640
    assert sum(point.destinations for point in series) == 40
    # Redis may forget: the database has the same.
    database = stack.folder / "var" / "themes.db"
    until("the profile in the database", lambda: _stored(database, job_id) == picture.sums)


def _stored(database: object, job_id: str) -> dict[str, float]:
    with closing(sqlite3.connect(str(database))) as connection:
        rows = connection.execute("SELECT payload FROM job_measurements WHERE job_id = ?", (job_id,)).fetchall()
    return JobMeasurements.of(msgspec.json.decode(payload, type=ProcessMeasurements) for (payload,) in rows).sums


def _is_plausible(picture: JobMeasurements, passed: float) -> None:
    """No step takes longer than what it is a part of."""
    spans, sums = picture.spans, picture.sums
    assert [spans[name].count for name in ("destination", "queue.wait", "lane.wait", "publish")] == [40] * 4
    assert [spans[name].count for name in ("llm.call", "llm.rate_wait", "llm.pool_wait", "llm.validate")] == [640] * 4
    assert sums["connections_opened"] + sums["connections_reused"] == 640
    call = spans["llm.call"]
    within = sum(spans[name].total for name in ("llm.connect", "llm.first_byte", "llm.body"))
    assert within == pytest.approx(call.total, rel=0.1)
    assert call.quantile(0.01) >= 0.02 * 0.9, "the sandbox takes 20 ms"
    assert spans["destination"].largest < passed
    for part in picture.workers:
        assert part.sums["lane_busy_seconds"] <= part.sums["lane_seconds"] * 1.001
        assert part.sums["lane_seconds"] == pytest.approx(4 * part.sums["held_seconds"], rel=0.05)
        assert part.sums["pool_busy_seconds"] <= part.sums["pool_seconds"] * 1.001
        assert part.sums["pool_seconds"] == pytest.approx(15 * part.sums["held_seconds"], rel=0.05)
        assert 0 < part.sums["cpu_seconds"] < part.sums["held_seconds"] * (os.cpu_count() or 1) * 1.1
        assert part.facts["worker_pool_size"] == 4
        assert part.peaks["rss_bytes"] > 10_000_000
        assert part.since < part.until
        assert part.inside["llm.call"].keys() == {"llm.connect", "llm.first_byte", "llm.body"}
        assert 0 < len(part.slowest) <= 10
        slow = part.slowest[0]
        assert slow.name.startswith("Place ")
        assert slow.spans["llm.call"] > 0.02
    assert sums["lane_busy_seconds"] == pytest.approx(spans["destination"].total, rel=0.05)


def test_a_job_without_profiling_leaves_no_key_and_no_row_of_it(stack: Engine) -> None:
    stack.end("consumer")
    stack.themes("consumer", "consumer", **OFF)
    stack.themes("one", "worker", "--name", "one", **OFF)
    stack.env |= OFF
    job_id = _enqueued(stack, 4, "--wait")
    stack.end("one")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the consumer to have written all", lambda: redis.hget(keys.job(job_id), "state") == b"done")
        stack.end("consumer")
        patterns = (keys.measurements("*"), f"{keys.METRICS}*", "themes:series:*", keys.MEASUREMENTS_DUE)
        assert [key for pattern in patterns for key in redis.scan_iter(pattern)] == []
    assert _stored(stack.folder / "var" / "themes.db", job_id) == {}


def test_what_a_killed_worker_had_told_stays(stack: Engine) -> None:
    stack.sandbox("--latency", "100ms")
    quick = {"THEMES_PERFORMANCE_OPTIMIZATION__PROFILE_INTERVAL_SECONDS": "0.1"}
    stack.celery("killed", *STOCK, "-n", "killed@here", **quick)
    job_id = _enqueued(stack, 30)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("some calls", lambda: read_job_measurements(redis, job_id).sums.get("executed", 0) > 2)
        stack.end("killed", kill=True)
        (told,) = read_job_measurements(redis, job_id).workers
        stack.themes("heir", "worker", "--name", "heir")
        assert stack.run("watch", job_id).returncode == 0
        until("the part of its heir", lambda: len(read_job_measurements(redis, job_id).workers) == 2)
        picture = _whole(redis, job_id, calls=30 * 16 - int(told.sums["llm.requests"]) + 1, results=30)
        assert told in picture.workers
        assert read_metrics(redis).total("destinations_total") <= 30
