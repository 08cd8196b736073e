"""`themes extend`: fields are added to the profiles of a job, and nothing else is asked."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until

ROWS = "name,country\n" + "".join(f"City {number},Country {number % 3}\n" for number in range(6))
PRICES = "{sandbox: {input_usd: 1, output_usd: 2}}"


@pytest.fixture
def asked(stack: Engine) -> Callable[[], Counter[str]]:
    """What was asked since it was asked last."""
    seen = 0

    def since() -> Counter[str]:
        nonlocal seen
        log = stack.ask_sandbox("/log")
        seen, before = len(log), seen
        return Counter(entry["stage"] for entry in log[before:])

    return since


def _query(stack: Engine, sql: str) -> list[Any]:
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        return database.execute(sql).fetchall()


def _profiles(stack: Engine, job_id: str) -> dict[str, dict[str, Any]]:
    lines = stack.run("results", job_id, "--format", "jsonl").stdout.splitlines()
    return {(profile := json.loads(line))["destination_id"]: profile for line in lines}


def _books_are_right(stack: Engine, job_id: str) -> None:
    """What the server was asked is in the job's, the destinations' and the attempts' books, once each."""
    calls = stack.ask_sandbox("/stats")["requests"]
    assert stack.status(job_id)["llm_calls"] == calls
    for table in ("jobs", "destinations", "attempts", "profiles"):
        assert _query(stack, f"SELECT SUM(llm_calls) FROM {table}") == [(calls,)], table  # noqa: S608


def test_fields_are_added_from_the_database_alone_and_each_profile_keeps_its_row(
    stack: Engine, asked: Callable[[], Counter[str]]
) -> None:
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", "-", "--fields", "price", "--wait", stdin=ROWS).stdout.strip()
    numbers = _query(stack, "SELECT destination_id, profile_no FROM profiles ORDER BY 1")
    before = _profiles(stack, job_id)
    asked()
    # Nothing of what was answered is there any more, but the profiles.
    assert stack.run("cache", "clear", "--yes").returncode == 0
    stack.end("w")
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("extend", job_id, "--fields", "rationale,assess.*,price", "--wait")
    assert said.returncode == 0, said.stderr
    assert "adding fields to 6 profiles" in said.stderr
    assert asked() == dict.fromkeys(["enhance.rationale", "assess.overlap", "assess.quality", "assess.authenticity"], 6)
    status = stack.status(job_id)
    assert (status["state"], status["total"], status["done"], status["partial"]) == ("done", 6, 6, 0)
    assert status["only_fields"] == ["themes", "price", "authenticity", "overlap", "quality", "rationale"]
    assert _query(stack, "SELECT destination_id, profile_no FROM profiles ORDER BY 1") == numbers
    after = _profiles(stack, job_id)
    for destination_id, profile in after.items():
        old = before[destination_id]
        for theme, was in zip(profile["themes"], old["themes"], strict=True):
            assert theme["rationale"]
            assert theme["authenticity_score"] is not None
            assert {name: theme[name] for name in was if was[name] is not None} == {
                name: value for name, value in was.items() if value is not None
            }
        assert profile["overlap_analysis"] is not None
        assert profile["quality_assessment"]["overall"] is not None
        assert (profile["status"], profile["missing"], len(profile["stages"])) == ("ok", [], 10)
        assert profile["pipeline_version"] != old["pipeline_version"]
        assert profile["usage"]["llm_calls"] == 10
    _books_are_right(stack, job_id)
    left = stack.run("enqueue", "-", "--only-missing", "--fields", "price,rationale,assess.*", stdin=ROWS)
    assert "all 6 have a current profile" in left.stderr
    again = stack.run("extend", job_id, "--fields", "rationale", "--wait")
    assert (again.returncode, "6 of job" in again.stderr, "nothing to add" in again.stderr) == (0, True, True)
    assert asked() == {}


def test_what_cannot_be_added_is_said_and_costs_nothing(stack: Engine, asked: Callable[[], Counter[str]]) -> None:
    stack.env["THEMES_LLM__PRICES"] = PRICES
    stack.ask_sandbox("/faults", ["400=1,match=City 3"])
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", "-", "--fields", "themes", "--wait", stdin=ROWS).stdout.strip()
    asked()
    for fields, words in (
        ("prize", "no field 'prize'; known: themes, confidence"), ("discover.*", "every profile has its themes"),
    ):  # fmt: skip
        said = stack.run("extend", job_id, "--fields", fields)
        assert (said.returncode, words in said.stderr) == (2, True), said.stderr
    unknown = stack.run("extend", "20260101-000000-abcdef", "--fields", "price")
    assert (unknown.returncode, "no job" in unknown.stderr) == (2, True)
    assert asked() == {}
    # A stage that the server refuses leaves a partial profile; then the same command asks what lacks, and no more.
    stack.ask_sandbox("/faults", ["400=1,match=price level of a day"])
    said = stack.run("extend", job_id, "--fields", "price,confidence", "--wait")
    assert "1 of job" in said.stderr
    assert "have no profile" in said.stderr
    first = asked()
    assert first["analyse.confidence"] == first["analyse.price"] == 5
    assert (stack.status(job_id)["done"], stack.status(job_id)["partial"]) == (5, 5)
    stack.ask_sandbox("/faults", [])
    assert stack.run("extend", job_id, "--fields", "price,confidence", "--wait").returncode == 1, "City 3 has failed"
    assert asked() == {"analyse.price": 5}
    assert stack.status(job_id)["partial"] == 0
    assert all(theme["price_point"] for one in _profiles(stack, job_id).values() for theme in one["themes"])
    # A budget that is used up holds the extension up as it does any job.
    said = stack.run("extend", job_id, "--fields", "rationale", "--budget", "0.0001")
    assert said.returncode == 0, said.stderr
    until("the budget to stop it", lambda: stack.status(job_id)["paused"] == "budget")
    refused = stack.run("extend", job_id, "--fields", "rationale")
    assert (refused.returncode, "is paused" in refused.stderr) == (2, True)
    assert asked() == {}
    assert stack.run("resume", job_id, "--budget", "5").returncode == 0
    until("it to end", lambda: stack.status(job_id)["state"] == "done")
    assert asked() == {"enhance.rationale": 5}
    # A cancelled one leaves the profiles as they are, and the same command goes on.
    stack.run("extend", job_id, "--fields", "sub_themes", "--budget", "0.0001")
    until("the budget to stop it", lambda: stack.status(job_id)["paused"] == "budget")
    assert stack.run("cancel", job_id).returncode == 0
    assert len(_profiles(stack, job_id)) == 5
    said = stack.run("extend", job_id, "--fields", "sub_themes", "--budget", "9", "--wait")
    assert "adding fields to 5 profiles" in said.stderr
    assert asked() == {"enhance.sub_themes": 5}, said.stderr
    assert (stack.status(job_id)["state"], stack.status(job_id)["done"]) == ("done", 5)
    _books_are_right_with_failures(stack, job_id)


def _books_are_right_with_failures(stack: Engine, job_id: str) -> None:
    calls = stack.ask_sandbox("/stats")["requests"]
    assert stack.status(job_id)["llm_calls"] == calls
    assert _query(stack, "SELECT SUM(llm_calls) FROM attempts") == [(calls,)]


def test_a_retry_keeps_what_was_added_and_what_is_cached_is_added_for_nothing(
    stack: Engine, asked: Callable[[], Counter[str]]
) -> None:
    stack.env["THEMES_WORK__DESTINATION_ATTEMPTS"] = "1"
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", "-", "--fields", "themes", "--wait", stdin=ROWS).stdout.strip()
    whole = stack.run("enqueue", "-", "--wait", stdin=ROWS).stdout.strip()
    asked()
    # Profiles of all fields are in the cache whole, and are not taken for what is added.
    assert stack.run("extend", job_id, "--fields", "price,confidence", "--wait").returncode == 0
    assert asked() == {}
    assert {len(one["stages"]) for one in _profiles(stack, job_id).values()} == {7}
    assert stack.run("cache", "clear", "--yes").returncode == 0
    stack.end("w")
    stack.themes("w", "worker", "--name", "w")
    stack.ask_sandbox("/faults", ["400=1,match=unique selling points"])
    stack.run("extend", job_id, "--fields", "selling_points,rationale", "--wait")
    assert stack.status(job_id)["partial"] == 6
    stack.ask_sandbox("/faults", [])
    assert stack.run("retry", job_id, "--partial", "--wait").returncode == 0
    profiles = _profiles(stack, job_id)
    assert stack.status(job_id)["partial"] == 0
    for profile in profiles.values():
        assert len(profile["stages"]) == 9
        assert all(theme["rationale"] and theme["unique_selling_points"] for theme in profile["themes"])
    assert stack.run("extend", whole, "--fields", "*", "--wait").stderr.endswith("nothing to add\n")


def test_a_job_that_runs_is_refused_and_one_whose_chunks_are_lost_is_extended_anew(
    stack: Engine, asked: Callable[[], Counter[str]]
) -> None:
    stack.themes("w", "worker", "--name", "w")
    job_id = stack.run("enqueue", "-", "--fields", "themes", "--wait", stdin=ROWS).stdout.strip()
    stack.end("w")
    asked()
    assert stack.run("extend", job_id, "--fields", "price").returncode == 0
    until("the job to be open", lambda: _query(stack, "SELECT state FROM jobs") == [("running",)])
    refused = stack.run("extend", job_id, "--fields", "rationale")
    assert (refused.returncode, "fields are added when it has ended" in refused.stderr) == (2, True), refused.stderr
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        # As where `extend` was killed before it had published any.
        redis.delete(keys.chunks(job_id), keys.leases(job_id), keys.labels(job_id))
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("extend", job_id, "--fields", "price", "--wait")
    assert said.returncode == 0, said.stderr
    assert asked() == {"analyse.price": 6}
    assert all(theme["price_point"] for one in _profiles(stack, job_id).values() for theme in one["themes"])


def test_workers_extend_a_job_that_was_run_without_them(stack: Engine, asked: Callable[[], Counter[str]]) -> None:
    stack.end("consumer")
    assert stack.run("run", "-", "--fields", "themes", stdin=ROWS).returncode == 0
    ((job_id,),) = _query(stack, "SELECT job_id FROM jobs")
    asked()
    stack.themes("consumer-2", "consumer")
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("extend", job_id, "--fields", "analyse.*", "--wait")
    assert said.returncode == 0, said.stderr
    names = ("analyse.confidence", "analyse.price", "analyse.seasonality", "analyse.travellers")
    assert asked() == dict.fromkeys(names, 6)
    _books_are_right(stack, job_id)


def test_killed_workers_lose_no_profile_and_add_each_field_once(stack: Engine) -> None:
    stack.env |= {"THEMES_WORK__LEASE_SECONDS": "2", "THEMES_WORK__HEARTBEAT_SECONDS": "0.5"}
    stack.env["THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE"] = "5"
    stack.sandbox("--latency", "100ms")
    stack.themes("w", "worker", "--name", "w")
    rows = "name\n" + "".join(f"Town {number}\n" for number in range(20))
    job_id = stack.run("enqueue", "-", "--fields", "themes", "--wait", stdin=rows).stdout.strip()
    before = _profiles(stack, job_id)
    asked = stack.ask_sandbox("/stats")["requests"]
    assert stack.run("extend", job_id, "--fields", "rationale,price").returncode == 0
    until("some to be asked", lambda: stack.ask_sandbox("/stats")["requests"] > asked + 10)
    stack.end("w", kill=True)
    stack.themes("w2", "worker", "--name", "w2")
    until("the job to end", lambda: stack.status(job_id)["state"] == "done")
    after = _profiles(stack, job_id)
    assert set(after) == set(before)
    for destination_id, profile in after.items():
        assert [one["name"] for one in profile["themes"]] == [one["name"] for one in before[destination_id]["themes"]]
        assert all(theme["rationale"] and theme["price_point"] for theme in profile["themes"])
        assert len(profile["stages"]) == 7
    assert stack.status(job_id)["failed"] == 0
