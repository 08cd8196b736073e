"""Jobs that make some fields of each profile: what is asked, and where a user sees it."""

import csv
import json
import urllib.request
from collections import Counter

from redis import Redis

from config.settings import load
from tasks.queue.producer import enqueue
from tests.e2e.conftest import Engine, until
from workers.pipeline.prompts import load_stages

ROWS = "name,country\n" + "".join(f"City {number},Country {number % 3}\n" for number in range(4))
FINDING = [stage.name for stage in load_stages() if stage.asks == "new themes"]
PRICES = "{sandbox: {input_usd: 1, output_usd: 2}}"


def _asked(engine: Engine) -> Counter[str]:
    return Counter(entry["stage"] for entry in engine.ask_sandbox("/log"))


def test_workers_serve_jobs_with_different_fields_at_once_and_ask_what_each_wants(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    first = stack.run("enqueue", "-", "--fields", "themes", stdin=ROWS).stdout.strip()
    more = ROWS.replace("City", "Town")
    second = stack.run("enqueue", "-", "--fields", "analyse.price, overlap", stdin=more).stdout.strip()
    for job_id, fields in ((first, ["themes"]), (second, ["themes", "price", "overlap"])):
        status = until(f"{job_id} to end", lambda job_id=job_id: (s := stack.status(job_id))["state"] == "done" and s)
        assert (status["done"], status["partial"], status["failed"]) == (4, 0, 0)
        assert status["only_fields"] == fields
        assert f"only {', '.join(fields)}" in stack.run("status", job_id).stdout
    assert _asked(stack) == dict.fromkeys(FINDING, 8) | {"analyse.price": 4, "assess.overlap": 4}
    rows = list(csv.DictReader(stack.run("results", second, "--format", "csv").stdout.splitlines()))
    assert {row["price_point"] != "" for row in rows} == {True}
    assert {row["rationale"] for row in rows} == {""}
    assert "Of each profile only these fields were asked: themes" in stack.run("report", first).stdout
    assert stack.run("retry", first, "--partial").returncode == 0
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        stack.themes("dashboard", "dashboard")
        address = until("the dashboard", lambda: redis.get("themes:dashboard")).decode()
    with urllib.request.urlopen(f"{address}/jobs/{second}", timeout=180) as page:  # noqa: S310  # ours
        assert "only themes, price, overlap" in page.read().decode()
    assert stack.run("enqueue", "-", "--only-missing", "--fields", "overlap", "--wait", stdin=more).returncode == 0
    whole = stack.run("enqueue", "-", "--wait", stdin=more).stdout.strip()
    status = stack.status(whole)
    assert (status["only_fields"], status["llm_calls"], status["cache_hits"]) == ([], 4 * 9, 4 * 7)


def test_an_unknown_field_is_one_error_and_nothing_is_enqueued(stack: Engine) -> None:
    for verb in ("enqueue", "run"):
        said = stack.run(verb, "-", "--fields", "themes,prize", stdin=ROWS)
        assert (said.returncode, said.stdout) == (2, "")
        (line,) = said.stderr.splitlines()
        assert "themes: --fields: no field 'prize'; known: themes, confidence, price, seasonality" in line
    said = stack.run("enqueue", "-", stdin=ROWS, THEMES_PIPELINE__FIELDS="prize")
    assert (said.returncode, "pipeline.fields: no field 'prize'" in said.stderr) == (2, True)
    assert stack.run("enqueue", "-", "--fields", ",", stdin=ROWS).returncode == 2
    assert stack.run("status", "--json").stdout == ""
    assert stack.ask_sandbox("/log") == []


def test_a_field_that_the_workers_prompts_do_not_make_fails_its_destinations_by_name(stack: Engine) -> None:
    stack.themes("w", "worker", "--name", "w")
    settings = load(env=stack.env)
    job = enqueue(["Kyoto", "Lima"], fields=["slogan"], settings=settings)
    until("the job to end", lambda: stack.status(job.job_id)["state"] == "done")
    failures = [json.loads(line) for line in stack.run("failures", job.job_id, "--json").stdout.splitlines()]
    assert {one["error_class"] for one in failures} == {"ConfigError"}
    assert {"no field 'slogan'; known: themes" in one["message"] for one in failures} == {True}
    assert len(failures) == 2
    assert stack.ask_sandbox("/log") == []


def test_a_run_asks_for_the_fields_of_the_settings_or_the_option_s(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.env["THEMES_PIPELINE__FIELDS"] = "themes,seasonality"
    said = engine.run("run", "-", "--json", stdin=ROWS)
    assert said.returncode == 0, said.stderr
    job = json.loads(said.stdout)
    assert (job["only_fields"], job["partial"], job["llm_calls"]) == (["themes", "seasonality"], 0, 4 * 6)
    assert _asked(engine) == dict.fromkeys([*FINDING, "analyse.seasonality"], 4)
    left = engine.run("run", "-", "--only-missing", stdin=ROWS)
    assert "nothing to do: all 4 have a current profile" in left.stderr
    assert engine.run("run", "-", "--fields", "price", stdin=ROWS).returncode == 0
    assert _asked(engine)["analyse.price"] == 4
    resumed = engine.run("run", "--resume", job["job_id"], "--fields", "price")
    assert (resumed.returncode, "leave out" in resumed.stderr) == (2, True)
    assert engine.run("run", "-", "--fields", "*", stdin=ROWS).returncode == 0
    assert sum(_asked(engine).values()) == 4 * 16


def test_a_dry_run_says_what_each_field_costs(engine: Engine) -> None:
    env = {"THEMES_MODEL": "sandbox", "THEMES_LLM__PRICES": PRICES, "THEMES_REDIS__ENABLED": "false"}
    whole = json.loads(engine.run("enqueue", "-", "--dry-run", "--json", stdin=ROWS, **env).stdout)
    some = json.loads(engine.run("enqueue", "-", "--dry-run", "--json", "--fields", "price", stdin=ROWS, **env).stdout)
    assert len(whole["fields"]) == 12
    assert [(one["field"], one["calls"]) for one in some["fields"]] == [("themes", 20.0), ("price", 4.0)]
    for forecast in (whole, some):
        for what in ("calls", "prompt_tokens", "completion_tokens", "cost_usd"):
            together = sum(one[what] for one in forecast["fields"])
            assert abs(together - forecast[what]["expected"]) < 12
    assert [one for one in whole["fields"] if one["field"] in {"themes", "price"}] == some["fields"]
    said = engine.run("run", "-", "--dry-run", "--fields", "price", stdin=ROWS, **env).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("price ")]
    assert line.split()[1] == "4"
    assert line.count("$") == 2
    assert "rationale" not in said
