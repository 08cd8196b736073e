"""Passwords and keys are in no output, log, database, file or key of Redis, wherever they were written."""

import pytest
from aiohttp import web
from redis import Redis

from tests.e2e.conftest import Engine, until
from tests.support.habits import in_a_thread, refuses

CANARIES = ("canary-key-1", "canary-password-2", "canary-query-3", "canary-header-4")


@pytest.mark.parametrize("way", ["key", "address"])
def test_no_secret_is_anywhere_but_in_the_request(way: str, stack: Engine) -> None:
    known = (CANARIES[0], CANARIES[3]) if way == "key" else CANARIES[1:]

    def habit(number: int, _: object) -> web.StreamResponse | None:
        return refuses(400, f"this is what you sent: {', '.join(known)}") if number % 7 == 0 else None

    env = {"THEMES_LLM__HEADERS": f"{{api-key: {CANARIES[3]}}}", "THEMES_MODEL": "sandbox"}
    with in_a_thread(habit) as server:
        if way == "key":
            env |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": CANARIES[0]}
        else:
            where = server.url.replace("//", f"//me:{CANARIES[1]}@") + f"?api-key={CANARIES[2]}"
            env |= {"OPENAI_BASE_URL": where, "OPENAI_API_KEY": ""}
        stack.themes("worker", "worker", THEMES_LOGGING__LEVEL="DEBUG", **env)
        rows = "name\n" + "".join(f"City {number}\n" for number in range(20))
        job_id = stack.run("enqueue", "-", stdin=rows).stdout.strip()
        until("the job to end", lambda: stack.status(job_id)["state"] == "done")
        said = ""
        for verb in (
            ["config", "show"], ["config", "show", "--json"], ["doctor"], ["failures", job_id], ["status", job_id],
            ["results", job_id, "--format", "json"], ["report", job_id, "--json"],
        ):  # fmt: skip
            ran = stack.run(*verb, **env)
            said += ran.stdout + ran.stderr
    assert [canary for canary in CANARIES if canary in said] == []
    for path in stack.folder.rglob("*"):
        if path.is_file() and "redis" not in path.parts:
            assert [canary for canary in CANARIES if canary.encode() in path.read_bytes()] == [], path
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        for key in redis.scan_iter("*"):
            dumped = redis.dump(key) or b""
            assert [canary for canary in CANARIES if canary.encode() in dumped] == [], key
