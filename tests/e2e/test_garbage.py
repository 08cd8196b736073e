"""Thousands of entries of garbage in the Celery queue, amid a job."""

import random
from pathlib import Path

from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tests.e2e.conftest import Engine, until
from tests.support.garbage import kinds

ENTRIES, COUNT = 2_500, 60


def test_thousands_of_entries_of_garbage_neither_end_the_worker_nor_lose_a_message(
    stack: Engine, tmp_path: Path
) -> None:
    stack.themes("w", "worker", "--name", "w")
    path = tmp_path / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(COUNT)))
    chance = random.Random(4)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("the worker to be there", lambda: fleet.workers(redis))
        (before,) = fleet.workers(redis).values()
        job_id = stack.run("enqueue", str(path)).stdout.strip()
        sent = 0
        while sent < ENTRIES:
            with redis.pipeline(transaction=False) as pipeline:
                for entry in kinds(chance):
                    # At both ends, and among the messages of every priority.
                    push = chance.choice([pipeline.lpush, pipeline.rpush])
                    push(chance.choice(keys.queue_keys()), entry)
                    sent += 1
                pipeline.execute()
        watched = stack.run("watch", job_id)
        assert watched.returncode == 0, watched.stderr
        until("the queue to be empty", lambda: not any(redis.llen(key) for key in keys.queue_keys()))
        (after,) = fleet.workers(redis).values()
        assert (after.pid, after.started_at) == (before.pid, before.started_at)
        assert 0 < redis.llen(keys.QUEUE_DEAD) <= keys.DEAD_ENTRIES
        until("nothing to be unacknowledged", lambda: not redis.hlen("themes:unacked"))
    log = stack.log("w")
    assert 0 < len(stack.logged("w", "message_dead")) < 50
    assert "Traceback" not in log
    status = stack.status(job_id)
    assert (status["done"], status["failed"], status["llm_calls"]) == (COUNT, 0, COUNT * 16)


def test_a_reply_between_stock_workers_is_no_garbage(stack: Engine) -> None:
    worker = ("worker", "--pool", "threads", "--concurrency", "2", "--loglevel", "INFO")
    stack.celery("one", *worker, "--hostname", "one@here")
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        # It has told of itself before, and answers nobody yet.
        until("the first worker to be ready", lambda: "one@here ready" in stack.log("one"))
        # It asks the first one for its state before it begins ("mingle").
        stack.celery("two", *worker, "--hostname", "two@here")
        until("the second worker to be there", lambda: len(fleet.workers(redis)) == 2)
        until("the second worker to be ready", lambda: "two@here ready" in stack.log("two"))
        assert "mingle: sync complete" in stack.log("two")
        assert redis.lrange(keys.QUEUE_DEAD, 0, -1) == []
