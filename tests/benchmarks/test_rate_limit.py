"""A server that allows 50 requests/s and a burst of 300: time and calls of 800 prompts, from N processes."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, load
from tasks.connection import connect_async
from tests.benchmarks.figures import tell
from tests.benchmarks.full_prompts import prompt_about, stages
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler

pytestmark = pytest.mark.benchmark
ITEMS, IN_FLIGHT = 800, 64
PER_SECOND, BURST = 50, 300
IDEAL_SECONDS = (ITEMS - BURST) / PER_SECOND


@pytest.fixture
def limited_sandbox(limit: str) -> Iterator[str]:
    """A sandbox with the limit, in a process of its own."""
    retry_after = "exact" if "exact" in limit else "none" if "no " in limit else "whole"
    allowed = f"{PER_SECOND}/s,burst={BURST},retry_after={retry_after}"
    command = [sys.executable, "-m", "scripts.main", "sandbox-llm", "--port", "0", "--latency", "50ms"]
    with subprocess.Popen(
        [*command, "--rate-limit", allowed], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.terminate()


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    "limit", ["configured", "learnt, whole seconds", "learnt, exact seconds", "learnt, no Retry-After"]
)
def test_time_and_calls_under_a_shared_limit(
    limited_sandbox: str,
    processes: int,
    limit: str,
    redis_url: str,
    settings_for: Callable[..., Settings],
) -> None:
    """Layer: the LLM layer of 2 or 4 processes, all sixteen prompts, the sandbox's answers (0.1 to 6 KB).

    The limit is configured (`llm.requests_per_minute`, `llm.request_burst`), or learnt from 429s whose Retry-After is
    in whole seconds, exact, or missing. Measured once each; no prompt may be lost.
    """
    base_url = limited_sandbox
    ours = {"THEMES_LLM__REQUESTS_PER_MINUTE": str(PER_SECOND * 60), "THEMES_LLM__REQUEST_BURST": str(BURST)}
    env = {
        "OPENAI_BASE_URL": base_url,
        "THEMES_MODEL": "sandbox",
        "REDIS_URL": redis_url,
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(IN_FLIGHT // processes),
        **(ours if limit == "configured" else {}),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(number), str(ITEMS // processes)],
            env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(processes)
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    for process in running:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    answered = sum(int(process.communicate(timeout=120)[0]) for process in running)
    stats, log = _read(f"{base_url.removesuffix('/v1')}/stats"), _read(f"{base_url.removesuffix('/v1')}/log")
    # From the word to begin to the last answer, by the server's log (one machine, one monotonic clock).
    took = max(entry["ended"] for entry in log) - began
    case = f"{processes} processes"
    tell(case, f"{limit}: time over the ideal", [(took / IDEAL_SECONDS - 1) * 100], "%")
    tell(case, f"{limit}: calls over the ideal", [(stats["requests"] / ITEMS - 1) * 100], "%")
    tell(case, f"{limit}: refused calls", [stats["rate_limited"]])
    assert answered == ITEMS


def _read(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:  # noqa: S310  # our own sandbox
        return json.load(answer)


async def _process(number: int, count: int) -> int:
    """One worker's part: `count` prompts of its own, as many at once as it has connections."""
    settings = load()
    lanes = settings.performance_optimization.llm_connection_pool_size
    profiler = PerformanceProfiler(enabled=True)
    redis = connect_async(settings.redis_url, socket_timeout_seconds=5)
    stack = AsyncExitStack()
    pool = await stack.enter_async_context(LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis))
    (route,) = pool.routes
    await route.limiter.cool_down.listening.wait()
    await pool.warm(lanes)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
    prompts = [prompt_about(number * count + one, stages()[one % len(stages())]) for one in range(count)]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    todo = iter(prompts)

    async def lane() -> int:
        answered = 0
        for prompt in todo:
            answered += (
                await generator.answer(prompt, stage_stats=StageStats(), request_priority=0)
            ).source == "called"
        return answered

    done = await asyncio.gather(*(lane() for _ in range(lanes)), return_exceptions=True)
    for failure in done:
        if isinstance(failure, BaseException):
            print(repr(failure), file=sys.stderr)
    print(repr(route.limiter), repr(route.concurrency), file=sys.stderr)
    await stack.aclose()
    await redis.aclose()
    return sum(part for part in done if isinstance(part, int))


if __name__ == "__main__":
    print(asyncio.run(_process(int(sys.argv[1]), int(sys.argv[2]))))
