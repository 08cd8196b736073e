"""The live sentence says what limits a job while it does, and says it no more when the limit goes."""

import json
import shutil
from typing import Any

import pytest
from redis import Redis

from tasks.jobs import registry
from tests.e2e.conftest import Engine, until
from workers.diagnosis.verdict import Verdict, of_job, read_pulse
from workers.pipeline.prompts import BUILT_IN, SYSTEM

#: Two prompts, one after the other.
STAGES = ("discover.food", "analyse.price")


@pytest.fixture
def light(engine: Engine, stack: Engine) -> Engine:
    folder = stack.folder / "prompts"
    folder.mkdir()
    for name in STAGES:
        shutil.copy(BUILT_IN / f"{name}.md", folder)
    shutil.copy(BUILT_IN / SYSTEM, folder)
    stack.env["THEMES_PIPELINE__PROMPTS_DIR"] = str(folder)
    return stack


def _said(light: Engine, job: str) -> Verdict:
    with Redis.from_url(light.env["REDIS_URL"]) as redis:
        return of_job(registry.status(redis, job), read_pulse(redis, redis))


def test_a_planted_limit_is_named_while_it_lasts(light: Engine) -> None:
    light.sandbox("--latency", "400ms")
    env = {
        "THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE": "8",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "16",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_MIN_SIZE": "0",
    }
    light.themes("w", "worker", "--name", "w", **env)
    until("the worker", lambda: light.logged("w", "start"))
    places = "".join(f"Place {number}, Utopia\n" for number in range(5_000))
    job = light.run("enqueue", "-", stdin=places).stdout.strip()

    def says(resource: str, *words: str) -> None:
        def look() -> bool:
            found = _said(light, job)
            return found.resource == resource and all(each in found.words for each in words)

        until(f"{resource}: {_said(light, job)}", look)

    says("lanes", "all 8 are busy while", "of 16 connections are in use", "worker_pool_size")
    for verb in (["status", job], ["top", "--once"], ["report", job]):
        shown = " ".join(light.run(*verb).stdout.split())
        assert "Limited by lanes: all 8 are busy while" in shown, shown
    for planted, mended, resource, words in (
        (
            ["requests_per_minute=240"],
            ["requests_per_minute=60000"],
            "rate limit",
            ("is 240", "wait for their turn, about"),
        ),
        (
            ["llm_connection_pool_size=2"],
            ["llm_connection_pool_size=16"],
            "connections",
            ("2 of 2 are in use", "wait for one"),
        ),
    ):
        assert light.run("tune", *planted).returncode == 0
        says(resource, *words)
        assert light.run("tune", *mended).returncode == 0
        says("lanes")
    assert light.run("pause", job).returncode == 0
    says("work", "Paused", f"themes resume {job}")
    assert light.run("resume", job).returncode == 0
    light.end("w", kill=True)
    until("the end of its report", lambda: _said(light, job).resource == "workers")
    assert "themes worker" in _said(light, job).advice


def test_a_job_whose_limit_went_away_near_its_end_was_bound_by_it(light: Engine) -> None:
    light.sandbox("--latency", "50ms")
    limited = {"THEMES_LLM__REQUESTS_PER_MINUTE": "240", "THEMES_LLM__REQUEST_BURST": "1"}
    light.themes("w", "worker", "--name", "w", **limited)
    until("the worker", lambda: light.logged("w", "start"))
    places = "".join(f"Place {number}, Utopia\n" for number in range(60))
    job = light.run("enqueue", "-", stdin=places).stdout.strip()
    until("most of the job", lambda: light.status(job)["done"] >= 20)
    assert light.run("tune", "requests_per_minute=60000").returncode == 0
    until("its end", lambda: light.status(job)["state"] == "done")

    def report() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads(light.run("report", job, "--json").stdout)
        return found if {hop["name"]: hop["count"] for hop in found["hops"]}.get("destination") == 60 else None

    found = until("its measurements", report, every=0.5)
    first, *others = found["findings"]
    assert first["resource"] == "rate limit"
    assert "since the limit changed" in first["evidence"]
    assert found["verdict"]["text"] == f"Limited by the rate limit: {first['evidence']}."
    assert not any(each["gain"] for each in others), others
