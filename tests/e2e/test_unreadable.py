"""A job that cannot be read, as a person meets it."""

import json
import urllib.error
import urllib.request

from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard


def _page(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=180) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as bad:
        return bad.code, bad.read().decode()


def test_one_job_is_unreadable_and_the_others_run_to_their_end(stack: Engine) -> None:
    url = _dashboard(stack)
    bad, worse, good = (
        stack.run("enqueue", "-", "--name", name, stdin="Kyoto, Japan\nRome, Italy\n").stdout.strip()
        for name in ("bad", "worse", "good")
    )
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        redis.hset(keys.job(bad), "total", "nan")
        redis.delete(keys.job(worse))
        redis.set(keys.job(worse), b"\xff")
        stack.themes("w", "worker", "--name", "w")
        until("the good job's end", lambda: stack.status(good)["state"] == "done")
        redis.hset(keys.job(bad), "total", "nan")
        until("the bad jobs on the list", lambda: '"unreadable"' in _page(f"{url}/jobs.json")[1])
        code, text = _page(f"{url}/jobs.json")
        assert {job["job_id"]: job["tag"] for job in json.loads(text)} == {
            bad: "unreadable", worse: "unreadable", good: "done",
        }  # fmt: skip
        for place in ("/jobs", "/llm"):
            code, text = _page(url + place)
            assert code == 200, place
            assert "its key holds no hash" in text, place
        code, text = _page(f"{url}/metrics")
        assert code == 200
        assert 'themes_jobs{state="unreadable"} 1.0' in text
        code, text = _page(f"{url}/jobs/{bad}")
        assert (code, "cannot be read" in text) == (503, True)
        listed = stack.run("status")
        assert (listed.returncode, "Traceback" in listed.stderr) == (0, False)
        assert "good" in listed.stdout
        for verb in (["status"], ["status", "--json"], ["watch"], ["pause"]):
            said = stack.run(verb[0], worse, *verb[1:])
            assert (said.returncode, said.stderr.count("\n")) == (1, 1), said.stderr
            assert "cannot be read (its key holds no hash)" in said.stderr
