"""A Redis whose memory is full for a while: nothing that was paid for is lost, and no worker ends."""

import sqlite3
import time

from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until

COUNT = 80
ROWS = "name\n" + "".join(f"City {number}\n" for number in range(COUNT))
TIMES = 6


def test_a_redis_that_is_full_now_and_then_costs_neither_a_worker_nor_a_second_call(stack: Engine) -> None:
    stack.sandbox("--latency", "60ms")
    for name in ("a", "b"):
        stack.themes(name, "worker", "--name", name, THEMES_LOGGING__FORMAT="json")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        # A worker that starts while nothing can be written is started again: it has nothing in hand.
        until("both workers to stand", lambda: redis.zcard(keys.WORKERS) == 2)
    job_id = stack.run("enqueue", "-", stdin=ROWS).stdout.strip()
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        for number in range(TIMES):
            until("work to go on", lambda: stack.ask_sandbox("/stats")["in_flight"])
            redis.config_set("maxmemory", max(1, int(redis.info("memory")["used_memory"] * (0.3 + 0.1 * number))))
            time.sleep(1.0)  # what is to be suffered, not waited for
            redis.config_set("maxmemory", 0)
            if stack.status(job_id)["state"] == "done":
                break
    until("the job to end", lambda: stack.status(job_id)["state"] == "done")
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        ((rows,),) = database.execute("SELECT COUNT(*) FROM profiles WHERE job_id = ?", (job_id,)).fetchall()
    assert rows == COUNT
    for name in ("a", "b"):
        assert stack.logged(name, "restart") == []
    assert stack.ask_sandbox("/stats")["requests"] == 16 * COUNT
