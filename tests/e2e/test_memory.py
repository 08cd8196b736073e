"""A worker that works for long does not grow."""

import json
import os
from pathlib import Path

import psutil
import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tests.e2e.conftest import Engine, until

#: A job of 16 completions a destination, and how much memory may come and go in its second half: garbage not yet
#: collected, buffers, the allocator's own. Both find 200 bytes that every completion leaves behind.
JOBS = [
    pytest.param(750, 1024 * 1024, id="12,000 completions"),
    pytest.param(6_250, 8 * 1024 * 1024, id="100,000 completions", marks=pytest.mark.soak),
]


def _celery(engine: Engine, supervisor: str) -> psutil.Process:
    """The process that a supervisor has started."""
    (child,) = psutil.Process(engine.processes[supervisor].pid).children()
    return child


@pytest.mark.timeout(1_000)
@pytest.mark.parametrize(("destinations", "slack_bytes"), JOBS)
def test_a_worker_that_works_for_long_has_not_grown(
    destinations: int, slack_bytes: int, engine: Engine, tmp_path: Path
) -> None:
    # A cache that is soon full, so that the rest of the job shows what grows; many connections, so that it is quick.
    engine.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_MEMORY_CACHE_MB": "1",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "64",
        "THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_STREAMING_RESULTS": "false",
    }
    with LocalRedis(tmp_path / "var", os.environ.get("THEMES_REDIS__SERVER", "auto")) as server:
        engine.env["REDIS_URL"] = server.url
        engine.sandbox("--latency", "0")
        engine.themes("consumer", "consumer")
        engine.forks = None  # a forked one begins with the memory of many
        engine.themes("w", "worker", "--name", "w")
        path = tmp_path / "cities.csv"
        path.write_text("name\n" + "".join(f"City {number}\n" for number in range(destinations)))
        job_id = engine.run("enqueue", str(path)).stdout.strip()
        redis = Redis.from_url(server.url)
        until("the worker to start", lambda: list(redis.scan_iter(keys.worker("*"))))
        process, sizes = _celery(engine, "w"), []

        def is_done() -> bool:
            sizes.append((int(redis.hget(keys.job(job_id), "llm_calls") or 0), process.memory_info().rss))
            return (redis.hget(keys.job(job_id), "state") or b"").decode() == "done"

        until("the job to be done", is_done, 900)
        status = engine.status(job_id)
        calls = 16 * destinations
        assert (status["done"], status["llm_calls"]) == (destinations, calls)
        assert process.is_running(), "the same process did all of it"
        early = max(size for made, size in sizes if made <= calls / 2)
        late = max(size for made, size in sizes if made > calls / 2)
        assert late - early < slack_bytes, json.dumps(sizes[:: max(1, len(sizes) // 20)])
        redis.close()
        engine.stop()
