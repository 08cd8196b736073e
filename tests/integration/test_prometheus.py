"""`/metrics` for Prometheus: what is exported, that it is bounded and only grows; the files in deploy/ fit it."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tasks import keys
from tests.unit.test_distribution import PROJECT
from tests.unit.test_grafana import promql_names
from workers.dashboard.metrics_table import HISTOGRAMS, METRICS
from workers.dashboard.prometheus import EDGES, Scrape
from workers.diagnosis.system import MAX_ROUTES, SystemReader, read_system
from workers.observe.metrics import GROWTH, SMALLEST, Histogram

TOTALS = {
    "llm_calls": 1600, "cache_hits": 30, "prompt_tokens": 9_000, "completion_tokens": 8_000,
    "cached_tokens": 4_000, "cache_write_tokens": 300, "reasoning_tokens": 700,
    "cost_nano_usd": 2_500_000_000, "unpriced_calls": 4,
    "destinations_ok": 97, "destinations_partial": 2, "destinations_failed": 1,
}  # fmt: skip


async def _text(redis: Redis) -> str:
    return (await Scrape(SystemReader(redis, broker=redis)).text()).decode()


def _series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _ours(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {key: value for key, value in _series(text).items() if key[0].startswith("themes_")}


def _count(redis: Redis, histogram: Histogram, span: str) -> None:
    fields: dict[str, float] = {f"span_seconds|b={index}|span={span}": n for index, n in histogram.buckets.items()}
    redis.hset(keys.METRICS, mapping={**fields, f"span_seconds_sum|span={span}": histogram.total, "since": 1.0})


def _say_alive(redis: Redis, name: str, models: int) -> None:
    routes = {
        f"east/m{n}": {"model": f"m{n}", "circuit": "open" if n == 1 else "closed", "failures": 2, "in_use": 1}
        for n in range(models)
    }
    report = {
        "lanes": 12, "lanes_busy": 5, "connections": 15, "connections_in_use": 4, "connections_waiting": 3,
        "pool": msgspec.json.encode({"idle": 2, "routes": routes}), "restarts": 1,
    }  # fmt: skip
    redis.hset(keys.worker(name), mapping=report)
    redis.expire(keys.worker(name), 60)
    redis.zadd(keys.WORKERS, {name: time.time()})


async def test_what_is_exported_can_be_parsed_and_is_what_redis_has(redis: Redis) -> None:
    redis.hset(keys.TOTALS, mapping=TOTALS)
    redis.hset(keys.CACHE_STATISTICS, mapping={"memory_hits": 10, "redis_hits": 20, "misses": 70, "since": 1})
    _say_alive(redis, "w1@here", 2)
    redis.zadd(keys.WORKERS, {"gone@there": time.time()})
    redis.lpush(keys.queue_keys()[3], "a message", "another")
    redis.hset(keys.METRICS, "llm_requests_total|endpoint=east|model=m0|outcome=ok", 1500)
    text = await _text(redis)
    found = _ours(text)

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("themes_up") == 1
    assert value("themes_build_info", version=PROJECT["version"]) == 1
    assert value("themes_llm_calls_total") == 1600
    assert value("themes_llm_tokens_total", kind="completion") == 8_000
    assert value("themes_llm_cached_tokens_total", kind="read") == 4_000
    assert value("themes_llm_cached_tokens_total", kind="written") == 300
    assert value("themes_llm_reasoning_tokens_total") == 700
    assert value("themes_llm_cost_usd_total") == 2.5
    assert value("themes_destinations_total", outcome="failed") == 1
    assert value("themes_cache_requests_total", tier="memory", result="miss") == 90
    assert value("themes_cache_requests_total", tier="redis", result="hit") == 20
    assert value("themes_queue_messages") == 2
    assert (value("themes_workers"), value("themes_workers_lost")) == (1, 1)
    assert (value("themes_lanes", state="busy"), value("themes_lanes", state="idle")) == (5, 7)
    assert value("themes_llm_connections", state="allowed") == 15
    assert value("themes_llm_endpoint_up", endpoint="east", model="m1") == 0
    assert value("themes_llm_requests_total", endpoint="east", model="m0", outcome="ok") == 1500
    assert value("themes_jobs", state="running") == 0
    # Not known is not 0: nothing has a budget, nothing was measured.
    assert not [key for key in found if key[0] in {"themes_budget_used_ratio", "themes_llm_call_duration_seconds_sum"}]
    for metric in (*METRICS, *HISTOGRAMS):
        assert f"# HELP {metric.name} " in text
        assert f"# TYPE {metric.name} {metric.kind}" in text


async def test_buckets_count_exactly_what_is_below_their_edges(redis: Redis) -> None:
    histogram = Histogram()
    durations = [0.0004, 0.0021, 0.05, 0.05, 0.9, 1.7, 12.0, 400.0]
    for seconds in durations:
        histogram.add(seconds)
    _count(redis, histogram, "llm.call")
    found = _ours(await _text(redis))
    name = "themes_llm_call_duration_seconds"
    for index in EDGES:
        edge = SMALLEST * GROWTH**index
        below = sum(seconds <= edge for seconds in durations)
        assert found[f"{name}_bucket", frozenset({("le", f"{float(f'{edge:.4g}')}")})] == below
    assert found[f"{name}_count", frozenset()] == len(durations)
    assert found[f"{name}_sum", frozenset()] == pytest.approx(sum(durations))
    assert found["themes_step_duration_seconds_count", frozenset({("step", "llm.call")})] == len(durations)


async def test_a_thousand_jobs_models_and_workers_make_a_bounded_number_of_series(redis: Redis) -> None:
    with redis.pipeline() as pipeline:
        for number in range(1_000):
            job = f"20260101-000000-{number:06x}"
            fields = {"job_id": job, "name": job, "state": "running" if number % 2 else "done", "total": 5}
            pipeline.hset(keys.job(job), mapping=fields)
            pipeline.zadd(keys.JOBS, {job: number})
            pipeline.hset(keys.METRICS, f"llm_requests_total|endpoint=e|model=m{number}|outcome=ok", number + 1)
        pipeline.execute()
    few = len(_ours(await _text(redis)))
    for number in range(50):
        _say_alive(redis, f"w{number}@here", 1_000)
    found = _ours(await _text(redis))
    assert len(found) < 700
    assert len(found) - few <= 4 * (MAX_ROUTES + 1)
    assert not any("20260101" in value for _, labels in found for _, value in labels)
    assert found["themes_llm_endpoint_failures", frozenset({("endpoint", "other"), ("model", "other")})] == 2 * 50 * (
        1_000 - MAX_ROUTES
    )
    states = {dict(labels)["state"]: value for (name, labels), value in found.items() if name == "themes_jobs"}
    assert states["done"] == 500


async def test_counters_only_grow_over_restarts_of_workers_and_dashboard(redis: Redis) -> None:
    redis.hset(keys.TOTALS, mapping=TOTALS)
    histogram = Histogram()
    histogram.add(0.5)
    _count(redis, histogram, "llm.call")
    _say_alive(redis, "w1@here", 1)
    before = _ours(await _text(redis))
    redis.delete(keys.worker("w1@here"), keys.WORKERS)
    redis.hincrby(keys.TOTALS, "llm_calls", 5)
    histogram.add(2.0)
    _count(redis, histogram, "llm.call")
    after = _ours(await _text(redis))
    counters = {key: value for key, value in before.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}
    assert len(counters) > 20
    assert all(after[key] >= value for key, value in counters.items())
    assert after["themes_llm_calls_total", frozenset()] == 1605


async def test_while_redis_is_away_it_says_so_and_nothing_else(tmp_path: Path) -> None:
    with Redis(unix_socket_path=str(tmp_path / "none")) as nobody:
        found = _ours(await _text(nobody))
    assert found == {("themes_up", frozenset()): 0}


async def test_many_scrapers_cause_one_read_and_the_loop_goes_on_meanwhile(redis: Redis) -> None:
    import asyncio

    reads: list[int] = []
    reader = SystemReader(redis, broker=redis)
    going_on = threading.Event()

    class Slow(SystemReader):
        def read(self) -> Any:
            reads.append(1)
            assert going_on.wait(180), "the loop was blocked"
            return reader.read()

    scrape = Scrape(Slow(redis, broker=redis))
    asked = [asyncio.create_task(scrape.text()) for _ in range(20)]
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, going_on.set)
    assert len(set(await asyncio.gather(*asked))) == 1
    assert len(reads) == 1


def test_an_unread_and_a_pending_result_are_told_apart(redis: Redis) -> None:
    for number in range(5):
        redis.xadd(keys.RESULTS, {"n": number})
    redis.xgroup_create(keys.RESULTS, keys.GROUP, id="0")
    redis.xreadgroup(keys.GROUP, "c", {keys.RESULTS: ">"}, count=2)
    system = read_system(redis, redis)
    assert (system.results, system.results_unread) == (5, 3)


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of all series that there can be."""
    names = {metric.name for metric in METRICS} | {"themes_up", "up"}
    return names | {f"{one.name}_{part}" for one in HISTOGRAMS for part in ("bucket", "sum", "count")}


def _queries() -> Iterator[str]:
    deploy = Path(__file__).parents[2] / "deploy"
    for group in yaml.safe_load((deploy / "prometheus" / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((deploy / "grafana" / "themes.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


@pytest.mark.parametrize("query", [*_queries()])
def test_every_query_of_an_alert_or_a_panel_asks_for_what_is_exported(query: str, exported: set[str]) -> None:
    names = promql_names(query)
    assert names, query
    assert names <= exported
    labels = {metric.name: set(metric.labels) for metric in METRICS} | {
        f"{one.name}_bucket": {*one.labels, "le"} for one in HISTOGRAMS
    }
    for name, matchers in re.findall(r"(themes_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', '""', matchers))) <= labels[name]
    for by in re.findall(r"by \(([^)]*)\)", query):
        known = set().union(*(labels.get(name, set()) for name in names))
        assert {each.strip() for each in by.split(",")} <= known
