"""What limits the system, from what its processes report at one moment."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.jobs.registry import JobStatus
from tasks.waits import Wait
from tasks.worker_reports import (
    ConsumerReport,
    LatelyReport,
    PoolReport,
    ProcessReport,
    ProfileReport,
    RouteReport,
    SettingReport,
    WorkerReport,
)  # fmt: skip
from workers.diagnosis.finding import Finding
from workers.diagnosis.verdict import NONE, Pulse, of_findings, of_job, of_system

STATUS = JobStatus(
    "j", "a job", "running", 100, 40, 0, 0, 640, 0, 0, 1000, 1000, 1.0, 4.0, 15.0, 1000.0, 1001.0, None
)  # fmt: skip
LIMIT = SettingReport("a file", 600)


def _worker(
    *, busy: float = 12, in_use: float = 10, line: float = 0, rate: float = 0, cpu: float = 30, seats: float = 15,
    **more: Any,
) -> WorkerReport:  # fmt: skip
    route = RouteReport(model="m", queued=rate, limit=seats, latency_ms=400.0)
    profile = ProfileReport(process=ProcessReport(cpu_percent=cpu))
    lately, pool = LatelyReport(busy, in_use, line, rate), PoolReport(routes={"llm/m": route})
    return WorkerReport(lanes=12, connections=15, lately=lately, pool=pool, profile=profile, **more)


def _pulse(*workers: WorkerReport, **more: Any) -> Pulse:
    known = {f"w{number}": worker for number, worker in enumerate(workers)}
    usual: dict[str, Any] = {
        "consumers": {"c": ConsumerReport()}, "learnt": {}, "queue": 5, "results": 0, "behind_seconds": 0.0,
    }  # fmt: skip
    return Pulse(workers=known, **(usual | more))


AWAY = Wait("away", "llm", 0.0, None, "connection refused")
REFUSED = Wait("server_limit", "llm", 0.0, None, "429")
UNWRITTEN = Wait("other", "", 0.0, None, "the consumer is too far behind")
CASES = {
    "no worker": (_pulse(), "workers", ["No worker is running.", "themes worker"]),
    "no consumer": (
        _pulse(_worker(), consumers={}, results=7, behind_seconds=4.0),
        "database",
        ["No results consumer", "7 results wait", "themes consumer"],
    ),
    "a slow database": (
        _pulse(_worker(), results=1_240, behind_seconds=9.2),
        "database",
        ["1,240 results wait to be saved", "9.2 s"],
    ),
    "away": (_pulse(_worker(waiting_for=AWAY)), "endpoint", ["connection refused", "llm.endpoints"]),
    "refused": (_pulse(_worker(waiting_for=REFUSED)), "rate limit", ["429", "higher limit"]),
    "unwritten": (_pulse(_worker(waiting_for=UNWRITTEN)), "database", ["The consumer is too far behind."]),
    "one of two away": (_pulse(_worker(waiting_for=AWAY), _worker()), "lanes", ["all 24 are busy"]),
    "cpu": (
        _pulse(_worker(cpu=98, line=30), _worker(cpu=96)),
        "cpu",
        ["2 worker processes use 97 % of a core", "--workers 3"],
    ),
    "one full process": (_pulse(_worker(cpu=98), _worker(cpu=10)), "lanes", []),
    "a learned limit": (
        _pulse(_worker(rate=147, in_use=4), learnt={"llm/m": 720.0}),
        "rate limit",
        ["llm allows 720 requests/min", "147 calls wait for their turn, about 12", "Ask the provider"],
    ),
    "a set limit": (
        _pulse(_worker(rate=20, in_use=4, settings={"llm.requests_per_minute": LIMIT})),
        "rate limit",
        ["llm.requests_per_minute is 600", "20 calls wait for their turn, about 2 s each", "Raise the limit"],
    ),
    "the longer line": (
        _pulse(_worker(rate=20, line=30)),
        "connections",
        ["10 of 15 are in use and 30 calls wait for one"],
    ),
    "after refusals": (
        _pulse(_worker(line=30, in_use=4, seats=4)),
        "connections",
        ["after refusals 4 of 15 may be used", "by itself"],
    ),
    "a short line": (_pulse(_worker(line=1, rate=1)), "lanes", ["10 of 15 connections are in use", "worker_pool_size"]),
    "too little work": (_pulse(_worker(busy=3), queue=0), "work", ["3 of 12 lanes are busy", "nothing waits"]),
    "latency": (
        _pulse(_worker(busy=11), queue=0),
        "llm",
        ["nothing waits in line, an answer takes 400 ms", "llm.roles"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_longest_line_is_the_limit(case: str) -> None:
    pulse, resource, words = CASES[case]
    found = of_system(pulse, is_working=True)
    assert found.resource == resource, found
    assert all(each in found.words for each in words), found
    assert found == of_job(STATUS, pulse)
    for sentence in (found.text, found.advice):
        assert sentence[0].isupper()
        assert sentence.endswith(".")


def test_where_nothing_is_to_be_done_nothing_is_said() -> None:
    assert of_system(_pulse(_worker()), is_working=False) == NONE == of_findings([])
    paused = of_job(replace(STATUS, paused="user"), _pulse(_worker()))
    assert (paused.resource, paused.text[:7]) == ("work", "Paused:")
    assert of_job(replace(STATUS, state="done"), _pulse(_worker())) == NONE
    just_begun = _pulse(_worker(busy=0.4, in_use=0.3), queue=0)
    assert of_system(just_begun, is_working=True) == NONE == of_job(STATUS, just_begun)
    assert NONE.words == ""


def test_a_report_says_it_in_the_same_words() -> None:
    found = of_findings([Finding(resource="rate limit", share=1.0, evidence="a call waits 9 s", advice="raise it")])
    assert found.words == "Limited by the rate limit: a call waits 9 s. Raise it."
    setting = Finding(resource="lanes", share=1.0, evidence="12 of 12", advice="a.worker_pool_size 12 -> 24 gives 2x")
    assert of_findings([setting]).advice == "a.worker_pool_size 12 -> 24 gives 2x."
    unknown = of_findings([Finding(resource="unknown", share=0.0, evidence="too little", advice="look again")])
    assert unknown.words == "Too little. Look again."
