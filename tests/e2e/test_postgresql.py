"""The whole engine with its results on a PostgreSQL server."""

import json

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get


def test_a_job_is_stored_shown_exported_and_asked_again(stack: Engine, postgresql_url: str) -> None:
    stack.env["DATABASE_URL"] = postgresql_url
    for name in ("c1", "c2"):
        stack.themes(name, "consumer")
    # The stack's own consumer has another database.
    stack.end("consumer")
    stack.themes("w", "worker", "--name", "w", THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="0")
    stack.ask_sandbox("/faults", ["503=1,match=Oslo"])
    rows = "\n".join(["name,country", "Kyoto,Japan", "Oslo,Norway", *(f"Town {n},Utopia" for n in range(40))])
    said = stack.run("enqueue", "-", "--wait", stdin=rows)
    job = said.stdout.strip()
    assert said.returncode == 1, said.stderr
    assert (stack.status(job)["done"], stack.status(job)["failed"]) == (41, 1)
    assert "Oslo, Norway" in stack.run("failures", job).stdout
    lines = stack.run("results", job, "--format", "jsonl", "--where", "country=Japan", "--category", "food").stdout
    assert [json.loads(line)["name"] for line in lines.splitlines()] == ["Kyoto"]
    url = _dashboard(stack)
    assert "Kyoto" in _get(f"{url}/jobs/{job}/destinations?q=kyoto")[1]
    stack.ask_sandbox("/faults", [])
    assert stack.run("retry", job, "--wait").returncode == 0
    until("the second end", lambda: stack.status(job)["done"] == 42)
    said = stack.run("enqueue", "-", "--only-missing", stdin="Kyoto, Japan\nBergen, Norway\n")
    assert "1 " in said.stderr
    assert "Traceback" not in "".join(stack.log(name) for name in ("c1", "c2", "dashboard"))
