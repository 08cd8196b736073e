"""What `themes top` says of a system, by what Redis says of it."""

import io
import json
import time
from typing import Any

from redis import Redis
from rich.console import Console

from scripts.top import line, rate, view
from tasks import keys
from tasks.jobs import registry as jobs
from tasks.jobs.short_ids import short_id
from tasks.messages import JobOptions
from workers.dashboard.live import Counted, LiveReader, Snapshot
from workers.observe.reporter import Metrics


def _worker(redis: Redis, name: str, **fields: Any) -> None:
    report = {"name": name, "at": time.time(), "lanes": 12, "lanes_busy": 3, "connections": 15} | fields
    redis.hset(keys.worker(name), mapping=report)
    redis.expire(keys.worker(name), 15)
    redis.zadd(keys.WORKERS, {name: time.time()})


def _text(system: Snapshot) -> str:
    console = Console(width=150, file=io.StringIO())
    with console.capture() as shown:
        console.print(view(system))
    return shown.get()


def test_an_empty_system_says_what_to_start(redis: Redis) -> None:
    system = LiveReader(redis).read()
    assert (system.jobs, system.workers, system.queued, system.calls_per_second) == ([], {}, 0, None)
    shown = _text(system)
    assert "no worker is alive" in shown
    assert "no job yet" in shown


def test_workers_add_up_and_the_troubled_one_says_why(redis: Redis) -> None:
    usage = {"process": {"cpu_percent": 41.0, "rss_bytes": 100 * 2**20}}
    _worker(redis, "w1@h", profile=json.dumps(usage), connections_in_use=7, connections_waiting=2)
    _worker(redis, "w2@h", waiting_for="east: connection refused", profile="not JSON")
    _worker(redis, "w3@h", at=time.time() - 10)
    _worker(redis, "w4@h", lanes=0, lanes_busy=0)
    _worker(redis, "w5@h", lanes_busy=0, journal_off="var/calls cannot be written (No space left on device)")
    job = jobs.create(redis, name="[bold]a job[/]", options=JobOptions(), compress=False)
    redis.rpush(keys.queue_keys()[0], "a", "b")
    system = LiveReader(redis).read()
    assert (system.lanes, system.lanes_busy, system.queued, system.results_lag) == (48, 9, 2, 1)
    assert [worker.says for worker in system.workers.values()] == [
        "", "east: connection refused", "silent for 10 s", "stopping",
        "call journal off: var/calls cannot be written (No space left on device)",
    ]  # fmt: skip
    shown = _text(system)
    assert "41 %" in shown
    assert "100 MiB" in shown
    assert "7/15 +2" in shown
    assert "[bold]a job[/]" in shown
    assert short_id(job) in shown
    assert "[bold]a job[/]: queued 0/0" in line(system)


def test_rates_are_between_two_looks_and_begin_anew_with_redis(redis: Redis) -> None:
    reader = LiveReader(redis)
    reader.read()
    first = reader._counts[0].at
    reader._count(Counted(first + 2, 20, 4, 2, 20))
    assert reader._rates() == {
        "calls_per_second": 10.0, "errors_per_second": 2.0, "refusals_per_second": 1.0, "hit_rate": 0.5,
    }  # fmt: skip
    # Its counts were lost: a rate would be negative.
    reader.read()
    assert reader._rates() == {}


def test_a_first_look_has_the_rates_of_the_last_seconds(redis: Redis) -> None:
    counted = {"calls": 200, "errors": 30, "rate_limited": 20, "redis_hits": 50}, {"calls": 200, "memory_hits": 50}
    for seconds, amounts in zip((10, 20), counted, strict=True):
        key = keys.series(time.time() - seconds)
        redis.hset(key, mapping=amounts)
        redis.expire(key, 60)
    system = LiveReader(redis).read()
    assert system.calls_per_second == 20.0
    assert (system.errors_per_second, system.refusals_per_second, system.hit_rate) == (0.5, 1.0, 0.2)


def test_what_was_seen_last_stays_while_redis_is_away(redis: Redis) -> None:
    _worker(redis, "w1@h")
    reader = LiveReader(redis)
    reader.read()
    old = reader.stale("Redis does not answer: refused")
    assert list(old.workers) == ["w1@h"]
    assert "what follows is from before" in _text(old)
    assert line(old) == "Redis does not answer: refused"


def test_failures_and_refusals_are_told_apart() -> None:
    metrics = Metrics(
        counters={
            "llm_requests_total|endpoint=e|model=m|outcome=ok": 90.0,
            "llm_requests_total|endpoint=e|model=m|outcome=rate_limited": 7.0,
            "llm_requests_total|endpoint=e|model=m|outcome=EndpointDownError": 3.0,
            "cache_gets_total|result=hit|tier=redis": 5.0,
            "cache_coalesced_total": 2.0,
        }
    )
    assert Counted.of(metrics, 0.0) == Counted(0.0, 100.0, 3.0, 7.0, 7.0)


def test_rates_have_no_more_digits_than_they_need() -> None:
    assert [rate(each) for each in (None, 0.04, 12.34, 1234.5)] == ["-", "0.0", "12.3", "1,234"]
