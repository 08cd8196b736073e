"""`themes enqueue --dry-run`: a forecast and nothing else."""

import json

from redis import Redis

from tests.e2e.conftest import Engine, until

ROWS = "name,country\n" + "".join(f"City {number},Country {number % 3}\n" for number in range(20))
BAD = ROWS + "City 1,Country 1\n,Nowhere\n"
PRICES = "{sandbox: {input_usd: 1, output_usd: 2}}"


def test_a_dry_run_enqueues_nothing_and_foresees_what_is_then_asked(stack: Engine) -> None:
    stack.env["THEMES_LLM__PRICES"] = PRICES
    said = stack.run("enqueue", "-", "--dry-run", "--json", stdin=BAD)
    assert said.returncode == 0, said.stderr
    cold = json.loads(said.stdout)
    assert (cold["rows"], cold["duplicates"], cold["rejected"], cold["destinations"]) == (22, 1, 1, 20)
    assert cold["duplicate_rows"] == [
        {"line": 22, "label": "City 1, Country 1", "first_line": 3, "why": "same name and country"}
    ]
    assert cold["rejected_rows"] == [{"line": 23, "reason": "no name"}]
    assert (cold["duplicate_rows_left_out"], cold["likely_duplicates"], cold["unsent_columns"]) == (0, 0, [])
    assert "--id-column" in cold["identity"]
    assert cold["calls"] == {"expected": 320.0, "plus_minus": 0.0}
    assert cold["seconds"] is None
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert not list(redis.scan_iter("themes:job*"))
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("enqueue", "-", "--wait", "--limit", "10", stdin=ROWS).returncode == 0
    assert stack.ask_sandbox("/stats")["requests"] == 160

    def timed() -> dict[str, object] | None:
        found: dict[str, object] = json.loads(stack.run("enqueue", "-", "--dry-run", "--json", stdin=ROWS).stdout)
        return found if "time: measured by 1 running worker" in found["basis"] else None

    # Until its next heartbeat the time is that of the earlier job.
    half = until("the worker to report how long calls take", timed, every=0.5)
    assert (half["calls"]["expected"], half["cache_hits"]["expected"]) == (160.0, 160.0)
    assert half["seconds"] > 0
    assert half["notes"] == []
    assert half["basis"] == [
        "calls, tokens and cost: measured in 1 earlier job", "time: measured by 1 running worker",
    ]  # fmt: skip
    again = stack.run("enqueue", "-", "--dry-run", "--limit", "10", stdin=ROWS)
    assert again.stdout == ""
    assert "nothing was enqueued" in again.stderr
    assert "$0.00" in again.stderr
    assert stack.ask_sandbox("/stats")["requests"] == 160


def test_a_dry_run_needs_no_redis(engine: Engine) -> None:
    away = {"REDIS_URL": "redis://127.0.0.1:1/0", "THEMES_MODEL": "gpt"}
    said = engine.run("enqueue", "-", "--dry-run", stdin=ROWS, **away)
    assert said.returncode == 0, said.stderr
    assert "the cache was not looked at" in said.stderr
    assert "no price for gpt; set llm.prices" in said.stderr
    assert "Traceback" not in said.stderr
    assert engine.run("enqueue", "-", "--json", stdin=ROWS, **away).returncode == 2


def test_run_and_enqueue_forecast_the_same_without_redis_and_without_a_key(engine: Engine) -> None:
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "THEMES_MODEL": "gpt", "OPENAI_API_KEY": ""}
    said = {
        name: engine.run(*arguments, "-", "--dry-run", stdin=BAD, **env, **more)
        for name, arguments, more in (
            ("run", ["run"], {}),
            ("enqueue", ["enqueue"], {}),
            ("enqueue, redis.enabled false", ["enqueue"], {"THEMES_REDIS__ENABLED": "false"}),
        )
    }
    assert {name: (one.returncode, one.stdout) for name, one in said.items()} == dict.fromkeys(said, (0, "")), said
    lines = {name: [line for line in one.stderr.splitlines() if "Redis" not in line] for name, one in said.items()}
    assert lines["run"] == lines["enqueue, redis.enabled false"]
    assert lines["enqueue"] == [line for line in lines["run"] if not line.startswith("note: the cache")]
    text = "\n".join(lines["run"])
    for words in (
        "read as CSV", "first: City 0, Country 0 | City 1, Country 1 | City 2, Country 2\n",
        "City 1, Country 1: a duplicate of line 3", "20 destinations (22 rows, 1 duplicate, 1 rejected)",
        "calls, tokens and cost: assumed",
    ):  # fmt: skip
        assert words in text, text
    assert not (engine.folder / "var" / "run.db").exists()
    refused = engine.run("run", "--resume", "j", "--dry-run", **env)
    assert (refused.returncode, "--dry-run forecasts a new job" in refused.stderr) == (2, True)


def test_a_dry_run_of_run_knows_what_its_cache_holds_and_what_its_jobs_measured(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.env["THEMES_LLM__PRICES"] = PRICES
    assert engine.run("run", "-", "--limit", "5", stdin=ROWS).returncode == 0
    asked = engine.ask_sandbox("/stats")
    found = json.loads(engine.run("run", "-", "--dry-run", "--json", "--limit", "10", stdin=ROWS).stdout)
    assert (found["calls"]["expected"], found["cache_hits"]["expected"]) == (80.0, 80.0)
    assert found["basis"][0] == "calls, tokens and cost: measured in 1 earlier job"
    assert found["basis"][1].startswith("time: measured in 1 earlier job (")
    assert found["seconds"] > 0
    assert found["completion_tokens"]["expected"] == asked["completion_tokens"]
    assert found["notes"] == []
    assert engine.ask_sandbox("/stats")["requests"] == asked["requests"] == 80


def test_a_dry_run_says_what_may_be_one_place_and_what_is_not_sent(engine: Engine) -> None:
    rows = "name,country,type\n" + "".join(f"Köln {n},Germany,city\nKoln {n},Germany,city\n" for n in range(30))
    away = {"REDIS_URL": "redis://127.0.0.1:1/0", "THEMES_MODEL": "gpt"}
    said = engine.run("enqueue", "-", "--dry-run", stdin=rows, **away).stderr
    assert said.count("may be the same place as line") == 20
    assert "themes: line 3: Koln 0, Germany: may be the same place as line 2, Köln 0, Germany" in said
    assert "10 more likely duplicates: --dry-run --json lists them" in said
    assert "columns not sent to the model: type (--column 'type' sends one)" in said
    assert "60 destinations (60 rows, 0 duplicates, 0 rejected, 30 may be the same place as another)" in said
    assert "rows are one destination by their id" in said
    found = json.loads(engine.run("enqueue", "-", "--dry-run", "--json", "--column", "type", stdin=rows, **away).stdout)
    assert (found["likely_duplicates"], len(found["likely_duplicate_rows"]), found["unsent_columns"]) == (30, 30, [])
    longer = engine.run("enqueue", "-", "--dry-run", "--json", stdin=rows, **away)
    tokens = [found["prompt_tokens"]["expected"], json.loads(longer.stdout)["prompt_tokens"]["expected"]]
    assert tokens[0] > tokens[1]
