"""A worker that works for long does not grow."""

import json
import os
from pathlib import Path

import psutil
import pytest
from redis import Redis

from scripts.local_redis import LocalRedis
from tasks import keys
from tests.e2e.conftest import Engine, until

#: Destinations of 16 completions each: 100,000 in all.
DESTINATIONS = 6_250
#: Memory that may come and go: garbage not yet collected, buffers, the allocator's own.
SLACK_BYTES = 8 * 1024 * 1024


def _celery(engine: Engine, supervisor: str) -> psutil.Process:
    """The process that a supervisor has started."""
    (child,) = psutil.Process(engine.processes[supervisor].pid).children()
    return child


@pytest.mark.timeout(1_000)
def test_a_worker_that_made_100_000_completions_has_not_grown(engine: Engine, tmp_path: Path) -> None:
    # A cache that is soon full and many connections, so that it is over in a minute.
    engine.env |= {
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_MEMORY_CACHE_MB": "4",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": "64",
        "THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_STREAMING_RESULTS": "false",
    }
    with LocalRedis(tmp_path / "var", os.environ.get("THEMES_REDIS__SERVER", "auto")) as server:
        engine.env["REDIS_URL"] = server.url
        engine.sandbox("--latency", "0")
        engine.themes("consumer", "consumer")
        engine.themes("w", "worker", "--name", "w")
        path = tmp_path / "cities.csv"
        path.write_text("name\n" + "".join(f"City {number}\n" for number in range(DESTINATIONS)))
        job_id = engine.run("enqueue", str(path)).stdout.strip()
        redis = Redis.from_url(server.url)
        until("the worker to start", lambda: list(redis.scan_iter(keys.worker("*"))))
        process, sizes = _celery(engine, "w"), []

        def is_done() -> bool:
            sizes.append((int(redis.hget(keys.job(job_id), "llm_calls") or 0), process.memory_info().rss))
            return (redis.hget(keys.job(job_id), "state") or b"").decode() == "done"

        until("100,000 completions", is_done, 900)
        status = engine.status(job_id)
        assert (status["done"], status["llm_calls"]) == (DESTINATIONS, 16 * DESTINATIONS)
        assert process.is_running(), "the same process did all of it"
        early = max(size for calls, size in sizes if calls <= 25_000)
        late = max(size for calls, size in sizes if calls > 75_000)
        assert late - early < SLACK_BYTES, json.dumps(sizes[:: max(1, len(sizes) // 20)])
        redis.close()
        engine.stop()
