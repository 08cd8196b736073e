"""What calls cost, through real processes: found in the list, in every book alike, and said where it is not known."""

import json
import re
import sqlite3
from typing import Any

import pytest
from redis import Redis

from tasks.jobs.totals import read_totals
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _free_port, _get
from tests.support.habits import in_a_thread

#: The sandbox, which answers, says its own name: it is to have no price.
LISTED = {"THEMES_MODEL": "openai/gpt-4o-mini", "THEMES_LLM__PRICES": "{}"}
ROWS = "name,country\nKyoto,Japan\nNara,Japan\nOslo,Norway\n"
THOUGHTS = 40


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Half of each prompt is out of the provider's cache, and each completion has thoughts before it."""
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"] + THOUGHTS,
        "prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"] // 2},
        "completion_tokens_details": {"reasoning_tokens": THOUGHTS},
    }


def _done(stack: Engine, *options: str) -> tuple[str, str]:
    said = stack.run("enqueue", "-", "--wait", "--force", *options, stdin=ROWS)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip(), said.stderr


def _report(stack: Engine, job_id: str) -> dict[str, Any]:
    said = stack.run("report", job_id, "--json")
    assert said.returncode == 0, said.stderr
    report: dict[str, Any] = json.loads(said.stdout)
    return report


def test_cached_and_reasoning_tokens_are_in_every_book_and_in_the_bill(stack: Engine) -> None:
    with in_a_thread(lambda *_: None, counts=_counts) as server:
        stack.env |= {"OPENAI_BASE_URL": server.url} | LISTED
        stack.env["THEMES_DASHBOARD__PORT"] = str(_free_port())
        stack.themes("dashboard", "dashboard")
        stack.themes("w", "worker", "--name", "w")
        job_id, stderr = _done(stack, "--budget", "1")
        assert "no price" not in stderr
        calls = len(server.asked)
    status = stack.status(job_id)
    usage = _report(stack, job_id)["usage"]
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        names = "prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost_usd, listed_usd"
        (stored,) = database.execute(f"SELECT {names} FROM jobs").fetchall()  # noqa: S608  # our own names
        (attempts,) = database.execute("SELECT sum(cached_tokens), sum(reasoning_tokens) FROM attempts").fetchall()
    prompt, completion, cached, reasoning, cost, listed = stored
    assert reasoning == THOUGHTS * calls
    assert prompt // 2 - calls <= cached <= prompt // 2
    assert cost == listed == pytest.approx(((prompt - cached) * 0.15 + cached * 0.075 + completion * 0.6) / 1e6)
    assert (status["cached_tokens"], status["reasoning_tokens"], status["cost_usd"]) == (cached, reasoning, cost)
    # Each call is rounded up to a whole nano-dollar.
    assert cost <= status["spent_usd"] <= cost + calls * 1e-9
    assert (usage["cached_tokens"], usage["reasoning_tokens"]) == (cached, reasoning) == attempts
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        totals = read_totals(redis)
    assert (totals["cached_tokens"], totals["reasoning_tokens"]) == (cached, reasoning)
    text = until("the dashboard", lambda: _get(f"http://127.0.0.1:{stack.env['THEMES_DASHBOARD__PORT']}/metrics")[1])
    pattern = r"^themes_llm_(cached|reasoning)_tokens_total(?:{kind=\"read\"})? (\S+)$"
    scraped = dict(re.findall(pattern, text, re.MULTILINE))
    assert {name: float(value) for name, value in scraped.items()} == {"cached": cached, "reasoning": reasoning}
    assert "k cached)" in stack.run("status", job_id).stdout


def test_a_cost_that_the_server_tells_counts_and_the_report_compares_it(stack: Engine) -> None:
    with in_a_thread(lambda *_: None, counts=lambda usage: usage | {"cost": 0.001}) as server:
        stack.env |= {"OPENAI_BASE_URL": server.url} | LISTED
        stack.themes("w", "worker", "--name", "w")
        job_id, _ = _done(stack)
        calls = len(server.asked)
    report = _report(stack, job_id)
    assert report["usage"]["cost_usd"] == pytest.approx(0.001 * calls)
    by = report["usage"]["cost_usd"] / report["usage"]["listed_usd"] - 1
    assert any(f"{by:+.1%}" in note and "themes prices" in note for note in report["notes"])


def test_a_model_without_a_price_is_said_once_when_its_job_is_enqueued(stack: Engine) -> None:
    said = stack.run("enqueue", "-", "--force", stdin=ROWS, THEMES_MODEL="gpt-99")
    assert said.returncode == 0
    assert said.stderr.splitlines().count("no price for gpt-99: costs are not counted; set llm.prices") == 1
    assert "no price" not in stack.run("enqueue", "-", "--force", stdin=ROWS).stderr, "the sandbox has one"


def test_prices_says_what_holds_at_each_endpoint_and_from_where(stack: Engine) -> None:
    endpoints = "{a: {base_url: https://api.openai.com/v1}, b: {base_url: https://vllm.example/v1}}"
    env = {"THEMES_LLM__ENDPOINTS": endpoints, "OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}
    said = stack.run("prices", "gpt-4o-mini", **env)
    assert said.returncode == 1
    assert "gpt-4o-mini at a (https://api.openai.com/v1)\n  prompt $0.15, cached $0.075, completion $0.6" in said.stdout
    assert "from genai-prices " in said.stdout
    assert "at b (https://vllm.example/v1): no price for gpt-4o-mini: costs are not counted" in said.stdout
    said = stack.run("prices", "gpt-4o-mini", "--endpoint", "a", "--json", **env)
    assert said.returncode == 0
    assert json.loads(said.stdout)["now"]["prompt"] == [[-1, 0.15]]
    said = stack.run("prices", "gpt-4o-mini", "--endpoint", "c", **env)
    assert said.returncode == 2
    assert "no endpoint 'c' in llm.endpoints (a, b)" in said.stderr


@pytest.mark.parametrize("verb", [("enqueue", "-", "--force"), ("worker", "--name", "w"), ("prices",)])
def test_a_file_of_prices_that_cannot_be_used_ends_a_verb_with_one_line(stack: Engine, verb: tuple[str, ...]) -> None:
    file = stack.folder / "prices.json"
    file.write_text('[{"id": 1}]')
    said = stack.run(*verb, stdin=ROWS, THEMES_LLM__PRICES_FILE=str(file))
    assert said.returncode == 2
    (line,) = [line for line in said.stderr.splitlines() if "prices_file" in line]
    assert f"{file}: Expected `str`, got `int`" in line
    assert "expected the data.json of genai-prices" in line


def test_a_job_is_bought_at_its_tier_and_its_report_says_what_that_saved(stack: Engine) -> None:
    stack.env["THEMES_LLM__PRICES"] = "{sandbox: {input_usd: 1, output_usd: 2}}"
    stack.themes("w", "worker", "--name", "w")
    job_id, _ = _done(stack, "--tier", "flex", "--deadline", "2h")
    billed = stack.ask_sandbox("/stats")["billed"]["flex"]
    assert billed["requests"] == 48
    usage = _report(stack, job_id)["usage"]
    half = (billed["prompt_tokens"] + 2 * billed["completion_tokens"]) / 2e6
    assert (usage["cost_usd"], usage["tier_saved_usd"]) == (pytest.approx(half), pytest.approx(half))
    assert f"other service tiers than standard saved ${half:.4f}"[:-2] in stack.run("report", job_id).stdout
    again, _ = _done(stack)
    assert stack.status(again)["cache_hits"] == 48, "a tier is no part of the cache's keys"
    assert "write a number and s, m, h or d" in stack.run("enqueue", "-", "--deadline", "soon", stdin=ROWS).stderr


def test_a_job_without_redis_is_bought_at_its_tier_too(stack: Engine) -> None:
    said = stack.run("run", "-", "--tier", "priority", stdin=ROWS)
    assert said.returncode == 0, said.stderr
    assert stack.ask_sandbox("/stats")["billed"]["priority"]["requests"] == 48
